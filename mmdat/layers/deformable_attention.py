import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import attention, deformable_attention, sample_features
from ..ops.deformable_attention import offset_unit, reference_points


class OffsetNetwork(nn.Module):
    """The network theta that turns queries into raw offsets (Figure 2b), shared by the groups.

    Args:
        channels: Channels of a group.
        kernel_size: Kernel of the depth-wise convolution, odd. The paper says 5 for all stages; the
            released models use 9, 7, 5, 3.
        stride: Down-sampling factor `r` from queries to keys.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, kernel_size, stride, padding=kernel_size // 2, groups=channels
        )
        self.norm = nn.LayerNorm(channels)
        self.act = nn.GELU()
        self.proj = nn.Linear(channels, 2, bias=False)  # a bias would shift all points at once

    def forward(self, q: Tensor) -> Tensor:
        """Maps queries `(B, C, H, W)` to offsets `(B, H_k, W_k, 2)`, last dimension `(y, x)`."""
        x = self.conv(q).permute(0, 2, 3, 1)
        return self.proj(self.act(self.norm(x)))


class DeformableAttention(nn.Module):
    """Deformable multi-head attention (paper Section 3.2, Figure 2).

    All queries attend to one set of keys, sampled from the map at a uniform grid of reference points
    that is deformed by offsets learned from the queries.

    Args:
        embed_dims: Channels.
        num_heads: Heads, a divisor of `embed_dims`.
        offset_groups: Groups of channels with offsets of their own, a divisor of `num_heads`.
        map_size: Nominal `(H, W)` of the map, which sizes the bias table. Maps of any other size
            stretch the table over them.
        key_stride: Down-sampling factor `r`: a map of `H` rows has `ceil(H / r)` rows of keys.
        kernel_size: Kernel of the offset network.
        offset_range: Largest offset `s`, in cells of the key grid. 0 leaves the keys at the reference
            points; the idle offset network stays for checkpoints, frozen. (The released code reads 0
            as "unbounded", which no model of the paper uses.)
        pos_bias: `'relative'`, the deformable bias table; `'fixed'`, one bias for each pair of query
            and key; `'dwconv'`, a depth-wise convolution of the queries added to the output; or
            `None` (Table 6).
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        offset_groups: int,
        map_size: tuple[int, int],
        key_stride: int = 1,
        kernel_size: int = 5,
        offset_range: float = 2.0,
        pos_bias: str | None = 'relative',
    ):
        super().__init__()
        self.num_heads = num_heads
        self.offset_groups = offset_groups
        self.key_stride = key_stride
        self.offset_range = offset_range
        self.pos_bias = pos_bias

        self.q = nn.Linear(embed_dims, embed_dims)
        self.offset = OffsetNetwork(embed_dims // offset_groups, kernel_size, key_stride)
        self.offset.requires_grad_(offset_range > 0)
        self.k = nn.Linear(embed_dims, embed_dims)
        self.v = nn.Linear(embed_dims, embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

        height, width = map_size
        if pos_bias == 'relative':
            table = torch.empty(num_heads, 2 * height - 1, 2 * width - 1)
            self.position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.01))
        elif pos_bias == 'fixed':
            num_keys = self._num_keys(height) * self._num_keys(width)
            table = torch.empty(num_heads, height * width, num_keys)
            self.position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.01))
        elif pos_bias == 'dwconv':
            self.position_bias_conv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1, groups=embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to `(B, H, W, C)`."""
        _, height, width, _ = x.shape
        q = self.q(x)
        locations = self._deform(q).flatten(2, 3)  # (B, G, N_k, 2)
        sampled = sample_features(x, locations)  # Eq. (7), (8)
        k, v = self.k(sampled), self.v(sampled)  # Eq. (6)
        heads = [self._split_heads(t) for t in (q.flatten(1, 2), k, v)]
        if self.pos_bias == 'relative':
            z = deformable_attention(*heads, self.position_bias_table, locations, (height, width))  # Eq. (9)
        else:
            z = attention(*heads, self._fixed_bias(height, width))
        z = z.transpose(1, 2).flatten(2).view(q.shape)
        if self.pos_bias == 'dwconv':
            z = z + self.position_bias_conv(q.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(z)  # Eq. (3)

    def sampling_locations(self, x: Tensor) -> Tensor:
        """Where the keys of the input `x` `(B, H, W, C)` are sampled, `(B, G, H_k, W_k, 2)`.

        Last dimension `(y, x)`, normalised such that -1 and +1 are the centres of the map's border
        pixels. Points may lie outside, where features are zero.
        """
        return self._deform(self.q(x))

    def _deform(self, q: Tensor) -> Tensor:
        batch, height, width, _ = q.shape
        grid = self._num_keys(height), self._num_keys(width)
        # positions need more digits than bfloat16 has
        dtype = torch.promote_types(q.dtype, torch.float32)
        points = reference_points(*grid, dtype=dtype, device=q.device)
        if self.offset_range == 0:
            return points.expand(batch, self.offset_groups, *grid, 2)
        q = q.unflatten(-1, (self.offset_groups, -1)).permute(0, 3, 4, 1, 2)
        offsets = self.offset(q.flatten(0, 1)).to(dtype)
        # dp <- s tanh(dp), with s in cells of the key grid
        unit = points.new_tensor([offset_unit(size) for size in grid])
        offsets = offsets.tanh() * (self.offset_range * unit)
        return points + offsets.unflatten(0, (batch, self.offset_groups))

    def _fixed_bias(self, height: int, width: int) -> Tensor | None:
        if self.pos_bias != 'fixed':
            return None
        size = height * width, self._num_keys(height) * self._num_keys(width)
        if size == self.position_bias_table.shape[1:]:
            return self.position_bias_table
        return F.interpolate(self.position_bias_table[None], size, mode='bilinear', align_corners=True)[0]

    def _num_keys(self, size: int) -> int:
        return -(-size // self.key_stride)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
