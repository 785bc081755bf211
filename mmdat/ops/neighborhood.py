import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .constants import keep
from .fused.attention import attention
from .sizes import crop, is_traced, missing, unfold


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_table: Tensor, max_logits: int = 2**23
) -> Tensor:
    """Attention of each position to the `K x K` positions around it, with a relative position bias.

    Neighbourhood attention (Hassani et al., CVPR 2023) as NATTEN 0.14 computes it, which DAT++ was
    trained with. A neighbourhood is centred at its query where that fits; at the borders it is moved
    into the map, so every query has `K ** 2` keys.

    Neighbourhoods are not gathered, which would copy every key `K ** 2` times. Queries are cut into
    tiles of `T x T`; the neighbourhoods of a tile lie in the region of `R x R` keys around it, with
    `R = T + K - 1`, so tile and region are a small dense attention whose other keys are masked out. The
    map is padded to whole tiles on both sides alike. With `T >= K` the first and the last tile then hold
    more than half a neighbourhood of real rows, which is why the moved neighbourhoods stay in the region.

    Rows of tiles are processed in chunks, and recomputed in the backward pass. Memory is linear in the
    number of positions: some copies of `q`, `k` and `v`, and `max_logits`.

    Args:
        q: Queries `(B, H, W, M, d)`.
        k: Keys, alike.
        v: Values, alike.
        bias_table: Bias of each head by the displacement from query to key, `(M, 2 K - 1, 2 K - 1)`, the
            centre standing for the query itself. Its size tells `K`, which is odd and at most `H` and `W`.
        max_logits: About the number of logits that a chunk holds. More is faster on GPUs.

    Returns:
        `(B, H, W, M, d)` in the dtype of `v`.

    Raises:
        ValueError: If the table's size is not that of an odd `K`, or the map is smaller than `K`.
    """
    batch, height, width, num_heads, _ = q.shape
    kernel_size = (bias_table.shape[-1] + 1) // 2
    if kernel_size % 2 == 0 or bias_table.shape != (num_heads, *[2 * kernel_size - 1] * 2):
        raise ValueError(
            f'bias_table needs shape ({num_heads}, 2 K - 1, 2 K - 1) with an odd K, '
            f'got {tuple(bias_table.shape)}'
        )
    if not is_traced(height, width) and min(height, width) < kernel_size:
        raise ValueError(f'the neighbourhood must fit into the map, got {height=}, {width=}, {kernel_size=}')
    reach = kernel_size // 2
    tile = tile_size(kernel_size)
    region = tile + 2 * reach

    (top, bottom), (left, right) = (padding_to_tiles(size, tile) for size in (height, width))
    q = F.pad(q, (0, 0, 0, 0, left, right, top, bottom))
    k, v = (F.pad(t, (0, 0, 0, 0, left + reach, right + reach, top + reach, bottom + reach)) for t in (k, v))
    q = q.unflatten(1, (-1, tile))  # (B, rows, T, columns * T, M, d)
    k, v = (unfold(t, 1, region, tile) for t in (k, v))  # (B, rows, columns * T + K - 1, M, d, R), a view

    bias = region_bias(bias_table, kernel_size)
    row_mask, column_mask = (
        neighborhood_mask(size, tile, reach, bias.dtype, bias.device) for size in (height, width)
    )

    if is_traced(batch, height, width) or _is_in_one_piece(q):  # chunks would be part of the trace
        out = _attend_tiles(q, k, v, row_mask, column_mask, bias).flatten(1, 2)
        return crop(out, top, left, height, width)
    logits_of_a_row = batch * num_heads * len(column_mask) * tile**2 * region**2
    chunk = max(max_logits // logits_of_a_row, 1)
    outs = []
    for args in zip(*(t.split(chunk, dim=1) for t in (q, k, v)), row_mask.split(chunk)):
        if torch.is_grad_enabled():
            out = checkpoint(
                _attend_tiles, *args, column_mask, bias, use_reentrant=False, preserve_rng_state=False
            )
        else:
            out = _attend_tiles(*args, column_mask, bias)
        outs.append(out)
    out = torch.cat(outs, dim=1).flatten(1, 2)
    return crop(out, top, left, height, width)


def _is_in_one_piece(q: Tensor) -> bool:
    """Whether a compiler follows for a GPU, which has room for all tiles: one graph then serves all sizes."""
    return torch.compiler.is_compiling() and q.device.type == 'cuda'


def _attend_tiles(
    q: Tensor, k: Tensor, v: Tensor, row_mask: Tensor, column_mask: Tensor, bias: Tensor
) -> Tensor:
    """Attention of some rows of tiles to their regions.

    Args:
        q: `(B, rows, T, columns * T, M, d)`.
        k: `(B, rows, columns * T + K - 1, M, d, R)`.
        v: Like `k`.
        row_mask: `(rows, T, R)`.
        column_mask: `(columns, T, R)`.
        bias: `(M, T, T, R, R)`.

    Returns:
        Like `q`.
    """
    columns, tile, region = column_mask.shape
    q = q.unflatten(3, (columns, tile)).permute(0, 1, 3, 5, 2, 4, 6)  # (B, rows, columns, M, T, T, d)
    k, v = (unfold(t, 2, region, tile).permute(0, 1, 2, 3, 5, 6, 4) for t in (k, v))
    bias = bias + row_mask[:, None, None, :, None, :, None] + column_mask[None, :, None, None, :, None, :]
    out = attention(
        q.flatten(4, 5), k.flatten(4, 5), v.flatten(4, 5), bias.flatten(5, 6).flatten(3, 4)
    ).unflatten(4, (tile, tile))
    return out.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4)


def tile_size(kernel_size: int) -> int:
    """Side `T` of the tiles of queries."""
    return max(kernel_size, 8)


def padding_to_tiles(size: int, tile: int) -> tuple[int, int]:
    """What an axis of `size` lacks to whole tiles, before and after it."""
    padding = missing(size, tile)
    return padding // 2, padding - padding // 2


def region_bias(bias_table: Tensor, kernel_size: int) -> Tensor:
    """Bias between a tile and its region, the same for all tiles: `(M, T, T, R, R)`.

    Pairs beyond the table are never neighbours, so theirs does not matter.
    """
    index = _displacements(tile_size(kernel_size), kernel_size // 2, bias_table.device)
    return bias_table[:, index[:, None, :, None], index[None, :, None, :]]


@keep
def _displacements(tile: int, reach: int, device: torch.device) -> Tensor:
    """Row of the bias table for each query of a tile and key of its region, on one axis: `(T, R)`."""
    queries = torch.arange(tile, device=device)[:, None]
    keys = torch.arange(tile + 2 * reach, device=device) - reach
    return (keys - queries + 2 * reach).clamp(0, 4 * reach)


@keep
def neighborhood_mask(size: int, tile: int, reach: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """0 for the keys of a query's neighbourhood and `-inf` for others, on one axis: `(tiles, T, R)`."""
    before, after = padding_to_tiles(size, tile)
    start = torch.arange(-before, size + after, tile, device=device)[:, None, None]
    queries = start + torch.arange(tile, device=device)[:, None]
    keys = start + torch.arange(tile + 2 * reach, device=device) - reach
    centres = queries.clamp(reach, size - 1 - reach)  # moved into the map
    outside = (keys - centres).abs() > reach
    return torch.zeros_like(outside, dtype=dtype).masked_fill(outside, -math.inf)
