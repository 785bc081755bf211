from itertools import count
from weakref import WeakKeyDictionary

import mmcv
import numpy as np
from mmengine.registry import VISUALIZERS, DefaultScope
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from torch import nn

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
        image: A path, or an array `(H, W, 3)` in BGR.
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
    visualizer = _visualizer_of(model)
    image = mmcv.bgr2rgb(np.clip(pixels, 0, 255).astype(np.uint8))
    with DefaultScope.overwrite_default_scope(model.cfg.get('default_scope')):
        if 'pred_score' in result:
            picture = visualizer.visualize_cls(image, result, draw_gt=False)
        else:
            threshold = {'pred_score_thr': score_thr} if 'pred_instances' in result else {}
            visualizer.add_datasample('image', image, result, draw_gt=False, **threshold)
            picture = visualizer.get_image()
    return mmcv.rgb2bgr(picture)


def _visualizer_of(model: nn.Module) -> Visualizer:
    if model in _visualizers:
        return _visualizers[model]
    scope = model.cfg.get('default_scope')
    settings = dict(model.cfg.get('visualizer') or dict(type=_DEFAULTS.get(scope, 'Visualizer')))
    settings.update(name=f'apis {next(_numbers)}', vis_backends=None)  # MMEngine shares by name
    with DefaultScope.overwrite_default_scope(scope):
        visualizer = VISUALIZERS.build(settings)
    meta = dict(model.dataset_meta)
    if 'palette' not in meta and scope == 'mmseg':
        rng = np.random.default_rng(0)
        meta['palette'] = rng.integers(0, 255, (len(meta['classes']), 3)).tolist()
    visualizer.dataset_meta = meta
    _visualizers[model] = visualizer
    return visualizer
