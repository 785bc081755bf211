from .attention import attention
from .deformable_attention import deformable_attention, sample_features

__all__ = ['attention', 'deformable_attention', 'sample_features']
