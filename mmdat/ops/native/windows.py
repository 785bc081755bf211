"""Attention in the windows of a map: what serves it, and on CPUs in chunks of windows (see `chunks.py`)."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fused.kernel import not_fused_reasons
from ..fused.tiles import Projections
from ..fused.windows import fused_window_attention
from ..ladder import Backend, choose_layer, compiler_reason, explain_layer
from ..windows import attend_in_windows, window_kinds, window_partition
from . import window_kernel
from .chunks import chunk_rows, not_chunked_reasons
from .operators import define


def window_attention(
    x: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor,
    w_proj: Tensor,
    b_proj: Tensor,
    bias: Tensor,
    masks: Tensor | None = None,
    shift: int = 0,
) -> Tensor:
    """Attention in the windows of a map, with its projections; in chunks or by a fused kernel where that is
    faster.

    Args:
        x: `(B, H, W, C)`, any size. It is padded with zeros at the right and the bottom to whole windows;
            padded positions are ordinary keys.
        w_qkv: Weight of the projection to queries, keys and values, `(3 C, C)`.
        b_qkv: Its bias.
        w_proj: Weight of the output projection, `(C, C)`.
        b_proj: Its bias.
        bias: Added to the logits of the heads, `(M, N, N)` for the `N` positions of a square window.
        masks: Added too, those of `shift_masks`; they have no gradients.
        shift: By how much the map is rolled before it is cut.

    Returns:
        `(B, H, W, C)`.
    """
    inputs = _Inputs(x, w_qkv, b_qkv, w_proj, b_proj, bias, masks, shift)
    chosen = choose_layer(_ladder(x.device.type), inputs)
    if chosen is None:
        return _formula(*inputs)
    if chosen.name == 'fused':
        return fused_window_attention(x, Projections(w_qkv, b_qkv, w_proj, b_proj), bias, masks, shift)
    return _OPERATORS[chosen.name](*inputs, chunk_rows(w_qkv, w_proj))


def explain_window_attention(
    x: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor,
    w_proj: Tensor,
    b_proj: Tensor,
    bias: Tensor,
    masks: Tensor | None = None,
    shift: int = 0,
) -> str:
    """How `window_attention` computes these arguments, and why.

    `'cpu: ...'`, in chunks by a compiled kernel; `'portable: ...'`, in chunks by PyTorch; `'fused: ...'`, by
    PyTorch's fused kernel for CUDA; or `'reference: ...'`, by the plain formula.
    """
    inputs = _Inputs(x, w_qkv, b_qkv, w_proj, b_proj, bias, masks, shift)
    return explain_layer(_ladder(x.device.type), inputs)


class _Inputs(NamedTuple):
    x: Tensor
    w_qkv: Tensor
    b_qkv: Tensor
    w_proj: Tensor
    b_proj: Tensor
    bias: Tensor
    masks: Tensor | None
    shift: int

    unit = 'positions'

    def size(self) -> int:
        return self.x.numel() // self.x.shape[-1]


class _Chunked(Backend):
    name = 'portable'

    def not_supported_reasons(self, inputs: _Inputs) -> list[str]:
        return not_chunked_reasons(inputs.x)


class _ChunkedWithKernel(_Chunked):
    name = 'cpu'

    def not_supported_reasons(self, inputs: _Inputs) -> list[str]:
        reasons = super().not_supported_reasons(inputs)
        head_dims = inputs.x.shape[-1] // inputs.bias.shape[0]
        if inputs.x.dtype != torch.float32 or head_dims != window_kernel.HEAD_DIMS:
            reasons.append(
                f'the kernel is for float32 and heads of {window_kernel.HEAD_DIMS} channels, not for '
                f'{inputs.x.dtype} and {head_dims}'
            )
        if not reasons and window_kernel.load()[0] is None:  # what is not needed is not compiled
            reasons.append(window_kernel.load()[1])
        return reasons


class _Fused(Backend):
    name = 'fused'

    def not_supported_reasons(self, inputs: _Inputs) -> list[str]:
        head_dims = inputs.x.shape[-1] // inputs.bias.shape[0]
        return not_fused_reasons(inputs.x, head_dims, compiler_reason(inputs.x))


_LADDERS = {'cuda': (_Fused(),)}
_LADDER_OF_OTHERS = _ChunkedWithKernel(), _Chunked()


def _ladder(device_type: str) -> tuple[Backend, ...]:
    return _LADDERS.get(device_type, _LADDER_OF_OTHERS)


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
        return windows, window_kinds(rows, columns).repeat(batch)


def _formula(
    x: Tensor,
    w_qkv: Tensor,
    b_qkv: Tensor,
    w_proj: Tensor,
    b_proj: Tensor,
    bias: Tensor,
    masks: Tensor | None,
    shift: int,
    rows: int = 0,
) -> Tensor:
    def qkv(x):
        return F.linear(x, w_qkv, b_qkv)

    def proj(x):
        return F.linear(x, w_proj, b_proj)

    return attend_in_windows(x, qkv, proj, bias, masks, math.isqrt(bias.shape[1]), shift)


def _define(name: str, softmax: type):
    """The operator of a backend, by a class like `WindowSoftmax`."""

    def forward(x, w_qkv, b_qkv, w_proj, b_proj, bias, masks, shift, rows) -> Tensor:
        num_heads, area = bias.shape[:2]
        out = x.new_empty(x[..., 0].numel() + 1, x.shape[-1])  # padded positions share the last row
        attention = softmax(_biases(bias, masks))
        for positions, kinds in _chunks(x, area, masks, shift, rows):
            qkv = F.linear(_gather(x, positions), w_qkv, b_qkv)
            z = attention.forward(qkv.view(len(kinds), area, 3, num_heads, -1), kinds)
            out.index_copy_(0, positions, F.linear(z.view(len(positions), -1), w_proj, b_proj))
        return out[:-1].view(x.shape)

    def backward(grad, x, w_qkv, b_qkv, w_proj, b_proj, bias, masks, shift, rows) -> tuple[Tensor, ...]:
        num_heads, area = bias.shape[:2]
        grad_x = x.new_empty(x[..., 0].numel() + 1, x.shape[-1])
        # transposed, for these matrix products are faster so
        grad_w_qkv, grad_w_proj = x.new_zeros(w_qkv.shape[::-1]), x.new_zeros(w_proj.shape[::-1])
        grad_b_qkv = torch.zeros_like(b_qkv)
        grad = grad.contiguous()
        attention = softmax(_biases(bias, masks))
        for positions, kinds in _chunks(x, area, masks, shift, rows):
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
            grad_w_qkv.t().contiguous(),
            grad_b_qkv,
            grad_w_proj.t().contiguous(),
            grad.sum((0, 1, 2)),
            attention.grad_bias.contiguous(),
        )

    parameters = (
        'Tensor x, Tensor w_qkv, Tensor b_qkv, Tensor w_proj, Tensor b_proj, Tensor bias, Tensor? masks, '
        'SymInt shift, SymInt rows'
    )
    return define(f'window_attention_{name}', parameters, forward, backward, _formula)


def _biases(bias: Tensor, masks: Tensor | None) -> Tensor:
    """Of each kind of window, `(kinds, M, N, N)`: of four kinds, or of one without masks."""
    area = bias.shape[-1]
    if bias.shape[-2:] != (math.isqrt(area) ** 2, area):
        raise ValueError(
            f'bias needs shape (M, N, N) for the N positions of a square, got {tuple(bias.shape)}'
        )
    if masks is None:
        return bias[None]
    if masks.shape != (4, area, area):
        raise ValueError(f'masks need shape (4, {area}, {area}), got {tuple(masks.shape)}')
    return bias + masks.unsqueeze(1)


class WindowSoftmax:
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


def _chunks(
    x: Tensor, area: int, masks: Tensor | None, shift: int, rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions and kinds of the windows of each chunk."""
    positions, kinds = window_positions(*x.shape[:3], math.isqrt(area), shift)
    if masks is None:
        kinds = torch.zeros_like(kinds)
    windows = max(rows // area, 1)
    for positions_i, kinds_i in zip(positions.split(windows), kinds.split(windows)):
        yield positions_i.flatten(), kinds_i


def _gather(x: Tensor, positions: Tensor) -> Tensor:
    """Features of a map `(B, H, W, C)` at the positions, zeros for padding: `(positions, C)`."""
    x = x.flatten(0, 2)
    rows = x.index_select(0, positions.clamp(max=len(x) - 1))
    return rows.masked_fill_((positions == len(x)).unsqueeze(1), 0)


_OPERATORS = {
    'cpu': _define('cpu', window_kernel.WindowKernel),
    'portable': _define('portable', WindowSoftmax),
}
