"""Configs of `configs/custom`: what depends on a user's data follows from the data.

Such a config says at its top what the data are: `data_format`, where images and annotations lie, and
`classes`, which may be None. `place_data` fills these settings in where the libraries look for them, and
`follow_data` what follows from the classes. What they have filled in is saved with the config, which needs no
data then.
"""

import os.path as osp
from collections.abc import Callable, Collection, Mapping
from colorsys import hsv_to_rgb
from copy import deepcopy
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from ..checkpoint import ClassWeights, read_checkpoint
from ..quiet import quiet
from ..spelling import did_you_mean
from .checks.data import (
    data_set_configs,
    find_suffix,
    heads,
    read_categories,
    read_class_folders,
    read_class_names,
)
from .errors import PreflightError


class _Format(NamedTuple):
    """How data of a format are stated.

    Attributes:
        places: Where a data set takes what `train_NAME` and `val_NAME` say; those of `val` are tested, too.
        shared: Where all data sets take what `NAME` says.
        read_classes: Names of the classes, given the config and a split.
    """

    places: Mapping[str, str]
    shared: Mapping[str, str]
    read_classes: Callable[[Config, str], list[str]]


_FORMATS = {
    'coco': _Format(
        dict(images='data_prefix.img', annotations='ann_file'), dict(data_root='data_root'), read_categories
    ),
    'label_maps': _Format(
        dict(images='data_prefix.img_path', labels='data_prefix.seg_map_path'),
        dict(
            data_root='data_root',
            image_suffix='img_suffix',
            label_suffix='seg_map_suffix',
            reduce_zero_label='reduce_zero_label',
        ),
        read_class_names,
    ),
    'class_folders': _Format(
        dict(images='data_prefix.img_path'), dict(data_root='data_root'), read_class_folders
    ),
}
_SPLITS = {'train': 'train', 'val': 'val', 'test': 'val'}  # and whose settings hold there
_LENGTHS = ('max_epochs', 'max_iters')


def settings_of(cfg: Mapping) -> list[str]:
    """Names of the settings at the top of a config of `configs/custom`, for others none.

    Raises:
        PreflightError: If `data_format` is unknown.
    """
    if 'data_format' not in cfg:
        return []
    name = cfg['data_format']
    if name not in _FORMATS:
        known = ', '.join(map(repr, _FORMATS))
        raise PreflightError(f'data_format must be {known}, got {name!r}{did_you_mean(str(name), _FORMATS)}')
    format_ = _FORMATS[name]
    of_splits = [f'{split}_{key}' for split in ('train', 'val') for key in format_.places]
    return ['data_format', 'classes', *of_splits, *format_.shared, *_LENGTHS]


def place_data(cfg: Config, given: Collection[str] = ()) -> None:
    """Fills the settings at the top of a config in where the libraries look for them.

    What stands there already, in `train_dataloader.dataset.ann_file` for instance, stays, unless the setting
    was given on the command line.

    Args:
        cfg: Changed in place, if it has `data_format`.
        given: Names of settings given on the command line.

    Raises:
        PreflightError: If `data_format` is unknown.
    """
    if not settings_of(cfg):
        return
    format_ = _FORMATS[cfg.data_format]
    for split, source in _SPLITS.items():
        settings = {f'{source}_{key}': place for key, place in format_.places.items()} | format_.shared
        for data_set in data_set_configs(cfg, split):
            for name, place in settings.items():
                _fill(data_set, place, cfg.get(name), name in given)
        _place_evaluator(cfg, split, 'val_annotations' in given)
    for name in _LENGTHS:
        if name in cfg and isinstance(cfg.get('train_cfg'), dict):
            _fill(cfg.train_cfg, name, cfg[name], name in given)
            schedulers = cfg.get('param_scheduler') or []
            for scheduler in schedulers[-1:] if isinstance(schedulers, list) else [schedulers]:
                _fill(scheduler, 'end', cfg.train_cfg[name], name in given)


def _fill(node: ConfigDict, place: str, value: Any, is_given: bool) -> None:
    *parents, key = place.split('.')
    for parent in parents:
        node = node.setdefault(parent, ConfigDict())
    if value is not None and (is_given or node.get(key) in (None, '')):
        node[key] = value


