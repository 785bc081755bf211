"""Arithmetic on sizes of maps that `torch.jit.trace` records, so that a trace is right at other sizes.

While PyTorch traces, sizes are tensors without dimensions, and what Python decides by them is decided once
and for all.
"""

from torch import Tensor


def at_least(size: int, least: int) -> int:
    """`max(size, least)`."""
    return size.clamp(min=least) if isinstance(size, Tensor) else max(size, least)


def missing(size: int, multiple: int) -> int:
    """What `size` lacks to a multiple. Compilers simplify quotients of symbols, but not remainders."""
    return (size + multiple - 1) // multiple * multiple - size


def is_traced(*sizes: int) -> bool:
    """Whether a trace records these sizes, so that nothing may be decided by them."""
    return any(isinstance(size, Tensor) for size in sizes)
