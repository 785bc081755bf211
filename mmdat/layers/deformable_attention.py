from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import attention, deformable_attention, sample_features
from ..ops.deformable import Coordinates, offset_units, reference_points, relative_position_bias
from ..ops.dense import attention_weights
from ..ops.fused.kernel import compute_dtype
from ..ops.sizes import is_traced
from .depthwise_conv import DepthwiseConv
from .precision import Conv2d, PreciseLinear


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
        self.conv = Conv2d(channels, channels, kernel_size, stride, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.act = nn.GELU()
        self.proj = PreciseLinear(channels, 2, bias=False)  # a bias would shift all points at once

    def forward(self, q: Tensor) -> Tensor:
        """Maps queries `(B, C, H, W)` to offsets `(B, H_k, W_k, 2)`, last dimension `(y, x)`.

        Offsets are in float32 at least: positions need more digits than bfloat16 has.
        """
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
        offset_range: Largest offset `s`, in cells of the key grid. `'map'` bounds the points instead of
            the offsets, which then are in normalised coordinates: CVPR'22 squashes points into the map
            by tanh, DAT++ clamps them, as its released models do. 0 switches deformation off: CVPR'22
            samples at the reference points, DAT++ averages `r x r` pixels for a key; the idle offset
            network stays for checkpoints, frozen. (The CVPR'22 code reads 0 as neither bounded nor
            squashed, which no model of the paper uses.)
        pos_bias: `'relative'`, the deformable bias table; `'fixed'`, one bias for each pair of query
            and key; `'dwconv'`, a depth-wise convolution of the queries added to the output; or
            `None` (Table 6).
        coordinates: Where keys and queries lie, and what `offset_range` means: `'half_pixel'` in
            CVPR'22, `'corners'` in DAT++. See `mmdat/ops/deformable/coordinates.py`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        offset_groups: int,
        map_size: tuple[int, int],
        key_stride: int = 1,
        kernel_size: int = 5,
        offset_range: float | Literal['map'] = 2.0,
        pos_bias: str | None = 'relative',
        coordinates: Coordinates = 'half_pixel',
    ):
        super().__init__()
        self.num_heads = num_heads
        self.offset_groups = offset_groups
        self.key_stride = key_stride
        self.offset_range = offset_range
        self.pos_bias = pos_bias
        self.coordinates = coordinates

        self.q = nn.Linear(embed_dims, embed_dims)
        self.offset = OffsetNetwork(embed_dims // offset_groups, kernel_size, key_stride)
        self.offset.requires_grad_(offset_range != 0)
        self.k = nn.Linear(embed_dims, embed_dims)
        self.v = nn.Linear(embed_dims, embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

        height, width = map_size
        if pos_bias == 'relative':
            self.position_bias_table = nn.Parameter(torch.empty(num_heads, 2 * height - 1, 2 * width - 1))
        elif pos_bias == 'fixed':
            num_keys = self._num_keys(height) * self._num_keys(width)
            self.position_bias_table = nn.Parameter(torch.empty(num_heads, height * width, num_keys))
        elif pos_bias == 'dwconv':
            self.position_bias_conv = DepthwiseConv(embed_dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises the bias table, if there is one."""
        if self.pos_bias in ('relative', 'fixed'):
            nn.init.trunc_normal_(self.position_bias_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to `(B, H, W, C)`."""
        _, height, width, _ = x.shape
        q = self.q(x)
        locations = self._deform(q).flatten(2, 3)  # (B, G, N_k, 2)
        sampled = self.sample(x, locations)
        k, v = self.k(sampled), self.v(sampled)  # Eq. (6)
        heads = [self._split_heads(t) for t in (q.flatten(1, 2), k, v)]
        if self.pos_bias == 'relative':
            z = deformable_attention(  # Eq. (9)
                *heads, self.position_bias_table, locations, (height, width), self.coordinates
            )
        else:
            z = attention(*heads, self._fixed_bias(height, width))
        z = z.transpose(1, 2).flatten(2).view(q.shape)
        if self.pos_bias == 'dwconv':
            z = z + self.position_bias_conv(q)
        return self.proj(z)  # Eq. (3)

    def sample(self, x: Tensor, locations: Tensor) -> Tensor:
        """Features of the map `x` `(B, H, W, C)` from which keys and values are made, `(B, N_k, C)`.

        In the dtype of autocast where it is on: cast once for both layers, which would do it each.

        Args:
            x: Any number of channels that the groups divide.
            locations: `(B, G, N_k, 2)`, those of `sampling_locations` in one row.
        """
        if self.offset_range == 0 and self.coordinates == 'corners':
            means = average_cells(x, self.key_stride)
            return means.to(compute_dtype(x), memory_format=torch.contiguous_format)
        return sample_features(x, locations, compute_dtype(x))  # Eq. (7), (8)

    def sampling_locations(self, x: Tensor) -> Tensor:
        """Where the keys of the input `x` `(B, H, W, C)` are sampled, `(B, G, H_k, W_k, 2)`.

        Last dimension `(y, x)`, normalised such that -1 and +1 are the centres of the map's border
        pixels. Points may lie outside, where features are zero. Where keys are averages, these are
        their nominal places.
        """
        return self._deform(self.q(x))

    def attention_weights(self, x: Tensor, queries: Tensor | None = None) -> Tensor:
        """How much queries attend to keys in each head, the softmax of Equation (9), to be looked at.

        By the equations, whatever backend serves `forward`, and in float32 at least.

        Args:
            x: Input `(B, H, W, C)`, as for `forward`.
            queries: Indices of queries, row-major on the map. By default all, whose weights take more
                memory than all the rest.

        Returns:
            `(B, M, N_q, N_k)`. Keys are in the order of `sampling_locations`, heads contiguous in the groups.
        """
        _, height, width, _ = x.shape
        q = self.q(x)
        locations = self._deform(q).flatten(2, 3)
        k = self._split_heads(self.k(self.sample(x, locations)))
        q = self._split_heads(q.flatten(1, 2))
        if queries is not None:
            q = q[:, :, queries]
        if self.pos_bias == 'relative':
            table, size = self.position_bias_table, (height, width)
            bias = relative_position_bias(table, locations, size, self.coordinates, queries)
        else:
            bias = self._fixed_bias(height, width)
            if bias is not None and queries is not None:
                bias = bias[:, queries]
        return attention_weights(q, k, bias)

    def _deform(self, q: Tensor) -> Tensor:
        batch, height, width, _ = q.shape
        grid = self._num_keys(height), self._num_keys(width)
        # positions need more digits than bfloat16 has
        dtype = torch.promote_types(q.dtype, torch.float32)
        points = reference_points(*grid, self.coordinates, dtype=dtype, device=q.device)
        if self.offset_range == 0:
            return points.clamp(-1, 1).expand(batch, self.offset_groups, *grid, 2)
        q = q.unflatten(-1, (self.offset_groups, -1)).permute(0, 3, 4, 1, 2)
        offsets = self.offset(q.flatten(0, 1)).to(dtype).unflatten(0, (batch, self.offset_groups))
        if self.offset_range == 'map':
            points = points + offsets
            return points.tanh() if self.coordinates == 'half_pixel' else points.clamp(-1, 1)
        # dp <- s tanh(dp), with s in cells of the key grid
        unit = offset_units(*grid, self.coordinates, dtype=dtype, device=q.device)
        return points + offsets.tanh() * (self.offset_range * unit)

    def _fixed_bias(self, height: int, width: int) -> Tensor | None:
        if self.pos_bias != 'fixed':
            return None
        size = height * width, self._num_keys(height) * self._num_keys(width)
        if not is_traced(*size) and size == self.position_bias_table.shape[1:]:
            return self.position_bias_table
        return F.interpolate(self.position_bias_table[None], size, mode='bilinear', align_corners=True)[0]

    def _num_keys(self, size: int) -> int:
        return (size + self.key_stride - 1) // self.key_stride  # ONNX divides negative numbers otherwise

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def average_cells(x: Tensor, size: int) -> Tensor:
    """Means of the cells of `size x size` pixels: `(B, H, W, C)` to `(B, N, C)`, row-major."""
    x = F.avg_pool2d(x.permute(0, 3, 1, 2), size, ceil_mode=True)
    return x.flatten(2).transpose(1, 2)
