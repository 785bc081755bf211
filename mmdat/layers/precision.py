"""Layers that leave the short dtypes of mixed precision where these would go wrong."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """Convolution that PyTorch computes right in bfloat16 on CPUs as well.

    Where a map is not larger than the kernel, PyTorch 2.10 returns wrong weight gradients, and for some
    shapes a wrong output (`docs/upstream.md`). Such maps are small, so they cost nothing in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if _computes_in_bfloat16_on_cpu(x) and min(x.shape[-2:]) <= max(self.kernel_size):
            bias = None if self.bias is None else self.bias.float()
            with torch.autocast('cpu', enabled=False):
                return self._conv_forward(x.float(), self.weight.float(), bias).to(torch.bfloat16)
        return super().forward(x)


class PreciseLinear(nn.Linear):
    """Linear layer in float32 at least, also under autocast: for what becomes a position."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        # tensors without numbers know no autocast
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(dtype), self.weight.to(dtype), bias)


def _computes_in_bfloat16_on_cpu(x: Tensor) -> bool:
    if x.device.type != 'cpu':
        return False
    dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
    return dtype == torch.bfloat16