def _place_evaluator(cfg: Config, split: str, is_given: bool) -> None:
    """Metrics of COCO read the annotations of the data set themselves."""
    metrics = cfg.get(f'{split}_evaluator') or []
    data_set = next(data_set_configs(cfg, split), {})
    if not data_set.get('ann_file'):
        return
    for metric in metrics if isinstance(metrics, list) else [metrics]:
        if 'ann_file' in metric:
            path = osp.join(data_set.get('data_root') or '', data_set['ann_file'])
            _fill(metric, 'ann_file', path, is_given)


def follow_data(cfg: Config, training: bool) -> None:
    """Completes a config by its classes: those that it states, or a tested checkpoint's, or else the data's.

    `num_classes` of all heads, `metainfo` of all data sets with names and colours, and the suffix of images
    follow. `classes` itself is stated then. Every process of a run does this alike.

    Args:
        cfg: Changed in place, if it has `data_format`; `load_from` is the tested checkpoint.
        training: Whether it is for a training, or for a test.

    Raises:
        PreflightError: If the classes cannot be read, or not be told apart.
    """
    if not settings_of(cfg):
        return
    format_ = _FORMATS[cfg.data_format]
    classes = _stated_classes(cfg)
    if classes is None and not training:
        classes = _classes_of_checkpoint(cfg.get('load_from'))
    if classes is None:
        classes = format_.read_classes(cfg, 'train')
    cfg.classes = classes
    set_num_classes(cfg, len(classes))
    for split in _SPLITS:
        for data_set in data_set_configs(cfg, split):
            palette = (data_set.get('metainfo') or {}).get('palette') or ()
            if len(palette) != len(classes):
                palette = colours(len(classes))
            data_set['metainfo'] = ConfigDict(classes=classes, palette=palette)
            if data_set.get('img_suffix') == '':
                data_set['img_suffix'] = find_suffix(cfg, split, data_set)


def _stated_classes(cfg: Config) -> list[str] | None:
    classes = cfg.get('classes')
    if classes is None:
        return None
    names = [str(name) for name in (classes if isinstance(classes, list | tuple) else [classes])]
    if not names or not all(names) or len(set(names)) < len(names):
        raise PreflightError(f'classes must be names that differ, as in classes=cat,dog, got {classes!r}')
    return names


def _classes_of_checkpoint(path: str | None) -> list[str] | None:
    """Those that a training has noted."""
    if not path or not osp.isfile(path):
        return None
    meta = read_checkpoint(path, lazy=True).get('meta') or {}
    classes = (meta.get('dataset_meta') or {}).get('classes')
    return [str(name) for name in classes] if classes else None


def set_num_classes(cfg: Config, number: int) -> None:
    """Gives all heads of a model, and what else counts classes for them, a number of classes."""
    for _, head in heads(cfg.model):
        head['num_classes'] = number
    for preprocessor in (cfg.get('data_preprocessor'), cfg.model.get('data_preprocessor')):
        if preprocessor and 'num_classes' in preprocessor:
            preprocessor['num_classes'] = number


def find_class_weights(cfg: Config) -> ClassWeights:
    """Which weights of a model grow with its number of classes, found by building it for one class more."""
    shapes = []
    for more in (0, 1):
        larger = Config(dict(model=deepcopy(cfg.model)))
        set_num_classes(larger, len(cfg.classes) + more)
        with quiet():
            model = MODELS.build(larger.model)
        shapes.append({key: value.shape for key, value in model.state_dict().items()})
    rows = {
        key: large[0] - small[0]
        for key, small, large in ((key, shapes[0][key], shapes[1][key]) for key in shapes[0])
        if large != small and large[1:] == small[1:]
    }
    return ClassWeights(len(cfg.classes), rows)


def colours(number: int) -> list[tuple[int, ...]]:
    """Colours in which neighbours differ: red, green and blue from 0 to 255, in tuples, which mmdet needs."""
    hues = (i * 0.618034 % 1 for i in range(number))  # the golden ratio: each far from those before
    return [
        tuple(round(255 * part) for part in hsv_to_rgb(hue, (0.85, 0.55)[i % 2], (0.95, 0.7, 0.85)[i % 3]))
        for i, hue in enumerate(hues)
    ]
