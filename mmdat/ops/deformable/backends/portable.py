"""Deformable attention in plain PyTorch, in bounded memory, on any device.

Biases are products of small matrices, see `../tents.py`. Keys are outer and queries inner in all tensors,
which keeps these products contiguous. Keys are taken in blocks, each with all queries. In the forward pass a
running softmax joins the blocks; the backward pass computes the weights of a block again, from the softmax's
denominator. Memory beyond inputs and outputs is that of a block, and two numbers for each query and head.

On CPUs a block has one head, and fits into the caches. On GPUs, where each of its operations is a launch, it
has all heads of all images, and a share of the memory that is free (`../batched.py`).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...memory import free_memory
from .. import batched
from ..coordinates import query_points
from ..inputs import Inputs
from ..tents import Axis, exact_dtype
from .base import DeformableBackend

BLOCK_SIZE = 2**20  # numbers in the largest tensor of a block of keys
MIN_KEYS = 64  # in a block even so, because each block passes over all queries
BYTES_OF_A_LOGIT = 24  # that the equations take at their peak, forward and backward, in float32


class Portable(DeformableBackend):
    """Plain PyTorch in bounded memory, for any device, dtype and size."""

    name = 'portable'
    device_type = None

    def pays_from(self, inputs: Inputs) -> int:
        """On CPUs it computes head by head, so this depends on the logits of a head. On GPUs it serves where
        the equations would take an eighth of the memory that is free, because a network has many layers."""
        batch, num_heads = inputs.q.shape[:2]
        if inputs.q.device.type == 'cpu':
            return 700_000 * batch * num_heads
        return free_memory(inputs.q.device, inputs.size()) // (8 * BYTES_OF_A_LOGIT)

    def pays_because(self, inputs: Inputs) -> str:
        if inputs.q.device.type == 'cpu':
            return ''
        free = free_memory(inputs.q.device, inputs.size()) / 2**30
        return f', an eighth of the {free:.1f} GiB that are free'

    def forward(self, inputs: Inputs, out: Tensor, lse: Tensor) -> None:
        if _has_large_blocks(inputs):
            return batched.forward(inputs, out, lse)
        q, k, v, bias_table, *_ = inputs
        out.zero_()
        largest = torch.full_like(lse, -math.inf)
        total = torch.zeros_like(lse)
        for block in _key_blocks(inputs):
            tents_y, tents_x = block.tents()
            for head in block.heads:
                queries = block.image, head
                keys = block.image, head, block.keys
                logits, _ = _logits(q[queries], k[keys], bias_table[head], tents_y, tents_x)
                new_largest = torch.maximum(largest[queries], logits.amax(0))
                weights = logits.sub_(new_largest).exp_()
                shrinkage = (largest[queries] - new_largest).exp_()
                largest[queries] = new_largest
                total[queries].mul_(shrinkage).add_(weights.sum(0))
                out[queries].mul_(shrinkage[:, None]).addmm_(weights.T, v[keys])
        out.div_(total[..., None])
        torch.add(largest, total.log_(), out=lse)

    def backward(
        self, inputs: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor, grads: tuple[Tensor, ...]
    ) -> None:
        if _has_large_blocks(inputs):
            return batched.backward(inputs, grad_out, out, lse, grads)
        q, k, v, bias_table, _, query_size, _ = inputs
        grad_q, grad_k, grad_v, grad_table, grad_locations = grads
        grad_q.zero_()
        grad_table.zero_()
        scale = q.shape[-1] ** -0.5
        for block in _key_blocks(inputs):
            tents_y, tents_x = block.tents()
            grad_tents_y, grad_tents_x = torch.zeros_like(tents_y), torch.zeros_like(tents_x)
            for head in block.heads:
                queries = block.image, head
                keys = block.image, head, block.keys
                logits, rows = _logits(q[queries], k[keys], bias_table[head], tents_y, tents_x)
                # where logits are huge, rounding may lift them far above the logarithm of their sum
                weights = logits.sub_(lse[queries]).clamp_(max=0).exp_()
                grad_v[keys] = weights @ grad_out[queries]
                grad_weights = v[keys] @ grad_out[queries].T
                mean_grad_weights = (grad_out[queries] * out[queries]).sum(-1)
                grad_logits = grad_weights.sub_(mean_grad_weights).mul_(weights)
                grad_q[queries].addmm_(grad_logits.T, k[keys], alpha=scale)
                grad_k[keys] = (grad_logits @ q[queries]).mul_(scale)

                grad_bias = grad_logits.unflatten(1, tuple(query_size))  # (n, H, W)
                grad_tents_x.baddbmm_(rows.mT, grad_bias)
                grad_rows = torch.bmm(grad_bias, tents_x.mT).flatten(0, 1)
                grad_tents_y.flatten(0, 1).addmm_(grad_rows, bias_table[head].T)
                grad_table[head].addmm_(tents_y.flatten(0, 1).T, grad_rows)
            grads_yx = block.y.grad_locations(grad_tents_y), block.x.grad_locations(grad_tents_x.mT)
            torch.stack(grads_yx, -1, out=grad_locations[block.image, block.group, block.keys])


def _has_large_blocks(inputs: Inputs) -> bool:
    return inputs.q.device.type not in ('cpu', 'meta')


class _KeyBlock(NamedTuple):
    """Some keys of a group, with what they share in all its heads."""

    image: int
    group: int
    heads: range
    keys: slice
    y: Axis
    x: Axis

    def tents(self) -> tuple[Tensor, Tensor]:
        """`(n, H, T_h)` and `(n, T_w, W)`, the layouts in which their products are fastest."""
        return self.y.tents, self.x.tents.mT.contiguous()


def _key_blocks(inputs: Inputs) -> Iterator[_KeyBlock]:
    _, _, _, bias_table, sampling_locations, query_size, coordinates = inputs
    batch, groups, num_keys, _ = sampling_locations.shape
    num_heads, table_height, table_width = bias_table.shape
    height, width = query_size
    device = sampling_locations.device
    dtype = exact_dtype(device)
    points = query_points(*query_size, coordinates, dtype=dtype, device=device)

    numbers_of_a_key = max(height * width, height * table_height, height * table_width, width * table_width)
    keys_of_a_block = max(BLOCK_SIZE // numbers_of_a_key, MIN_KEYS)
    heads_of_a_group = num_heads // groups
    for image in range(batch):
        for group in range(groups):
            heads = range(group * heads_of_a_group, (group + 1) * heads_of_a_group)
            for start in range(0, num_keys, keys_of_a_block):
                keys = slice(start, start + keys_of_a_block)
                y, x = sampling_locations[image, group, keys].to(dtype).unbind(-1)
                yield _KeyBlock(
                    image,
                    group,
                    heads,
                    keys,
                    Axis.of(points[:, 0, 0], y, table_height, bias_table.dtype),
                    Axis.of(points[0, :, 1], x, table_width, bias_table.dtype),
                )


def _logits(q: Tensor, k: Tensor, table: Tensor, tents_y: Tensor, tents_x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of one head `(n, H * W)`, and the table interpolated along y `(n, H, T_w)`.

    Args:
        q: Queries `(H * W, d)`.
        k: Keys `(n, d)`.
        table: `(T_h, T_w)`.
        tents_y: `(n, H, T_h)`.
        tents_x: `(n, T_w, W)`.
    """
    rows = (tents_y.flatten(0, 1) @ table).unflatten(0, tents_y.shape[:2])
    bias = torch.bmm(rows, tents_x)
    return bias.flatten(1).addmm_(k, q.T, alpha=q.shape[-1] ** -0.5), rows
