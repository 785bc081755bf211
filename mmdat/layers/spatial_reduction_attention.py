from torch import Tensor, nn

from ..ops import attention
from .downsample import Downsample


class SpatialReductionAttention(nn.Module):
    """Attention of PVT to a reduced map (Wang et al., ICCV 2021), row `P` of the paper's Table 6.

    Args:
        embed_dims: Channels.
        num_heads: Heads, a divisor of `embed_dims`.
        reduction: Factor from the sides of the map to those of the keys' map. At 1 nothing is reduced.
    """

    def __init__(self, embed_dims: int, num_heads: int, reduction: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(embed_dims, embed_dims)
        self.reduction = (
            Downsample(embed_dims, embed_dims, reduction, overlap=False, bias=True)
            if reduction > 1
            else nn.Identity()
        )
        self.kv = nn.Linear(embed_dims, 2 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to `(B, H, W, C)`."""
        q = self.q(x).flatten(1, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv = self.kv(self.reduction(x)).flatten(1, 2)
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        z = attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(z).view(x.shape)
