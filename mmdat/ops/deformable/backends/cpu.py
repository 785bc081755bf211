"""The C++ kernel for CPUs, `mmdat/ops/native/csrc/deformable_attention.cpp`, in float32."""

import ctypes
from functools import cache, lru_cache

import torch
from torch import Tensor

from ...native.library import Kernel, address, check_kernel_input, load_kernel
from ..coordinates import Coordinates, query_points
from ..inputs import Inputs
from .base import DeformableBackend

MAX_SCRATCH = 2**28  # bytes that each thread may take for a spread bias table


@torch.compiler.assume_constant_result
def load() -> tuple[Kernel | None, str]:
    """The compiled kernel, or `None` and why there is none."""
    return _load()


@cache
def _load() -> tuple[Kernel | None, str]:
    return load_kernel('deformable_attention', _Arguments)


class CPU(DeformableBackend):
    """The compiled kernel: float32, maps of any size."""

    name = 'cpu'
    device_type = 'cpu'

    def not_supported_reasons(self, inputs: Inputs) -> list[str]:
        reasons = []
        if inputs.q.device.type != 'cpu':
            reasons.append(f'the tensors are on {inputs.q.device.type}')
        if inputs.dtype() != torch.float32:
            reasons.append(f'the kernel computes in float32, not in {inputs.dtype()}')
        if _scratch(inputs) > MAX_SCRATCH:
            reasons.append(
                f'a table {tuple(inputs.bias_table.shape)} spread over {inputs.query_size[1]} columns takes '
                'too much memory'
            )
        if not reasons and load()[0] is None:  # what is not needed is not compiled
            reasons.append(load()[1])
        return reasons

    def forward(self, inputs: Inputs, out: Tensor, lse: Tensor) -> None:
        if not len(inputs.q):  # no images
            return
        inputs = _laid_out(inputs)
        load()[0].call('mmdat_deformable_attention', _arguments(inputs, out, lse))

    def backward(
        self, inputs: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor, grads: tuple[Tensor, ...]
    ) -> None:
        grad_q, grad_k, grad_v, grad_table, grad_locations = grads
        if not len(inputs.q):
            grad_table.zero_()
            return
        inputs, grad_out = _laid_out(inputs), _with_contiguous_rows(grad_out)
        args = _arguments(inputs, out, lse)

        batch, num_heads, num_keys, _ = inputs.k.shape
        args.splits = -(-args.threads // (batch * num_heads))
        grads_k, grads_v = (
            g[None] if args.splits == 1 else g.new_empty(args.splits, *g.shape) for g in (grad_k, grad_v)
        )
        grads_table = grad_table.new_zeros(args.threads, *grad_table.shape)
        grads_locations = grad_locations.new_empty(args.splits, batch, num_heads, num_keys, 2)
        args.grad_out, args.grad_q = _Rows.of(grad_out, out.shape), _Rows.of(grad_q, out.shape)
        args.grad_k, args.grad_v = (_Rows.of(g[0], inputs.k.shape) for g in (grads_k, grads_v))
        args.split_stride = grads_k.stride(0)
        args.grad_table = address(grads_table, grads_table.shape)
        args.grad_locations = address(grads_locations, grads_locations.shape)
        load()[0].call('mmdat_deformable_attention_backward', args)

        if args.splits > 1:
            torch.sum(grads_k, 0, out=grad_k)
            torch.sum(grads_v, 0, out=grad_v)
        torch.sum(grads_table, 0, out=grad_table)
        groups = inputs.sampling_locations.shape[1]
        torch.sum(grads_locations.unflatten(2, (groups, -1)), (0, 3), out=grad_locations)


def _scratch(inputs: Inputs) -> int:
    """Bytes of the spread bias table of a head at most, see `csrc/bias_table.h`, for keys on the map."""
    _, table_height, table_width = inputs.bias_table.shape
    return 4 * (table_height + 4) * table_width * (3 * inputs.query_size[1] + 32)


def _laid_out(inputs: Inputs) -> Inputs:
    """As the kernel reads them."""
    q, k, v, bias_table, sampling_locations, *settings = inputs
    rows = (_with_contiguous_rows(t) for t in (q, k, v))
    return Inputs(*rows, bias_table.contiguous(), sampling_locations.contiguous(), *settings)


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class _Rows(ctypes.Structure):
    """A tensor `(B, M, N, d)` whose rows of `d` numbers are contiguous."""

    _fields_ = [
        ('data', ctypes.c_void_p),
        ('image_stride', ctypes.c_int64),
        ('head_stride', ctypes.c_int64),
        ('row_stride', ctypes.c_int64),
    ]

    @classmethod
    def of(cls, x: Tensor, shape: tuple[int, ...]) -> '_Rows':
        check_kernel_input(x, shape, torch.float32)
        if x.stride(-1) != 1:
            raise ValueError(f'a kernel needs contiguous rows, got strides {x.stride()} of {tuple(x.shape)}')
        return cls(x.data_ptr(), *x.stride()[:3])


class _QueryAxis(ctypes.Structure):
    _fields_ = [('first', ctypes.c_double), ('step', ctypes.c_double)]


class _Arguments(ctypes.Structure):
    """Mirrors `Arguments` in `csrc/deformable_attention.cpp`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in 'batch num_heads num_groups height width'.split()),
        *((name, ctypes.c_int32) for name in 'num_keys head_dims table_height table_width'.split()),
        *((name, ctypes.c_int32) for name in 'splits threads'.split()),
        *((name, _QueryAxis) for name in ('y_axis', 'x_axis')),
        *((name, _Rows) for name in 'q k v out'.split()),
        *((name, ctypes.c_void_p) for name in 'table locations lse'.split()),
        *((name, _Rows) for name in 'grad_out grad_q grad_k grad_v'.split()),
        ('split_stride', ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ('grad_table', 'grad_locations')),
    ]


def _arguments(inputs: Inputs, out: Tensor, lse: Tensor) -> _Arguments:
    q, k, v, bias_table, sampling_locations, (height, width), coordinates = inputs
    batch, num_heads, _, head_dims = q.shape
    num_groups, num_keys = sampling_locations.shape[1:3]
    key_shape = batch, num_heads, num_keys, head_dims
    return _Arguments(
        batch=batch,
        num_heads=num_heads,
        num_groups=num_groups,
        height=height,
        width=width,
        num_keys=num_keys,
        head_dims=head_dims,
        table_height=bias_table.shape[1],
        table_width=bias_table.shape[2],
        threads=torch.get_num_threads(),
        y_axis=_query_axis(height, coordinates),
        x_axis=_query_axis(width, coordinates),
        q=_Rows.of(q, (batch, num_heads, height * width, head_dims)),
        k=_Rows.of(k, key_shape),
        v=_Rows.of(v, key_shape),
        out=_Rows.of(out, q.shape),
        table=address(bias_table, (num_heads, *bias_table.shape[1:])),
        locations=address(sampling_locations, (batch, num_groups, num_keys, 2)),
        lse=address(lse, q.shape[:3]),
    )


@lru_cache(maxsize=64)
def _query_axis(size: int, coordinates: Coordinates) -> _QueryAxis:
    points = query_points(1, size, coordinates, dtype=torch.float64)[0, :, 1]
    first, second = points[:2].tolist() if size > 1 else (0.0, 0.0)
    return _QueryAxis(first, second - first)
