"""What keeps Triton's kernels from a card. Without Triton this can be imported, and says so."""

import logging
from collections.abc import Callable, Hashable, Sequence
from functools import cache

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

MIN_CAPABILITY = (8, 0)
MIN_TRITON = (3, 4)  # 3.3 does not compile them
HALF = (torch.bfloat16, torch.float16)

_logger = logging.getLogger('mmdat')


def obstacle(device: torch.device) -> str | None:
    """Why no kernel can be used on a device, or `None` if they can."""
    return _card_obstacle(device) or triton_obstacle()


def _card_obstacle(device: torch.device) -> str | None:
    if torch.version.hip:
        return 'the kernels were not tried on ROCm'
    found = capability(device)
    if found is None:
        return 'PyTorch finds no card here'
    if found < MIN_CAPABILITY:
        return 'the kernels need a card of sm_{}{} at least, not sm_{}{}'.format(*MIN_CAPABILITY, *found)
    return None


@cache
def triton_obstacle() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f'Triton cannot be imported: {_first_line(error)}'
    version = triton.__version__
    if tuple(map(int, version.split('.')[:2])) < MIN_TRITON:
        return 'the kernels need Triton {}.{} at least, not {}'.format(*MIN_TRITON, version)
    return None


@cache
def capability(device: torch.device) -> tuple[int, int] | None:
    """Of a card, or `None` if it is not there, as under fake tensors on another machine."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


@cache
def compile_obstacle(
    device: torch.device, operation: str, launches: Callable[[Hashable], Sequence], case: Hashable
) -> str | None:
    """Compiles all launches of a case for a card, on tensors without numbers, and says once if that fails."""
    try:
        with unset_fake_temporarily(), torch.cuda.device(device):
            for launch in launches(case):
                launch.compile()
    except Exception as error:  # Triton raises errors of many kinds, its compilers' among them
        reason = f'Triton cannot compile its kernels: {type(error).__name__}: {_first_line(error)}'
        _warn(f'{operation.capitalize()} is slower than it could be on this card: {reason}')
        return reason
    return None


@cache
def _warn(message: str) -> None:
    _logger.warning(message)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [''])[0]
