"""What can be known to fail before any work is done, said in one line."""

import os
import os.path as osp
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import PretrainedInit
from mmengine.registry import init_default_scope
from torch import nn

from ..checkpoint import CheckpointError, find_checkpoint, read_checkpoint
from ..checkpoint.files import check_whole
from ..checkpoint.locations import HUGGING_FACE, SCHEME
from .checks.building import check_classes, try_data, try_model, try_optimizer
from .checks.data import check_annotations
from .checks.environment import check_mmcv_ops
from .checks.settings import check_settings
from .checks.values import check_values
from .errors import PreflightError, walk
from .mixed_precision import check_amp

_GET_COCO = (
    'download train2017, val2017 and annotations from https://cocodataset.org/#download, '
    'or draw a small set in the same layout with `python tools/make_demo_data.py DIR`'
)
# How to get the data of a data set type.
_GET_DATA = {
    'CocoDataset': _GET_COCO,
    'ADE20KDataset': (
        'download ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu and unpack it'
    ),
    'ImageNet': 'download ILSVRC2012 from https://image-net.org and unpack it into train/ and val/',
}
_IMAGENET_CLASSES = 1000
# The environment that each launcher gives its processes.
_LAUNCHERS = {
    'pytorch': ('RANK', 'start with `bash tools/dist_train.sh CONFIG GPUS` or torchrun'),
    'slurm': ('SLURM_PROCID', 'start with `bash tools/slurm_train.sh` or srun'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'start with mpirun'),
}


def preflight(cfg: Config, training: bool) -> nn.Module:
    """Checks a run before data are loaded: first all settings, then the files of data and of weights.

    Weights come last, because they may have to be downloaded; data that are missing are told after them.

    Args:
        cfg: The whole config, as it will be run.
        training: Whether the training and validation data are needed, or the test data.

    Returns:
        The model that was built to be checked, without weights.

    Raises:
        PreflightError: With the first thing that is wrong.
    """
    _check_libraries()
    check_values(cfg, training)
    _check_launcher(cfg.launcher)
    _check_strategy(cfg, training)
    if training:
        check_amp(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    check_settings(cfg, training)
    model = try_model(cfg)
    if training:
        try_optimizer(cfg, model)
    splits = ('train', 'val') if training else ('test',)
    there = {split: _has_data(cfg, split) for split in splits}
    for split in splits:
        check_classes(model, split, try_data(cfg, split, there[split]))
    for split in splits:
        if there[split]:
            check_annotations(cfg, split)
    _check_checkpoints(cfg, training)
    for split in splits:
        _check_data(cfg, split)
    return model


def _check_libraries() -> None:
    try:
        check_mmcv_ops()
        from mmcv.ops import get_compiling_cuda_version
    except ImportError as error:
        raise PreflightError(str(error)) from error
    if torch.cuda.is_available() and get_compiling_cuda_version() == 'not available':
        raise PreflightError(
            'mmcv was compiled without CUDA, its ops cannot run on this GPU: install the CUDA toolkit and '
            'repeat the set-up, or hide the GPU with CUDA_VISIBLE_DEVICES='
        )


def _check_launcher(launcher: str) -> None:
    if launcher == 'none':
        return
    variable, how = _LAUNCHERS[launcher]
    if variable not in os.environ:
        raise PreflightError(f'--launcher {launcher} without its launcher ({variable} unset): {how}')
    processes, gpus = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), torch.cuda.device_count()
    if gpus and processes > gpus:
        raise PreflightError(f'{processes} processes for {gpus} GPUs: start at most one for each')
    if not gpus and launcher != 'pytorch':
        raise PreflightError(f'no GPU: on CPUs only the pytorch launcher runs, not {launcher}')


def _check_strategy(cfg: Config, training: bool) -> None:
    strategy = (cfg.get('strategy') or {}).get('type')
    if strategy and 'runner_type' not in cfg:
        raise PreflightError("`strategy` needs `runner_type='FlexibleRunner'` beside it")
    if not training and cfg.launcher == 'none':
        return  # one process tests without a strategy
    if strategy == 'DeepSpeedStrategy' and find_spec('deepspeed') is None:
        raise PreflightError(
            'DeepSpeedStrategy needs DeepSpeed: `pip install deepspeed`, or take '
            "strategy.type='mmdat.FullyShardedStrategy' and optim_wrapper.type='OptimWrapper', which need "
            'PyTorch only'
        )
    if strategy == 'DeepSpeedStrategy' and cfg.launcher == 'none':
        raise PreflightError('DeepSpeedStrategy needs a launcher: `bash tools/dist_train.sh CONFIG GPUS`')
    if strategy == 'FSDPStrategy' and not torch.cuda.is_available() and cfg.launcher != 'none':
        raise PreflightError(
            "MMEngine's FSDPStrategy needs GPUs: strategy.type='mmdat.FullyShardedStrategy' runs on CPUs too"
        )


