"""Arithmetic on sizes of maps that `torch.jit.trace` and `torch.export` record, so that a graph is right at
other sizes.

While PyTorch traces, sizes are tensors without dimensions, and what Python decides by them is decided once
and for all. Sizes that `torch.export` keeps open are `SymInt`.
"""

import torch
from torch import Tensor


def at_least(size: int, least: int) -> int:
    """`max(size, least)`."""
    if isinstance(size, Tensor):
        return size.clamp(min=least)
    return torch.sym_max(size, least) if isinstance(size, torch.SymInt) else max(size, least)


def at_most(size: int, most: int) -> int:
    """`min(size, most)`."""
    if isinstance(size, Tensor):
        return size.clamp(max=most)
    return torch.sym_min(size, most) if isinstance(size, torch.SymInt) else min(size, most)


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
    """Whether a graph is recorded for other sizes than these, so that nothing may be decided by them."""
    return any(isinstance(size, Tensor | torch.SymInt) for size in sizes)


def unfold(x: Tensor, dim: int, size: int, step: int) -> Tensor:
    """`x.unfold(dim, size, step)`, by an index while a graph is recorded: ONNX unfolds known sizes only."""
    length = x.shape[dim]
    if not is_traced(length):
        return x.unfold(dim, size, step)
    starts = torch.arange(0, length - size + 1, step, device=x.device)
    index = starts[:, None] + torch.arange(size, device=x.device)
    return x.index_select(dim, index.flatten()).unflatten(dim, (-1, size)).movedim(dim + 1, -1)
