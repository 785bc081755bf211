from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from ...ladder import Backend
from ..comparison import Trial, attention_trials
from ..inputs import Inputs


class CheckedBackend(Backend, ABC):
    """A backend that can be compared with the equations before its first use, by `triton/self_check.py`."""

    operation: ClassVar[str]  # that it computes, in words

    @abstractmethod
    def trials(self, dtype: torch.dtype) -> Iterator[Trial]:
        """What it must compute, in a dtype."""


class DeformableBackend(CheckedBackend):
    """A backend of deformable attention: what it cannot serve, from which size it pays, and its two passes.

    `operator.py` registers its passes with PyTorch; `backends/__init__.py` gives it a place in the ladders.
    """

    operation = 'deformable attention'
    device_type: ClassVar[str | None]  # for which it is registered, `None` for all

    def dtypes(self, inputs: Inputs) -> tuple[torch.dtype, ...]:
        """In which dtypes it takes the five tensors; they are converted to these before."""
        return (inputs.dtype(),) * 5

    @abstractmethod
    def forward(self, inputs: Inputs, out: Tensor, lse: Tensor) -> None:
        """Fills `out` `(B, M, N_q, d)`, and `lse` `(B, M, N_q)`, the natural logarithm of the softmax's
        denominator, which saves the backward pass one run over the keys.

        Neither is initialised. Outputs, and gradients of queries, keys and values, are laid out as
        `(B, N, M, d)`, which is what the linear layers around attention read and write. Autocast is off.
        """

    @abstractmethod
    def backward(
        self, inputs: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor, grads: tuple[Tensor, ...]
    ) -> None:
        """Fills `grads`, those of the five tensors in their order, which are not initialised."""

    def trials(self, dtype: torch.dtype) -> Iterator[Trial]:
        return attention_trials(self, dtype)
