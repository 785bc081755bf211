"""The portable backend where launches cost more than memory: blocks of keys with all heads of all images.

Sizes in the comments: `B` images, `G` groups, `h` heads of a group, `M = G h`, `n` keys of a block, `N`
queries `H x W`, a table `T_h x T_w`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..memory import free_memory
from .coordinates import query_points
from .inputs import Inputs
from .tents import Axis, exact_dtype

BLOCKS = 7  # at most, if there is memory for so large ones: forward and backward are 130 launches a block
BLOCK_SIZE = 2**24  # numbers in the largest tensor of a block that is not smaller without need
SHARE = (
    128  # free bytes for each number in the largest tensor of a block, so that it takes up to 20 % of them
)


def forward(inputs: Inputs, out: Tensor, lse: Tensor) -> None:
    """See `DeformableBackend.forward`."""
    if not inputs.q.numel():  # no images
        return
    v = inputs.v.flatten(0, 1)
    largest = lse.new_full((*v.shape[:1], 1, lse.shape[-1]), -math.inf)  # (B M, 1, N)
    total = torch.zeros_like(largest)
    sums = v.new_zeros(v.shape[0], lse.shape[-1], v.shape[-1])  # (B M, N, d)
    tables = _tables(inputs)
    for block in _blocks(inputs):
        logits, _ = _logits(inputs, block, tables)
        new_largest = torch.maximum(largest, logits.amax(1, keepdim=True))
        weights = logits.sub_(new_largest).exp_()
        shrinkage = (largest - new_largest).exp_()
        largest = new_largest
        total.mul_(shrinkage).add_(weights.sum(1, keepdim=True))
        sums.mul_(shrinkage.mT).baddbmm_(weights.mT, v[:, block.keys])
    out.copy_(sums.div_(total.mT).view(out.shape))
    torch.add(largest.view(lse.shape), total.log_().view(lse.shape), out=lse)


def backward(inputs: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor, grads: tuple[Tensor, ...]) -> None:
    """See `DeformableBackend.backward`."""
    grad_q, grad_k, grad_v, grad_table, grad_locations = grads
    if not inputs.q.numel():
        grad_table.zero_()
        return
    batch, groups = inputs.sampling_locations.shape[:2]
    height, width = inputs.query_size
    q, k, v, grad_out = (t.flatten(0, 1) for t in (inputs.q, inputs.k, inputs.v, grad_out))
    scale = q.shape[-1] ** -0.5
    lse = lse.view(-1, 1, lse.shape[-1])
    mean_grad_weights = (grad_out * out.flatten(0, 1)).sum(-1).unsqueeze(1)  # (B M, 1, N)
    tables = _tables(inputs)
    sum_q, sum_tables = torch.zeros_like(q), torch.zeros_like(tables)
    for block in _blocks(inputs):
        keys = block.keys
        logits, rows = _logits(inputs, block, tables)
        # where logits are huge, rounding may lift them far above the logarithm of their sum
        weights = logits.sub_(lse).clamp_(max=0).exp_()  # (B M, n, N)
        grad_v[:, :, keys] = (weights @ grad_out).view(batch, -1, *grad_v[0, 0, keys].shape)
        grad_logits = (v[:, keys] @ grad_out.mT).sub_(mean_grad_weights).mul_(weights)
        del logits, weights
        sum_q.baddbmm_(grad_logits.mT, k[:, keys], alpha=scale)
        grad_k[:, :, keys] = (grad_logits @ q).mul_(scale).view(batch, -1, *grad_k[0, 0, keys].shape)

        # the products of `_logits`, backwards
        grad_bias = grad_logits.view(batch * groups, -1, block.size, height, width).permute(0, 2, 3, 1, 4)
        grad_bias = grad_bias.reshape(*rows.shape[:2], width)  # (B G n, H h, W)
        tents_x = block.x.tents.flatten(0, 2)
        grad_tents_x = grad_bias.mT @ rows  # (B G n, W, T_w)
        grad_rows = (grad_bias @ tents_x).view(batch * groups, block.size * height, -1)  # (B G, n H, h T_w)
        grad_tents_y = grad_rows @ tables.mT
        tents_y = block.y.tents.flatten(0, 1).flatten(1, 2)
        sum_tables.baddbmm_(tents_y.mT, grad_rows)
        tents = (grad_tents_y.view(block.y.tents.shape), grad_tents_x.view(block.x.tents.shape))
        grad_locations[:, :, keys] = torch.stack(
            [axis.grad_locations(t) for axis, t in zip((block.y, block.x), tents)], -1
        ).to(grad_locations.dtype)
    grad_q.copy_(sum_q.view(grad_q.shape))
    sum_tables = sum_tables.view(batch, groups, grad_table.shape[1], -1, grad_table.shape[2])
    grad_table.copy_(sum_tables.sum(0).transpose(1, 2).reshape(grad_table.shape))


class _KeyBlock(NamedTuple):
    """Some keys of all images and groups.

    Attributes:
        keys: Which.
        size: How many, `n`.
        y: Interpolation along the rows, with tents `(B, G, n, H, T_h)`.
        x: Along the columns, `(B, G, n, W, T_w)`.
    """

    keys: slice
    size: int
    y: Axis
    x: Axis


def num_blocks(inputs: Inputs) -> int:
    """How many blocks the keys are cut into."""
    return -(-inputs.k.shape[2] // _keys_of_a_block(inputs))


def _keys_of_a_block(inputs: Inputs) -> int:
    batch, num_heads, num_queries, _ = inputs.q.shape
    groups, num_keys, _ = inputs.sampling_locations.shape[1:]
    height, width = inputs.query_size
    _, table_height, table_width = inputs.bias_table.shape
    numbers_of_a_key = batch * max(
        num_heads * num_queries,
        num_heads * height * table_width,
        # coordinates, in double precision and of both knots
        8 * groups * max(height, width),
        groups * max(height * table_height, width * table_width),
    )
    wanted = max(-(-num_keys // BLOCKS), BLOCK_SIZE // numbers_of_a_key)
    possible = free_memory(inputs.q.device, inputs.size()) // SHARE // numbers_of_a_key
    return max(min(wanted, possible), 1)


def _blocks(inputs: Inputs) -> Iterator[_KeyBlock]:
    num_keys = inputs.sampling_locations.shape[2]
    _, table_height, table_width = inputs.bias_table.shape
    device, dtype = inputs.q.device, inputs.bias_table.dtype
    points = query_points(*inputs.query_size, inputs.coordinates, dtype=exact_dtype(device), device=device)
    step = _keys_of_a_block(inputs)
    for start in range(0, num_keys, step):
        keys = slice(start, min(start + step, num_keys))
        y, x = inputs.sampling_locations[:, :, keys].to(points.dtype).unbind(-1)
        yield _KeyBlock(
            keys,
            keys.stop - start,
            Axis.of(points[:, 0, 0], y, table_height, dtype),
            Axis.of(points[0, :, 1], x, table_width, dtype),
        )


def _tables(inputs: Inputs) -> Tensor:
    """Tables of a group side by side, for each image: `(B G, T_h, h T_w)`."""
    batch, groups = inputs.sampling_locations.shape[:2]
    tables = inputs.bias_table.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
    return tables.repeat(batch, 1, 1)


def _logits(inputs: Inputs, block: _KeyBlock, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(B M, n, N)`, and the tables interpolated along y, `(B G n, H h, T_w)`."""
    height, width = inputs.query_size
    table_width = inputs.bias_table.shape[2]
    tents_y = block.y.tents.flatten(0, 1).flatten(1, 2)  # (B G, n H, T_h)
    rows = (tents_y @ tables).view(-1, height * (tables.shape[2] // table_width), table_width)
    bias = rows @ block.x.tents.flatten(0, 2).mT  # (B G n, H h, W)
    bias = bias.view(len(tables), block.size, height, -1, width).permute(0, 3, 1, 2, 4)
    q, k = inputs.q.flatten(0, 1), inputs.k[:, :, block.keys].flatten(0, 1)
    logits = bias.reshape(len(q), block.size, height * width)
    return logits.baddbmm_(k, q.mT, alpha=q.shape[-1] ** -0.5), rows