def _check_checkpoints(cfg: Config, training: bool) -> None:
    """Finds, or downloads, and reads all files of weights, so that none fails once the run has begun."""
    if load_from := cfg.get('load_from'):
        _check_checkpoint(load_from)
    if not training:
        return
    for name, _, checkpoint in pretrained_parts(cfg):
        if not brings_weights(cfg, name):
            _check_checkpoint(checkpoint, f'; `--cfg-options {name}.init_cfg=None` trains from scratch')


def pretrained_parts(cfg: Config) -> Iterator[tuple[str, ConfigDict, str]]:
    """Name, settings and file of each part of the model that starts from a file of its own."""
    for name, part in walk(cfg.model, 'model'):
        init_cfg = part.get('init_cfg')
        for init in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
            is_pretrained = isinstance(init, dict) and init.get('type') in ('Pretrained', PretrainedInit)
            if is_pretrained and init.get('checkpoint'):
                yield name, part, init['checkpoint']


def brings_weights(cfg: Config, part: str) -> bool:
    """Whether `load_from` brings all weights of a part of the model, so that no other file is needed."""
    if not cfg.get('load_from'):
        return False
    ignore = () if cfg.get('resume') else cfg.get('load_ignore', ())
    weights = part.removeprefix('model').removeprefix('.')
    prefixes = (ignore,) if isinstance(ignore, str) else ignore
    return not any(prefix.startswith(weights) or weights.startswith(prefix) for prefix in prefixes)


def _check_checkpoint(checkpoint: str, hint: str = '') -> None:
    is_mine = '://' not in checkpoint or checkpoint.startswith((SCHEME, HUGGING_FACE, 'http://', 'https://'))
    if not is_mine:  # MMEngine looks up torchvision:// and the like
        return
    try:
        path = find_checkpoint(checkpoint)
        check_whole(path)
        read_checkpoint(path, lazy=True)
    except CheckpointError as error:
        raise PreflightError(f'{error}{hint}') from error


def _has_data(cfg: Config, split: str) -> bool:
    try:
        _check_data(cfg, split)
    except PreflightError:  # said later: what is wrong with settings, and then with weights, comes first
        return False
    return True


def _check_data(cfg: Config, split: str) -> None:
    dataloader = cfg.get(f'{split}_dataloader')
    if dataloader is None:
        return
    for _, dataset in walk(dataloader.dataset, 'dataset'):
        name = str(dataset.get('type', '')).rpartition('.')[-1]
        root = dataset.get('data_root') or ''
        prefixes = dataset.get('data_prefix') or (name == 'ImageNet' and dataset.get('split')) or {}
        prefixes = prefixes.values() if isinstance(prefixes, dict) else [prefixes]
        parts = ['', dataset.get('ann_file'), *prefixes]
        for path in [osp.join(root, part) for part in parts if isinstance(part, str)]:
            if path and _is_missing(path):
                how = f'{_GET_DATA[name]}; ' if name in _GET_DATA else ''
                if 'data_format' in cfg:
                    how = 'the settings at the top of the config say where data are; '
                raise PreflightError(
                    f'{split} data {osp.normpath(path)} does not exist: {how}'
                    'a data set elsewhere is named by `--cfg-options data_root=DIR`'
                )
        if name == 'ImageNet' and dataset.get('split') and not dataset.get('ann_file'):
            _check_classes(root, dataset.split)


def _check_classes(root: str, split: str) -> None:
    """Without a list of files, each folder of ImageNet is a class."""
    if osp.exists(osp.join(root, 'meta', f'{split}.txt')):
        return
    folder = osp.join(root, split)
    number = sum(entry.is_dir() for entry in os.scandir(folder))
    if number != _IMAGENET_CLASSES:
        raise PreflightError(
            f'{folder} has {number} class folders, ImageNet-1K has {_IMAGENET_CLASSES}: '
            f'{_GET_DATA["ImageNet"]}; for classes of your own follow configs/learning/flowers5_dat.py'
        )


def _is_missing(path: str) -> bool:
    return '://' not in path and not osp.exists(osp.expanduser(path))
