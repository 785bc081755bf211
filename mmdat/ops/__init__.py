from .attention import attention
from .deformable_attention import deformable_attention, explain, sample_features
from .flops import register_flops
from .neighborhood_attention import neighborhood_attention

__all__ = ['attention', 'deformable_attention', 'explain', 'neighborhood_attention', 'sample_features']

register_flops()
