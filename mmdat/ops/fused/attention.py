"""Softmax attention with an additive bias: by a fused kernel where one serves, or by its equation."""

from typing import NamedTuple

from torch import Tensor

from ..dense import attention as formula
from ..ladder import Backend, choose_layer, explain_layer
from .kernel import fused_attention, not_fused_reasons


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention with an additive bias, Equation (2) of the paper.

    Logits are biased and normalised in float32 at least, also under autocast.

    Args:
        q: Queries `(..., N_q, d)`.
        k: Keys `(..., N_k, d)`.
        v: Values `(..., N_k, d)`.
        bias: Added to the scaled logits, broadcastable to `(..., N_q, N_k)`.

    Returns:
        `(..., N_q, d)` in the dtype of `v`.
    """
    if choose_layer(_LADDER, _Inputs(q, k, v, bias)) is None:
        return formula(q, k, v, bias)
    return fused_attention(q, k, v, bias).to(v.dtype)


def explain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> str:
    """How `attention` computes these arguments, and why: `'fused: ...'` or `'reference: ...'`."""
    return explain_layer(_LADDER, _Inputs(q, k, v, bias))


class _Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None

    unit = 'logits'

    def size(self) -> int:
        return self.q.shape[:-1].numel() * self.k.shape[-2]


class _Fused(Backend):
    name = 'fused'

    def not_supported_reasons(self, inputs: _Inputs) -> list[str]:
        reasons = not_fused_reasons(inputs.q, inputs.q.shape[-1])
        if inputs.q.ndim < 4:
            reasons.append('the fused kernel needs a dimension of heads')
        return reasons


_LADDER = (_Fused(),)
