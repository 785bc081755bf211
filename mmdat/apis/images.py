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
from PIL import ImageOps
from PIL.Image import Image as PillowImage

from ..errors import UserError
from ..image_files import explain, is_cut_jpeg
from ..quiet import quiet
from .models import find_data

Image = str | PathLike | np.ndarray | PillowImage
_NO_COLOURS = ('I', 'F')  # PIL's modes of 16 bits and more start so


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

    Args:
        cfg: The config.
        loader: Which of its loaders has the pipeline.

    Raises:
        UserError: If the config has no pipeline that reads images from files.
    """

    def __init__(self, cfg: Config, loader: str = 'test_dataloader'):
        pipeline = find_data(cfg, loader).get('pipeline') or ()
        steps = [step for step in pipeline if 'Annotations' not in _name(step)]
        first = next((i + 1 for i, step in enumerate(steps) if _name(step).endswith('LoadImageFromFile')), 0)
        if not first:
            raise UserError(f'{loader}.dataset.pipeline of the config has no LoadImageFromFile')
        with quiet(), DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
            self._load, self._transform = Compose(steps[:first]), Compose(steps[first:])

    def __call__(self, image: Image) -> Sample:
        """Prepares an image.

        Args:
            image: A path; pixels `(H, W, 3)` in BGR from 0 to 255, as OpenCV and mmcv read them; or an image
                of Pillow.

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
        if isinstance(image, PillowImage):
            image = _pixels_of(image)
        if isinstance(image, np.ndarray):
            _check_pixels(image)
            size = image.shape[:2]
            return dict(img=image, img_path=None, img_id=0, img_shape=size, ori_shape=size)
        if not isinstance(image, str | PathLike):
            raise TypeError(f'images are paths, arrays (H, W, 3) or of Pillow, got {type(image).__name__}')
        path = str(image)
        if osp.isdir(path):
            raise ImageError(f'{path} is a folder: name the images in it')
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
    if isinstance(image, PillowImage):
        return f'an image of {image.width} x {image.height}'
    return f'an array of {image.shape}' if isinstance(image, np.ndarray) else str(image)


def _pixels_of(image: PillowImage) -> np.ndarray:
    """What the file of an image of Pillow would be read as: upright, and without transparency."""
    if image.mode.startswith(_NO_COLOURS):
        raise ImageError(f'an image of mode {image.mode} has no 8 bits: convert it to RGB')
    try:
        return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))[..., ::-1].copy()
    except OSError as error:  # it reads its file only now
        raise ImageError(f'{_label(image)} cannot be read ({error})') from error


def _check_pixels(pixels: np.ndarray) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageError(f'an array must be (H, W, 3), in BGR, got {pixels.shape}')
    largest = pixels.max()
    is_float = np.issubdtype(pixels.dtype, np.floating)
    if pixels.dtype != np.uint8 and (not is_float or largest > 255 or 0 < largest <= 1):
        raise ImageError(
            f'an array must have values from 0 to 255, as uint8, got {pixels.dtype} up to {largest:g}'
        )


def _say(error: Exception) -> str:
    if isinstance(error, cv2.error):
        return str(error).strip().rpartition('error: ')[2].split('\n')[0]
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
