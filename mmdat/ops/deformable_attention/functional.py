import os
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from . import cpu
from .coordinates import Coordinates
from .library import operator
from .reference import deformable_attention_reference

BACKENDS = ('reference', 'portable', 'cpu')


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    sampling_locations: Tensor,
    query_size: tuple[int, int],
    coordinates: Coordinates = 'half_pixel',
    backend: str | None = None,
) -> Tensor:
    """Attention of a regular grid of queries to deformed keys, Equation (9) of the paper.

    `softmax(q k^T / sqrt(d) + phi(B; R)) v`, where `R` are the displacements between the queries' grid
    and the keys' sampling locations, and `phi` interpolates the bias table bilinearly (Equation (8)).

    Args:
        q: Queries `(B, M, H * W, d)`, row-major on the grid of `query_size`.
        k: Keys `(B, M, N_k, d)`.
        v: Values `(B, M, N_k, d)`.
        bias_table: `(M, T_h, T_w)`, a table of relative position biases for each head.
        sampling_locations: Where the keys were sampled, `(B, G, N_k, 2)`, `(y, x)`, normalised such
            that -1 and +1 are the centres of the border pixels. `G` divides `M`; heads are contiguous
            in the groups.
        query_size: `(H, W)`.
        coordinates: Convention of the queries' grid, `'half_pixel'` (CVPR'22) or `'corners'` (DAT++).
        backend: `'reference'`, the equations; `'portable'`, PyTorch in bounded memory; `'cpu'`, a compiled
            kernel; or `None`: what the environment variable `MMDAT_BACKEND` says, or else the fastest for
            these inputs. `explain` tells which that is.

    Returns:
        `(B, M, H * W, d)` in the dtype of `v`.

    Raises:
        ValueError: If shapes do not fit each other, or `backend` is unknown or cannot serve these inputs.
    """
    inputs = q, k, v, bias_table, sampling_locations
    _check_shapes(*inputs, query_size)
    backend, _ = _choose_backend(*inputs, backend)
    if backend == 'reference':
        return deformable_attention_reference(*inputs, query_size, coordinates)
    # positions and softmax need more digits than half precision has
    dtype = torch.promote_types(sampling_locations.dtype, torch.promote_types(v.dtype, torch.float32))
    out, _ = operator(*(t.to(dtype) for t in inputs), *query_size, coordinates, backend)
    return out.to(v.dtype)


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    sampling_locations: Tensor,
    query_size: tuple[int, int],
    coordinates: Coordinates = 'half_pixel',
    backend: str | None = None,
) -> str:
    """The backend that `deformable_attention` takes for the same arguments, and why: `'cpu: ...'`."""
    _check_shapes(q, k, v, bias_table, sampling_locations, query_size)
    return '{}: {}'.format(*_choose_backend(q, k, v, bias_table, sampling_locations, backend))
