"""DAT, Vision Transformer with Deformable Attention, for OpenMMLab."""

from .backbones import DAT
from .version import __version__

__all__ = ['DAT', '__version__']
