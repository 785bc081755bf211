"""DAT, Vision Transformer with Deformable Attention, for OpenMMLab."""

from .backbones import DAT
from .checkpoint.schemes import register_scheme
from .hub import register_package
from .version import __version__

__all__ = ['DAT', '__version__']

register_package()
register_scheme()
