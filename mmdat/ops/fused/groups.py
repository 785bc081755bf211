"""Attention of many small tiles of a map, most of which share one bias.

Inside a map all tiles have the same bias, which the kernel reads in place. Those at its borders have other
masks; they come last, and theirs is as large as their logits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .kernel import ALIGNMENT, Attended, attend, attend_backward, exact_sum


class Group(NamedTuple):
    """Consecutive tiles and their bias `(n, M, N_q, N_k)`, which may be expanded."""

    tiles: slice
    bias: Tensor

    def rows(self, x: Tensor) -> Tensor:
        """Those of the group, `(n * N, C)`, of a tensor of all tiles, `(tiles, N, ...)`."""
        return x[self.tiles].flatten(0, 1).flatten(1)


class Heads(NamedTuple):
    """Queries, keys and values of tiles, `(tiles, N, M, d)`, or their gradients."""

    q: Tensor
    k: Tensor
    v: Tensor


def biases_of_kinds(bias: Tensor, masks: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The bias `(M, N_q, N_k)` plus the mask of each kind of tile `(kinds, N_q, N_k)`.

    Returns:
        `(kinds, M, N_q, N_k + padding)`, one kind where there are no masks: rows aligned, padded by zeros.
    """
    num_kinds, num_keys = 1 if masks is None else len(masks), bias.shape[-1]
    padded = num_keys + -num_keys % ALIGNMENT
    biases = bias.new_zeros(num_kinds, *bias.shape[:-1], padded, dtype=dtype)
    if masks is None:
        biases[..., :num_keys] = bias
    else:
        torch.add(bias, masks.unsqueeze(1), out=biases[..., :num_keys])
    return biases


def attend_groups(groups: list[Group], heads: Heads) -> list[Attended]:
    """Attention inside the tiles, by group."""
    q, k, v = (t.transpose(1, 2) for t in heads)
    return [attend(q[tiles], k[tiles], v[tiles], bias) for tiles, bias in groups]


def attend_groups_backward(
    groups: list[Group], heads: Heads, attended: list[Attended], grad: Tensor, with_bias: bool
) -> tuple[list[Heads], Tensor | None]:
    """Gradients of the heads of each group, and of the bias `(M, N_q, N_k)` in float32, if that is wanted.

    Args:
        groups: Of the tiles.
        heads: Of all tiles.
        attended: What `attend_groups` returned.
        grad: Gradient of the output, `(tiles, N_q, M, d)`.
        with_bias: Whether the bias has a gradient.
    """
    q, k, v, grad = (t.transpose(1, 2) for t in (*heads, grad))
    grads, grad_bias = [], None
    for (tiles, bias), results in zip(groups, attended):
        *of_heads, of_bias = attend_backward(
            grad[tiles], q[tiles], k[tiles], v[tiles], bias, results, with_bias
        )
        grads.append(Heads(*(t.transpose(1, 2) for t in of_heads)))
        if with_bias:
            of_bias = exact_sum(of_bias)
            grad_bias = of_bias if grad_bias is None else grad_bias + of_bias
    return grads, grad_bias


def project(groups: list[Group], attended: list[Attended], weight: Tensor, bias: Tensor) -> Tensor:
    """Output projection of the heads, `(tiles * N, C)`."""
    num_queries = attended[0].out.shape[2]
    out = weight.new_empty(groups[-1].tiles.stop, num_queries, len(weight))
    for part, results in zip(groups, attended):
        torch.addmm(bias, merge_heads(results.out), weight.t(), out=part.rows(out))
    return out.flatten(0, 1)


def grad_of_projection(groups: list[Group], attended: list[Attended], grad: Tensor) -> Tensor:
    """Gradient of the weight of `project` by that of its output `(tiles * N, C)`."""
    grad = grad.unflatten(0, (groups[-1].tiles.stop, -1))
    first, *others = (part.rows(grad).t() @ merge_heads(r.out) for part, r in zip(groups, attended))
    return sum(others, first)


def merge_heads(x: Tensor) -> Tensor:
    """`(n * N, M d)` of heads `(n, M, N, d)`, a view of what the kernel returns."""
    return x.transpose(1, 2).flatten(2).flatten(0, 1)
