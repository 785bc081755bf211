"""Triton's kernels for NVIDIA cards, `mmdat/ops/triton/`, in bfloat16, float16 and float32."""

from functools import partial
from operator import index

import torch
from torch import Tensor

from ...triton import card, tuning
from ...triton.self_check import triton_verdict
from ...triton.tiles import Case, Pick, heads_at_once, use_default
from ..inputs import Inputs
from .base import DeformableBackend

MAX_HEAD_DIMS = 128
MAX_TABLE_SIZE = 111


class Triton(DeformableBackend):
    """Fused kernels: maps of any size, without a tensor for pairs of queries and keys."""

    name = 'triton'
    device_type = 'cuda'

    def __init__(self, tuned: bool = True):
        """Whether the tiles of its kernels are tuned, or the default ones."""
        self._tuned = tuned

    def dtypes(self, inputs: Inputs) -> tuple[torch.dtype, ...]:
        """Queries, keys and values in their half precision if they share one; all else in float32."""
        q, k, v, *_ = inputs
        half = q.dtype in card.HALF and q.dtype == k.dtype == v.dtype
        return (*(q.dtype if half else torch.float32,) * 3, torch.float32, torch.float32)

    def not_supported_reasons(self, inputs: Inputs) -> list[str]:
        reasons = []
        _, num_heads, num_queries, head_dims = inputs.q.shape
        _, table_height, table_width = inputs.bias_table.shape
        device = inputs.q.device
        if device.type != self.device_type:
            reasons.append(f'the tensors are on {device.type}')
        for dtype in {t.dtype for t in inputs.tensors()}:
            if dtype != torch.float32 and dtype not in card.HALF:
                reasons.append(f'the kernels compute in float32 and half precision, not in {dtype}')
        if head_dims > MAX_HEAD_DIMS:
            reasons.append(f'the kernels take up to {MAX_HEAD_DIMS} channels a head, not {head_dims}')
        if max(table_height, table_width) > MAX_TABLE_SIZE:
            reasons.append(
                f'the kernels take tables of up to {MAX_TABLE_SIZE} x {MAX_TABLE_SIZE}, '
                f'not {table_height} x {table_width}'
            )
        if num_heads * max(num_queries, inputs.k.shape[2]) * head_dims >= 2**31:
            reasons.append('an image has 2^31 numbers or more')
        if not reasons:  # what is not needed is not compiled
            dtype = self.dtypes(inputs)[0]
            # kernels are compiled for these sizes, so a compiler that follows must not take them for variable
            sizes = index(head_dims), index(table_height), index(table_width)
            reason = obstacle(device, dtype, *sizes, _heads(inputs, dtype))
            if reason is not None:
                reasons.append(reason)
        return reasons

    def forward(self, inputs: Inputs, out: Tensor, lse: Tensor) -> None:
        if not out.numel():  # no images
            return
        from ...triton import launch

        with torch.cuda.device_of(out):
            launch.forward(inputs, out, lse, _case(inputs), self._pick(inputs))

    def backward(
        self, inputs: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor, grads: tuple[Tensor, ...]
    ) -> None:
        if not out.numel():
            for grad in grads:
                grad.zero_()
            return
        from ...triton import launch

        with torch.cuda.device_of(out):
            launch.backward(inputs, grad_out, out, lse, grads, _case(inputs), self._pick(inputs))

    def _pick(self, inputs: Inputs) -> Pick:
        if not self._tuned or inputs.q.device.type != 'cuda':  # the latter in Triton's interpreter
            return use_default
        return partial(tuning.tuner(inputs.q.device).pick, tuning.shape_class(inputs))


@torch.compiler.assume_constant_result
def obstacle(
    device: torch.device,
    dtype: torch.dtype,
    head_dims: int,
    table_height: int,
    table_width: int,
    heads: int,
) -> str | None:
    """Why the kernels cannot be used on this card for such tensors, or `None` if they can.

    Compiles both passes when it is asked for the first time, so that a compiler that fails does so before a
    forward pass whose backward pass would then be missing; then compares them with the equations.

    `heads` is that of `tiles.Case`.
    """
    if reason := card.obstacle(device):
        return reason
    table_size = table_height, table_width
    case = Case(card.capability(device), dtype, head_dims, table_size, heads, _precision(dtype))
    return card.compile_obstacle(device, Triton.operation, _launches, case) or self_check(device, dtype)


def self_check(device: torch.device, dtype: torch.dtype) -> str | None:
    """What a comparison with the equations says, which is made at the first use on a card."""
    return triton_verdict(Triton(tuned=False), device, dtype)


def _launches(case: Case) -> list:
    from ...triton.launch import launches

    return launches(case)


def _case(inputs: Inputs) -> Case:
    q, *_ = inputs
    table_size = tuple(inputs.bias_table.shape[1:])
    heads = _heads(inputs, q.dtype)
    return Case(card.capability(q.device), q.dtype, q.shape[-1], table_size, heads, _precision(q.dtype))


def _heads(inputs: Inputs, dtype: torch.dtype) -> int:
    return heads_at_once(dtype, inputs.q.shape[-1], inputs.q.shape[1] // inputs.sampling_locations.shape[1])


def _precision(dtype: torch.dtype) -> str:
    """Of products of float32: what PyTorch's own may have."""
    if dtype != torch.float32:
        return 'ieee'
    matmul = torch.backends.cuda.matmul
    allowed = matmul.fp32_precision == 'tf32' if hasattr(matmul, 'fp32_precision') else matmul.allow_tf32
    return 'tf32' if allowed else 'ieee'
