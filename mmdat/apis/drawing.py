from collections.abc import Mapping
from itertools import count
from weakref import WeakKeyDictionary

import mmcv
import numpy as np
from mmengine.config import Config
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import nn

from ..quiet import quiet
from .images import Image, Preparation

_DEFAULTS = {
    'mmdet': 'DetLocalVisualizer',
    'mmseg': 'SegLocalVisualizer',
    'mmpretrain': 'UniversalVisualizer',
}

_visualizers: WeakKeyDictionary[nn.Module, Visualizer] = WeakKeyDictionary()
_numbers = count()


def draw(model: nn.Module, image: Image, result: BaseDataElement, score_thr: float = 0.3) -> np.ndarray:
    """Draws a prediction on its image, by the visualiser of the model's config and library.

    Args:
        model: As `init_model` gives it.
        image: As for `inference`.
        result: What `inference` returns for it.
        score_thr: The lowest score of objects that are drawn, for detectors.

    Returns:
        `(H, W, 3)` uint8 in BGR, for `cv2.imwrite` and `mmcv.imwrite`.

    Raises:
        ImageError: If the image cannot be read.
    """
    return draw_on_pixels(model, Preparation(model.cfg).read(image), result, score_thr)


def draw_on_pixels(
    model: nn.Module, pixels: np.ndarray, result: BaseDataElement, score_thr: float = 0.3
) -> np.ndarray:
    """As `draw`, on pixels that are read already."""
    if model not in _visualizers:
        _visualizers[model] = build_visualizer(model.cfg, model.dataset_meta)
    return draw_result(_visualizers[model], pixels, result, score_thr)


def draw_result(
    visualizer: Visualizer, pixels: np.ndarray, result: BaseDataElement, score_thr: float = 0.3
) -> np.ndarray:
    """As `draw_on_pixels`, by a visualizer of `build_visualizer`."""
    image = mmcv.bgr2rgb(np.clip(pixels, 0, 255).astype(np.uint8))
    with quiet():  # of boxes that end at the border it would say that they may not be seen
        if 'pred_score' in result:
            picture = visualizer.visualize_cls(image, result, draw_gt=False)
        else:
            threshold = {'pred_score_thr': score_thr} if 'pred_instances' in result else {}
            visualizer.add_datasample('image', image, result, draw_gt=False, **threshold)
            picture = visualizer.get_image()
    return mmcv.rgb2bgr(picture)


def build_visualizer(cfg: Config, dataset_meta: Mapping) -> Visualizer:
    """The visualizer of a config or of its library, one of its own that writes nowhere.

    Args:
        cfg: The config.
        dataset_meta: Classes, and perhaps their colours in `palette`.
    """
    scope = cfg.get('default_scope')
    settings = dict(cfg.get('visualizer') or dict(type=_DEFAULTS.get(scope, 'Visualizer')))
    settings.update(name=f'mmdat {next(_numbers)}', vis_backends=None)  # MMEngine shares by name
    with quiet(), DefaultScope.overwrite_default_scope(scope):
        visualizer = VISUALIZERS.build(settings)
    meta = dict(dataset_meta)
    if 'palette' not in meta and scope == 'mmseg':
        rng = np.random.default_rng(0)
        meta['palette'] = rng.integers(0, 255, (len(meta['classes']), 3)).tolist()
    visualizer.dataset_meta = meta
    return visualizer
