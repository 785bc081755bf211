"""Attention in the windows of a map: how windows are cut, and their attention in chunks (see `chunks.py`)."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import window_kernel


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Cuts `(B, H, W, C)` into windows, `(B, windows, window_size ** 2, C)`."""
    batch, height, width, channels = x.shape
    rows, columns = height // window_size, width // window_size
    x = x.view(batch, rows, window_size, columns, window_size, channels).transpose(2, 3)
    return x.reshape(batch, rows * columns, window_size**2, channels)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Inverse of `window_partition`: back to `(B, H, W, C)`."""
    rows, columns = height // window_size, width // window_size
    x = windows.unflatten(2, (window_size, window_size)).unflatten(1, (rows, columns)).transpose(2, 3)
    return x.reshape(windows.shape[0], height, width, windows.shape[-1])


def shift_masks(window_size: int, shift: int) -> Tensor:
    """Keeps apart what the roll brought together from opposite borders, in each kind of window.

    Returns:
        `(4, N, N)`: windows inside, at the right border, at the bottom, and in the corner. 0 inside a region
        and -100 (the released value) across.
    """
    rolled = torch.arange(window_size) >= window_size - shift
    masks = []
    for bottom in (0, 1):
        for right in (0, 1):
            regions = (2 * bottom * rolled[:, None] + right * rolled).flatten()
            masks.append(regions[:, None] != regions)
    return torch.stack(masks) * -100.0


def window_kinds(rows: int, columns: int, device: torch.device | str = 'cpu') -> Tensor:
    """Which of the shift masks each window of a map has, `(rows * columns,)`."""
    bottom = torch.arange(rows, device=device) == rows - 1
    right = torch.arange(columns, device=device) == columns - 1
    return (2 * bottom[:, None] + 1 * right).flatten()


@lru_cache(maxsize=32)
def window_positions(
    batch: int, height: int, width: int, window_size: int, shift: int
) -> tuple[Tensor, Tensor]:
    """Where the windows' positions lie in maps `(B, H, W)` that are padded and rolled back by `shift`.

    Returns:
        Positions `(windows, N)` in the flattened maps, where `B * H * W` stands for padding, and the kinds
        `(windows,)`, of all images.
    """
    with torch.inference_mode(False):
        rows, columns = (-(-size // window_size) for size in (height, width))
        y = torch.arange(rows * window_size, device='cpu').roll(-shift)[:, None]
        x = torch.arange(columns * window_size, device='cpu').roll(-shift)
        image = torch.arange(batch, device='cpu')[:, None, None]
        positions = (image * height + y) * width + x
        positions[:, (y >= height) | (x >= width)] = batch * height * width
        windows = window_partition(positions.unsqueeze(-1), window_size).flatten(0, 1).squeeze(-1)
        kinds = window_kinds(rows, columns) if shift else torch.zeros(rows * columns, dtype=torch.int64)
        return windows, kinds.repeat(batch)


class ChunkedWindowAttention(torch.autograd.Function):
    """Cuts a map into windows, attends in them, projects, and puts the windows together again.

    Args:
        x: `(B, H, W, C)`, any size.
        w_qkv: Weight of the projection to queries, keys and values, `(3 C, C)`.
        b_qkv: Its bias.
        w_proj: Weight of the output projection.
        b_proj: Its bias.
        bias: Added to the logits of the heads, `(M, N, N)`.
        masks: Added too, `(kinds, N, N)` for the kinds of windows, or `None`.
        shift: By how much the map is rolled before it is cut.
        rows: Positions of a chunk, about.

    Returns:
        `(B, H, W, C)`.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        w_qkv: Tensor,
        b_qkv: Tensor,
        w_proj: Tensor,
        b_proj: Tensor,
        bias: Tensor,
        masks: Tensor | None,
        shift: int,
        rows: int,
    ) -> Tensor:
        ctx.save_for_backward(x, w_qkv, b_qkv, w_proj, bias, masks)
        ctx.shift, ctx.rows = shift, rows
        num_heads, area = bias.shape[:2]
        out = x.new_empty(x[..., 0].numel() + 1, x.shape[-1])  # padded positions share the last row
        attention = _attention(bias, masks, x.shape[-1] // num_heads)
        for positions, kinds in _chunks(x, area, shift, rows):
            qkv = F.linear(_gather(x, positions), w_qkv, b_qkv)
            z = attention.forward(qkv.view(len(kinds), area, 3, num_heads, -1), kinds)
            out.index_copy_(0, positions, F.linear(z.view(len(positions), -1), w_proj, b_proj))
        return out[:-1].view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, w_qkv, b_qkv, w_proj, bias, masks = ctx.saved_tensors
        num_heads, area = bias.shape[:2]
        grad_x = x.new_empty(x[..., 0].numel() + 1, x.shape[-1])
        # transposed, for these matrix products are faster so
        grad_w_qkv, grad_w_proj = x.new_zeros(w_qkv.shape[::-1]), x.new_zeros(w_proj.shape[::-1])
        grad_b_qkv = torch.zeros_like(b_qkv)
        grad = grad.contiguous()
        attention = _attention(bias, masks, x.shape[-1] // num_heads)
        for positions, kinds in _chunks(x, area, ctx.shift, ctx.rows):
            x_i, grad_i = _gather(x, positions), _gather(grad, positions)
            qkv = F.linear(x_i, w_qkv, b_qkv).view(len(kinds), area, 3, num_heads, -1)
            grad_z = (grad_i @ w_proj).view(len(kinds), area, num_heads, -1)
            z, grad_qkv = attention.backward(qkv, kinds, grad_z)
            grad_w_proj.addmm_(z.view(x_i.shape).t(), grad_i)
            grad_qkv = grad_qkv.view(len(positions), -1)
            grad_w_qkv.addmm_(x_i.t(), grad_qkv)
            grad_b_qkv += grad_qkv.sum(0)
            grad_x.index_copy_(0, positions, grad_qkv @ w_qkv)
        return (
            grad_x[:-1].view(x.shape),
            grad_w_qkv.t(),
            grad_b_qkv,
            grad_w_proj.t(),
            grad.sum((0, 1, 2)),
            attention.grad_bias,
            None,
            None,
            None,
        )


class WindowFormula:
    """Softmax attention inside windows, forward and backward, by PyTorch.

    Args:
        biases: Added to the logits of each kind of window, `(kinds, M, N, N)`.

    Attributes:
        grad_bias: Sum of the biases' gradients of all backward passes, `(M, N, N)`.
    """

    def __init__(self, biases: Tensor):
        self.biases = biases
        self.grad_bias = torch.zeros_like(biases[0])

    def forward(self, qkv: Tensor, kinds: Tensor) -> Tensor:
        """Output `(windows, N, M, d)` of queries, keys and values `(windows, N, 3, M, d)`."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, self._biases_of(kinds)).transpose(1, 2).contiguous()

    def backward(self, qkv: Tensor, kinds: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and the gradient of `qkv` by that of the output."""
        scale = qkv.shape[-1] ** -0.5
        q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous()
        grad = grad.transpose(1, 2)
        logits = ((q * scale) @ k.transpose(2, 3)).add_(self._biases_of(kinds))
        weights = torch.softmax(logits, dim=-1, out=logits)
        grad_logits = torch._softmax_backward_data(grad @ v.transpose(2, 3), weights, -1, weights.dtype)
        self.grad_bias += grad_logits.sum(0)
        grad_logits.mul_(scale)
        grad_q, grad_k = grad_logits @ k, grad_logits.transpose(2, 3) @ q
        grad_qkv = torch.stack((grad_q, grad_k, weights.transpose(2, 3) @ grad))
        return (weights @ v).transpose(1, 2).contiguous(), grad_qkv.permute(1, 3, 0, 2, 4).contiguous()

    def _biases_of(self, kinds: Tensor) -> Tensor:
        if len(self.biases) == 1:
            return self.biases.expand(len(kinds), -1, -1, -1)
        return self.biases[kinds]


def _attention(
    bias: Tensor, masks: Tensor | None, head_dims: int
) -> WindowFormula | window_kernel.WindowKernel:
    biases = bias[None] if masks is None else bias + masks.unsqueeze(1)
    if bias.dtype == torch.float32 and head_dims == window_kernel.HEAD_DIMS and window_kernel.load():
        return window_kernel.WindowKernel(biases)
    return WindowFormula(biases)


def _chunks(x: Tensor, area: int, shift: int, rows: int):
    """Positions and kinds of the windows of each chunk."""
    positions, kinds = window_positions(*x.shape[:3], math.isqrt(area), shift)
    windows = max(rows // area, 1)
    for positions_i, kinds_i in zip(positions.split(windows), kinds.split(windows)):
        yield positions_i.flatten(), kinds_i


def _gather(x: Tensor, positions: Tensor) -> Tensor:
    """Features of a map `(B, H, W, C)` at the positions, zeros for padding: `(positions, C)`."""
    x = x.flatten(0, 2)
    rows = x.index_select(0, positions.clamp(max=len(x) - 1))
    return rows.masked_fill_((positions == len(x)).unsqueeze(1), 0)
