"""Data that turn out to be broken during a run: training skips a few and says which, testing stops."""

import fcntl
import logging
import os.path as osp
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..image_files import explain, is_cut_jpeg
from .errors import PreflightError

# What training tolerates, as a share of its images, unless `max_broken_images` of the config says otherwise.
MAX_BROKEN_IMAGES = 0.01


class BrokenDataError(PreflightError):
    """Data that a run cannot use: names the file and says what is wrong and what to do, in one line."""

    def __init__(self, message: str):
        # PyTorch raises the error of a worker again with the worker's traceback before the message
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].strip())


def guard_data(runner: Runner, max_broken: float = MAX_BROKEN_IMAGES) -> None:
    """Has the data sets that a runner builds checked as they are read, also in workers of a dataloader.

    Files that are missing, empty, cut short or no images are named with the reason. In training MMEngine
    takes another image at random instead, as it does where a pipeline gives `None`; the files are listed
    in `broken_data.tsv` beside the log, by which all processes count them. In validation and testing, and
    for labels that do not fit the classes, the run ends with `BrokenDataError`. Other errors of a pipeline
    become a `RuntimeError` that names the image.

    Args:
        runner: Before its dataloaders are built.
        max_broken: How many of the images training may skip, from 0 to 1. If above 0, at least one.

    Raises:
        PreflightError: If `max_broken` is not in that range.
    """
    tolerated(max_broken, 0)  # said now, not with the first broken file
    build = runner.build_dataloader

    def build_guarded(dataloader, *args, **kwargs):
        loader = build(dataloader, *args, **kwargs)
        datasets = list(_leaves(loader.dataset))
        skipped = None
        if dataloader is runner._train_dataloader:
            images = sum(map(len, datasets))
            path = osp.join(runner.log_dir, 'broken_data.tsv')
            skipped = SkippedFiles(path, tolerated(max_broken, images), images)
        for dataset in datasets:
            dataset.prepare_data = DataGuard(dataset, skipped)
        return loader

    runner.build_dataloader = build_guarded


def tolerated(max_broken: float, images: int) -> int:
    """How many of so many images training may skip, see `guard_data`."""
    if isinstance(max_broken, bool) or not isinstance(max_broken, int | float) or not 0 <= max_broken <= 1:
        raise PreflightError(
            f'max_broken_images is a share of the training images, from 0 to 1, got {max_broken!r}'
        )
    return max(1, int(max_broken * images)) if max_broken else 0


def _leaves(dataset: Any) -> Iterator[BaseDataset]:
    """The data sets inside the wrappers of MMEngine, of the libraries and of PyTorch."""
    if isinstance(dataset, BaseDataset):
        yield dataset
        return
    children = [getattr(dataset, name, None) for name in ('dataset', '_dataset')]
    for child in (*children, *getattr(dataset, 'datasets', ())):
        if child is not None:
            yield from _leaves(child)


@dataclass
class SkippedFiles:
    """The files that a training skips, in all its processes.

    Attributes:
        path: A list with a line for each, in which processes count them under a lock.
        limit: How many may be skipped.
        images: The number of images in the data set.
    """

    path: str
    limit: int
    images: int

    def add(self, name: str, reason: str) -> None:
        """Lists and logs a file, once.

        Raises:
            BrokenDataError: If these are too many; names the first three.
        """
        line = f'{name}\t{reason}'
        with open(self.path, 'a+') as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            lines = file.read().splitlines()
            if line in lines:
                return
            lines.append(line)
            file.write(line + '\n')
        if len(lines) > self.limit:
            first = '; '.join(line.replace('\t', ' ') for line in lines[:3])
            raise BrokenDataError(
                f'{len(lines)} of {self.images} training images cannot be used, {self.limit} may be skipped: '
                f'{first} (all in {self.path}): mend the data, or raise max_broken_images'
            )
        # as an error, because MMEngine mutes the warnings of all processes but the first
        print_log(
            f'skipped {name}, which {reason} ({len(lines)} of at most {self.limit}, see {self.path})',
            logger='current',
            level=logging.ERROR,
        )


