import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from ..checkpoint.schemes import guard_schemes
from .hooks import StrictCheckpointHook
from .preflight import walk
from .processes import check_start


def build_model(config: str) -> nn.Module:
    """The model of a config file, as initialised by PyTorch."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    return MODELS.build(cfg.model)


def build_runner(cfg: Config) -> Runner:
    """The runner of a config, on GPUs or on CPUs, that loads checkpoints safely and strictly.

    Without GPUs the processes of the pytorch launcher talk over gloo, and batch norms keep to their own
    process, because PyTorch synchronises them on GPUs only. Top-level `load_ignore` and
    `load_generation` of the config: see `StrictCheckpointHook`.
    """
    guard_schemes()
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        # MMEngine's own start binds each process to a GPU
        dist.init_process_group('gloo')
        for _, node in walk(cfg.model, 'model'):
            if node.get('type') == 'SyncBN':
                node.type = 'BN'
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    ignore = cfg.get('load_ignore', ())
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    check_start(cfg)
    ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    # before the hook that keeps averages of the weights takes them over
    hook = StrictCheckpointHook(ignore, cfg.get('load_generation'))
    runner.register_hook(hook, priority='VERY_HIGH')
    return runner
