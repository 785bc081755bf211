"""Registration of the kernels with PyTorch, for autograd, `torch.compile` and `torch.export`.

One pair of operators stands for all backends that have a backward pass of their own:
`mmdat::deformable_attention` and `mmdat::deformable_attention_backward`, which take the backend's name. A
backend is a module with the functions

    forward(q, k, v, bias_table, sampling_locations, query_size, coordinates, out, lse)
    backward(grad_out, q, k, v, bias_table, sampling_locations, query_size, coordinates, out, lse, grads)

that fill the tensors `out` and `lse`, or the five of `grads`, which stand in the order of the inputs and are
not initialised. `lse`, `(B, M, N_q)`, is the natural logarithm of the softmax's denominator, which saves the
backward pass one run over the keys. All tensors have one dtype, and autocast is off. Outputs and gradients of
queries, keys and values are laid out as `(B, N, M, d)`, which is what the linear layers around attention read
and write.
"""

import torch
from torch import Tensor
from torch.library import custom_op

from .backends import cpu, portable

BACKENDS = {'cpu': cpu, 'portable': portable}


@custom_op('mmdat::deformable_attention', mutates_args=())
def operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    sampling_locations: Tensor,
    height: int,
    width: int,
    coordinates: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    out, lse = _empty_outputs(q)
    with torch.autocast(q.device.type, enabled=False):
        BACKENDS[backend].forward(
            q, k, v, bias_table, sampling_locations, (height, width), coordinates, out, lse
        )
    return out, lse


@custom_op('mmdat::deformable_attention_backward', mutates_args=())
def backward_operator(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    sampling_locations: Tensor,
    height: int,
    width: int,
    coordinates: str,
    backend: str,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = q, k, v, bias_table, sampling_locations
    grads = _empty_grads(*inputs)
    with torch.autocast(q.device.type, enabled=False):
        BACKENDS[backend].backward(grad_out, *inputs, (height, width), coordinates, out, lse, grads)
    return grads


@operator.register_fake
def _(q, k, v, bias_table, sampling_locations, height, width, coordinates, backend):
    return _empty_outputs(q)


@backward_operator.register_fake
def _(grad_out, q, k, v, bias_table, sampling_locations, height, width, coordinates, backend, out, lse):
    return _empty_grads(q, k, v, bias_table, sampling_locations)


def _setup_context(ctx, inputs, output):
    *tensors, ctx.height, ctx.width, ctx.coordinates, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, grad_lse):
    if grad_out is None:
        return (None,) * 9
    *inputs, out, lse = ctx.saved_tensors
    grads = backward_operator(
        grad_out, *inputs, ctx.height, ctx.width, ctx.coordinates, ctx.backend, out, lse
    )
    return *grads, None, None, None, None


operator.register_autograd(_backward, setup_context=_setup_context)


def _empty_outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    return _channels_last(q), q.new_empty(q.shape[:-1])


def _empty_grads(q, k, v, bias_table, sampling_locations) -> tuple[Tensor, ...]:
    grads = [_channels_last(t) for t in (q, k, v)]
    return *grads, *(t.new_empty(t.shape) for t in (bias_table, sampling_locations))


def _channels_last(x: Tensor) -> Tensor:
    """An empty `(B, M, N, d)`, laid out as `(B, N, M, d)`."""
    batch, num_heads, length, head_dims = x.shape
    return x.new_empty(batch, length, num_heads, head_dims).transpose(1, 2)
