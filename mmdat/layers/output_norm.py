from collections.abc import Iterable

import torch
from torch import Tensor, nn


class OutputNorm(nn.LayerNorm):
    """Layer norm of a map that leaves the backbone, and its layout as other libraries expect it."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to a contiguous `(B, C, H, W)`."""
        return super().forward(x).permute(0, 3, 1, 2).contiguous()


def keep_in_graph(x: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """`x`, through which parameters that do not take part in its computation get gradients of zero.

    DistributedDataParallel waits for the gradient of each parameter. One that no loss depends on stops the
    training in the second iteration.
    """
    parameters = [p for p in parameters if p.requires_grad]
    return _KeepInGraph.apply(x, *parameters) if parameters else x


class _KeepInGraph(torch.autograd.Function):
    # no sum times zero, which would turn an infinite parameter into NaN
    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
        return grad, *(torch.zeros_like(p) for p in ctx.saved_tensors)
