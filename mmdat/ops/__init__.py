from .attention import attention
from .deformable_attention import deformable_attention, sample_features
from .mlp import mlp
from .neighborhood_attention import neighborhood_attention

__all__ = ['attention', 'deformable_attention', 'mlp', 'neighborhood_attention', 'sample_features']
