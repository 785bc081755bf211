from .deformable import deformable_attention, explain, explain_sampling, sample_features
from .flops import register_flops
from .fused.attention import attention, explain_attention
from .fused.neighborhood import explain_neighborhood_attention, neighborhood_attention_layer
from .native.mlp import explain_mlp, mlp
from .native.windows import explain_window_attention, window_attention
from .neighborhood import neighborhood_attention

__all__ = [
    'attention',
    'deformable_attention',
    'explain',
    'explain_attention',
    'explain_mlp',
    'explain_neighborhood_attention',
    'explain_sampling',
    'explain_window_attention',
    'mlp',
    'neighborhood_attention',
    'neighborhood_attention_layer',
    'sample_features',
    'window_attention',
]

register_flops()
