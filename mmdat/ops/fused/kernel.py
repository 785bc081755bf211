"""PyTorch's memory-efficient attention kernel for CUDA: no matrix of logits is ever in memory.

Of the kernels behind `F.scaled_dot_product_attention` it is the one that takes a bias and gives its gradient:
FlashAttention takes none, and cuDNN, which PyTorch prefers on some cards, gives none. So it is called by its
own name. It multiplies in the dtype of its inputs, and adds, biases and normalises in float32: logits are
never rounded.

It asks for heads of a multiple of 16 bytes, and for a bias in the dtype of the queries whose last dimension
is contiguous and whose rows start at multiples of 8 numbers. What lies between the rows must be finite,
because the backward pass multiplies it by zeros. A bias that is expanded over windows is read in place; its
gradient is not summed by the kernel, and takes as much memory as if the bias were not expanded.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ladder import compiler_reason, transform_reason

ALIGNMENT = 8  # numbers between the starts of a bias's rows

_ATEN = torch.ops.aten
_is_exporting = getattr(torch.compiler, 'is_exporting', torch.compiler.is_compiling)  # since PyTorch 2.7


class Attended(NamedTuple):
    """What the kernel returned: the output `(B, M, N_q, d)`, and what its backward pass asks for."""

    out: Tensor
    lse: Tensor
    seed: Tensor
    offset: Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """In which dtype a layer computes: that of autocast where it is on."""
    device = x.device.type
    if x.is_meta:  # tensors without numbers know no autocast
        return x.dtype
    if torch.is_autocast_enabled(device) and x.dtype.is_floating_point and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def not_fused_reasons(x: Tensor, head_dims: int, *others: str | None) -> list[str]:
    """Why the kernel cannot serve heads of a tensor like `x`: its own reasons, and `others` if any."""
    if x.device.type != 'cuda':
        return [f'the map is on {x.device.type}, and the fused kernel is for CUDA']
    if torch.version.hip:
        return ['PyTorch is built for ROCm']
    reasons = []
    dtype = compute_dtype(x)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        reasons.append(f'the fused kernel computes in float32 and half precision, not in {dtype}')
    elif head_dims * dtype.itemsize % 16:
        reasons.append(f'the fused kernel needs heads of a multiple of 16 bytes, not {head_dims} x {dtype}')
    if not torch.compiler.is_compiling() and not x.numel():
        reasons.append('the map is empty')
    if _is_exporting():
        reasons.append('an exported graph may run elsewhere')
    return reasons + [reason for reason in (transform_reason(), *others) if reason]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Attended:
    """Attention of `(B, M, N_q, d)` to `(B, M, N_k, d)` with a bias `(B, M, N_q, N_k)`, laid out as above."""
    return Attended(*_ATEN._scaled_dot_product_efficient_attention(q, k, v, bias, True))


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, attended: Attended, with_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of queries, keys and values, laid out as `(B, N, M, d)`, and of the bias if wanted."""
    mask = [True, True, True, with_bias]
    return _ATEN._scaled_dot_product_efficient_attention_backward(grad, q, k, v, bias, *attended, 0.0, mask)


def cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Tensors in another dtype, all by one kernel."""
    if all(t.dtype == dtype for t in tensors):
        return tensors
    casted = [torch.empty_like(t, dtype=dtype) for t in tensors]
    torch._foreach_copy_(casted, tensors)
    return casted


def autocast_weights(x: Tensor, *weights: Tensor) -> Sequence[Tensor]:
    """Weights as autocast gives them to a product with `x`, all by one kernel. Autocast has one for each.

    On other devices, and where something follows the single operations, they are left to autocast.
    """
    if (
        x.device.type != 'cuda'
        or not torch.is_autocast_enabled('cuda')
        or any(weight.dtype != torch.float32 for weight in weights)
        or compiler_reason(x)
        or transform_reason()
    ):
        return weights
    return _Cast.apply(compute_dtype(x), *weights)


class _Cast(torch.autograd.Function):
    """`cast` of tensors that have one dtype; the backward pass casts their gradients alike."""

    @staticmethod
    def forward(ctx, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        return tuple(cast(list(tensors), dtype))

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Cast.apply(ctx.dtype, *grads)


def exact_sum(x: Tensor) -> Tensor:
    """Sum over the first dimension, in float32 at least."""
    return x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`attention` of `dense.py` with a fused kernel, in the dtype of `compute_dtype`."""
    dtype = compute_dtype(q)
    q, k, v = (t.to(dtype) for t in (q, k, v))
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v)
    out, *_ = attend(*(t.flatten(0, -4) for t in (q, k, v)), _expand(bias, q, k))
    return out.unflatten(0, q.shape[:-3])


def _expand(bias: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A bias that is broadcastable to `(..., N_q, N_k)` as `(B, M, N_q, N_k)`, with aligned rows."""
    num_keys = k.shape[-2]
    bias = bias.to(q.dtype)
    padding = -num_keys % ALIGNMENT
    if torch.compiler.is_compiling() or padding:  # a compiler would make a graph of each case
        bias = F.pad(bias, (0, padding))
    bias = bias.contiguous().expand(*q.shape[:-1], -1).flatten(0, -4)
    return bias[..., :num_keys]
