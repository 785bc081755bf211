"""Calls of compiled kernels: each takes a pointer to a struct, and returns nothing or what went wrong."""

import ctypes
import logging
from functools import cache

import torch
from torch import Tensor

from .build import BuildError, load_library

_logger = logging.getLogger('mmdat')


class Kernel:
    """The library of a kernel.

    Args:
        name: Of `csrc/{name}.cpp`.
        arguments: The mirror of its `Arguments`.

    Raises:
        BuildError: If it cannot be compiled or loaded, or the struct is not as large as its mirror.
    """

    def __init__(self, name: str, arguments: type[ctypes.Structure]):
        self._library = load_library(name)
        size_of = self._library.mmdat_sizeof_arguments
        size_of.restype = ctypes.c_int64
        if size_of() != ctypes.sizeof(arguments):
            raise BuildError(
                f'the arguments of the kernel take {size_of()} bytes in C++ but '
                f'{ctypes.sizeof(arguments)} in Python: delete {self._library._name} to rebuild it, and '
                'reinstall mmdat if that does not help'
            )
        self.lanes = self._library.mmdat_lanes()

    def call(self, function: str, arguments: ctypes.Structure) -> None:
        """Raises a `RuntimeError` with what the kernel says if it fails."""
        call = self._library[function]
        call.restype = ctypes.c_char_p
        if message := call(ctypes.byref(arguments)):
            raise RuntimeError(f'{function}: {message.decode()}')


def load_kernel(name: str, arguments: type[ctypes.Structure]) -> tuple[Kernel | None, str]:
    """The kernel, or `None` and why there is none, which is also said once."""
    try:
        kernel = Kernel(name, arguments)
    except BuildError as error:
        _warn(f'Attention is slower than it could be on this CPU: {error}')
        return None, str(error)
    return kernel, ''


@cache
def _warn(message: str) -> None:
    _logger.warning(message)


def address(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
    """Where the numbers of a contiguous tensor lie.

    Raises:
        ValueError: If a kernel that counts on this shape and dtype would read something else there.
    """
    check_kernel_input(x, shape, dtype)
    if not x.is_contiguous():
        raise ValueError(f'a kernel needs a contiguous tensor, got strides {x.stride()} of {tuple(x.shape)}')
    return x.data_ptr()


def check_kernel_input(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if x.device.type != 'cpu' or x.dtype != dtype or x.shape != shape:
        raise ValueError(
            f'a kernel needs {dtype} {shape} on cpu, got {x.dtype} {tuple(x.shape)} on {x.device.type}'
        )
