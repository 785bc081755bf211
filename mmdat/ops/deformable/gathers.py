"""Bilinear sampling without the operation of that name, for runtimes that lack it or compute it wrong."""

import torch
from torch import Tensor


def sample_by_gathers(images: Tensor, points: Tensor) -> Tensor:
    """`F.grid_sample(images, points, align_corners=True)`: bilinear, zero outside the images.

    Each point takes four rows of a table that has the channels of a pixel in each row, which exporters write
    as `Gather`.

    Args:
        images: `(N, C, H, W)`.
        points: `(N, H_out, W_out, 2)`, last dimension `(x, y)`, in [-1, 1] from the centre of the first
            pixel to that of the last.

    Returns:
        `(N, C, H_out, W_out)`. Points that are not finite are outside.
    """
    number, _, height, width = images.shape
    rows = images.flatten(2).transpose(1, 2).flatten(0, 1)  # (N * H * W, C)
    first = (torch.arange(number, device=images.device) * (height * width))[:, None, None]
    x, y = points.unbind(-1)
    columns, lines = _neighbours(x, width), _neighbours(y, height)
    sampled = sum(
        rows[first + line * width + column] * (line_weight * column_weight).unsqueeze(-1)
        for line, line_weight in lines
        for column, column_weight in columns
    )  # (N, H_out, W_out, C)
    return sampled.permute(0, 3, 1, 2).contiguous()


def _neighbours(points: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """The two pixels around each point of an axis, as indices, and their weights."""
    position = (points + 1) / 2 * (size - 1)
    before = position.floor().detach()
    found = []
    for pixel, weight in ((before, before + 1 - position), (before + 1, position - before)):
        inside = (pixel >= 0) & (pixel <= size - 1)
        index = torch.where(inside, pixel, torch.zeros_like(pixel)).long()
        found.append((index, torch.where(inside, weight, torch.zeros_like(weight))))
    return found
