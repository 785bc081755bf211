"""What a user of an exported file must know: how images are prepared, and what the outputs mean."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..version import __version__
from .parts import Part


def describe(model: nn.Module, part: Part) -> dict[str, str]:
    """What is written into the file, strings and JSON.

    - `mean`, `std`: of each channel, of pixels from 0 to 255. The graph takes `(pixels - mean) / std`.
    - `channel_order`: of the input, `RGB` or `BGR`.
    - `pad_size_divisor`: detectors are trained on images padded to multiples of it.
    - `classes`: names, in the order of the outputs' channels.
    - `bbox_head`: of detectors, what decodes the raw maps: anchors, coder of the boxes, strides.
    """
    mean, std = normalisation(model)
    described: dict[str, Any] = {
        'producer': f'mmdat {__version__}',
        'model': type(model).__name__,
        'kind': part.kind,
        'mean': mean,
        'std': std,
        'channel_order': channel_order(model),
        'pad_size_divisor': pad_size_divisor(model),
        'classes': list(model.dataset_meta.get('classes') or ()),
    }
    if part.kind == 'detector':
        head = model.cfg.model.bbox_head
        described['bbox_head'] = {
            key: _plain(head[key]) for key in ('type', 'anchor_generator', 'bbox_coder') if key in head
        }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in described.items()}


def normalisation(model: nn.Module) -> tuple[list[float], list[float]]:
    """Means and standard deviations of the channels, in pixels from 0 to 255."""
    preprocessor = model.data_preprocessor
    if not getattr(preprocessor, '_enable_normalize', False):
        return [0.0] * 3, [1.0] * 3
    values = (getattr(preprocessor, name).flatten().tolist() for name in ('mean', 'std'))
    return tuple([float(f'{value:.7g}') for value in channels] for channels in values)  # as in the config


def channel_order(model: nn.Module) -> str:
    """Of the images that the model computes with; files are read as BGR."""
    preprocessor = model.data_preprocessor
    converts = getattr(preprocessor, '_channel_conversion', False) or getattr(preprocessor, 'to_rgb', False)
    return 'RGB' if converts else 'BGR'


def pad_size_divisor(model: nn.Module) -> int:
    """To multiples of how many pixels images are padded; 1 for none."""
    return getattr(model.data_preprocessor, 'pad_size_divisor', 1) or 1


def normalise(model: nn.Module, pixels: np.ndarray) -> Tensor:
    """Images `(B, H, W, 3)` in BGR as the graph takes them, `(B, 3, H, W)` in float32."""
    mean, std = (torch.tensor(values)[:, None, None] for values in normalisation(model))
    if channel_order(model) == 'RGB':
        pixels = pixels[..., ::-1]
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    return (images - mean) / std


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return node if isinstance(node, str | int | float | bool | None) else str(node)
