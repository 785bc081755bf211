"""Bilinear interpolation of a bias table as products of small matrices.

It is separable. Let `t` be the coordinate of a displacement in the table, in knots. Knot `i` has the weight
`max(0, 1 - |t - i|)`, a tent. Queries are a regular grid, so `t` depends on the query's row along one axis
and on its column along the other. The bias between one key and all queries then is a product of small
matrices, as are its gradients, and nothing is gathered or scattered by query:

    bias (H, W) = tents_y (H, T_h) . table (T_h, T_w) . tents_x (T_w, W)
"""

from typing import NamedTuple

import torch
from torch import Tensor


def exact_dtype(device: torch.device) -> torch.dtype:
    """Of coordinates in tables, which have more than 100 knots: their fractions need digits."""
    return torch.float32 if device.type == 'mps' else torch.float64


class Axis(NamedTuple):
    """Interpolation along one axis, between `n` keys and the `L` rows or columns of queries.

    Attributes:
        knots: The two knots around each displacement, clamped to the table: `(..., n, L, 2)`.
        inside: Which of them are on the table, alike.
        tents: Weights of all `T` knots, `(..., n, L, T)`.
    """

    knots: Tensor
    inside: Tensor
    tents: Tensor

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor, table_size: int, dtype: torch.dtype) -> 'Axis':
        """From the normalised coordinates of queries `(L,)` and keys `(..., n)`."""
        displacements = (queries - keys[..., None]) / 2
        coordinates = (displacements[..., None] + 1) * ((table_size - 1) / 2)
        knots = coordinates.floor() + torch.arange(2, device=keys.device)
        inside = (knots >= 0) & (knots < table_size)
        weights = (1 - (coordinates - knots).abs()) * inside
        knots = knots.long().clamp(0, table_size - 1)
        tents = torch.zeros(*knots.shape[:-1], table_size, dtype=dtype, device=keys.device)
        return cls(knots, inside, tents.scatter_add_(-1, knots, weights.to(dtype)))

    def grad_locations(self, grad_tents: Tensor) -> Tensor:
        """Gradient of the keys' coordinates, `(..., n)`, by that of `tents`.

        A displacement on a knot is at the start of a cell, as in `F.grid_sample`.
        """
        lower, upper = (grad_tents.gather(-1, self.knots) * self.inside).sum(-2).unbind(-1)
        return (lower - upper) * ((self.tents.shape[-1] - 1) / 4)
