from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fused.kernel import autocast_weights
from ..ladder import Backend, choose_layer, explain_layer
from .chunks import chunk_rows, not_chunked_reasons
from .operators import define

MIN_CHUNKS = 4  # with less, recomputation costs more than it saves


def mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """`gelu(x w1^T + b1) w2^T + b2`, in chunks where that is faster.

    Args:
        x: `(..., C)`.
        w1: `(hidden, C)`.
        b1: `(hidden,)`.
        w2: `(C, hidden)`.
        b2: `(C,)`.

    Returns:
        Like `x`.
    """
    if choose_layer(_LADDER, _Inputs(x, w1, b1, w2, b2)) is None:
        return _formula(x, *autocast_weights(x, w1, b1, w2, b2))
    return _operator(x, w1, b1, w2, b2, chunk_rows(w1, w2))


def explain_mlp(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> str:
    """How `mlp` computes these arguments, and why: `'portable: ...'` in chunks, or `'reference: ...'`."""
    return explain_layer(_LADDER, _Inputs(x, w1, b1, w2, b2))


class _Inputs(NamedTuple):
    x: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    unit = 'positions'

    def size(self) -> int:
        return self.x.numel() // self.x.shape[-1]


class _Chunked(Backend):
    name = 'portable'

    def not_supported_reasons(self, inputs: _Inputs) -> list[str]:
        reasons = not_chunked_reasons(inputs.x)
        if len(inputs.w2) != inputs.x.shape[-1]:
            reasons.append(f'the output has {len(inputs.w2)} channels, not those of the input')
        return reasons

    def pays_from(self, inputs: _Inputs) -> int:
        return MIN_CHUNKS * chunk_rows(inputs.w1, inputs.w2)


_LADDER = (_Chunked(),)


def _formula(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, rows: int = 0) -> Tensor:
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def _forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, rows: int) -> Tensor:
    out = x.new_empty(x.shape)
    for x_i, out_i in zip(*(t.reshape(-1, t.shape[-1]).split(rows) for t in (x, out))):
        hidden = F.linear(x_i, w1, b1)
        torch.addmm(b2, F.gelu(hidden), w2.t(), out=out_i)
    return out


def _backward(grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, rows: int):
    grad_x = x.new_empty(x.shape)
    # transposed, for these matrix products are faster so
    grad_w1, grad_w2 = x.new_zeros(w1.shape[::-1]), x.new_zeros(w2.shape[::-1])
    grad_b1 = torch.zeros_like(b1)
    maps = (t.reshape(-1, t.shape[-1]) for t in (x, grad, grad_x))
    for x_i, grad_i, grad_x_i in zip(*(t.split(rows) for t in maps)):
        hidden = F.linear(x_i, w1, b1)
        act = F.gelu(hidden)
        grad_w2.addmm_(act.t(), grad_i)
        grad_hidden = torch.ops.aten.gelu_backward(torch.mm(grad_i, w2, out=act), hidden)
        grad_w1.addmm_(x_i.t(), grad_hidden)
        grad_b1 += grad_hidden.sum(0)
        torch.mm(grad_hidden, w1, out=grad_x_i)
    grad_b2 = grad.flatten(0, -2).sum(0)
    return grad_x, grad_w1.t().contiguous(), grad_b1, grad_w2.t().contiguous(), grad_b2


_operator = define(
    'mlp_portable',
    'Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, SymInt rows',
    _forward,
    _backward,
    _formula,
)
