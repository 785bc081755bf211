"""Registration with PyTorch of layers that are computed otherwise than by their plain formula."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import CustomOpDef, custom_op


def define(
    name: str,
    parameters: str,
    forward: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor, ...]],
    formula: Callable[..., Tensor],
) -> CustomOpDef:
    """Registers `mmdat::NAME`, and `mmdat::NAME_backward` for its gradients, for CPUs.

    The result has the shape of the first tensor. All floating point tensors must have one dtype, float32 or
    float64. Second and higher derivatives are those of the plain formula.

    Args:
        name: Of the operator.
        parameters: Its schema, tensors first. `Tensor?` have no gradients, and stand behind those that have.
        forward: Computes the result.
        backward: Takes the gradient of the result before the parameters, and returns those of the tensors.
        formula: Computes the same as `forward` from the same parameters, by PyTorch's own operations.
    """
    num_tensors = parameters.count('Tensor')
    num_gradients = num_tensors - parameters.count('Tensor?')
    num_parameters = parameters.count(',') + 1

    def guarded(function):
        def call(*args):
            tensors = [t for t in args if isinstance(t, Tensor)]
            dtypes = {t.dtype for t in tensors}
            if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
                raise ValueError(f'mmdat::{name} takes tensors of float32, or all of float64, got {dtypes}')
            with torch.autocast('cpu', enabled=False):
                return function(*args)

        return call

    returned = ', '.join(['Tensor'] * num_gradients)
    settings = dict(mutates_args=(), device_types='cpu')
    forward_op = custom_op(f'mmdat::{name}', guarded(forward), schema=f'({parameters}) -> Tensor', **settings)
    backward_op = custom_op(
        f'mmdat::{name}_backward',
        guarded(backward),
        schema=f'(Tensor grad, {parameters}) -> ({returned})',
        **settings,
    )
    forward_op.register_fake(lambda x, *_: x.new_empty(x.shape))
    backward_op.register_fake(lambda grad, *args: tuple(t.new_empty(t.shape) for t in args[:num_gradients]))

    def keep_forward(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:num_tensors])
        ctx.settings = inputs[num_tensors:]

    def differentiate(ctx, grad):
        grads = backward_op(grad, *ctx.saved_tensors, *ctx.settings)
        return *grads, *(None,) * (num_parameters - num_gradients)

    def keep_backward(ctx, inputs, output):
        ctx.save_for_backward(*inputs[: num_tensors + 1])
        ctx.settings = inputs[num_tensors + 1 :]

    def differentiate_twice(ctx, *grads):
        grad, *tensors = ctx.saved_tensors
        constants = (*tensors[num_gradients:], *ctx.settings)

        def gradients(grad, *tensors):
            _, pull_back = torch.func.vjp(lambda *tensors: formula(*tensors, *constants), *tensors)
            return pull_back(grad)

        _, pull_back = torch.func.vjp(gradients, grad, *tensors[:num_gradients])
        return *pull_back(grads), *(None,) * (num_parameters - num_gradients)

    forward_op.register_autograd(differentiate, setup_context=keep_forward)
    backward_op.register_autograd(differentiate_twice, setup_context=keep_backward)
    return forward_op
