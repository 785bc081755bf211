from .deformable import deformable_attention, explain, sample_features
from .dense import attention
from .neighborhood import neighborhood_attention

__all__ = ['attention', 'deformable_attention', 'explain', 'neighborhood_attention', 'sample_features']
