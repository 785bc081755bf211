import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import neighborhood_attention, neighborhood_attention_layer
from ..ops.sizes import at_least, crop, is_traced
from .plain import are_plain


class NeighborhoodAttention(nn.Module):
    """Local attention of DAT++: each position attends to the square around it.

    Maps smaller than the square are padded with zeros at the right and the bottom, and cropped again.
    Padded positions are ordinary keys, as the released weights were trained.

    Args:
        embed_dims: Channels.
        num_heads: Heads, a divisor of `embed_dims`.
        kernel_size: Side of the neighbourhoods in pixels of the map, odd.
    """

    def __init__(self, embed_dims: int, num_heads: int, kernel_size: int = 7):
        super().__init__()
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        # no "position_bias_table": the released recipes decay it, and it fits one kernel size only
        self.relative_bias = nn.Parameter(torch.empty(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
        self.reset_parameters()
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def reset_parameters(self) -> None:
        """Initialises the relative bias."""
        nn.init.trunc_normal_(self.relative_bias, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to `(B, H, W, C)`."""
        _, height, width, _ = x.shape
        missing_rows, missing_columns = (at_least(self.kernel_size - n, 0) for n in (height, width))
        if torch.compiler.is_compiling() or is_traced(height, width) or missing_rows or missing_columns:
            x = F.pad(x, (0, 0, 0, missing_columns, 0, missing_rows))
        qkv, proj = self.qkv, self.proj
        if are_plain(qkv, proj):
            weights = qkv.weight, qkv.bias, proj.weight, proj.bias
            x = neighborhood_attention_layer(x, *weights, self.relative_bias)
        else:
            q, k, v = qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(3)
            x = proj(neighborhood_attention(q, k, v, self.relative_bias).flatten(3))
        return crop(x, 0, 0, height, width)
