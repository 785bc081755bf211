from .coordinates import reference_points
from .functional import deformable_attention
from .reference import deformable_attention_reference, relative_position_bias, sample_features

__all__ = [
    'deformable_attention',
    'deformable_attention_reference',
    'reference_points',
    'relative_position_bias',
    'sample_features',
]
