import torch
from torch import Tensor, nn

from ..ops import sample_features
from ..ops.deformable import offset_units, query_points
from .precision import PreciseLinear


class DeformableDETRAttention(nn.Module):
    """Attention of Deformable DETR on one map, which Table 8 compares with deformable attention.

    Each query samples points of its own, and weighs them without looking at keys (Appendix A). The
    paper does not say how its layers are initialised; they keep PyTorch's defaults, as those of the
    released models do.

    Args:
        embed_dims: Channels.
        num_heads: Heads, a divisor of `embed_dims`. Each has its own points.
        num_points: Points `K` of a query in each head.
    """

    def __init__(self, embed_dims: int, num_heads: int, num_points: int):
        super().__init__()
        self.num_heads = num_heads
        self.num_points = num_points
        self.offset = PreciseLinear(embed_dims, num_heads * num_points * 2)
        self.weight = nn.Linear(embed_dims, num_heads * num_points)
        self.v = nn.Linear(embed_dims, embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to `(B, H, W, C)`, Equation (11)."""
        locations = self.sampling_locations(x).flatten(2, 4)
        v = sample_features(self.v(x), locations)  # (B, H * W * K, C)
        v = v.view(*x.shape[:3], self.num_points, self.num_heads, -1)
        weights = self.weight(x).unflatten(-1, (self.num_heads, self.num_points))
        weights = weights.softmax(dim=-1, dtype=locations.dtype).to(v.dtype)
        z = torch.einsum('bhwmk,bhwkmd->bhwmd', weights, v)
        return self.proj(z.flatten(3))

    def sampling_locations(self, x: Tensor) -> Tensor:
        """Where the queries of the input `x` `(B, H, W, C)` look, `(B, M, H, W, K, 2)`.

        Last dimension `(y, x)`, normalised such that -1 and +1 are the centres of the map's border
        pixels. Offsets are in pixels of the map.
        """
        _, height, width, _ = x.shape
        dtype = torch.promote_types(x.dtype, torch.float32)
        queries = query_points(height, width, 'corners', dtype=dtype, device=x.device)  # the pixels
        pixel = 2 * offset_units(height, width, 'corners', dtype=dtype, device=x.device)
        offsets = self.offset(x).to(dtype).unflatten(-1, (self.num_heads, self.num_points, 2))
        return queries[:, :, None] + pixel * offsets.permute(0, 3, 1, 2, 4, 5)
