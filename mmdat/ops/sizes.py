"""Arithmetic on sizes of maps that `torch.jit.trace` records, so that a trace is right at other sizes.

While PyTorch traces, sizes are tensors without dimensions, and what Python decides by them is decided once
and for all.
"""

import torch
from torch import Tensor


def at_least(size: int, least: int) -> int:
    """`max(size, least)`."""
    return size.clamp(min=least) if isinstance(size, Tensor) else max(size, least)


def missing(size: int, multiple: int) -> int:
    """What `size` lacks to a multiple. Compilers simplify quotients of symbols, but not remainders."""
    return (size + multiple - 1) // multiple * multiple - size


def crop(x: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """The part of maps `(B, H, W, ...)` that begins at a pixel.

    For compilers a copy, which they fuse with what comes next. Of a view they would make one graph for sizes
    where it is all of the map, and another one for others.
    """
    x = x[:, top : top + height, left : left + width]
    return x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x


def is_traced(*sizes: int) -> bool:
    """Whether a trace records these sizes, so that nothing may be decided by them."""
    return any(isinstance(size, Tensor) for size in sizes)
