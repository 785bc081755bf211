"""Attention of each position of a map to the square around it on CUDA, by a fused kernel: how the map is cut.

`../neighborhood.py` explains how tiles of queries and their regions of keys make it dense. Here all tiles are
taken at once, those inside the map, which share one mask, before those at its borders. The map is cut after
it is projected, because regions overlap. The rest is in `tiles.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..constants import keep
from ..ladder import Backend, choose_layer, compiler_reason, explain_layer
from ..neighborhood import neighborhood_attention, neighborhood_mask, padding_to_tiles, region_bias, tile_size
from .groups import Group, Heads
from .kernel import not_fused_reasons
from .tiles import Projections, Tiling, attend_in_tiles

_SUM = 0  # of PyTorch's modes of bags

MAX_LOGITS = 2**25  # of the images that are computed at once, where one needs less


def neighborhood_attention_layer(
    x: Tensor, w_qkv: Tensor, b_qkv: Tensor, w_proj: Tensor, b_proj: Tensor, bias_table: Tensor
) -> Tensor:
    """`neighborhood_attention` with its projections; by a fused kernel on CUDA.

    Args:
        x: `(B, H, W, C)`, in which the neighbourhoods fit.
        w_qkv: Weight of the projection to queries, keys and values, `(3 C, C)`.
        b_qkv: Its bias.
        w_proj: Weight of the output projection, `(C, C)`.
        b_proj: Its bias.
        bias_table: Bias of each head by the displacement from query to key, `(M, 2 K - 1, 2 K - 1)`.

    Returns:
        `(B, H, W, C)`.
    """
    inputs = _Inputs(x, w_qkv, b_qkv, w_proj, b_proj, bias_table)
    if choose_layer(_LADDER, inputs) is None:
        q, k, v = F.linear(x, w_qkv, b_qkv).unflatten(-1, (3, len(bias_table), -1)).unbind(3)
        return F.linear(neighborhood_attention(q, k, v, bias_table).flatten(3), w_proj, b_proj)
    kernel_size = inputs.kernel_size()
    bias = region_bias(bias_table, kernel_size).flatten(3).flatten(1, 2)
    images = max(MAX_LOGITS * len(x) // inputs.size(), 1)
    projections = Projections(w_qkv, b_qkv, w_proj, b_proj)
    outs = []
    for x_i in x.split(images) if images < len(x) else [x]:
        tiles = cut_neighborhoods(*x_i.shape[:3], kernel_size, x.device)
        outs.append(attend_in_tiles(x_i, projections, bias, tiles.masks, tiles))
    return torch.cat(outs) if len(outs) > 1 else outs[0]


def explain_neighborhood_attention(
    x: Tensor, w_qkv: Tensor, b_qkv: Tensor, w_proj: Tensor, b_proj: Tensor, bias_table: Tensor
) -> str:
    """How `neighborhood_attention_layer` computes these arguments, and why.

    `'fused: ...'`, by PyTorch's fused kernel for CUDA; or `'reference: ...'`, by the plain formula.
    """
    return explain_layer(_LADDER, _Inputs(x, w_qkv, b_qkv, w_proj, b_proj, bias_table))


class _Inputs(NamedTuple):
    x: Tensor
    w_qkv: Tensor
    b_qkv: Tensor
    w_proj: Tensor
    b_proj: Tensor
    bias_table: Tensor

    unit = 'logits'

    def kernel_size(self) -> int:
        return (self.bias_table.shape[-1] + 1) // 2

    def size(self) -> int:
        """Those between the tiles and their regions."""
        batch, height, width, _ = self.x.shape
        tile = tile_size(self.kernel_size())
        num_tiles = batch * -(-height // tile) * -(-width // tile)
        return num_tiles * len(self.bias_table) * tile**2 * (tile + self.kernel_size() - 1) ** 2


class _Fused(Backend):
    name = 'fused'

    def not_supported_reasons(self, inputs: _Inputs) -> list[str]:
        head_dims = inputs.x.shape[-1] // len(inputs.bias_table)
        return not_fused_reasons(inputs.x, head_dims, compiler_reason(inputs.x))


_LADDER = (_Fused(),)


@dataclass(frozen=True, eq=False)
class NeighborhoodTiling(Tiling):
    """Tiles of `T x T` queries and their regions of `R x R` keys.

    Attributes:
        masks: 0 for the neighbours of a query and `-inf` for other keys, of each kind of tile,
            `(9, T * T, R * R)`.
        queries: Which pixels of the flattened maps are the queries of the tiles `(tiles * T * T,)`. For
            places outside the map, pixels at its border.
        outside: True for such queries, `(tiles * T * T, 1)`, or `None` where there are none.
        keys: Which pixels are the keys of the regions, alike.
        uses: The keys of each pixel, at most four, `(B * H * W * 4,)`; `tiles * R * R` stands for none.
        starts: Where those of each pixel start, `(B * H * W,)`.
    """

    masks: Tensor
    queries: Tensor
    outside: Tensor | None
    keys: Tensor
    uses: Tensor
    starts: Tensor

    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The pixels."""
        return x.reshape(-1, x.shape[-1]).to(dtype)

    def rows_backward(self, grad: Tensor) -> Tensor:
        return grad

    def heads(self, qkv: Tensor, num_heads: int) -> Heads:
        channels = qkv.shape[1] // 3
        q = qkv[:, :channels].index_select(0, self.queries)
        kv = qkv[:, channels:].index_select(0, self.keys)
        k, v = kv.view(self.num_tiles, -1, 2, num_heads, channels // num_heads).unbind(2)
        return Heads(q.view(self.num_tiles, -1, *k.shape[2:]), k, v)

    def heads_backward(self, groups: list[Group], grads: list[Heads]) -> Tensor:
        q = torch.cat([heads.q for heads in grads]).flatten(0, 1).flatten(1).index_select(0, self.places)
        copies, shape = len(self.keys), grads[0].k.shape[2:]
        kv = q.new_empty(copies + 1, 2 * q.shape[1])  # the last row stands for none
        of_tiles = kv[:copies].view(self.num_tiles, -1, 2, *shape)
        for part, heads in zip(groups, grads):
            torch.stack((heads.k, heads.v), 2, out=of_tiles[part.tiles])
        # sums in float32, and always in the same order
        kv, *_ = torch.ops.aten._embedding_bag_forward_only(
            kv, self.uses, self.starts, False, _SUM, False, None, False, copies
        )
        return torch.cat([q, kv], 1)

    def join_backward(self, grad: Tensor) -> Tensor:
        grad = grad.reshape(-1, grad.shape[-1]).index_select(0, self.queries)
        return grad if self.outside is None else grad.masked_fill_(self.outside, 0)


@keep(results=8)  # some MiB each
def cut_neighborhoods(
    batch: int, height: int, width: int, kernel_size: int, device: torch.device
) -> NeighborhoodTiling:
    """How maps of this size are covered."""
    tile, reach = tile_size(kernel_size), kernel_size // 2
    axes = [_Axis.of(size, tile, reach, device) for size in (height, width)]
    rows, columns = (len(axis.kinds) for axis in axes)

    # numbers of the tiles, those inside first
    inner = max(rows - 2, 0), max(columns - 2, 0)
    num_inner = batch * inner[0] * inner[1]
    is_inner = torch.zeros(batch, rows, columns, dtype=torch.bool, device=device)
    is_inner[:, 1:-1, 1:-1] = True
    order = is_inner.flatten().logical_not().to(torch.int8).argsort(stable=True)  # (tiles,), by number
    numbers = torch.empty_like(order)
    numbers[order] = torch.arange(len(order), device=device)
    numbers = numbers.view(batch, rows, columns)

    kinds = 3 * axes[0].kinds[:, None] + axes[1].kinds
    y_mask, x_mask = (axis.masks for axis in axes)
    masks = y_mask[:, None, :, None, :, None] + x_mask[None, :, None, :, None, :]
    images = torch.arange(batch, device=device)[:, None, None, None, None] * (height * width)

    def pixels(y: Tensor, x: Tensor) -> Tensor:
        """Of all tiles in their order, `(tiles * n * n,)`, from rows and columns `(tiles of the axis, n)`."""
        found = images + y[:, None, :, None] * width + x[None, :, None, :]
        return found.flatten(0, 2).index_select(0, order).flatten()

    outside = axes[0].outside[:, None, :, None] | axes[1].outside[None, :, None, :]
    outside = outside.flatten(0, 1).repeat(batch, 1, 1).index_select(0, order).view(-1, 1)
    padded = bool(rows * tile - height or columns * tile - width)
    area = tile**2
    (y_tile, y_query), (x_tile, x_query) = (axis.place for axis in axes)
    places = numbers[:, y_tile[:, None], x_tile] * area + (y_query[:, None] * tile + x_query)
    return NeighborhoodTiling(
        num_tiles=batch * rows * columns,
        num_inner=num_inner,
        inner_kind=4,
        kinds=kinds.flatten().repeat(batch).index_select(0, order[num_inner:]),
        num_keys=axes[0].region ** 2,
        places=places.flatten().int(),
        masks=masks.flatten(4, 5).flatten(2, 3).flatten(0, 1),
        queries=pixels(axes[0].queries, axes[1].queries),
        outside=outside if padded else None,
        keys=pixels(axes[0].keys, axes[1].keys),
        uses=_uses(numbers, axes).flatten().int(),
        starts=torch.arange(batch * height * width, dtype=torch.int32, device=device) * 4,
    )


class _Axis(NamedTuple):
    """The tiles of one axis of a map.

    Attributes:
        region: `R`.
        kinds: First 0, last 2, others 1: `(tiles,)`.
        masks: Of the three kinds, `(3, T, R)`.
        queries: Of each tile, clamped to the map `(tiles, T)`.
        outside: Which of them lie outside, alike.
        keys: Of each region, clamped to the map `(tiles, R)`.
        place: Tile of each pixel, and its place there, `(2, n)`.
        uses: The one or two tiles whose regions hold each pixel, and its places there `(2, n, 2)`; the tile
            is -1 where there is no second one.
    """

    region: int
    kinds: Tensor
    masks: Tensor
    queries: Tensor
    outside: Tensor
    keys: Tensor
    place: Tensor
    uses: Tensor

    @classmethod
    def of(cls, size: int, tile: int, reach: int, device: torch.device) -> '_Axis':
        before, after = padding_to_tiles(size, tile)
        tiles = (before + size + after) // tile
        region = tile + 2 * reach
        starts = torch.arange(tiles, device=device)[:, None] * tile - before
        queries = starts + torch.arange(tile, device=device)
        keys = starts - reach + torch.arange(region, device=device)
        index = torch.arange(
            tiles, device=device
        )  # a number that is written to the device makes the host wait
        kinds = torch.where(index == 0, 0, 1 + (index == tiles - 1).long())
        masks = neighborhood_mask(size, tile, reach, torch.float32, device)
        pixels = torch.arange(size, device=device) + before
        home = pixels // tile
        # a region reaches into both neighbours of its tile, less than half a tile deep
        inside = pixels % tile
        other = home - (inside < reach).long() + (inside >= tile - reach).long()
        other = torch.where((other == home) | (other < 0) | (other >= tiles), -1, other)
        uses = torch.stack([home, other], -1)
        return cls(
            region,
            kinds,
            torch.stack([masks[0], masks[min(1, tiles - 1)], masks[-1]]),
            queries.clamp(0, size - 1),
            (queries < 0) | (queries >= size),
            keys.clamp(0, size - 1),
            torch.stack([home, inside]),
            torch.stack([uses, pixels[:, None] - uses * tile + reach]),
        )


def _uses(numbers: Tensor, axes: list[_Axis]) -> Tensor:
    """Rows of the keys `(tiles * R * R, ...)` that are copies of each pixel, `(B, H, W, 4)`."""
    (y_tile, y_place), (x_tile, x_place) = (axis.uses for axis in axes)
    region = axes[0].region
    y_tile, y_place = y_tile[:, None, :, None], y_place[:, None, :, None]
    tiles = numbers[:, y_tile, x_tile[:, None]]  # (B, H, W, 2, 2); of -1 anything
    found = tiles * region**2 + y_place * region + x_place[:, None]
    return torch.where((y_tile < 0) | (x_tile[:, None] < 0), numbers.numel() * region**2, found).flatten(3)
