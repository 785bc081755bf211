"""Normalised coordinates of deformable attention, paper Section 3.2.

A coordinate runs from -1, the centre of the first pixel of a map, to +1, the centre of the last one
(`align_corners=True`). Points are stored as `(y, x)`.
"""

import torch
from torch import Tensor


def reference_points(
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform grid of points `p` of Equation (7), for the keys and for the queries alike.

    The released CVPR'22 code puts point `i` of `n` at `2 (i + 0.5) / n - 1`. That is the centre of a
    pixel where -1 and +1 are the *borders* of a map, yet maps are sampled with
    `align_corners=True`, where they are the centres of the border pixels. So a key without offset lies
    at pixel `(i + 0.5) (n - 1) / n`, up to half a pixel off its cell. The released weights were
    trained with that, so it stays. A map of one pixel has its only point at 0.

    Returns:
        `(height, width, 2)`, last dimension `(y, x)`, values in (-1, 1).
    """

    def axis(size: int) -> Tensor:
        return (2 * torch.arange(size, dtype=dtype, device=device) + 1) / size - 1

    return torch.stack(torch.meshgrid(axis(height), axis(width), indexing='ij'), dim=-1)
