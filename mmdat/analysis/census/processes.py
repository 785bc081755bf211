"""Processes of a census, because what it changes in PyTorch holds for a whole process."""

import os
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from multiprocessing.util import Finalize
from typing import Any


class Processes:
    """A number of processes, each of which does one thing after another.

    They are new ones: a fork of a process that has differentiated something cannot follow CUDA's tensors.
    """

    def __init__(self, number: int):
        self._pool = ProcessPoolExecutor(number, get_context('spawn'), initializer=_prepare_end)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Computes something that can be pickled. Variables `MMDAT_...` are what they are here."""
        variables = {name: value for name, value in os.environ.items() if name.startswith('MMDAT_')}
        return self._pool.submit(_call, variables, function, args)

    def __enter__(self) -> 'Processes':
        return self

    def __exit__(self, *args: Any) -> None:
        self._pool.shutdown(cancel_futures=True)


def in_own_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, computed in a process that stays for the next call."""
    return _single().submit(function, *args).result()


@cache
def _single() -> Processes:
    return Processes(1)


def _prepare_end() -> None:
    """Ends the process before PyTorch's engine is destroyed, whose thread still waits for a device."""
    Finalize(None, os._exit, args=(0,), exitpriority=0)


def _call(variables: dict[str, str], function: Callable[..., Any], args: tuple) -> Any:
    for name in [name for name in os.environ if name.startswith('MMDAT_')]:
        del os.environ[name]
    os.environ.update(variables)
    try:
        return function(*args)
    except Exception:  # those of fake tensors cannot be pickled
        raise RuntimeError(f'the census failed:\n{traceback.format_exc()}') from None
