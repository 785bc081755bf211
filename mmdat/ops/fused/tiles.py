"""Attention in the tiles of a map with its projections on CUDA, by a fused kernel.

Windows and neighbourhoods differ in how they cut a map, see `Tiling`; all else is the same. Training keeps
the map in the dtype of the kernel and the kernel's output. Queries, keys and values, three times the map and
more, are computed again in the backward pass. Large tensors are deleted as soon as they have been used: those
that are there at the same time decide how much memory a layer needs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .groups import (
    Group,
    Heads,
    attend_groups,
    attend_groups_backward,
    biases_of_kinds,
    grad_of_projection,
    project,
)
from .kernel import Attended, cast, compute_dtype, exact_sum


@dataclass(frozen=True, eq=False)
class Tiling(ABC):
    """How maps of one size are cut into tiles of `N_q` queries and `N_k` keys. Tiles inside a map come first.

    Attributes:
        num_tiles: All of them.
        num_inner: Those inside.
        inner_kind: Which of the masks they have.
        kinds: Which the others have, `(num_tiles - num_inner,)`.
        num_keys: `N_k`.
        places: Which of the tiles' queries each pixel of the maps is, `(B * H * W,)`.
    """

    num_tiles: int
    num_inner: int
    inner_kind: int
    kinds: Tensor
    num_keys: int
    places: Tensor

    @abstractmethod
    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What is projected to queries, keys and values, `(n, C)`, of maps `(B, H, W, C)`."""

    @abstractmethod
    def rows_backward(self, grad: Tensor) -> Tensor:
        """Gradient of the maps' pixels, `(B * H * W, C)`."""

    @abstractmethod
    def heads(self, qkv: Tensor, num_heads: int) -> Heads:
        """Queries, keys and values of the tiles, of those of the rows `(n, 3 C)`."""

    @abstractmethod
    def heads_backward(self, groups: list[Group], grads: list[Heads]) -> Tensor:
        """Gradient of the rows' queries, keys and values `(n, 3 C)`, of those of the groups."""

    def join(self, out: Tensor) -> Tensor:
        """The maps' pixels `(B * H * W, C)`, of the tiles' queries `(num_tiles * N_q, C)`."""
        return out.index_select(0, self.places)

    @abstractmethod
    def join_backward(self, grad: Tensor) -> Tensor:
        """Gradient of the tiles' queries, by that of the maps `(B, H, W, C)`."""

    def groups(self, biases: Tensor) -> list[Group]:
        """The tiles by their bias, of those that `biases_of_kinds` returns. One kind is that of all tiles."""
        num_inner, inner_kind = self.num_inner, self.inner_kind
        if len(biases) == 1:
            num_inner, inner_kind = self.num_tiles, 0
        groups = []
        if num_inner:
            bias = biases[inner_kind, ..., : self.num_keys].expand(num_inner, -1, -1, -1)
            groups.append(Group(slice(0, num_inner), bias))
        if num_inner < self.num_tiles:
            bias = biases.index_select(0, self.kinds)[..., : self.num_keys]
            groups.append(Group(slice(num_inner, self.num_tiles), bias))
        return groups


class Projections(NamedTuple):
    """Weights of the projections of `C` channels.

    Attributes:
        w_qkv: To queries, keys and values, `(3 C, C)`.
        b_qkv: Its bias.
        w_proj: Of the output, `(C, C)`.
        b_proj: Its bias.
    """

    w_qkv: Tensor
    b_qkv: Tensor
    w_proj: Tensor
    b_proj: Tensor


def attend_in_tiles(
    x: Tensor, projections: Projections, bias: Tensor, masks: Tensor | None, tiling: Tiling
) -> Tensor:
    """Projects a map, attends in its tiles, projects again, and puts the map together; in `compute_dtype`.

    Args:
        x: `(B, H, W, C)`.
        projections: Those before and after attention.
        bias: Added to the logits of the heads, `(M, N_q, N_k)`.
        masks: Added to the logits of each kind of tile, `(kinds, N_q, N_k)`, or `None`.
        tiling: Of maps of this size.

    Returns:
        `(B, H, W, C)`.
    """
    return _Attention.apply(x, *projections, bias, masks, tiling, torch.is_grad_enabled())


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        w_qkv: Tensor,
        b_qkv: Tensor,
        w_proj: Tensor,
        b_proj: Tensor,
        bias: Tensor,
        masks: Tensor | None,
        tiling: Tiling,
        trains: bool,
    ) -> Tensor:
        dtype, num_heads = compute_dtype(x), len(bias)
        trains = trains and any(ctx.needs_input_grad)
        with torch.autocast(x.device.type, enabled=False):
            biases = biases_of_kinds(bias, masks, dtype)
            w_qkv, b_qkv, w_proj, b_proj = cast([w_qkv, b_qkv, w_proj, b_proj], dtype)
            groups = tiling.groups(biases)
            rows = tiling.rows(x, dtype)
            heads = tiling.heads(torch.addmm(b_qkv, rows, w_qkv.t()), num_heads)
            kept = [rows, w_qkv, b_qkv, w_proj, biases] if trains else []
            del rows
            attended = attend_groups(groups, heads)
            del heads
            out = tiling.join(project(groups, attended, w_proj, b_proj)).view(x.shape)
        if trains:
            ctx.tiling, ctx.num_heads, ctx.dtype = tiling, num_heads, x.dtype
            ctx.save_for_backward(*kept, *(t for results in attended for t in results))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, w_qkv, b_qkv, w_proj, biases, *results = ctx.saved_tensors
        attended = [Attended(*results[i : i + 4]) for i in range(0, len(results), 4)]
        tiling, num_heads, channels = ctx.tiling, ctx.num_heads, rows.shape[1]
        with torch.autocast(grad.device.type, enabled=False):
            groups = tiling.groups(biases)
            grad_out = tiling.join_backward(grad)
            grad_w_proj = grad_of_projection(groups, attended, grad_out)
            grad_b_proj = exact_sum(grad.flatten(0, 2))
            grad_z = (grad_out @ w_proj).view(tiling.num_tiles, -1, num_heads, channels // num_heads)
            del grad_out

            heads = tiling.heads(torch.addmm(b_qkv, rows, w_qkv.t()), num_heads)
            grads, grad_bias = attend_groups_backward(
                groups, heads, attended, grad_z, ctx.needs_input_grad[5]
            )
            del heads, grad_z
            grad_qkv = tiling.heads_backward(groups, grads)
            del grads
            grad_w_qkv = grad_qkv.t() @ rows
            grad_b_qkv = exact_sum(grad_qkv)
            grad_rows = grad_qkv @ w_qkv
            del grad_qkv
            grad_x = tiling.rows_backward(grad_rows).view(grad.shape).to(ctx.dtype)
        return grad_x, grad_w_qkv, grad_b_qkv, grad_w_proj, grad_b_proj, grad_bias, None, None, None
