"""Builds what is cheap of a run, so that bad settings show before time is spent.

That is the model, which runs once on a tiny image, its optimizer, and the data sets without annotations.
"""

import inspect
import os
import os.path as osp
import re
from collections.abc import Iterator
from copy import deepcopy
from traceback import walk_tb
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseTTAModel
from mmengine.optim import OptimWrapperDict, build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, OPTIMIZERS, PARAM_SCHEDULERS
from torch import nn
from torch.utils.data import DataLoader

from ...quiet import quiet
from ..errors import PreflightError, failed_line, in_one_line, walk
from .settings import find_class

_SIDE = 64  # of the tiny image in pixels: small enough for plain PyTorch, so that no kernel is compiled
_PROPOSALS = 8
_OF_MMENGINE = (
    'dataset',
    'sampler',
    'batch_sampler',
    'collate_fn',
    'worker_init_fn',
    'num_batch_per_epoch',
    'disable_subprocess_warning',
)
# How PyTorch's layers say that they got other channels than they have weights for.
_WRONG_CHANNELS = re.compile(
    r'expected input.* to have \d+ channels|shapes cannot be multiplied|Given normalized_shape'
    '|running_mean should contain|Expected weight to be a vector'
)
_TAKE_MAPS = ('neck', 'decode_head', 'auxiliary_head')
# The heads that tell the classes of the data set apart, and what counts those classes for them. Others with
# `num_classes` mean something else, such as the identities of a tracker.
_TELL_CLASSES = re.compile(
    r'((roi_head\.)?(bbox_head|mask_head)|decode_head|head)(\.\d+)?|auxiliary_head|data_preprocessor'
)


def try_model(cfg: Config) -> nn.Module:
    """The model as initialised by PyTorch, whose parts fit each other.

    Raises:
        PreflightError: If a part has an unknown type or setting, or if the maps of one part do not fit the
            next.
    """
    settings = deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        settings.setdefault('data_preprocessor', cfg.data_preprocessor)
    for _, node in walk(settings, 'model'):
        if 'nms_pre' in node and 'max_per_img' in node:
            node.update(nms_pre=_PROPOSALS, max_per_img=_PROPOSALS)
    with quiet(), in_one_line('model', cfg.model):
        model = MODELS.build(settings)
    _try_forward(model.module if isinstance(model, BaseTTAModel) else model, cfg)
    return model


def _try_forward(model: nn.Module, cfg: Config) -> None:
    """Runs a model on a tiny image, and complains where the maps of one part do not fit the next."""
    names = {id(module): name for name, module in model.named_modules()}
    channels = []
    if hasattr(model, 'backbone'):
        model.backbone.register_forward_hook(lambda *call: channels.extend(len(map_[0]) for map_ in call[-1]))
    backbone = cfg.model.get('backbone')
    in_channels = backbone.get('in_channels', 3) if isinstance(backbone, dict) else 3
    image = torch.zeros(1, in_channels, _SIDE, _SIDE)
    try:
        with quiet(), torch.no_grad():
            model.eval()(image, _samples(cfg), mode='tensor')
    except Exception as error:
        frames = list(walk_tb(error.__traceback__))
        owners = [frame.f_locals.get('self') for frame, _ in frames]
        layer = next((owner for owner in reversed(owners) if id(owner) in names), model)
        name, what = names[id(layer)], ' '.join(str(error).split())
        wrong_channels = isinstance(error, RuntimeError) and _WRONG_CHANNELS.search(what)
        wrong_number = isinstance(error, AssertionError | IndexError) and name.startswith(_TAKE_MAPS)
        # Any other error may be due to the tiny image, in the backbone to its three channels as well.
        if (wrong_channels or wrong_number) and not name.startswith('backbone'):
            maps = f'; the backbone gives {len(channels)} maps of {channels} channels' if channels else ''
            raise PreflightError(
                f'model.{name} ({type(layer).__name__}) does not fit what it gets: '
                f'{what or failed_line(frames)}{maps}'
            ) from error


def _samples(cfg: Config) -> list | None:
    if cfg.get('default_scope') != 'mmdet':
        return None
    from mmdet.structures import DetDataSample

    size = (_SIDE, _SIDE)
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), size)
    return [DetDataSample(metainfo=dict(**shapes, scale_factor=(1.0, 1.0)))]


