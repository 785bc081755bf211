from .deformable import deformable_attention, explain, sample_features
from .dense import attention
from .flops import register_flops
from .native.mlp import explain_mlp, mlp
from .native.windows import explain_window_attention, window_attention
from .neighborhood import neighborhood_attention

__all__ = [
    'attention',
    'deformable_attention',
    'explain',
    'explain_mlp',
    'explain_window_attention',
    'mlp',
    'neighborhood_attention',
    'sample_features',
    'window_attention',
]

register_flops()
