from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import TypeVar

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from PIL.Image import Image as PillowImage
from torch import nn

from .images import Image, Preparation

LOOK_AHEAD = 4  # batches of images that may wait for others of their size

K = TypeVar('K', bound=Hashable)


def inference(
    model: nn.Module, images: Image | Iterable[Image], batch_size: int = 1
) -> BaseDataElement | list[BaseDataElement]:
    """Predicts what is in images.

    They are prepared by the test pipeline of the model's config, and predictions are in pixels of the images
    themselves, however they were resized. A batch has images of one size only, so no image is padded because
    of others, and its predictions do not depend on them.

    Args:
        model: As `init_model` gives it. A model that is being trained is so afterwards, too.
        images: One or many, each a path, an array `(H, W, 3)` in BGR from 0 to 255, as OpenCV and mmcv read
            it, or an image of Pillow.
        batch_size: Images at a time.

    Returns:
        For each image what its library predicts, on the CPU: a `DetDataSample` with `pred_instances`, a
        `SegDataSample` with `pred_sem_seg`, or a `DataSample` with `pred_label` and `pred_score`. A list in
        the order of the images, or for one image alone without a list.

    Raises:
        ImageError: If an image cannot be used; names it.
    """
    alone = isinstance(images, str | PathLike | np.ndarray | PillowImage)
    images = [images] if alone else list(images)
    prepare = Preparation(model.cfg)
    samples = ((i, prepare(image).packed) for i, image in enumerate(images))
    results = dict(predict(model, samples, batch_size))
    return results[0] if alone else [results[i] for i in range(len(images))]


def predict(
    model: nn.Module, samples: Iterable[tuple[K, dict]], batch_size: int = 1
) -> Iterator[tuple[K, BaseDataElement]]:
    """Predicts for prepared images as they come, in batches of images of one size.

    Args:
        model: As `init_model` gives it.
        samples: A key for each image, and what the pipeline made of it.
        batch_size: Images at a time.

    Yields:
        The key of each image and its prediction, on the CPU, in the order in which batches fill.
    """
    if batch_size < 1:
        raise ValueError(f'batch_size must be at least 1, got {batch_size}')
    waiting: dict[tuple[int, ...], list[tuple[K, dict]]] = {}
    for key, packed in samples:
        size = _size_in_batch(model, packed['inputs'])
        waiting.setdefault(size, []).append((key, packed))
        if len(waiting[size]) == batch_size:
            yield from _run(model, waiting.pop(size))
        elif sum(map(len, waiting.values())) >= LOOK_AHEAD * batch_size:
            yield from _run(model, waiting.pop(next(iter(waiting))))
    for batch in waiting.values():
        yield from _run(model, batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the mode of each module is as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _size_in_batch(model: nn.Module, inputs: torch.Tensor) -> tuple[int, ...]:
    """The size to which the model pads an image that is alone in its batch."""
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    return tuple(-(-side // divisor) * divisor for side in inputs.shape[-2:])


def _run(model: nn.Module, batch: list[tuple[K, dict]]) -> list[tuple[K, BaseDataElement]]:
    keys, packed = zip(*batch)
    with evaluating(model), DefaultScope.overwrite_default_scope(model.cfg.get('default_scope')):
        results = model.test_step(pseudo_collate(packed))
    return [(key, result.cpu()) for key, result in zip(keys, results)]
