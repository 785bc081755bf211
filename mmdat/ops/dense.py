import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The formula of `attention` in `fused/attention.py`, Equation (2) of the paper, on any device."""
    return attention_weights(q, k, bias).to(v.dtype) @ v


def attention_weights(q: Tensor, k: Tensor, bias: Tensor | None = None) -> Tensor:
    """The weights of `attention`, `(..., N_q, N_k)`, in float32 at least; they sum to 1 over the keys."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1)
