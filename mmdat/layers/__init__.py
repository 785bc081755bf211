from .deformable_attention import DeformableAttention
from .downsample import Downsample
from .drop_path import DropPath
from .mlp import MLP
from .window_attention import WindowAttention

__all__ = ['MLP', 'DeformableAttention', 'Downsample', 'DropPath', 'WindowAttention']