def try_optimizer(cfg: Config, model: nn.Module) -> None:
    """Builds the optimizer of a model and its schedules, which change its learning rates.

    Raises:
        PreflightError: If a type, setting or value is wrong.
    """
    settings = cfg.optim_wrapper
    if 'runner_type' in cfg or not {'optimizer', 'constructor'} & settings.keys():
        return  # a strategy of MMEngine builds it, or several optimizers
    if isinstance(settings.get('optimizer'), dict):
        find_class(OPTIMIZERS, settings.optimizer, 'optim_wrapper.optimizer')
    try:
        with quiet(), in_one_line('optim_wrapper', settings):
            optim_wrapper = build_optim_wrapper(model, deepcopy(settings))
    except PreflightError as error:
        if 'process group' in str(error):  # of ZeroRedundancyOptimizer, which only the run has
            return
        raise
    if isinstance(optim_wrapper, OptimWrapperDict):
        return
    schedulers = cfg.get('param_scheduler') or []
    for i, scheduler in enumerate(schedulers if isinstance(schedulers, list) else [schedulers]):
        with quiet(), in_one_line(f'param_scheduler.{i}', scheduler):
            given = dict(optimizer=optim_wrapper, epoch_length=1)
            PARAM_SCHEDULERS.build(deepcopy(scheduler), default_args=given)


class Classes(NamedTuple):
    """Numbers of classes that a data set can mean: all, and in panoptic data those of things."""

    type: str
    numbers: tuple[int, ...]


def try_data(cfg: Config, split: str, is_there: bool = True) -> list[Classes]:
    """Builds the data sets of a split without annotations, and its loader without data.

    Args:
        cfg: The whole config.
        split: `'train' | 'val' | 'test'`.
        is_there: Whether the files are there. Without, only the types are looked up, because some data sets
            look for their files as they are built.

    Returns:
        What is known of the classes of each data set.

    Raises:
        PreflightError: If a type, setting or value of data set, pipeline or loader is wrong.
    """
    name = f'{split}_dataloader'
    loader = cfg.get(name)
    if loader is None:
        return []
    given = {key: value for key, value in loader.items() if key not in _OF_MMENGINE}
    with quiet(), in_one_line(name):
        DataLoader([None], **given)
    found = []
    for path, node in _data_sets(loader.dataset, f'{name}.dataset'):
        cls = find_class(DATASETS, node, path)
        if not is_there or not (inspect.isclass(cls) and issubclass(cls, BaseDataset)):
            continue
        with quiet(), in_one_line(path, node):
            dataset = DATASETS.build(deepcopy(node) | dict(lazy_init=True))
        numbers = [len(dataset.metainfo.get(key) or ()) for key in ('classes', 'thing_classes')]
        if not any(numbers) and getattr(dataset, 'with_label', False) and not dataset.ann_file:
            folder = dataset.img_prefix  # of mmpretrain: each folder in it is a class
            numbers = [sum(entry.is_dir() for entry in os.scandir(folder))] if osp.isdir(folder) else []
        found.append(Classes(cls.__name__, tuple(number for number in numbers if number)))
    return found


def _data_sets(node: dict, name: str) -> Iterator[tuple[str, dict]]:
    """The data sets in their wrappers."""
    if isinstance(node.get('dataset'), dict):
        yield from _data_sets(node['dataset'], f'{name}.dataset')
    elif isinstance(node.get('datasets'), list | tuple):
        for i, child in enumerate(node['datasets']):
            yield from _data_sets(child, f'{name}.datasets.{i}')
    else:
        yield name, node


def check_classes(model: nn.Module, split: str, data: list[Classes]) -> None:
    """Compares the heads' `num_classes` with the data.

    Raises:
        PreflightError: If they differ; MMEngine would train, and test, on wrong classes.
    """
    model = model.module if isinstance(model, BaseTTAModel) else model
    for name, module in reversed(list(model.named_modules())):  # heads before the preprocessor
        num_classes = getattr(module, 'num_classes', None)
        tells_classes = _TELL_CLASSES.fullmatch(name) and 'RPN' not in type(module).__name__
        if num_classes is None or not tells_classes:
            continue
        for kind, numbers in data:
            if numbers and num_classes not in numbers:
                raise PreflightError(
                    f'model.{name}.num_classes={num_classes}, but the {split} data ({kind}) have '
                    f'{numbers[0]} classes: set the same number in each head, and name the classes by '
                    '`metainfo=dict(classes=...)` of each data set'
                )
