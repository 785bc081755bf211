"""Normalised coordinates of deformable attention, paper Section 3.2.

A coordinate runs from -1, the centre of the first pixel of a map, to +1, the centre of the last one
(`align_corners=True`, which is how the released code samples maps). Points are stored as `(y, x)`.

Two conventions say where the grids of keys and queries lie. On an axis of `n` points, point `i` is at

| | key without offset | query | unit of offsets |
|-|-|-|-|
| `'half_pixel'`, CVPR'22 | `2 (i + 0.5) / n - 1` | `2 (i + 0.5) / n - 1` | `1 / n` |
| `'corners'`, DAT++ | `2 (i + 0.5) / (n - 1) - 1` | `2 i / (n - 1) - 1` | `1 / (n - 1)` |

Neither is an identity. The first is the centre of a pixel where -1 and +1 are the *borders* of a map, so
a CVPR'22 key without offset lies at pixel `(i + 0.5) (n - 1) / n`, up to half a pixel off its cell. A
DAT++ key lies half a cell towards the bottom right, the last one beyond the map. The released weights
were trained so. The only point of an axis with `n = 1` is at 0.

Grids and units are kept (`../constants.py`): they are to be read, never written.
"""

from typing import Literal

import torch
from torch import Tensor

from ..constants import keep
from ..sizes import at_least, at_most, is_traced

Coordinates = Literal['half_pixel', 'corners']


def reference_points(
    height: int,
    width: int,
    coordinates: Coordinates = 'half_pixel',
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform grid of keys without offsets, `p` of Equation (7): `(height, width, 2)`."""
    return _grid(height, width, 0.5, coordinates, dtype, device)


def query_points(
    height: int,
    width: int,
    coordinates: Coordinates = 'half_pixel',
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Grid of queries, from which the displacements `R` of Equation (9) start: `(height, width, 2)`."""
    shift = 0.5 if coordinates == 'half_pixel' else 0.0
    return _grid(height, width, shift, coordinates, dtype, device)


def query_axis(size: int, coordinates: Coordinates) -> tuple[float, float]:
    """Coordinate of the first query on an axis of `size`, and the distance from each to the next."""
    if size == 1:
        return 0.0, 0.0
    step = 2 / _intervals(size, coordinates)
    return (step / 2 if coordinates == 'half_pixel' else 0.0) - 1, step


def offset_unit(size: int, coordinates: Coordinates = 'half_pixel') -> float:
    """Normalised length of an offset of 1 on an axis of `size` keys."""
    return 1 / _intervals(size, coordinates)


def offset_units(
    height: int,
    width: int,
    coordinates: Coordinates = 'half_pixel',
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """`offset_unit` of both axes, `(2,)`, made on the device."""
    return _units(height, width, coordinates, dtype, device)


@keep
def _units(height, width, coordinates, dtype, device) -> Tensor:
    one = torch.ones((), dtype=dtype, device=device)
    return torch.stack([one / _intervals(size, coordinates) for size in (height, width)])


@keep
def _grid(height, width, shift, coordinates, dtype, device) -> Tensor:
    def axis(size: int) -> Tensor:
        if not is_traced(size) and size == 1:
            return torch.zeros(1, dtype=dtype, device=device)
        steps = torch.arange(size, dtype=dtype, device=device) + shift
        points = 2 * steps / _intervals(size, coordinates) - 1
        return points * at_most(size - 1, 1) if is_traced(size) else points

    return torch.stack(torch.meshgrid(axis(height), axis(width), indexing='ij'), dim=-1)


def _intervals(size: int, coordinates: Coordinates) -> int:
    return size if coordinates == 'half_pixel' else at_least(size - 1, 1)
