"""What can be known to fail before any work is done, said in one line."""

import os
import os.path as osp
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from mmengine.config import Config

from ..checkpoint import CheckpointError, find_checkpoint, read_checkpoint
from ..checkpoint.sources import SCHEME
from ..utils import check_mmcv_ops

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


class PreflightError(RuntimeError):
    """A run that cannot succeed: says what is missing and what to do, in one line."""


def preflight(cfg: Config, training: bool) -> None:
    """Checks libraries, launcher, files and data of a run.

    Args:
        cfg: The whole config, as it will be run.
        training: Whether the training and validation data are needed, or the test data.

    Raises:
        PreflightError: With the first thing that is wrong.
    """
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
    _check_launcher(cfg.launcher)
    _check_strategy(cfg, training)
    if training and 'Amp' in str(cfg.optim_wrapper.get('type')) and not torch.cuda.is_available():
        raise PreflightError('mixed precision training needs a GPU, run without --amp')
    _check_checkpoints(cfg, training)
    for split in ('train', 'val') if training else ('test',):
        _check_data(cfg, split)


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
    for name, node in walk(cfg.model, 'model'):
        if node.get('type') == 'Pretrained' and node.get('checkpoint'):
            _check_checkpoint(node.checkpoint, f'; `--cfg-options {name}=None` trains from scratch')


def _check_checkpoint(checkpoint: str, hint: str = '') -> None:
    is_mine = '://' not in checkpoint or checkpoint.startswith((SCHEME, 'http://', 'https://'))
    if not is_mine:  # MMEngine looks up torchvision:// and the like
        return
    try:
        read_checkpoint(find_checkpoint(checkpoint), lazy=True)
    except CheckpointError as error:
        raise PreflightError(f'{error}{hint}') from error


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


def walk(node: Any, name: str) -> Iterator[tuple[str, dict]]:
    """All dicts below a node, with their dotted names."""
    if isinstance(node, dict):
        yield name, node
        children = node.items()
    elif isinstance(node, list | tuple):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        yield from walk(child, f'{name}.{key}')
