"""What `--check` says of a run."""

import os
from copy import deepcopy
from math import ceil

from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from ..quiet import quiet
from ..spelling import counted
from .errors import in_one_line
from .mixed_precision import describe_precision
from .preflight import brings_weights, preflight, pretrained_parts

# Where launchers tell the number of all processes. `tools/dist_run.sh` checks before there are any.
_WORLD_SIZES = ('WORLD_SIZE', 'SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')


def summarize(cfg: Config, training: bool) -> str:
    """Checks a run, builds its data sets, and tells what it will do.

    Args:
        cfg: As in `preflight`.
        training: As there.

    Returns:
        A line for each of model, weights and data, and for batch size, learning rate and steps of a training.

    Raises:
        PreflightError: With the first thing that is wrong.
    """
    lines = {'model': _describe_model(preflight(cfg, training))}
    lines['weights'] = _describe_weights(cfg, training)
    if training:
        images, lines['training data'] = _describe_data(cfg, 'train')
        if cfg.get('val_dataloader'):
            _, lines['validation data'] = _describe_data(cfg, 'val')
        lines |= _describe_schedule(cfg, images)
    else:
        _, lines['test data'] = _describe_data(cfg, 'test')
    lines['work directory'] = cfg.work_dir
    width = max(map(len, lines)) + 2
    return '\n'.join(f'{name:<{width}}{text}' for name, text in lines.items())


def _describe_model(model: nn.Module) -> str:
    backbone = f' with {type(model.backbone).__name__}' if hasattr(model, 'backbone') else ''
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    total, trained = sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)
    frozen = f', {(total - trained) / 1e6:.2f} M of them frozen' if trained < total else ''
    return f'{type(model).__name__}{backbone}, {total / 1e6:.2f} M parameters{frozen}'


def _describe_weights(cfg: Config, training: bool) -> str:
    load_from = cfg.get('load_from')
    if cfg.get('resume'):
        return f'the training goes on from {load_from}'
    own = {
        name.removeprefix('model.'): file
        for name, _, file in pretrained_parts(cfg)
        if training and not brings_weights(cfg, name)
    }
    sources = [f'{name} from {file}' for name, file in own.items()]
    if load_from:
        ignored = cfg.get('load_ignore')
        return ', '.join([f'from {load_from}{f" without {ignored}" if ignored else ""}', *sources])
    return ', '.join([*sources, 'the rest as initialised' if sources else 'as initialised, from scratch'])


def _describe_data(cfg: Config, split: str) -> tuple[int, str]:
    """Number of images, and the line about them."""
    node = cfg[f'{split}_dataloader'].dataset
    with quiet(), in_one_line(f'{split}_dataloader.dataset', node):
        dataset = DATASETS.build(deepcopy(node))
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        images = len(dataset)
        infos = map(dataset.get_data_info, range(images)) if hasattr(dataset, 'get_data_info') else []
        instances = [instance for info in infos for instance in info.get('instances', ())]
    crowds = sum(bool(instance.get('ignore_flag')) for instance in instances)
    parts = [counted(images, 'image')]
    if classes := getattr(dataset, 'metainfo', {}).get('classes'):
        parts.append(counted(len(classes), 'class', 'classes'))
    if instances:
        parts.append(counted(len(instances) - crowds, 'instance'))
    if crowds:
        parts.append(counted(crowds, 'crowd'))
    return images, f'{", ".join(parts)} ({type(dataset).__name__}{_find_folder(dataset)})'


def _find_folder(dataset: object) -> str:
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    place = getattr(dataset, 'ann_file', '') or getattr(dataset, 'data_root', '')
    return f', {place}' if place else ''


def _describe_schedule(cfg: Config, images: int) -> dict[str, str]:
    """Batch size, learning rate and steps of a training."""
    processes, each = _count_processes(cfg.launcher), cfg.train_dataloader.batch_size
    batch = processes * each
    batch_line = counted(batch, 'image')
    if processes > 1:
        batch_line += f', {each} in each of {processes} processes'
    if (accumulated := cfg.optim_wrapper.get('accumulative_counts', 1)) > 1:
        batch_line += f'; weights change every {accumulated} steps'

    optimizer, scaling = cfg.optim_wrapper.get('optimizer') or {}, cfg.get('auto_scale_lr') or {}
    rate, base = optimizer.get('lr'), scaling.get('base_batch_size', batch)
    rate_line = f'the default of {optimizer.get("type")}'
    if rate is not None:
        rate_line = f'{rate:g}, {optimizer.type}'
        if base != batch and scaling.get('enable'):
            rate_line = f'{rate * batch / base:g}, {optimizer.type}; scaled from {rate:g} for {base} images'
        elif base != batch:
            rate_line += f'; meant for {base} images a step, --auto-scale-lr adapts it'

    loop, loader = cfg.train_cfg, cfg.train_dataloader
    per_process = ceil(images / processes)
    an_epoch = per_process // each if loader.get('drop_last') else ceil(per_process / each)
    an_epoch = loader.get('num_batch_per_epoch') or an_epoch
    if 'max_epochs' in loop:
        steps = f'{an_epoch * loop.max_epochs:,}: {counted(loop.max_epochs, "epoch")} of {an_epoch:,}'
    else:
        steps = f'{loop.max_iters:,}, about {loop.max_iters * batch / max(images, 1):.1f} epochs'
    return {
        'batch size': batch_line,
        'learning rate': rate_line,
        'precision': describe_precision(cfg),
        'steps': steps,
    }


def _count_processes(launcher: str) -> int:
    if launcher == 'none':
        return 1
    for name in _WORLD_SIZES:
        if name in os.environ:
            return int(os.environ[name])
    return int(os.environ.get('LOCAL_WORLD_SIZE', 1)) * int(os.environ.get('NNODES', 1))
