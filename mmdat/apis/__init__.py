"""From a config, a checkpoint and images to predictions: detectors, segmentors and classifiers alike."""

from .drawing import draw
from .images import ImageError
from .inference import inference
from .models import init_model

__all__ = ['ImageError', 'draw', 'inference', 'init_model']
