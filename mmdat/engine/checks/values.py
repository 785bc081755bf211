"""Parts that a config must have, and values that MMEngine takes without a look."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config

from ...rules import integer, number, one_of, optional
from ...spelling import did_you_mean
from ..errors import PreflightError

_SCOPES = ('mmengine', 'mmdet', 'mmseg', 'mmpretrain', 'mmdat')
_TOGETHER = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}
_NOT_NEGATIVE = number(lambda value: value >= 0, 'not below 0')
_RULES = {
    **{f'{split}_dataloader.batch_size': integer(1) for split in _TOGETHER},
    **{f'{split}_dataloader.num_workers': integer(0) for split in _TOGETHER},
    'train_cfg.max_epochs': integer(1),
    'train_cfg.max_iters': integer(1),
    'train_cfg.val_interval': integer(1),
    'train_cfg.val_begin': integer(0),
    'optim_wrapper.optimizer.lr': _NOT_NEGATIVE,
    'optim_wrapper.optimizer.weight_decay': _NOT_NEGATIVE,
    'optim_wrapper.accumulative_counts': integer(1),
    'optim_wrapper.clip_grad.max_norm': number(lambda norm: norm > 0, 'above 0'),
    'auto_scale_lr.enable': one_of(True, False),
    'auto_scale_lr.base_batch_size': integer(1),
    'default_hooks.checkpoint.interval': integer(-1),
    'default_hooks.logger.interval': integer(1),
    'randomness.seed': optional(integer(0)),
}
_ABSENT = object()


def check_values(cfg: Config, training: bool) -> None:
    """Checks that the parts of a run are there, and the values in `_RULES`.

    Raises:
        PreflightError: With the first that is missing or wrong.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    if not isinstance(scope, str) or find_spec(scope) is None:
        raise PreflightError(f'default_scope={scope!r} is not installed{did_you_mean(scope, _SCOPES)}')
    if not isinstance(cfg.get('model'), dict):
        raise PreflightError(f"model must be a dict with the model's type, got {cfg.get('model')!r}")
    for split in ('train', 'val') if training else ('test',):
        _check_together(cfg, split)
    for name, rule in _RULES.items():
        value = _look_up(cfg, name)
        if value is not _ABSENT and not rule.allows(value):
            raise PreflightError(f'{name} must be {rule.text}, got {value!r}')


def _check_together(cfg: Config, split: str) -> None:
    parts = {name: cfg.get(name) for name in _TOGETHER[split]}
    missing = [name for name, part in parts.items() if part is None]
    if split == 'val' and len(missing) == len(parts):
        return
    if missing:
        raise PreflightError(f'the config lacks {", ".join(missing)}: {", ".join(parts)} are needed together')
    for name, part in parts.items():
        if not isinstance(part, dict) and not (name.endswith('evaluator') and isinstance(part, list)):
            raise PreflightError(f'{name} must be a dict, got {part!r}')
    for name in (f'{split}_dataloader.dataset', f'{split}_dataloader.sampler'):
        part = _look_up(cfg, name)
        if not isinstance(part, dict) or 'type' not in part:
            got = 'the config has none' if part is _ABSENT else f'got {part!r}'
            raise PreflightError(f'{name} must be a dict with its type, {got}')


def _look_up(node: Mapping | Config, name: str) -> Any:
    for key in name.split('.'):
        if not isinstance(node, dict | Config) or key not in node:
            return _ABSENT
        node = node[key]
    return node
