"""A data set of a config, and what the checks of all formats ask about it."""

import os
import os.path as osp
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ...data_guard import MAX_BROKEN_IMAGES, tolerated
from ...errors import PreflightError

WHERE_DATA_ARE = (
    'the settings at the top of the config say where data are, `--cfg-options data_root=DIR` names their '
    'folder'
)
_HEADS = (
    'head',
    'bbox_head',
    'decode_head',
    'auxiliary_head',
    'roi_head.bbox_head',
    'roi_head.mask_head',
)


def data_set_configs(cfg: Config, split: str) -> Iterator[dict]:
    """The settings of the data sets of a split, inside their wrappers."""
    nodes = [(cfg.get(f'{split}_dataloader') or {}).get('dataset')]
    while nodes:
        node = nodes.pop(0)
        inner = node.get('dataset') or node.get('datasets') if isinstance(node, dict) else None
        if inner:
            nodes += inner if isinstance(inner, list | tuple) else [inner]
        elif isinstance(node, dict) and 'type' in node:
            yield node


def heads(model: dict) -> Iterator[tuple[str, dict]]:
    """Name and settings of each head that tells the classes apart; cascades have several of one name."""
    for name in _HEADS:
        found = model
        for key in name.split('.'):
            found = found.get(key) or {}
        for head in found if isinstance(found, list | tuple) else [found]:
            if head:
                yield name, head


class DataSet:
    """A data set of the config, and what all checks ask about it."""

    def __init__(self, cfg: Config, split: str, config: dict, classes: Iterable[str] | None):
        self.cfg, self.split, self.config = cfg, split, config
        self.model = cfg.model.get('module') or cfg.model  # below test-time augmentation
        self.is_training = split == 'train'
        self.classes = list(classes or ())
        self.max_broken = cfg.get('max_broken_images', MAX_BROKEN_IMAGES)
        self.steps = list(_steps(config.get('pipeline')))
        ann_file = config.get('ann_file')
        self.ann_file = self.path(ann_file) if ann_file else None

    def path(self, *parts: str) -> str:
        return osp.join(osp.expanduser(self.config.get('data_root') or ''), *parts)

    def step(self, name: str) -> dict | None:
        """The first step of the pipeline whose type starts so."""
        return next((step for step in self.steps if _name(step).startswith(name)), None)

    def fail(self, what: str, name: str | None = None) -> None:
        raise PreflightError(f'{self.split} data {name or self.ann_file or self.path()}: {what}')

    def check_number_of_classes(self, number: int) -> None:
        for name, head in heads(self.model):
            if head.get('num_classes', number) != number:
                self.fail(
                    f'has {number} classes, the {name} of the model {head["num_classes"]}: '
                    f'set num_classes={number} there, or the classes in metainfo of the data set'
                )

    def check_files(self, paths: list[str]) -> None:
        """Finds those that are missing. Lists folders, because asking for each file takes minutes."""
        listed, missing = {}, []
        for path in paths:
            if '://' in path:
                continue
            folder, name = osp.split(path)
            if folder not in listed:
                listed[folder] = set(os.listdir(folder or '.')) if osp.isdir(folder or '.') else set()
            if name not in listed[folder]:
                missing.append(path)
        if not missing:
            return
        what = f'{len(missing)} of {len(paths)} files do not exist ({first_few(missing)})'
        if not self.is_training or len(missing) > tolerated(self.max_broken, len(paths)):
            self.fail(f'{what}: complete them, or take them out of the annotations')
        self.note(f'{what}, training will skip them')

    def note(self, what: str) -> None:
        if os.environ.get('RANK', '0') == '0':
            print_log(f'note: {self.split} data {self.ann_file or self.path()}: {what}')


def first_data_set(cfg: Config, split: str) -> DataSet:
    """The first of a split, before its classes are known."""
    return DataSet(cfg, split, next(data_set_configs(cfg, split), {}), None)


def _steps(pipeline: Any) -> Iterator[dict]:
    """The transforms of a pipeline, those inside others too."""
    if isinstance(pipeline, dict):
        yield pipeline
        yield from _steps(list(pipeline.values()))
    elif isinstance(pipeline, list | tuple):
        for step in pipeline:
            yield from _steps(step)


def _name(step: dict) -> str:
    type_ = step.get('type', '')
    return type_.rpartition('.')[-1] if isinstance(type_, str) else getattr(type_, '__name__', '')


def first_few(items: list) -> str:
    """The first three of a list, for a message."""
    return ', '.join(map(str, items[:3])) + (', ...' if len(items) > 3 else '')
