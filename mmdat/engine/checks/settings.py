"""Settings of what is not built before the run: loops, hooks, metrics, samplers, visualizer."""

import inspect
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    VISBACKENDS,
    VISUALIZERS,
    Registry,
)

from ...quiet import quiet
from ...spelling import did_you_mean, find_slip
from ..errors import PreflightError, arguments, in_one_line, unknown_type


def check_settings(cfg: Config, training: bool) -> None:
    """Compares the settings of each part, by name, with what its class takes.

    Raises:
        PreflightError: With the first type or setting that is unknown, or the first that is missing.
    """
    for name, registry, node, given in _parts(cfg, training):
        if not isinstance(node, dict) or 'type' not in node:
            raise PreflightError(f'{name} must be a dict with its type, got {node!r}')
        cls = find_class(registry, node, name)
        if not inspect.isclass(cls):
            continue
        settings = node.keys() - {'type', '_scope_', *given}
        known, required, takes_more = arguments(cls)
        for setting in sorted(settings - set(known)):
            if not takes_more or find_slip(setting, known):
                hint = did_you_mean(setting, known)
                raise PreflightError(f'{name}: {cls.__name__} has no setting {setting!r}{hint}')
        if missing := sorted(required - settings - {*given}):
            raise PreflightError(f'{name}: {cls.__name__} needs a setting {missing[0]!r}')


def find_class(registry: Registry, node: dict, name: str) -> Any:
    """The class or function that a part of a config names by its `type`.

    Raises:
        PreflightError: If there is none.
    """
    kind = node.get('type')
    if not isinstance(kind, str):
        return kind
    with quiet(), in_one_line(name), registry.switch_scope_and_registry(node.get('_scope_')) as inner:
        found = inner.get(kind)
        if found is None:
            raise PreflightError(unknown_type(name, kind, inner))
        return found


def _parts(cfg: Config, training: bool) -> Iterator[tuple[str, Registry, Any, tuple[str, ...]]]:
    """Name, registry, settings of each part, and what MMEngine adds to them."""
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if hook is not None:
            yield f'default_hooks.{name}', HOOKS, hook, ('priority',)
    for i, hook in enumerate(cfg.get('custom_hooks') or []):
        yield f'custom_hooks.{i}', HOOKS, hook, ('priority',)
    for split in ('train', 'val') if training else ('test',):
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        loop = dict(cfg[f'{split}_cfg'])
        if split == 'train' and 'type' not in loop:
            by_epoch = loop.pop('by_epoch', None)
            if by_epoch is None:
                raise PreflightError('train_cfg needs its type, or by_epoch=True or False')
            loop['type'] = 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop'
        loop.setdefault('type', 'ValLoop' if split == 'val' else 'TestLoop')
        yield f'{split}_cfg', LOOPS, loop, ('runner', 'dataloader', 'evaluator')
        yield f'{split}_dataloader.sampler', DATA_SAMPLERS, loader.sampler, ('dataset', 'seed')
        if loader.get('batch_sampler') is not None:
            given = ('sampler', 'batch_size')
            yield f'{split}_dataloader.batch_sampler', DATA_SAMPLERS, loader.batch_sampler, given
        metrics = cfg.get(f'{split}_evaluator') or []
        if isinstance(metrics, dict):
            yield f'{split}_evaluator', METRICS, metrics, ()
            continue
        for i, metric in enumerate(metrics):
            yield f'{split}_evaluator.{i}', METRICS, metric, ()
    if cfg.get('visualizer'):
        yield 'visualizer', VISUALIZERS, cfg.visualizer, ()
        for i, backend in enumerate(cfg.visualizer.get('vis_backends') or []):
            yield f'visualizer.vis_backends.{i}', VISBACKENDS, backend, ('save_dir',)
    if cfg.get('log_processor'):
        yield 'log_processor', LOG_PROCESSORS, dict(type='LogProcessor') | dict(cfg.log_processor), ()
