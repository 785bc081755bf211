from .coordinates import Coordinates, offset_unit, offset_units, query_points, reference_points
from .dispatch import deformable_attention, explain
from .reference import deformable_attention_reference, relative_position_bias
from .sampling import explain_sampling, sample_features

__all__ = [
    'Coordinates',
    'deformable_attention',
    'deformable_attention_reference',
    'explain',
    'explain_sampling',
    'offset_unit',
    'offset_units',
    'query_points',
    'reference_points',
    'relative_position_bias',
    'sample_features',
]
