"""Attention of each position of a map to the square around it on CUDA, by a fused kernel.

`../neighborhood.py` explains how tiles of queries and their regions of keys make it dense. Here all tiles are
taken at once, those inside the map, which share one mask, before those at its borders. Training keeps the map
in the dtype of the kernel and the kernel's output; all else is computed again in the backward pass.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..constants import keep
from ..ladder import Backend, choose_layer, compiler_reason, explain_layer
from ..neighborhood import neighborhood_attention, neighborhood_mask, padding_to_tiles, region_bias, tile_size
from .groups import (
    Group,
    Heads,
    attend_groups,
    attend_groups_backward,
    biases_of_kinds,
    grad_of_projection,
    group,
    project,
)
from .kernel import Attended, cast, compute_dtype, exact_sum, not_fused_reasons

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
    outs = [
        FusedNeighborhoodAttention.apply(x_i, w_qkv, b_qkv, w_proj, b_proj, bias, kernel_size)
        for x_i in (x.split(images) if images < len(x) else [x])
    ]
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


class Tiles(NamedTuple):
    """How a map is covered by tiles of `T x T` queries and their regions of `R x R` keys. Tiles inside come
    first.

    Attributes:
        tile: `T`.
        region: `R`.
        total: All tiles.
        num_inner: Those inside.
        kinds: Of the others, rows of `masks`.
        masks: 0 for the neighbours of a query and `-inf` for other keys, of each kind of tile,
            `(9, T * T, R * R)`. The kind of those inside is 4.
        queries: Which pixels of the flattened maps are the queries of the tiles `(tiles * T * T,)`. For
            places outside the map, pixels at its border.
        outside: True for such queries, `(tiles * T * T, 1)`, or `None` where there are none.
        keys: Which pixels are the keys of the regions, alike.
        places: The query of each pixel, `(B * H * W,)`.
        uses: The keys of each pixel, at most four, `(B * H * W * 4,)`; `tiles * R * R` stands for none.
        starts: Where those of each pixel start, `(B * H * W,)`.
    """

    tile: int
    region: int
    total: int
    num_inner: int
    kinds: Tensor
    masks: Tensor
    queries: Tensor
    outside: Tensor | None
    keys: Tensor
    places: Tensor
    uses: Tensor
    starts: Tensor

    def groups(self, biases: Tensor) -> list[Group]:
        """The tiles by their bias, see `groups.py`."""
        return group(biases, self.region**2, self.total, self.num_inner, 4, self.kinds)


@keep(results=8)  # some MiB each
def cut_tiles(batch: int, height: int, width: int, kernel_size: int, device: torch.device) -> Tiles:
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
    padded = bool(rows * tile - height or columns * tile - width)
    area = tile**2
    (y_tile, y_query), (x_tile, x_query) = (axis.place for axis in axes)
    places = numbers[:, y_tile[:, None], x_tile] * area + (y_query[:, None] * tile + x_query)
    return Tiles(
        tile,
        axes[0].region,
        batch * rows * columns,
        num_inner,
        kinds.flatten().repeat(batch).index_select(0, order[num_inner:]),
        masks.flatten(4, 5).flatten(2, 3).flatten(0, 1),
        pixels(axes[0].queries, axes[1].queries),
        outside.flatten(0, 1).repeat(batch, 1, 1).index_select(0, order).view(-1, 1) if padded else None,
        pixels(axes[0].keys, axes[1].keys),
        places.flatten().int(),
        _uses(numbers, axes).flatten().int(),
        torch.arange(batch * height * width, dtype=torch.int32, device=device) * 4,
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


class FusedNeighborhoodAttention(torch.autograd.Function):
    """Neighbourhood attention with its projections, in the dtype of `compute_dtype`.

    The bias is that of `region_bias`, `(M, T * T, R * R)`.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        w_qkv: Tensor,
        b_qkv: Tensor,
        w_proj: Tensor,
        b_proj: Tensor,
        bias: Tensor,
        kernel_size: int,
    ) -> Tensor:
        dtype, num_heads = compute_dtype(x), len(bias)
        tiles = cut_tiles(*x.shape[:3], kernel_size, x.device)
        with torch.autocast(x.device.type, enabled=False):
            biases = biases_of_kinds(bias, tiles.masks, dtype)
            w_qkv, b_qkv, w_proj, b_proj = cast([w_qkv, b_qkv, w_proj, b_proj], dtype)
            rows = x.reshape(-1, x.shape[-1]).to(dtype)
            groups = tiles.groups(biases)
            attended = attend_groups(groups, _heads(rows, w_qkv, b_qkv, num_heads, tiles))
            out = rows.new_empty(tiles.total, tiles.tile**2, x.shape[-1])
            project(groups, attended, w_proj, b_proj, out)
            out = out.flatten(0, 1).index_select(0, tiles.places).view(x.shape)
        ctx.tiles, ctx.num_heads, ctx.dtype = tiles, num_heads, x.dtype
        ctx.save_for_backward(
            rows, w_qkv, b_qkv, w_proj, biases, *(t for results in attended for t in results)
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, w_qkv, b_qkv, w_proj, biases, *results = ctx.saved_tensors
        attended = [Attended(*results[i : i + 4]) for i in range(0, len(results), 4)]
        tiles, num_heads, channels = ctx.tiles, ctx.num_heads, rows.shape[1]
        with torch.autocast(grad.device.type, enabled=False):
            groups = tiles.groups(biases)
            grad_rows = grad.reshape(-1, channels).index_select(0, tiles.queries)
            if tiles.outside is not None:
                grad_rows.masked_fill_(tiles.outside, 0)
            grad_w_proj = grad_of_projection(groups, attended, grad_rows.unflatten(0, (tiles.total, -1)))
            grad_b_proj = exact_sum(grad.flatten(0, 2))
            grad_z = (grad_rows @ w_proj).view(tiles.total, -1, num_heads, channels // num_heads)

            heads = _heads(rows, w_qkv, b_qkv, num_heads, tiles)
            grads, grad_bias = attend_groups_backward(
                groups, heads, attended, grad_z, ctx.needs_input_grad[5]
            )
            del heads, grad_z
            grad_qkv = _join_heads(groups, grads, tiles)
            del grads
            grad_w_qkv = grad_qkv.t() @ rows
            grad_b_qkv = exact_sum(grad_qkv)
            grad_x = (grad_qkv @ w_qkv).view(grad.shape).to(ctx.dtype)
        return grad_x, grad_w_qkv, grad_b_qkv, grad_w_proj, grad_b_proj, grad_bias, None


def _heads(rows: Tensor, weight: Tensor, bias: Tensor, num_heads: int, tiles: Tiles) -> Heads:
    channels = rows.shape[1]
    qkv = torch.addmm(bias, rows, weight.t())
    q = qkv[:, :channels].index_select(0, tiles.queries)
    kv = qkv[:, channels:].index_select(0, tiles.keys)
    shape = num_heads, channels // num_heads
    return Heads(q.view(tiles.total, -1, *shape), *kv.view(tiles.total, -1, 2, *shape).unbind(2))


def _join_heads(groups: list[Group], grads: list[Heads], tiles: Tiles) -> Tensor:
    """Gradients of the map's queries, keys and values `(B * H * W, 3 C)` from those of the tiles."""
    q = torch.cat([heads.q for heads in grads]).flatten(0, 1).flatten(1).index_select(0, tiles.places)
    copies, shape = tiles.total * tiles.region**2, grads[0].k.shape[2:]
    kv = q.new_empty(copies + 1, 2 * q.shape[1])  # the last row stands for none
    of_tiles = kv[:copies].view(tiles.total, -1, 2, *shape)
    for part, heads in zip(groups, grads):
        torch.stack((heads.k, heads.v), 2, out=of_tiles[part.tiles])
    # sums in float32, and always in the same order
    kv, *_ = torch.ops.aten._embedding_bag_forward_only(
        kv, tiles.uses, tiles.starts, False, _SUM, False, None, False, copies
    )
    return torch.cat([q, kv], 1)
