"""Images on their way into a model: read, and prepared as the test pipeline of its config says."""

import inspect
import os.path as osp
from dataclasses import dataclass
from os import PathLike

import cv2
import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ..errors import UserError
from ..image_files import explain, is_cut_jpeg
from .models import find_test_data

Image = str | PathLike | np.ndarray


class ImageError(UserError, ValueError):
    """An image that cannot be used: names it and says why, in one line."""


@dataclass
class Sample:
    """An image that is ready for a model.

    Args:
        pixels: `(H, W, 3)`, BGR, as the config's own transform has read it.
        packed: What the pipeline makes of it: `inputs` and `data_samples`.
    """

    pixels: np.ndarray
    packed: dict


class Preparation:
    """Reads images and prepares them, by the test pipeline of a config without its annotations.

    Raises:
        UserError: If the config has no pipeline that reads images from files.
    """

    def __init__(self, cfg: Config):
        steps = [
            step for step in find_test_data(cfg).get('pipeline') or () if 'Annotations' not in _name(step)
        ]
        first = next((i + 1 for i, step in enumerate(steps) if _name(step).endswith('LoadImageFromFile')), 0)
        if not first:
            raise UserError('test_dataloader.dataset.pipeline of the config has no LoadImageFromFile')
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            self._load, self._transform = Compose(steps[:first]), Compose(steps[first:])

    def __call__(self, image: Image) -> Sample:
        """Prepares an image.

        Args:
            image: A path, or pixels `(H, W, 3)` in BGR, as OpenCV and mmcv read them.

        Raises:
            ImageError: If it cannot be read, is no image, or is too narrow to be resized.
        """
        results = self._read(image)
        pixels = results['img']
        name = _label(image)
        try:
            packed = self._transform(results)
        except Exception as error:
            _, reason = explain(error, [name]) or (name, f'cannot be prepared ({_say(error)})')
            raise ImageError(f'{name} {reason}') from error
        return Sample(pixels, packed)

    def read(self, image: Image) -> np.ndarray:
        """The pixels of an image, `(H, W, 3)` in BGR; raises `ImageError` as well."""
        return self._read(image)['img']

    def _read(self, image: Image) -> dict:
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or not image.size:
                raise ImageError(f'an array must be (H, W, 3), in BGR, got {image.shape}')
            size = image.shape[:2]
            return dict(img=image, img_path=None, img_id=0, img_shape=size, ori_shape=size)
        if not isinstance(image, str | PathLike):
            raise TypeError(f'images are paths or arrays (H, W, 3), got {type(image).__name__}')
        path = str(image)
        if osp.isdir(path):
            raise ImageError(f'{path} is a folder')
        if is_cut_jpeg(path):
            raise ImageError(f'{path} is cut short')
        try:
            return self._load(dict(img_path=path, img_id=0))
        except Exception as error:
            _, reason = explain(error, [path]) or (path, 'is no image, or of a format that cannot be read')
            raise ImageError(f'{path} {reason}') from error


def _name(step: dict) -> str:
    kind = step['type']
    return kind.__name__ if inspect.isclass(kind) else kind


def _label(image: Image) -> str:
    return f'an array of {image.shape}' if isinstance(image, np.ndarray) else str(image)


def _say(error: Exception) -> str:
    if isinstance(error, cv2.error):
        return str(error).strip().rpartition('error: ')[2].split('\n')[0]
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