@dataclass
class DataGuard:
    """Takes the place of a data set's `prepare_data`.

    Attributes:
        dataset: The data set.
        skipped: Where training lists what it skips; `None` where nothing may be skipped.
    """

    dataset: BaseDataset
    skipped: SkippedFiles | None

    def __call__(self, index: int) -> Any:
        info = self.dataset.get_data_info(index)
        paths = [path for key, value in info.items() if 'path' in key for path in _strings(value)]
        try:
            for path in paths:
                if is_cut_jpeg(path):
                    raise _Unusable(path, 'is cut short')
            data = type(self.dataset).prepare_data(self.dataset, index)
            self._check(data, info, paths)
            return data
        except _Unusable as broken:
            name, reason = broken.args
        except BrokenDataError:
            raise
        except Exception as error:
            name, reason = explain(error, paths) or (None, None)
            if name is None:
                raise RuntimeError(
                    f'{paths[0] if paths else index} could not be prepared: {type(error).__name__}: {error}'
                ) from error
        if self.skipped is None:
            raise BrokenDataError(f'{name} {reason}: mend it, or take it out of the data set')
        self.skipped.add(name, reason)
        return None

    def _check(self, data: Any, info: dict, paths: list[str]) -> None:
        """Finds annotations that do not fit, where mmdet and mmseg say of which size the image was."""
        sample = data.get('data_samples') if isinstance(data, dict) else None
        shape = getattr(sample, 'ori_shape', None)
        if shape is None:
            return
        if 'height' in info and tuple(shape) != (info['height'], info['width']):
            raise _Unusable(
                paths[0],
                f'has {shape[0]} x {shape[1]} pixels, where the annotation file says {info["height"]} x '
                f'{info["width"]} (images turned by their EXIF tag: LoadImageFromFile with '
                "color_type='color_ignore_orientation' leaves them as they are)",
            )
        if self.skipped is not None and 'gt_instances' in sample and 'bboxes' in sample.gt_instances:
            _check_boxes(sample.gt_instances.bboxes, paths[0])
        if hasattr(self.dataset, 'reduce_zero_label') and 'gt_sem_seg' in sample:
            self._check_label_map(
                sample.gt_sem_seg.data.squeeze(0).numpy(), info, (shape, data['inputs'].shape[1:])
            )

    def _check_label_map(self, labels: np.ndarray, info: dict, shapes: tuple) -> None:
        path, classes = info['seg_map_path'], len(self.dataset._metainfo.get('classes') or ())
        if reason := no_label_map(labels):
            raise BrokenDataError(f'{path} {reason}')
        if labels.shape not in shapes:
            raise _Unusable(path, 'is of another size than its image')
        if classes and (reason := labels_beyond(labels, classes, self.dataset.ignore_index)):
            raise BrokenDataError(f'{path} {reason}')


class _Unusable(Exception):  # noqa: N818
    """Name of a file that may be skipped, and why."""


def _check_boxes(boxes: Any, path: str) -> None:
    boxes = getattr(boxes, 'tensor', boxes)
    if boxes.shape[-1] != 4:  # rotated ones
        return
    if not boxes.isfinite().all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        raise _Unusable(
            path,
            'has boxes without area, whose loss is not finite (FilterAnnotations with min_gt_bbox_wh=(1, 1) '
            'takes them out)',
        )


def no_label_map(labels: np.ndarray) -> str | None:
    """Why an array as read from a file holds no labels, if so, to follow the name of the file."""
    if labels.ndim < 2:
        return 'is one pixel wide or high, and mmsegmentation reads no such label map'
    if labels.ndim > 2:
        return (
            f'has {labels.shape[-1]} channels, where a label map has one, with the numbers of the classes: '
            'convert its colours to numbers'
        )
    return None


def labels_beyond(labels: np.ndarray, classes: int, ignored: int) -> str | None:
    """Which labels of a map are none of the classes, if any, to follow the name of its file."""
    wrong = np.unique(labels[(labels >= classes) & (labels != ignored)])
    if not len(wrong):
        return None
    return (
        f'has the labels {", ".join(map(str, wrong[:3]))} as the model gets them, where there are {classes} '
        f'classes, 0 to {classes - 1}, and {ignored} for ignored pixels: mend the label map, or see '
        'reduce_zero_label and metainfo of the data set'
    )


def _strings(value: Any) -> list[str]:
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if isinstance(item, str)]
