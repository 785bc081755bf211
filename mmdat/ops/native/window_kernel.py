"""The C++ kernel of attention inside windows, `csrc/window_attention.cpp`."""

import ctypes
import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .build import BuildError, load_library

HEAD_DIMS = 32


@cache
def load() -> ctypes.CDLL | None:
    """The compiled kernel, or `None` if it cannot be had."""
    try:
        library = load_library('window_attention')
    except BuildError:
        return None
    library.mmdat_window_attention.argtypes = [ctypes.POINTER(_Arguments)]
    library.mmdat_window_attention_backward.argtypes = [ctypes.POINTER(_Arguments)]
    return library


class WindowKernel:
    """Attention inside windows by the C++ kernel, for float32 and heads of 32 dimensions.

    Like `WindowFormula`.
    """

    def __init__(self, biases: Tensor):
        _, num_heads, area, _ = biases.shape
        self.lanes = load().mmdat_window_lanes()
        padding = -area % self.lanes
        self.biases = F.pad(biases * math.log2(math.e), (0, padding), value=-1e30).contiguous()
        self.threads = torch.get_num_threads()
        self.grads_bias = biases.new_zeros(self.threads, num_heads, area, area + padding)

    @property
    def grad_bias(self) -> Tensor:
        return self.grads_bias.sum(0)[..., : self.grads_bias.shape[2]]

    def forward(self, qkv: Tensor, kinds: Tensor) -> Tensor:
        out = torch.empty_like(qkv[:, :, 0])
        load().mmdat_window_attention(self._arguments(qkv, kinds, out))
        return out

    def backward(self, qkv: Tensor, kinds: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        out, grad_qkv = torch.empty_like(grad), torch.empty_like(qkv)
        arguments = self._arguments(
            qkv,
            kinds,
            out,
            grad_out=grad.data_ptr(),
            grad_qkv=grad_qkv.data_ptr(),
            grad_bias=self.grads_bias.data_ptr(),
        )
        load().mmdat_window_attention_backward(arguments)
        return out, grad_qkv

    def _arguments(self, qkv: Tensor, kinds: Tensor, out: Tensor, **grads: int) -> '_Arguments':
        windows, area, _, heads, _ = qkv.shape
        return _Arguments(
            windows=windows,
            heads=heads,
            area=area,
            stride=self.biases.shape[-1],
            threads=self.threads,
            qkv=qkv.data_ptr(),
            biases=self.biases.data_ptr(),
            kinds=kinds.data_ptr(),
            out=out.data_ptr(),
            **grads,
        )


class _Arguments(ctypes.Structure):
    """Mirrors `WindowArguments` in `window_attention.cpp`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in 'windows heads area stride threads'.split()),
        *((name, ctypes.c_void_p) for name in 'qkv biases kinds out grad_out grad_qkv grad_bias'.split()),
    ]
