"""A folder of images for each class, or a list of images with their classes, which mmpretrain reads."""

import os
import os.path as osp

from mmengine.config import Config

from .data_set import WHERE_DATA_ARE, DataSet, data_set_configs, first_data_set, first_few

_OF_MMPRETRAIN = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif')


def read_class_folders(cfg: Config, split: str) -> list[str]:
    """Names of the folders of a classifier's images, in the order in which mmpretrain numbers them.

    Raises:
        PreflightError: If there are none.
    """
    data = first_data_set(cfg, split)
    folder, _ = _images_and_list(data)
    if not osp.isdir(folder):
        data.fail(f'the folder does not exist: {WHERE_DATA_ARE}', folder)
    if not (names := _folders(folder)):
        data.fail('has no folders, where each class needs one with its images', folder)
    return names


def check_class_folders(data: DataSet) -> None:
    folder, listed = _images_and_list(data)
    if '://' in folder or not data.config.get('with_label', True) or data.config.get('split') == 'test':
        return
    if not osp.isfile(listed):
        _check_folders(data, folder)
        return
    if data.classes:
        data.check_number_of_classes(len(data.classes))
    with open(listed) as file:
        lines = [line.strip().rsplit(' ', 1) for line in file]
    if not lines:
        data.fail('names no images', listed)
    odd = [' '.join(line) for line in lines if len(line) != 2 or not line[1].isdecimal()]
    if odd:
        data.fail(f'{len(odd)} of {len(lines)} lines are not "FILE NUMBER" ({first_few(odd)})', listed)
    number = data.model.get('head', {}).get('num_classes')
    wrong = [name for name, label in lines if number and int(label) >= number]
    if wrong:
        data.fail(
            f'{len(wrong)} labels are beyond the {number} classes of the model, 0 to {number - 1} '
            f'({first_few(wrong)}): count classes from 0, or set num_classes of the head',
            listed,
        )
    data.check_files([osp.join(folder, name) for name, _ in lines])


def _images_and_list(data: DataSet) -> tuple[str, str]:
    """Where the images of a classifier are, and the file that would list them with their classes."""
    split = data.config.get('split') or ''
    prefix = data.config.get('data_prefix') or split
    prefix = prefix if isinstance(prefix, str) else prefix.get('img_path') or ''
    return data.path(prefix), data.ann_file or data.path('meta', f'{split}.txt')


def _check_folders(data: DataSet, folder: str) -> None:
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
            trained, listed = _images_and_list(DataSet(data.cfg, 'train', config, None))
            if osp.isdir(trained) and not osp.isfile(listed) and _folders(trained) != classes:
                other = sorted(set(classes) ^ set(_folders(trained)))
                data.fail(
                    f'its folders are not those of {trained} ({first_few(other)}), so that their numbers '
                    'would stand for other classes: give both the same folders',
                    folder,
                )


def _check_class_images(data: DataSet, folder: str, classes: list[str]) -> None:
    suffixes = tuple(suffix.lower() for suffix in data.config.get('extensions', _OF_MMPRETRAIN))
    empty = [name for name in classes if not _has_file(osp.join(folder, name), suffixes)]
    if len(empty) == len(classes):
        data.fail(f'holds no images ({", ".join(suffixes)})', folder)
    if empty:
        data.note(f'{len(empty)} of {len(classes)} classes have no images ({first_few(empty)})')


def _has_file(folder: str, suffixes: tuple[str, ...]) -> bool:
    return any(name.lower().endswith(suffixes) for _, _, files in os.walk(folder) for name in files)


def _folders(folder: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
