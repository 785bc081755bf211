"""What can be known about the data before a run: annotation files, label maps and the files they name."""

import gc
import json
import os
import os.path as osp
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from ...image_files import why_unreadable
from ..data_guard import MAX_BROKEN_IMAGES, labels_beyond, no_label_map, tolerated
from ..errors import PreflightError

_SAMPLE = 50  # label maps that are read
_IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.ppm', '.webp')
_OF_MMPRETRAIN = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')
_PLACES = (
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


def check_annotations(cfg: Config, split: str) -> None:
    """Compares the annotations of a split with its classes, with the model and with the files on disk.

    Serves mmdet's `CocoDataset`, mmsegmentation's `BaseSegDataset`, mmpretrain's `CustomDataset`, and the
    data sets that differ from them in their classes only; others pass. What the libraries leave out without
    a word is printed with its number, and the run goes on.

    Args:
        cfg: The whole config; the folders and annotation files of its data sets exist.
        split: `'train' | 'val' | 'test'`.

    Raises:
        PreflightError: With the first thing that cannot work.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        for config in data_set_configs(cfg, split):
            cls = config['type']
            if isinstance(cls, str):
                with DATASETS.switch_scope_and_registry(None) as registry:
                    cls = registry.get(cls)
            if not isinstance(cls, type) or not issubclass(cls, BaseDataset):
                continue
            kind = next((base.__name__ for base in cls.__mro__ if _reads_as(cls, base)), None)
            if kind is not None:
                metainfo = cls._load_metainfo(dict(config.get('metainfo') or {}))
                _CHECKS[kind](_DataSet(cfg, split, config, config.get('classes') or metainfo.get('classes')))


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


def _reads_as(cls: type, base: type) -> bool:
    """Whether a data set reads its annotations as one of those that are checked."""
    readers = ('load_data_list', 'parse_data_info')
    return base.__name__ in _CHECKS and all(getattr(cls, name) is getattr(base, name) for name in readers)


class _DataSet:
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
        what = f'{len(missing)} of {len(paths)} files do not exist ({_first(missing)})'
        if not self.is_training or len(missing) > tolerated(self.max_broken, len(paths)):
            self.fail(f'{what}: complete them, or take them out of the annotations')
        self.note(f'{what}, training will skip them')

    def note(self, what: str) -> None:
        if os.environ.get('RANK', '0') == '0':
            print_log(f'note: {self.split} data {self.ann_file or self.path()}: {what}')


def read_categories(cfg: Config, split: str) -> list[str]:
    """Names of the categories in the annotation file of COCO data, in the order in which mmdet numbers them.

    Raises:
        PreflightError: If the file is missing or cannot be read.
    """
    data = _first_data_set(cfg, split)
    if data.ann_file is None or not osp.isfile(data.ann_file):
        data.fail(f'the annotation file does not exist: {_PLACES}')
    categories = _read_json(data).get('categories') or []
    _check_keys(data, 'category', categories, ('id', 'name'))
    _check_names(data, [category['name'] for category in categories])
    if not categories:
        data.fail('lists no categories: is it the right file?')
    return [str(category['name']) for category in categories]


def _first_data_set(cfg: Config, split: str) -> '_DataSet':
    return _DataSet(cfg, split, next(data_set_configs(cfg, split), {}), None)


def _check_names(data: _DataSet, names: list[str]) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        data.fail(f'{len(repeated)} category names repeat ({_first(repeated)}): each needs its own')


def _check_coco(data: _DataSet) -> None:
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


def _read_json(data: _DataSet) -> dict:
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


def _check_keys(data: _DataSet, kind: str, items: list[dict], keys: tuple[str, ...]) -> None:
    for key in keys:
        lacking = [item.get('id', number) for number, item in enumerate(items) if item.get(key) is None]
        if lacking:
            data.fail(f'{len(lacking)} of {len(items)} {kind} entries have no {key} ({_first(lacking)})')
    repeated = [id_ for id_, times in Counter(item['id'] for item in items).items() if times > 1]
    if repeated:
        data.fail(f'{len(repeated)} {kind} ids repeat ({_first(repeated)}): number them anew')


def _check_categories(data: _DataSet, names: list[str]) -> None:
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
            f'its categories ({_first(unknown) or "none"}) are not the classes of the data set '
            f'({_first(absent)}): {mend}{number}'
        )
    if known != data.classes[: len(known)]:
        wrong = next(i for i, (name, class_) in enumerate(zip(known, data.classes)) if name != class_)
        data.fail(
            f'mmdet would take its category {known[wrong]} for class {wrong} of the data set, '
            f'{data.classes[wrong]}: {mend}, in the same order'
        )
    if unknown:
        data.note(f'{len(unknown)} categories are no class of the data set and left out ({_first(unknown)})')
    if absent:
        data.note(f'{len(absent)} classes are no category of the file ({_first(absent)})')
    if not data.config.get('return_classes'):
        data.check_number_of_classes(len(data.classes))


def _check_annotations(data: _DataSet, images: list, annotations: list, categories: list) -> None:
    keys = ['id', 'image_id', 'category_id', 'bbox', 'area']
    if not data.is_training:
        keys.append('iscrowd')  # for pycocotools
    _check_keys(data, 'annotation', annotations, tuple(keys))
    declared = {category['id'] for category in categories}
    undeclared = [a['id'] for a in annotations if a['category_id'] not in declared]
    if undeclared:
        data.fail(
            f'{len(undeclared)} annotations are of categories that the file does not list, and would be left '
            f'out (ids {_first(undeclared)}): list the categories, or remove the annotations'
        )
    sizes = {image['id']: (image['height'], image['width']) for image in images}
    placed = [a for a in annotations if a['image_id'] in sizes]
    if len(placed) < len(annotations):
        data.note(f'{len(annotations) - len(placed)} annotations are of images that the file does not list')

    odd = [a['id'] for a in placed if not isinstance(a['bbox'], list) or len(a['bbox']) != 4]
    boxes = np.array([a['bbox'] for a in placed] if not odd else [], dtype=float).reshape(-1, 4)
    odd = odd or [placed[i]['id'] for i in np.flatnonzero(~np.isfinite(boxes).all(axis=1))]
    if odd:
        data.fail(f'{len(odd)} boxes are not four finite numbers x, y, width, height (ids {_first(odd)})')
    x, y, w, h = boxes.T
    height, width = np.array([sizes[a['image_id']] for a in placed], dtype=float).reshape(-1, 2).T
    area = np.array([a['area'] for a in placed], dtype=float)
    inside = (np.minimum(x + w, width) > np.maximum(x, 0)) & (np.minimum(y + h, height) > np.maximum(y, 0))
    kept = inside & (area > 0) & (w >= 1) & (h >= 1)
    wanted = kept & ~np.array([bool(a.get('ignore')) for a in placed], dtype=bool)
    dropped = [placed[i]['id'] for i in np.flatnonzero(~kept)]
    if data.is_training and not kept.any():
        data.fail(f'all boxes lie outside their images or have no area (ids {_first(dropped)})')
    if dropped:
        data.note(
            f'{len(dropped)} of {len(placed)} boxes lie outside their images, are narrower than a pixel or '
            f'have no area, and mmdet leaves them out (ids {_first(dropped)})'
        )
    if (step := data.step('LoadAnnotations')) is not None and step.get('with_mask'):
        _check_masks(data, [placed[i] for i in np.flatnonzero(wanted)], sizes)


def _check_filter(data: _DataSet, images: list, annotations: list, categories: list) -> None:
    """mmdet leaves out images that are too small or, as its configs have it, without any annotation."""
    settings = data.config.get('filter_cfg') or {}
    least = settings.get('min_size', 0)
    large = [image for image in images if min(image['height'], image['width']) >= least]
    used = {category['id'] for category in categories if category['name'] in data.classes}
    annotated = {a['image_id'] for a in annotations if a['category_id'] in used}
    kept = [image for image in large if image['id'] in annotated or not settings.get('filter_empty_gt')]
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


def _check_masks(data: _DataSet, annotations: list[dict], sizes: dict[Any, tuple[int, int]]) -> None:
    lacking = [a['id'] for a in annotations if not a.get('segmentation')]
    if lacking:
        data.fail(
            f'{len(lacking)} of {len(annotations)} annotations have no segmentation, and the model learns '
            f'masks (ids {_first(lacking)}): add them, or train boxes only, as configs/retinanet does'
        )
    runs = [a for a in annotations if isinstance(a['segmentation'], dict)]
    other = [a['id'] for a in runs if tuple(a['segmentation'].get('size', ())) != sizes[a['image_id']]]
    if other:
        data.fail(f'{len(other)} masks are not of the size of their images (ids {_first(other)})')


def read_class_names(cfg: Config, split: str) -> list[str]:
    """The names of a segmentor's classes in the order of their labels, a line each in `classes.txt`.

    Raises:
        PreflightError: If there is no such file, or nothing in it.
    """
    path = _first_data_set(cfg, split).path('classes.txt')
    try:
        with open(path, encoding='utf-8') as file:
            names = [line.strip() for line in file if line.strip()]
    except (OSError, ValueError) as error:
        raise PreflightError(
            f'{path} cannot be read ({getattr(error, "strerror", error)}): write the names of the classes '
            'into it, a line each in the order of their labels, or state them by `--cfg-options '
            f'classes=NAME,NAME`; {_PLACES}'
        ) from error
    if not names or len(set(names)) < len(names):
        raise PreflightError(f'{path} must name each class once, a line each, got {len(names)} names')
    return names


def find_suffix(cfg: Config, split: str, config: dict) -> str:
    """The suffix of the images of a segmentor's data set; mmsegmentation reads those of one suffix.

    Raises:
        PreflightError: If there are images of several.
    """
    data = _DataSet(cfg, split, config, None)
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


def _check_segmentation(data: _DataSet) -> None:
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


def _check_label_map(data: _DataSet, info: dict, load_image: Any, load_labels: Any) -> None:
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


def _check_classification(data: _DataSet) -> None:
    folder, listed = _images_and_list(data)
    if '://' in folder or not data.config.get('with_label', True) or data.config.get('split') == 'test':
        return
    if not osp.isfile(listed):
        _check_class_folders(data, folder)
        return
    if data.classes:
        data.check_number_of_classes(len(data.classes))
    with open(listed) as file:
        lines = [line.strip().rsplit(' ', 1) for line in file]
    if not lines:
        data.fail('names no images', listed)
    odd = [' '.join(line) for line in lines if len(line) != 2 or not line[1].isdecimal()]
    if odd:
        data.fail(f'{len(odd)} of {len(lines)} lines are not "FILE NUMBER" ({_first(odd)})', listed)
    number = data.model.get('head', {}).get('num_classes')
    wrong = [name for name, label in lines if number and int(label) >= number]
    if wrong:
        data.fail(
            f'{len(wrong)} labels are beyond the {number} classes of the model, 0 to {number - 1} '
            f'({_first(wrong)}): count classes from 0, or set num_classes of the head',
            listed,
        )
    data.check_files([osp.join(folder, name) for name, _ in lines])


def _images_and_list(data: _DataSet) -> tuple[str, str]:
    """Where the images of a classifier are, and the file that would list them with their classes."""
    split = data.config.get('split') or ''
    prefix = data.config.get('data_prefix') or split
    prefix = prefix if isinstance(prefix, str) else prefix.get('img_path') or ''
    return data.path(prefix), data.ann_file or data.path('meta', f'{split}.txt')


def read_class_folders(cfg: Config, split: str) -> list[str]:
    """Names of the folders of a classifier's images, in the order in which mmpretrain numbers them.

    Raises:
        PreflightError: If there are none.
    """
    data = _first_data_set(cfg, split)
    folder, _ = _images_and_list(data)
    if not osp.isdir(folder):
        data.fail(f'the folder does not exist: {_PLACES}', folder)
    if not (names := _folders(folder)):
        data.fail('has no folders, where each class needs one with its images', folder)
    return names


def _check_class_folders(data: _DataSet, folder: str) -> None:
    """mmpretrain numbers the folders by the alphabet, whatever the training had."""
    classes = _folders(folder)
    if hidden := [name for name in classes if name.startswith('.')]:
        data.fail(f'its folder {hidden[0]} would be a class: remove it', folder)
    if data.classes and len(data.classes) != len(classes):
        data.fail(f'has {len(classes)} folders, and the data set {len(data.classes)} classes', folder)
    data.check_number_of_classes(len(classes))
    if 'data_format' in data.cfg and data.classes and data.classes != classes:
        other = next(pair for pair in zip(classes, data.classes) if pair[0] != pair[1])
        data.fail(
            f'its folder {other[0]} would be class {other[1]} of the model: give it the folders that the '
            'model was trained with, and state classes in the order of the alphabet, or not at all',
            folder,
        )
    _check_class_images(data, folder, classes)
    if data.split == 'val':
        for config in data_set_configs(data.cfg, 'train'):
            trained, listed = _images_and_list(_DataSet(data.cfg, 'train', config, None))
            if osp.isdir(trained) and not osp.isfile(listed) and _folders(trained) != classes:
                other = sorted(set(classes) ^ set(_folders(trained)))
                data.fail(
                    f'its folders are not those of {trained} ({_first(other)}), so that their numbers would '
                    'stand for other classes: give both the same folders',
                    folder,
                )


def _check_class_images(data: _DataSet, folder: str, classes: list[str]) -> None:
    suffixes = tuple(suffix.lower() for suffix in data.config.get('extensions', _OF_MMPRETRAIN))
    empty = [name for name in classes if not _has_file(osp.join(folder, name), suffixes)]
    if len(empty) == len(classes):
        data.fail(f'holds no images ({", ".join(suffixes)})', folder)
    if empty:
        data.note(f'{len(empty)} of {len(classes)} classes have no images ({_first(empty)})')


def _has_file(folder: str, suffixes: tuple[str, ...]) -> bool:
    return any(name.lower().endswith(suffixes) for _, _, files in os.walk(folder) for name in files)


def _folders(folder: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


_CHECKS = {
    'CocoDataset': _check_coco,
    'BaseSegDataset': _check_segmentation,
    'CustomDataset': _check_classification,
}


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


def _first(items: list) -> str:
    return ', '.join(map(str, items[:3])) + (', ...' if len(items) > 3 else '')
