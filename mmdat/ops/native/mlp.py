import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class ChunkedMLP(torch.autograd.Function):
    """`gelu(x w1^T + b1) w2^T + b2` of `(N, C)`, in chunks of `rows`, see `chunks.py`."""

    @staticmethod
    def forward(ctx, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(x, w1, b1, w2)
        ctx.rows = rows
        out = x.new_empty(len(x), len(w2))
        for x_i, out_i in zip(x.split(rows), out.split(rows)):
            hidden = F.linear(x_i, w1, b1)
            torch.addmm(b2, F.gelu(hidden), w2.t(), out=out_i)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, w1, b1, w2 = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        # transposed, for these matrix products are faster so
        grad_w1, grad_w2 = x.new_zeros(w1.shape[::-1]), x.new_zeros(w2.shape[::-1])
        grad_b1 = torch.zeros_like(b1)
        for x_i, grad_i, grad_x_i in zip(*(t.split(ctx.rows) for t in (x, grad, grad_x))):
            hidden = F.linear(x_i, w1, b1)
            act = F.gelu(hidden)
            grad_w2.addmm_(act.t(), grad_i)
            grad_hidden = torch.ops.aten.gelu_backward(torch.mm(grad_i, w2, out=act), hidden)
            grad_w1.addmm_(x_i.t(), grad_hidden)
            grad_b1 += grad_hidden.sum(0)
            torch.mm(grad_hidden, w1, out=grad_x_i)
        return grad_x, grad_w1.t(), grad_b1, grad_w2.t(), grad.sum(0), None
