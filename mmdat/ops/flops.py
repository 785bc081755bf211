"""FLOPs of the operators here, for PyTorch's `FlopCounterMode`, which counts two for each multiply-add.

As PyTorch counts attention: matrix products alone. MMEngine's counter needs nothing, because it traces, and a
trace records the equations.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula


def register_flops() -> None:
    """Makes the operators known to PyTorch's counter, once."""
    operators = torch.ops.mmdat
    if operators.deformable_attention in flop_registry:
        return
    register_flop_formula(operators.deformable_attention)(_count_attention)
    register_flop_formula(operators.deformable_attention_backward)(_count_attention_backward)


def _count_attention(q: Sequence[int], k: Sequence[int], *_, **__) -> int:
    """Logits, and weighted values."""
    return 2 * _product(q, k)


def _count_attention_backward(grad_out: Sequence[int], q: Sequence[int], k: Sequence[int], *_, **__) -> int:
    """Logits once more, and the gradients of weights, values, queries and keys."""
    return 5 * _product(q, k)


def _product(q: Sequence[int], k: Sequence[int]) -> int:
    """FLOPs of one product between `(B, M, N_q, d)` and `(B, M, N_k, d)`."""
    return 2 * prod(q) * k[2]
