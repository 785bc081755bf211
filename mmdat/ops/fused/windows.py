"""Attention in the windows of a map on CUDA, by a fused kernel: how the map is cut.

It is cut before it is projected, in the dtype of the kernel and in one pass, so that all else works on
windows that lie one after the other. One more pass puts the output together again. The rest is in `tiles.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..constants import keep
from ..windows import window_kinds
from .groups import Group, Heads
from .tiles import Projections, Tiling, attend_in_tiles


def fused_window_attention(
    x: Tensor, projections: Projections, bias: Tensor, masks: Tensor | None, shift: int
) -> Tensor:
    """`window_attention` of `native/windows.py`, in the dtype of `compute_dtype`."""
    windows = cut_windows(*x.shape[:3], round(bias.shape[1] ** 0.5), shift, masks is not None, x.device)
    return attend_in_tiles(x, projections, bias, masks, windows)


@dataclass(frozen=True, eq=False)
class WindowTiling(Tiling):
    """Windows that a roll and padding leave as they are come first, by image.

    Attributes:
        size: Side of the windows.
        shift: By how much the map is rolled.
        inner: Rows and columns of the windows that come first, in each image.
        border: Where the positions of the others lie in the flattened maps `(n,)`. For padding, the pixel
            next to it.
        is_pixel: 0 for padding and 1 for others, `(n, 1)`, or `None` where nothing is padded.
    """

    size: int
    shift: int
    inner: tuple[int, int]
    border: Tensor
    is_pixel: Tensor | None

    def rows(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Positions of the windows, zero for padding."""
        channels, area = x.shape[-1], self.size**2
        rows = x.new_empty(self.num_tiles * area, channels, dtype=dtype)
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

    def rows_backward(self, grad: Tensor) -> Tensor:
        return self.join(grad)

    def heads(self, qkv: Tensor, num_heads: int) -> Heads:
        return Heads(*qkv.view(self.num_tiles, self.size**2, 3, num_heads, -1).unbind(2))

    def heads_backward(self, groups: list[Group], grads: list[Heads]) -> Tensor:
        grad_qkv = grads[0].q.new_empty(self.num_tiles, self.size**2, 3, *grads[0].q.shape[2:])
        for part, of_heads in zip(groups, grads):
            torch.stack(of_heads, 2, out=grad_qkv[part.tiles])
        return grad_qkv.flatten(2).flatten(0, 1)

    def join_backward(self, grad: Tensor) -> Tensor:
        return self.rows(grad, grad.dtype)


@keep
def cut_windows(
    batch: int, height: int, width: int, size: int, shift: int, masked: bool, device: torch.device
) -> WindowTiling:
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

    is_pixel = of_border(_windows(is_pixel.unsqueeze(-1), size)).flatten(0, -2).repeat(batch, 1)
    padded = rows * size > height or columns * size > width
    return WindowTiling(
        num_tiles=batch * rows * columns,
        num_inner=first,
        inner_kind=0,
        kinds=of_border(kinds).flatten().repeat(batch),
        num_keys=size**2,
        places=places.flatten(),
        size=size,
        shift=shift,
        inner=inner,
        border=of_border(_windows(pixels.unsqueeze(-1), size)).flatten(),
        is_pixel=is_pixel if padded else None,
    )


def _windows(x: Tensor, size: int) -> Tensor:
    """`(B, rows, columns, size, size, C)` of a map of whole windows `(B, H, W, C)`, a view."""
    return x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3)
