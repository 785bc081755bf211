"""The C++ kernel for CPUs, `mmdat/ops/native/csrc/deformable_attention.cpp`, in float32."""

import ctypes
import logging
from functools import cache, lru_cache

import torch
from torch import Tensor

from ...native.build import BuildError, load_library
from ..coordinates import Coordinates, query_points

_logger = logging.getLogger('mmdat')

MAX_SCRATCH = 2**28  # bytes that each thread may take for a spread bias table


@torch.compiler.assume_constant_result
def load() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernel, or `None` and why there is none."""
    return _load()


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    try:
        library = load_library()
    except BuildError as error:
        _logger.warning(f'Deformable attention is slower than it could be on this CPU: {error}')
        return None, str(error)
    library.mmdat_deformable_attention.argtypes = [ctypes.POINTER(_Arguments)]
    library.mmdat_deformable_attention_backward.argtypes = [ctypes.POINTER(_Arguments)]
    return library, f'vectors of {library.mmdat_lanes()} floats'


def scratch(bias_table: Tensor, query_size: tuple[int, int]) -> int:
    """Bytes of the spread bias table of a head at most, see `csrc/bias_table.h`, for keys on the map."""
    _, table_height, table_width = bias_table.shape
    return 4 * (table_height + 4) * table_width * (3 * query_size[1] + 32)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    sampling_locations: Tensor,
    query_size: tuple[int, int],
    coordinates: Coordinates,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Fills `out` and `lse`, see `operator.py`."""
    if not len(q):  # no images
        return
    q, k, v = (_with_contiguous_rows(t) for t in (q, k, v))
    bias_table, sampling_locations = bias_table.contiguous(), sampling_locations.contiguous()
    args = _arguments(q, k, v, bias_table, sampling_locations, query_size, coordinates, out, lse)
    library, _ = load()
    library.mmdat_deformable_attention(args)


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    sampling_locations: Tensor,
    query_size: tuple[int, int],
    coordinates: Coordinates,
    out: Tensor,
    lse: Tensor,
    grads: tuple[Tensor, ...],
) -> None:
    """Fills `grads`, see `operator.py`."""
    if not len(q):
        grads[3].zero_()
        return
    grad_out, q, k, v = (_with_contiguous_rows(t) for t in (grad_out, q, k, v))
    bias_table, sampling_locations = bias_table.contiguous(), sampling_locations.contiguous()
    args = _arguments(q, k, v, bias_table, sampling_locations, query_size, coordinates, out, lse)

    batch, num_heads, num_keys, _ = k.shape
    args.splits = -(-args.threads // (batch * num_heads))
    grads_k, grads_v = (
        g[None] if args.splits == 1 else g.new_empty(args.splits, *g.shape) for g in grads[1:3]
    )
    grads_table = bias_table.new_zeros(args.threads, *bias_table.shape)
    grads_locations = q.new_empty(args.splits, batch, num_heads, num_keys, 2)
    args.grad_out, args.grad_q, args.grad_k, args.grad_v = (
        _Rows.of(t) for t in (grad_out, grads[0], grads_k[0], grads_v[0])
    )
    args.split_stride = grads_k.stride(0)
    args.grad_table, args.grad_locations = grads_table.data_ptr(), grads_locations.data_ptr()
    library, _ = load()
    library.mmdat_deformable_attention_backward(args)

    if args.splits > 1:
        torch.sum(grads_k, 0, out=grads[1])
        torch.sum(grads_v, 0, out=grads[2])
    torch.sum(grads_table, 0, out=grads[3])
    groups = sampling_locations.shape[1]
    torch.sum(grads_locations.unflatten(2, (groups, -1)), (0, 3), out=grads[4])


class _Rows(ctypes.Structure):
    """A tensor `(B, M, N, d)` whose rows of `d` numbers are contiguous."""

    _fields_ = [
        ('data', ctypes.c_void_p),
        ('batch_stride', ctypes.c_int64),
        ('head_stride', ctypes.c_int64),
        ('row_stride', ctypes.c_int64),
    ]

    @classmethod
    def of(cls, x: Tensor) -> '_Rows':
        return cls(x.data_ptr(), *x.stride()[:3])


class _QueryAxis(ctypes.Structure):
    _fields_ = [('first', ctypes.c_double), ('step', ctypes.c_double)]


class _Arguments(ctypes.Structure):
    """Mirrors `Arguments` in `csrc/deformable_attention.cpp`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in 'batch heads groups height width keys dims'.split()),
        *((name, ctypes.c_int32) for name in 'table_height table_width splits threads'.split()),
        *((name, _QueryAxis) for name in ('y_axis', 'x_axis')),
        *((name, _Rows) for name in 'q k v out'.split()),
        *((name, ctypes.c_void_p) for name in 'table locations lse'.split()),
        *((name, _Rows) for name in 'grad_out grad_q grad_k grad_v'.split()),
        ('split_stride', ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ('grad_table', 'grad_locations')),
    ]


def _arguments(q, k, v, bias_table, sampling_locations, query_size, coordinates, out, lse) -> _Arguments:
    batch, num_heads, _, dims = q.shape
    return _Arguments(
        batch=batch,
        heads=num_heads,
        groups=sampling_locations.shape[1],
        height=query_size[0],
        width=query_size[1],
        keys=k.shape[2],
        dims=dims,
        table_height=bias_table.shape[1],
        table_width=bias_table.shape[2],
        threads=torch.get_num_threads(),
        y_axis=_query_axis(query_size[0], coordinates),
        x_axis=_query_axis(query_size[1], coordinates),
        q=_Rows.of(q),
        k=_Rows.of(k),
        v=_Rows.of(v),
        out=_Rows.of(out),
        table=bias_table.data_ptr(),
        locations=sampling_locations.data_ptr(),
        lse=lse.data_ptr(),
    )


@lru_cache(maxsize=64)
def _query_axis(size: int, coordinates: Coordinates) -> _QueryAxis:
    points = query_points(1, size, coordinates, dtype=torch.float64)[0, :, 1]
    first, second = points[:2].tolist() if size > 1 else (0.0, 0.0)
    return _QueryAxis(first, second - first)


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
