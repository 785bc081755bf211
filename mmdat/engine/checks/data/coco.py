"""Annotation files of COCO, which mmdet reads."""

import gc
import json
import os.path as osp
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from mmengine.config import Config

from .data_set import WHERE_DATA_ARE, DataSet, first_data_set, first_few

_NEEDED = {  # what mmdet or pycocotools needs in each entry, and where to take it from
    'area': 'in pixels, of the mask or else of the box',
    'iscrowd': 'pycocotools needs it, 0 for single objects',
}


def read_categories(cfg: Config, split: str) -> list[str]:
    """Names of the categories in the annotation file of COCO data, in the order in which mmdet numbers them.

    Raises:
        PreflightError: If the file is missing or cannot be read.
    """
    data = first_data_set(cfg, split)
    if data.ann_file is None or not osp.isfile(data.ann_file):
        data.fail(f'the annotation file does not exist: {WHERE_DATA_ARE}')
    categories = _read_json(data).get('categories') or []
    _check_keys(data, 'category', categories, ('id', 'name'))
    _check_names(data, [category['name'] for category in categories])
    if not categories:
        data.fail('lists no categories: is it the right file?')
    return [str(category['name']) for category in categories]


def check_coco(data: DataSet) -> None:
    if data.ann_file is None or '://' in data.ann_file:
        return
    prefix = data.config.get('data_prefix') or {}
    if 'img' not in prefix:
        data.fail("data_prefix does not say where the images are: data_prefix=dict(img='FOLDER/')")
    content = _read_json(data)
    images, annotations, categories = (
        content.get(key) or [] for key in ('images', 'annotations', 'categories')
    )
    if not images:
        data.fail('names no images: is it the right file?')
    _check_keys(data, 'image', images, ('id', 'file_name', 'height', 'width'))
    _check_keys(data, 'category', categories, ('id', 'name'))
    _check_names(data, [category['name'] for category in categories])
    _check_categories(data, [category['name'] for category in categories])
    if annotations:
        _check_annotations(data, images, annotations, categories)
    elif data.is_training:
        data.fail('has images, but no annotations to learn from')
    if data.is_training:
        _check_filter(data, images, annotations, categories)
    data.check_files([data.path(prefix['img'], image['file_name']) for image in images])


