from .channels_first import ChannelsFirst
from .deformable_attention import DeformableAttention
from .deformable_detr_attention import DeformableDETRAttention
from .depthwise_conv import DepthwiseConv
from .downsample import ConvStem, Downsample
from .drop_path import DropPath
from .mlp import MLP
from .neighborhood_attention import NeighborhoodAttention
from .output_norm import OutputNorm, keep_in_graph
from .spatial_reduction_attention import SpatialReductionAttention
from .window_attention import WindowAttention

__all__ = [
    'MLP',
    'ChannelsFirst',
    'ConvStem',
    'DeformableAttention',
    'DeformableDETRAttention',
    'DepthwiseConv',
    'Downsample',
    'DropPath',
    'NeighborhoodAttention',
    'OutputNorm',
    'SpatialReductionAttention',
    'WindowAttention',
    'keep_in_graph',
]
