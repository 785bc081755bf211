"""Models as files for other runtimes: ONNX, and the programs of `torch.export`."""

from .export import LIMIT, Report, check_target, export_model
from .parts import part_of

__all__ = ['LIMIT', 'Report', 'check_target', 'export_model', 'part_of']
