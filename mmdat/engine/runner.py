import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, RUNNERS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from torch import nn

from ..checkpoint.schemes import guard_schemes
from .config import load_config
from .data_guard import MAX_BROKEN_IMAGES, guard_data
from .distributed.processes import check_start
from .errors import in_one_line, walk
from .hooks import MissedValidationHook, StrictCheckpointHook
from .own_data import find_class_weights, settings_of
from .preflight import brings_weights, pretrained_parts
from .randomness import SeedHook, number_samples
from .saving import RemoveAfterSaveHook, guard_saving


def build_model(config: str) -> nn.Module:
    """The model of a config file, as initialised by PyTorch.

    Raises:
        PreflightError: If the file cannot be read, or the model not be built.
    """
    cfg = load_config(config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with in_one_line('model', cfg.get('model')):
        return MODELS.build(cfg.model)


def build_runner(cfg: Config) -> Runner:
    """The runner of a config, on GPUs or on CPUs.

    It loads checkpoints safely and strictly, saves them whole or not at all, and ends as if it had not been
    stopped and resumed.

    Files of `init_cfg` are not read where `load_from` brings the weights. Without GPUs the processes of the
    pytorch launcher talk over gloo. One process shards nothing: it leaves out a `strategy` of MMEngine's
    `FlexibleRunner`. Where classes follow from the data (`own_data.py`), weights that `load_from` has for
    another number of them are left as initialised. Top-level `load_ignore` and `load_generation` of the
    config: see `StrictCheckpointHook`; `max_broken_images`: see `guard_data`.
    """
    guard_schemes()
    guard_saving()
    for name, part, _ in list(pretrained_parts(cfg)):
        if brings_weights(cfg, name):
            part.init_cfg = None
    if cfg.launcher == 'none':
        cfg.pop('strategy', None)
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        _distribute_over_cpus(cfg)
    ignore, classes = cfg.get('load_ignore', ()), None
    if settings_of(cfg) and cfg.get('load_from') and not cfg.get('resume'):
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
            classes = find_class_weights(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    check_start(cfg)
    ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    # before the hook that keeps averages of the weights takes them over
    hook = StrictCheckpointHook(ignore, cfg.get('load_generation'), classes)
    runner.register_hook(hook, priority='VERY_HIGH')
    number_samples(runner._train_dataloader)
    for hook in (SeedHook(), RemoveAfterSaveHook(), MissedValidationHook()):
        runner.register_hook(hook)
    guard_data(runner, cfg.get('max_broken_images', MAX_BROKEN_IMAGES))
    return runner


def _distribute_over_cpus(cfg: Config) -> None:
    # MMEngine's own start, and its wrapper, bind each process to a GPU
    dist.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if 'runner_type' in cfg:
        strategy = cfg.setdefault('strategy', ConfigDict(type='DDPStrategy'))
        if strategy.type == 'DDPStrategy':
            strategy.setdefault('model_wrapper', wrapper)
    else:
        cfg.model_wrapper_cfg = wrapper
    for _, node in walk(cfg.model, 'model'):
        if node.get('type') == 'SyncBN':  # PyTorch's refuses CPUs
            node.type = 'mmdat.CPUSyncBN'
