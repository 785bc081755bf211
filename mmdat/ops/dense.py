import torch
from torch import Tensor


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
    return attention_weights(q, k, bias).to(v.dtype) @ v


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """The weights of `attention`, `(..., N_q, N_k)`, in float32 at least; they sum to 1 over the keys."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1)
