"""Tensors that depend on sizes alone, such as grids and masks, made once and kept for the next step.

On a GPU each of them is made by some ten kernels that compute next to nothing.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache, partial, wraps

import torch


def keep(function: Callable | None = None, *, results: int = 64) -> Callable:
    """Keeps what a function returned for the arguments it was last called with, at most so many `results`.

    Its arguments are positional and hashable, the last one is the device. What it returns is shared by all
    who ask for it: to be read, never written.

    Nothing is kept where it would be wrong later, or would freeze what should be recorded: under compilers
    and tracers, under `torch.func`, while a CUDA graph is captured, whose memory is its own. Fake tensors are
    kept for their own mode only, and what CUDA computes for its own stream.
    """
    if function is None:
        return partial(keep, results=results)

    @lru_cache(maxsize=results)
    def kept(context: Hashable, *args):
        with torch.inference_mode(False):  # an inference tensor could not be used in a training
            return function(*args)

    @wraps(function)
    def call(*args):
        context = _context(args[-1])
        return function(*args) if context is None else kept(context, *args)

    call.cache_info, call.cache_clear = kept.cache_info, kept.cache_clear
    return call


def _context(device: torch.device | str | None) -> Hashable | None:
    """What a kept tensor holds for besides its arguments, or `None` where none is kept."""
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or not isinstance(device, torch.device)
    ):
        return None
    fake = None
    if torch._C._len_torch_dispatch_stack():
        fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
        if fake is None or fake.shape_env is not None or _is_recorded():
            return None
    if device.type != 'cuda' or fake is not None:
        return (fake,)
    return None if torch.cuda.is_current_stream_capturing() else torch.cuda.current_stream(device).cuda_stream


def _is_recorded() -> bool:
    keys = torch._C._TorchDispatchModeKey
    return any(torch._C._get_dispatch_mode(key) is not None for key in (keys.PROXY, keys.FUNCTIONAL))
