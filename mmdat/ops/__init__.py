from .attention import attention
from .deformable_attention import deformable_attention, reference_points, sample_features

__all__ = ['attention', 'deformable_attention', 'reference_points', 'sample_features']
