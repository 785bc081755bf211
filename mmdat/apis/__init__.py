"""From a config, a checkpoint and images to predictions: detectors, segmentors and classifiers alike."""

from .drawing import draw
from .images import ImageError
from .models import init_model
from .prediction import inference

__all__ = ['ImageError', 'draw', 'inference', 'init_model']
