"""Which code serves an operation: each has a ladder, from its fastest backend down to its plain formula.

Backends are chosen here by what they say of themselves: what they cannot serve and why, and from which size
they pay. The environment variable `MMDAT_BACKEND` decides for all operations: `reference` stands for the
plain formulas of PyTorch, `portable` for what PyTorch computes in bounded memory, other names for backends of
some operations; those that have none of this name choose as if nothing was asked for.
"""

import os
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

REFERENCE = 'reference'  # the name of all plain formulas


class Inputs(Protocol):
    """What an operation takes, with its size in some unit."""

    unit: ClassVar[str]

    def size(self) -> int: ...


class Backend:
    """A faster or smaller way to compute an operation than its plain formula."""

    name: ClassVar[str]
    names: ClassVar[list[str]] = [REFERENCE]  # of all backends

    def __init_subclass__(cls):
        if 'name' in vars(cls) and cls.name not in Backend.names:
            Backend.names.append(cls.name)

    def not_supported_reasons(self, inputs: Inputs) -> list[str]:
        """Why these inputs cannot be served, in full sentences without a full stop; empty if they can."""
        return []

    def pays_from(self, inputs: Inputs) -> int:
        """The size of inputs like these from which on it is better than what comes after it in the ladder."""
        return 0

    def pays_because(self, inputs: Inputs) -> str:
        """Why from this size, where it depends on the machine: a clause after a comma, or nothing."""
        return ''


def choose(ladder: Sequence[Backend], inputs: Inputs) -> Backend | None:
    """The first backend that serves these inputs and pays, or `None` for the plain formula."""
    for backend in ladder:
        if not backend.not_supported_reasons(inputs) and inputs.size() >= backend.pays_from(inputs):
            return backend
    return None


def explain_choice(ladder: Sequence[Backend], inputs: Inputs) -> str:
    """What `choose` takes, and why: `'NAME: ...'`."""
    chosen = choose(ladder, inputs)
    said = [f'{inputs.size()} {inputs.unit}']
    for backend in ladder:
        if backend is chosen:
            break
        reasons = backend.not_supported_reasons(inputs)
        why_not = '; '.join(reasons) or (
            f'pays from {backend.pays_from(inputs)} {inputs.unit} on{backend.pays_because(inputs)}'
        )
        said.append(f'not {backend.name}: {why_not}')
    return f'{chosen.name if chosen else REFERENCE}: {", ".join(said)}'


def choose_layer(ladder: Sequence[Backend], inputs: Inputs) -> Backend | None:
    """What `choose` takes, from the backend on that `MMDAT_BACKEND` asks for."""
    return choose(_asked_part(ladder), inputs)


def explain_layer(ladder: Sequence[Backend], inputs: Inputs) -> str:
    """What `choose_layer` takes, and why: `'NAME: ...'`."""
    if asked_for() == REFERENCE:
        return f'{REFERENCE}: asked for by the variable MMDAT_BACKEND'
    return explain_choice(_asked_part(ladder), inputs)


def _asked_part(ladder: Sequence[Backend]) -> Sequence[Backend]:
    """All of the ladder if `MMDAT_BACKEND` asks for none of these."""
    name = asked_for()
    if name == REFERENCE:
        return ()
    names = [backend.name for backend in ladder]
    return ladder[names.index(name) :] if name in names else ladder


def asked_for() -> str | None:
    """What `MMDAT_BACKEND` asks for.

    Raises:
        ValueError: If there is no backend of this name.
    """
    name = os.environ.get('MMDAT_BACKEND') or None
    if name is not None:
        check_name(name, 'the variable MMDAT_BACKEND', Backend.names)
    return name


def check_name(name: str, asked_by: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ValueError(f'unknown backend {name!r} in {asked_by}, the backends are {names}')


def transform_reason() -> str | None:
    """Why only the plain formula will do: something knows no operations but PyTorch's own."""
    if torch.compiler.is_compiling():
        return None
    if torch.jit.is_tracing():
        return 'a trace records the formula, which holds for maps of every size'
    if torch._C._are_functorch_transforms_active():
        return 'torch.func transforms the single operations'
    if torch.autograd.forward_ad._current_level >= 0:
        return 'forward-mode differentiation goes through the single operations'
    return None


def compiler_reason(x: Tensor) -> str | None:
    """Why a layer should be computed by PyTorch's single operations rather than as a function of autograd."""
    if torch.compiler.is_compiling():
        return 'a compiler follows the single operations'
    if type(x) not in (Tensor, torch.nn.Parameter, FakeTensor):
        return f'{type(x).__name__} has operations of its own'
    return None


def observer_reason(x: Tensor) -> str | None:
    """Why a layer of PyTorch's common operations should be computed by these: something follows or changes
    them."""
    if torch.compiler.is_compiling():
        return 'a compiler follows the single operations'
    if type(x) not in (Tensor, torch.nn.Parameter):
        return f'{type(x).__name__} has operations of its own'
    if torch.is_autocast_enabled(x.device.type):
        return 'autocast chooses the dtype of each operation'
    if is_in_torch_dispatch_mode():
        return 'a dispatch mode, such as a counter of FLOPs, follows the single operations'
    return transform_reason()
