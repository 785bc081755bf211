"""PyTorch's fused attention kernel for CUDA, in equations that any device computes."""

import torch
from torch import Tensor

from mmdat.ops.fused.kernel import ALIGNMENT, Attended


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Attended:
    """Multiplies in the dtype of the inputs with sums in float32 at least, and rounds the output alone."""
    check_layout(q, k, v, bias)
    weights, lse = _weights(q, k, bias)
    out = (weights.to(v.dtype).to(weights.dtype) @ v.to(weights.dtype)).to(q.dtype)
    out = out.transpose(1, 2).contiguous().transpose(1, 2)
    nothing = torch.empty((), dtype=torch.long)
    return Attended(out, lse, nothing, nothing)


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, attended: Attended, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    check_layout(q, k, v, bias)
    weights, lse = _weights(q, k, bias)
    torch.testing.assert_close(lse, attended.lse)
    exact = weights.dtype
    out, grad, q, k, v = (t.to(exact) for t in (attended.out, grad, q, k, v))
    grad_logits = weights * (grad @ v.mT - (grad * out).sum(-1, keepdim=True))
    scale = q.shape[-1] ** -0.5
    grads = grad_logits @ k * scale, grad_logits.mT @ q * scale, weights.mT @ grad
    grads = (g.to(bias.dtype).transpose(1, 2).contiguous().transpose(1, 2) for g in grads)
    return *grads, grad_logits.to(bias.dtype) if with_bias else None


def check_layout(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> None:
    """What the kernel asks for, and reads something else where it is not so."""
    assert q.dtype == k.dtype == v.dtype == bias.dtype
    assert bias.shape == (*q.shape[:3], k.shape[2])
    assert bias.stride(-1) == q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert all(stride % ALIGNMENT == 0 for stride in bias.stride()[:3]), bias.stride()
    row = bias.shape[-1]
    padded = bias.as_strided((*bias.shape[:3], row + -row % ALIGNMENT), bias.stride(), bias.storage_offset())
    assert (padded[..., row:] == 0).all()


def _weights(q: Tensor, k: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(q.dtype, torch.float32)
    logits = q.to(exact) @ k.to(exact).mT * q.shape[-1] ** -0.5 + bias.to(exact)
    return logits.softmax(-1), logits.logsumexp(-1)
