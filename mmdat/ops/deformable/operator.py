"""Registration of the backends with PyTorch, for autograd, `torch.compile` and `torch.export`.

Each backend is a pair of operators, `mmdat::deformable_attention_NAME` and `..._NAME_backward`, for the
devices that it is written for: on others PyTorch refuses the call. The operators check what a kernel relies
on, because an exported graph, or a user, may call them with anything.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.library import CustomOpDef, custom_op

from .backends import BACKENDS, DeformableBackend
from .inputs import Inputs

_INPUTS = (
    'Tensor q, Tensor k, Tensor v, Tensor bias_table, Tensor sampling_locations, '
    'SymInt[] query_size, str coordinates'
)


class Operators(NamedTuple):
    """`forward(*inputs)` returns `out, lse`; `backward(grad_out, out, lse, *inputs)` five gradients."""

    forward: CustomOpDef
    backward: CustomOpDef


def _register(backend: DeformableBackend) -> Operators:
    name = f'mmdat::deformable_attention_{backend.name}'

    def forward(*args) -> tuple[Tensor, Tensor]:
        inputs = _checked(args)
        out, lse = inputs.empty_outputs()
        with torch.autocast(out.device.type, enabled=False):
            backend.forward(inputs, out, lse)
        return out, lse

    def backward(grad_out: Tensor, out: Tensor, lse: Tensor, *args) -> tuple[Tensor, ...]:
        inputs = _checked(args)
        if grad_out.shape != out.shape or out.shape != inputs.q.shape or lse.shape != out.shape[:-1]:
            raise ValueError(f'{name}_backward: grad_out, out and lse do not fit q {tuple(inputs.q.shape)}')
        grads = inputs.empty_grads()
        with torch.autocast(out.device.type, enabled=False):
            backend.backward(inputs, grad_out.to(out.dtype), out, lse, grads)
        return grads

    def _checked(args) -> Inputs:
        inputs = Inputs(*args)
        inputs.check_shapes()
        dtypes = tuple(t.dtype for t in inputs.tensors())
        if dtypes != backend.dtypes(inputs):
            raise ValueError(f'{name} takes tensors of {backend.dtypes(inputs)}, got {dtypes}')
        if reasons := backend.not_supported_reasons(inputs):
            raise ValueError(f'{name} cannot serve: {"; ".join(reasons)}')
        return inputs

    settings = dict(mutates_args=(), device_types=backend.device_type)
    forward_op = custom_op(name, forward, schema=f'({_INPUTS}) -> (Tensor, Tensor)', **settings)
    backward_op = custom_op(
        f'{name}_backward',
        backward,
        schema=f'(Tensor grad_out, Tensor out, Tensor lse, {_INPUTS}) '
        '-> (Tensor, Tensor, Tensor, Tensor, Tensor)',
        **settings,
    )
    forward_op.register_fake(lambda *args: Inputs(*args).empty_outputs())
    backward_op.register_fake(lambda grad_out, out, lse, *args: Inputs(*args).empty_grads())

    def setup_context(ctx, inputs, output):
        *tensors, ctx.query_size, ctx.coordinates = inputs
        ctx.save_for_backward(*output, *tensors)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    def differentiate(ctx, grad_out, grad_lse):
        if grad_out is None:
            return (None,) * 7
        grads = backward_op(grad_out, *ctx.saved_tensors, ctx.query_size, ctx.coordinates)
        return *grads, None, None

    forward_op.register_autograd(differentiate, setup_context=setup_context)
    backward_op.register_autograd(refuse_second_derivatives)
    return Operators(forward_op, backward_op)


def refuse_second_derivatives(ctx, *grads):
    raise NotImplementedError(
        'deformable attention has no second derivatives, because F.grid_sample, which samples its keys and '
        'its bias, has none'
    )


OPERATORS = {name: _register(backend) for name, backend in BACKENDS.items()}
