"""FLOPs of the operators here, for PyTorch's `FlopCounterMode`, which counts two for each multiply-add.

As PyTorch counts attention: matrix products alone. Layers in chunks need nothing, because PyTorch's own
operations compute them where a counter follows; nor does MMEngine's counter, because it traces, and a trace
records the equations.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .deformable.backends import BACKENDS


def register_flops() -> None:
    """Makes the operators known to PyTorch's counter, once."""
    for name in BACKENDS:
        forward = getattr(torch.ops.mmdat, f'deformable_attention_{name}')
        backward = getattr(torch.ops.mmdat, f'deformable_attention_{name}_backward')
        if forward not in flop_registry:
            register_flop_formula(forward)(_count_attention)
            register_flop_formula(backward)(_count_attention_backward)


def _count_attention(q: Sequence[int], k: Sequence[int], *_, **__) -> int:
    """Logits, and weighted values."""
    return 2 * _product(q, k)


def _count_attention_backward(grad_out, out, lse, q: Sequence[int], k: Sequence[int], *_, **__) -> int:
    """Logits once more, and the gradients of weights, values, queries and keys."""
    return 5 * _product(q, k)


def _product(q: Sequence[int], k: Sequence[int]) -> int:
    """FLOPs of one product between `(B, M, N_q, d)` and `(B, M, N_k, d)`."""
    return 2 * prod(q) * k[2]
