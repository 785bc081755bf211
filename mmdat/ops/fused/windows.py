"""Attention in the windows of a map on CUDA, by a fused kernel.

In the order of time: the map is cut into windows, in the dtype of the kernel and in one pass; one product
gives queries, keys and values; the kernel attends; one product projects; one pass puts the windows together
again. Training keeps the cut map and the kernel's output. Queries, keys and values, three times the map, are
computed again in the backward pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..constants import keep
from ..windows import window_kinds
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
from .kernel import Attended, cast, compute_dtype, exact_sum


class Windows(NamedTuple):
    """How a map is cut. Windows that a roll and padding leave as they are come first, by image.

    Attributes:
        size: Side of the windows.
        shift: By how much the map is rolled.
        inner: Rows and columns of the windows that come first, in each image.
        num_inner: How many they are.
        total: All windows.
        border: Where the positions of the others lie in the flattened maps `(n,)`. For padding, the pixel
            next to it.
        is_pixel: 0 for padding and 1 for others, `(n, 1)`, or `None` where nothing is padded.
        kinds: Of the others, see `window_kinds`.
        places: The position in the windows of each pixel of the flattened maps, `(B * H * W,)`.
    """

    size: int
    shift: int
    inner: tuple[int, int]
    num_inner: int
    total: int
    border: Tensor
    is_pixel: Tensor | None
    kinds: Tensor
    places: Tensor

    def cut(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Positions of the windows `(windows * N, C)` of maps `(B, H, W, C)`, zero for padding."""
        channels, area = x.shape[-1], self.size**2
        rows = x.new_empty(self.total * area, channels, dtype=dtype)
        first = self.num_inner * area
        if first:
            y, x_ = (slice(self.shift, self.shift + n * self.size) for n in self.inner)
            windows = _windows(x[:, y, x_], self.size)
            rows[:first].view(windows.shape).copy_(windows)
        if first < len(rows):
            others = x.reshape(-1, channels).index_select(0, self.border)
            if self.is_pixel is None:
                rows[first:] = others
            else:
                torch.mul(others, self.is_pixel, out=rows[first:])
        return rows

    def join(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Maps `(B, H, W, C)` of the windows' positions."""
        return rows.index_select(0, self.places).view(shape)

    def groups(self, biases: Tensor) -> list[Group]:
        """The windows by their bias, see `groups.py`."""
        return group(biases, self.size**2, self.total, self.num_inner, 0, self.kinds)


@keep
def cut_windows(
    batch: int, height: int, width: int, size: int, shift: int, masked: bool, device: torch.device
) -> Windows:
    """How maps of this size are cut into windows, which have masks of their kinds or not."""
    rows, columns = (-(-n // size) for n in (height, width))
    # the last row and column have other masks
    inner = tuple(min(max(n - shift, 0) // size, -(-n // size) - masked) for n in (height, width))
    inner = inner if all(inner) else (0, 0)

    y, x = ((torch.arange(n * size, device=device) + shift) % (n * size) for n in (rows, columns))
    images = torch.arange(batch, device=device)[:, None, None]
    pixels = (images * height + y.clamp(max=height - 1)[:, None]) * width + x.clamp(max=width - 1)
    is_pixel = ((y < height)[:, None] & (x < width)).float()[None, :, :]
    kinds = window_kinds(rows, columns, device).view(1, rows, columns)

    def of_border(windows: Tensor) -> Tensor:
        """Of windows `(B, rows, columns, ...)` those that are not inside, `(B, n, ...)`."""
        return torch.cat(
            [windows[:, : inner[0], inner[1] :].flatten(1, 2), windows[:, inner[0] :].flatten(1, 2)], 1
        )

    first = batch * inner[0] * inner[1]
    others = rows * columns - inner[0] * inner[1]
    numbers = torch.empty(batch, rows, columns, dtype=torch.int32, device=device)
    numbers[:, : inner[0], : inner[1]] = torch.arange(first, device=device).view(batch, *inner)
    border = first + torch.arange(batch * others, device=device).view(batch, others)
    beside = inner[0] * (columns - inner[1])
    numbers[:, : inner[0], inner[1] :] = border[:, :beside].view(batch, inner[0], columns - inner[1])
    numbers[:, inner[0] :] = border[:, beside:].view(batch, rows - inner[0], columns)
    inside = torch.arange(size**2, dtype=torch.int32, device=device).view(size, size)
    places = (numbers[:, :, None, :, None] * size**2 + inside[:, None]).view(
        batch, rows * size, columns * size
    )
    places = places.roll((shift, shift), (1, 2))[:, :height, :width]

    padded = rows * size > height or columns * size > width
    return Windows(
        size,
        shift,
        inner,
        first,
        batch * rows * columns,
        of_border(_windows(pixels.unsqueeze(-1), size)).flatten(),
        of_border(_windows(is_pixel.unsqueeze(-1), size)).flatten(0, -2).repeat(batch, 1) if padded else None,
        of_border(kinds).flatten().repeat(batch),
        places.flatten(),
    )


def _windows(x: Tensor, size: int) -> Tensor:
    """`(B, rows, columns, size, size, C)` of a map of whole windows `(B, H, W, C)`, a view."""
    return x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)


class FusedWindowAttention(torch.autograd.Function):
    """`window_attention` of `native/windows.py`, in the dtype of `compute_dtype`."""

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
        shift: int,
    ) -> Tensor:
        dtype, (num_heads, area, _) = compute_dtype(x), bias.shape
        windows = cut_windows(*x.shape[:3], round(area**0.5), shift, masks is not None, x.device)
        with torch.autocast(x.device.type, enabled=False):
            biases = biases_of_kinds(bias, masks, dtype)
            w_qkv, b_qkv, w_proj, b_proj = cast([w_qkv, b_qkv, w_proj, b_proj], dtype)
            rows = windows.cut(x, dtype)
            heads = _heads(rows, w_qkv, b_qkv, num_heads, area)
            groups = windows.groups(biases)
            attended = attend_groups(groups, heads)
            out = torch.empty_like(rows)
            project(groups, attended, w_proj, b_proj, out.unflatten(0, (-1, area)))
            out = windows.join(out, x.shape)
        ctx.windows, ctx.num_heads, ctx.dtype = windows, num_heads, x.dtype
        ctx.save_for_backward(
            rows, w_qkv, b_qkv, w_proj, biases, *(t for results in attended for t in results)
        )
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, w_qkv, b_qkv, w_proj, biases, *results = ctx.saved_tensors
        attended = [Attended(*results[i : i + 4]) for i in range(0, len(results), 4)]
        windows, num_heads, area = ctx.windows, ctx.num_heads, ctx.windows.size**2
        with torch.autocast(grad.device.type, enabled=False):
            groups = windows.groups(biases)
            grad_rows = windows.cut(grad, grad.dtype)
            grad_w_proj = grad_of_projection(groups, attended, grad_rows.unflatten(0, (-1, area)))
            grad_b_proj = exact_sum(grad.flatten(0, 2))
            grad_z = (grad_rows @ w_proj).view(-1, area, num_heads, rows.shape[1] // num_heads)

            heads = _heads(rows, w_qkv, b_qkv, num_heads, area)
            grads, grad_bias = attend_groups_backward(
                groups, heads, attended, grad_z, ctx.needs_input_grad[5]
            )
            del heads, grad_z
            grad_qkv = rows.new_empty(windows.total, area, 3, *grads[0].q.shape[2:])
            for part, of_heads in zip(groups, grads):
                torch.stack(of_heads, 2, out=grad_qkv[part.tiles])
            del grads
            grad_qkv = grad_qkv.view(len(rows), -1)
            grad_w_qkv = grad_qkv.t() @ rows
            grad_b_qkv = exact_sum(grad_qkv)
            grad_x = windows.join(grad_qkv @ w_qkv, grad.shape).to(ctx.dtype)
        return grad_x, grad_w_qkv, grad_b_qkv, grad_w_proj, grad_b_proj, grad_bias, None, None


def _heads(rows: Tensor, weight: Tensor, bias: Tensor, num_heads: int, area: int) -> Heads:
    qkv = torch.addmm(bias, rows, weight.t())
    return Heads(*qkv.view(-1, area, 3, num_heads, rows.shape[1] // num_heads).unbind(2))