def _read_json(data: DataSet) -> dict:
    try:
        with open(data.ann_file) as file, _without_garbage_collection():
            content = json.load(file)
    except OSError as error:
        data.fail(f'cannot be read ({error.strerror})')
    except ValueError as error:
        data.fail(f'is no JSON, or cut short ({error}): copy or download it again')
    if not isinstance(content, dict):
        data.fail('is not in the format of COCO, which has images, annotations and categories')
    return content


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """COCO's annotations are millions of objects, which the collector would look through again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _check_keys(data: DataSet, kind: str, items: list[dict], keys: tuple[str, ...]) -> None:
    for key in keys:
        lacking = [item.get('id', number) for number, item in enumerate(items) if item.get(key) is None]
        if lacking:
            what = f'{len(lacking)} of {len(items)} {kind} entries have no {key} ({first_few(lacking)})'
            data.fail(f'{what}: {_NEEDED.get(key, "add it to each")}')
    repeated = [id_ for id_, times in Counter(item['id'] for item in items).items() if times > 1]
    if repeated:
        data.fail(f'{len(repeated)} {kind} ids repeat ({first_few(repeated)}): number them anew')


def _check_names(data: DataSet, names: list[str]) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        data.fail(f'{len(repeated)} category names repeat ({first_few(repeated)}): each needs its own')


def _check_categories(data: DataSet, names: list[str]) -> None:
    """mmdet numbers the categories as the file lists them, and leaves out those that are no class."""
    if not data.classes:
        data.fail('the data set names no classes: metainfo=dict(classes=(...))')
    known = [name for name in names if name in data.classes]
    unknown = [name for name in names if name not in data.classes]
    absent = [name for name in data.classes if name not in names]
    where = 'metainfo=dict(classes=(...)) of the data set'
    number = ', and set num_classes of the model'
    if 'data_format' in data.cfg:  # all follow from one setting
        where, number = '`--cfg-options classes=NAME,NAME`', ''
    mend = f'name the classes as the file does, {where}'
    if not known or (unknown and absent):
        data.fail(
            f'its categories ({first_few(unknown) or "none"}) are not the classes of the data set '
            f'({first_few(absent)}): {mend}{number}'
        )
    if known != data.classes[: len(known)]:
        wrong = next(i for i, (name, class_) in enumerate(zip(known, data.classes)) if name != class_)
        data.fail(
            f'mmdet would take its category {known[wrong]} for class {wrong} of the data set, '
            f'{data.classes[wrong]}: {mend}, in the same order'
        )
    if unknown:
        data.note(
            f'{len(unknown)} categories are no class of the data set and left out ({first_few(unknown)})'
        )
    if absent:
        data.note(f'{len(absent)} classes are no category of the file ({first_few(absent)})')
    if not data.config.get('return_classes'):
        data.check_number_of_classes(len(data.classes))


def _check_annotations(data: DataSet, images: list, annotations: list, categories: list) -> None:
    keys = ['id', 'image_id', 'category_id', 'bbox', 'area']
    if not data.is_training:
        keys.append('iscrowd')  # for pycocotools
    _check_keys(data, 'annotation', annotations, tuple(keys))
    declared = {category['id'] for category in categories}
    undeclared = [a['id'] for a in annotations if a['category_id'] not in declared]
    if undeclared:
        data.fail(
            f'{len(undeclared)} annotations are of categories that the file does not list, and would be left '
            f'out (ids {first_few(undeclared)}): list the categories, or remove the annotations'
        )
    sizes = {image['id']: (image['height'], image['width']) for image in images}
    placed = [a for a in annotations if a['image_id'] in sizes]
    if len(placed) < len(annotations):
        data.note(f'{len(annotations) - len(placed)} annotations are of images that the file does not list')

    odd = [a['id'] for a in placed if not isinstance(a['bbox'], list) or len(a['bbox']) != 4]
    boxes = np.array([a['bbox'] for a in placed] if not odd else [], dtype=float).reshape(-1, 4)
    odd = odd or [placed[i]['id'] for i in np.flatnonzero(~np.isfinite(boxes).all(axis=1))]
    if odd:
        data.fail(f'{len(odd)} boxes are not four finite numbers x, y, width, height (ids {first_few(odd)})')
    x, y, w, h = boxes.T
    height, width = np.array([sizes[a['image_id']] for a in placed], dtype=float).reshape(-1, 2).T
    area = np.array([a['area'] for a in placed], dtype=float)
    inside = (np.minimum(x + w, width) > np.maximum(x, 0)) & (np.minimum(y + h, height) > np.maximum(y, 0))
    kept = inside & (area > 0) & (w >= 1) & (h >= 1)
    wanted = kept & ~np.array([bool(a.get('ignore')) for a in placed], dtype=bool)
    dropped = [placed[i]['id'] for i in np.flatnonzero(~kept)]
    crowds = np.array([bool(a.get('iscrowd')) for a in placed], dtype=bool)
    if kept.any() and crowds[kept].all():
        what = 'all boxes are of crowds (iscrowd=1), which are neither learned nor scored'
        if data.is_training:
            data.fail(f'{what}: mark single objects by iscrowd=0')
        data.note(what)
    if data.is_training and not kept.any():
        data.fail(f'all boxes lie outside their images or have no area (ids {first_few(dropped)})')
    if dropped:
        data.note(
            f'{len(dropped)} of {len(placed)} boxes lie outside their images, are narrower than a pixel or '
            f'have no area, and mmdet leaves them out (ids {first_few(dropped)})'
        )
    if (step := data.step('LoadAnnotations')) is not None and step.get('with_mask'):
        _check_masks(data, [placed[i] for i in np.flatnonzero(wanted)], sizes)


def _check_masks(data: DataSet, annotations: list[dict], sizes: dict[Any, tuple[int, int]]) -> None:
    lacking = [a['id'] for a in annotations if not a.get('segmentation')]
    if lacking:
        data.fail(
            f'{len(lacking)} of {len(annotations)} annotations have no segmentation, and the model learns '
            f'masks (ids {first_few(lacking)}): add them, or train boxes only, as configs/retinanet does'
        )
    runs = [a for a in annotations if isinstance(a['segmentation'], dict)]
    other = [a['id'] for a in runs if tuple(a['segmentation'].get('size', ())) != sizes[a['image_id']]]
    if other:
        data.fail(f'{len(other)} masks are not of the size of their images (ids {first_few(other)})')


def _check_filter(data: DataSet, images: list, annotations: list, categories: list) -> None:
    """mmdet leaves out images that are too small or, as its configs have it, without any annotation."""
    settings = data.config.get('filter_cfg') or {}
    least = settings.get('min_size', 0)
    large = [image for image in images if min(image['height'], image['width']) >= least]
    used = {category['id'] for category in categories if category['name'] in data.classes}
    annotated = {a['image_id'] for a in annotations if a['category_id'] in used}
    kept = [image for image in large if image['id'] in annotated or not settings.get('filter_empty_gt')]
    without = used - {a['category_id'] for a in annotations}
    if without and 'data_format' in data.cfg:  # of whose classes nobody has decided
        names = [category['name'] for category in categories if category['id'] in without]
        data.note(f'{len(without)} of {len(used)} classes have no annotations ({first_few(names)})')
    if not kept:
        why = f'smaller than {least} pixels' if not large else 'without annotations of the classes'
        data.fail(f'no image is left to train on, all are {why}: see filter_cfg of the data set')
    if len(large) < len(images):
        data.note(
            f'{len(images) - len(large)} of {len(images)} images are smaller than {least} pixels and left out'
        )
    if len(kept) < len(large):
        data.note(
            f'{len(large) - len(kept)} of {len(images)} images have no annotations of its classes and are '
            'left out; with filter_cfg.filter_empty_gt=False of the data set they teach what is background'
        )
