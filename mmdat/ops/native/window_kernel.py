"""The C++ kernel of attention inside windows, `csrc/window_attention.cpp`."""

import ctypes
import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .library import Kernel, address, load_kernel

HEAD_DIMS = 32


@torch.compiler.assume_constant_result
def load() -> tuple[Kernel | None, str]:
    """The compiled kernel, or `None` and why there is none."""
    return _load()


@cache
def _load() -> tuple[Kernel | None, str]:
    return load_kernel('window_attention', _Arguments)


class WindowKernel:
    """Attention inside windows by the C++ kernel, for float32 and heads of 32 dimensions.

    Like `WindowSoftmax`.
    """

    def __init__(self, biases: Tensor):
        _, num_heads, area, _ = biases.shape
        self.lanes = load()[0].lanes
        padding = -area % self.lanes
        self.biases = F.pad(biases * math.log2(math.e), (0, padding), value=-1e30).contiguous()
        self.threads = torch.get_num_threads()
        self.grads_bias = biases.new_zeros(self.threads, num_heads, area, area + padding)

    @property
    def grad_bias(self) -> Tensor:
        return self.grads_bias.sum(0)[..., : self.grads_bias.shape[2]]

    def forward(self, qkv: Tensor, kinds: Tensor) -> Tensor:
        out = torch.empty_like(qkv[:, :, 0])
        load()[0].call('mmdat_window_attention', self._arguments(qkv, kinds, out))
        return out

    def backward(self, qkv: Tensor, kinds: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        out, grad_qkv = torch.empty_like(grad), torch.empty_like(qkv)
        arguments = self._arguments(qkv, kinds, out)
        arguments.grad_out = address(grad, out.shape)
        arguments.grad_qkv = address(grad_qkv, qkv.shape)
        arguments.grad_bias = address(self.grads_bias, self.grads_bias.shape)
        load()[0].call('mmdat_window_attention_backward', arguments)
        return out, grad_qkv

    def _arguments(self, qkv: Tensor, kinds: Tensor, out: Tensor) -> '_Arguments':
        num_kinds, num_heads, area, stride = self.biases.shape
        windows = len(kinds)
        return _Arguments(
            windows=windows,
            heads=num_heads,
            area=area,
            stride=stride,
            threads=self.threads,
            qkv=address(qkv, (windows, area, 3, num_heads, HEAD_DIMS)),
            biases=address(self.biases, (num_kinds, num_heads, area, stride)),
            kinds=address(kinds, (windows,), torch.int64),
            out=address(out, (windows, area, num_heads, HEAD_DIMS)),
        )


class _Arguments(ctypes.Structure):
    """Mirrors `Arguments` in `csrc/window_attention.cpp`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in 'windows heads area stride threads'.split()),
        *((name, ctypes.c_void_p) for name in 'qkv biases kinds out grad_out grad_qkv grad_bias'.split()),
    ]
