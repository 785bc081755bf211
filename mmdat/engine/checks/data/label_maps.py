"""Images with a label map for each, which mmsegmentation reads."""

import os
import os.path as osp
from collections import Counter
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS

from ....image_files import why_unreadable
from ...data_guard import labels_beyond, no_label_map
from ...errors import PreflightError
from .data_set import WHERE_DATA_ARE, DataSet, first_data_set

_SAMPLE = 50  # label maps that are read
_IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.ppm', '.webp')


def read_class_names(cfg: Config, split: str) -> list[str]:
    """The names of a segmentor's classes in the order of their labels, a line each in `classes.txt`.

    Raises:
        PreflightError: If there is no such file, or nothing in it.
    """
    path = first_data_set(cfg, split).path('classes.txt')
    try:
        with open(path, encoding='utf-8-sig') as file:  # editors of Windows put a mark before
            names = [line.strip() for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise PreflightError(
            f'{path} cannot be read ({getattr(error, "strerror", error)}): write the names of the classes '
            'into it, a line each in the order of their labels, or state them by `--cfg-options '
            f'classes=NAME,NAME`; {WHERE_DATA_ARE}'
        ) from error
    if not names or len(set(names)) < len(names):
        raise PreflightError(f'{path} must name each class once, a line each, got {len(names)} names')
    return names


def find_suffix(cfg: Config, split: str, config: dict) -> str:
    """The suffix of the images of a segmentor's data set; mmsegmentation reads those of one suffix.

    Raises:
        PreflightError: If there are images of several.
    """
    data = DataSet(cfg, split, config, None)
    folder = data.path((config.get('data_prefix') or {}).get('img_path') or '')
    names = [name for _, _, files in os.walk(folder) for name in files if name[0] != '.']
    suffixes = Counter(osp.splitext(name)[1] for name in names)
    found = [suffix for suffix in suffixes if suffix.lower() in _IMAGES]
    if len(found) > 1:
        counts = ', '.join(f'{suffixes[suffix]} *{suffix}' for suffix in found)
        data.fail(
            f'its images have several suffixes ({counts}), and mmsegmentation reads one: convert the others, '
            'or choose one by `--cfg-options image_suffix=...`',
            folder,
        )
    return found[0] if found else _IMAGES[0]


def check_label_maps(data: DataSet) -> None:
    if not data.classes:
        data.fail('the data set names no classes: metainfo=dict(classes=(...))')
    data.check_number_of_classes(len(data.classes))
    try:
        built = DATASETS.build(dict(data.config, pipeline=[], lazy_init=False, serialize_data=False))
    except Exception as error:
        raise PreflightError(f'{data.split} data {data.path()}: {error}') from error
    infos = [built.get_data_info(i) for i in range(len(built))]
    folder = data.path((data.config.get('data_prefix') or {}).get('img_path') or '')
    if not infos:
        suffix = data.config.get('img_suffix', '.jpg')
        data.fail(f'holds no images *{suffix}: see img_suffix of the data set', folder)
    data.check_files([info['img_path'] for info in infos])
    if (labels := data.step('LoadAnnotations')) is None:
        return
    if 'seg_map_path' not in infos[0]:
        data.fail('data_prefix does not say where the label maps are: data_prefix=dict(seg_map_path=...)')
    data.check_files([info['seg_map_path'] for info in infos])
    if (image := data.step('LoadImageFromFile')) is None:
        return
    load_image, load_labels = TRANSFORMS.build(image), TRANSFORMS.build(labels)
    for i in sorted({int(i) for i in np.linspace(0, len(infos) - 1, _SAMPLE)}):
        _check_label_map(data, infos[i], load_image, load_labels)


def _check_label_map(data: DataSet, info: dict, load_image: Any, load_labels: Any) -> None:
    path = info['seg_map_path']
    unreadable = [(name, why) for name in (info['img_path'], path) if (why := why_unreadable(name))]
    if unreadable:
        name, why = unreadable[0]
        if data.is_training:
            return  # the run skips and counts it
        data.fail(f'{why}: mend it, or take it out of the data set', name)
    results = load_image(info)
    labels = mmcv.imread(path, flag='unchanged', backend=load_labels.imdecode_backend).squeeze()
    if reason := no_label_map(labels):
        data.fail(reason, path)
    if labels.max() > 255:
        data.fail(f'has the label {labels.max()}, where mmsegmentation reads 0 to 255', path)
    if labels.shape != results['ori_shape']:
        data.fail(
            f'has {labels.shape[0]} x {labels.shape[1]} pixels, and its image {info["img_path"]} '
            f'{results["ori_shape"][0]} x {results["ori_shape"][1]}: they must fit',
            path,
        )
    labels = load_labels(results)['gt_seg_map']
    if reason := labels_beyond(labels, len(data.classes), data.config.get('ignore_index', 255)):
        data.fail(reason, path)
