import os
from math import prod

import torch
from torch import Tensor

from .backends import cpu
from .coordinates import Coordinates
from .operator import operator
from .reference import deformable_attention_reference

BACKENDS = ('reference', 'portable', 'cpu')

# From how many logits on a backend is faster than the reference: the kernel by all logits, the portable one,
# which computes head by head, by those of a head. On GPUs, where nobody has measured it, the portable backend
# takes over where each copy of the logits would need 1 GiB.
MIN_LOGITS_CPU = 2**15
MIN_LOGITS_OF_A_HEAD = 700_000
MIN_LOGITS_ELSEWHERE = 2**28


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    sampling_locations: Tensor,
    query_size: tuple[int, int],
    coordinates: Coordinates = 'half_pixel',
    backend: str | None = None,
    dropout: float = 0.0,
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
        dropout: Probability in [0, 1) that an attention weight is dropped, by the reference only.

    Returns:
        `(B, M, H * W, d)` in the dtype of `v`.

    Raises:
        ValueError: If shapes do not fit each other, or `backend` is unknown or cannot serve these inputs.
    """
    inputs = q, k, v, bias_table, sampling_locations
    _check_shapes(*inputs, query_size)
    backend, _ = _choose_backend(*inputs, query_size, dropout, backend)
    if backend == 'reference':
        return deformable_attention_reference(*inputs, query_size, coordinates, dropout)
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
    dropout: float = 0.0,
) -> str:
    """The backend that `deformable_attention` takes for the same arguments, and why: `'cpu: ...'`."""
    inputs = q, k, v, bias_table, sampling_locations
    _check_shapes(*inputs, query_size)
    return '{}: {}'.format(*_choose_backend(*inputs, query_size, dropout, backend))


def _choose_backend(
    q, k, v, bias_table, sampling_locations, query_size, dropout: float, name: str | None
) -> tuple[str, str]:
    """The one place where a backend is chosen: its name, and why."""
    asked_by = 'the argument `backend`'
    if name is None:
        name, asked_by = os.environ.get('MMDAT_BACKEND') or None, 'the variable MMDAT_BACKEND'
    dtype = torch.promote_types(sampling_locations.dtype, v.dtype)
    if name is not None:
        if name not in BACKENDS:
            raise ValueError(f'unknown backend {name!r} in {asked_by}, the backends are {BACKENDS}')
        if name == 'cpu' and (obstacle := _obstacle_to_cpu(q.device, dtype, bias_table, query_size)):
            raise ValueError(f'{asked_by} asks for the cpu backend, but {obstacle}')
        if name != 'reference' and dropout:
            raise ValueError(f'{asked_by} asks for the {name} backend, but only the reference has {dropout=}')
        return name, f'asked for by {asked_by}'
    if dropout:
        return 'reference', 'only this one drops attention weights'

    logits = prod(q.shape[:3]) * k.shape[2]
    if q.device.type == 'meta':
        return 'reference', 'tensors without numbers cost what the equations cost'
    if logits < MIN_LOGITS_CPU:
        return 'reference', f'nothing is faster for {logits} logits'
    obstacle = _obstacle_to_cpu(q.device, dtype, bias_table, query_size)
    if obstacle is None:
        return 'cpu', f'it is the fastest for {logits} logits, with {cpu.load()[1]}'
    on_cpu = q.device.type == 'cpu'
    if (q.shape[2] * k.shape[2] < MIN_LOGITS_OF_A_HEAD) if on_cpu else (logits < MIN_LOGITS_ELSEWHERE):
        return 'reference', f'nothing is faster for {logits} logits where {obstacle}'
    return 'portable', f'{obstacle}, and {logits} logits are too many for the reference'


def _obstacle_to_cpu(device, dtype, bias_table, query_size) -> str | None:
    """Why the kernel for CPUs cannot serve, or `None`."""
    if device.type != 'cpu':
        return f'the tensors are on {device.type}'
    if dtype != torch.float32:
        return f'the kernel computes in float32, not in {dtype}'
    if cpu.scratch(bias_table, query_size) > cpu.MAX_SCRATCH:
        return f'a table {tuple(bias_table.shape)} spread over {query_size[1]} columns takes too much memory'
    library, reason = cpu.load()
    return None if library else reason


def _check_shapes(q, k, v, bias_table, sampling_locations, query_size) -> None:
    height, width = query_size
    _, num_heads, num_queries, _ = q.shape
    groups = sampling_locations.shape[1]
    if num_queries != height * width:
        raise ValueError(f'query_size={tuple(query_size)} does not fit {num_queries} queries')
    if num_heads % groups or bias_table.shape[0] != num_heads:
        raise ValueError(
            'the heads of q, the tables and the groups must fit each other, got '
            f'{num_heads=}, tables={bias_table.shape[0]}, {groups=}'
        )
    if k.shape != v.shape or k.shape[2] != sampling_locations.shape[2] or not k.shape[2]:
        raise ValueError(
            'k and v need a row for each sampling location, of which there must be one at least, got '
            f'k {tuple(k.shape)}, v {tuple(v.shape)}, {sampling_locations.shape[2]} locations'
        )
