"""How much memory a GPU has left, for what can be computed in more or less of it."""

from functools import lru_cache

import torch

ASSUMED = 16 * 2**30  # where it is not known: of GPUs that are not there, or not from NVIDIA


def free_memory(device: torch.device, case: int) -> int:
    """Bytes that were free on a device when a case of some size came first.

    It is asked for once a case, or once a device by a compiler. What is decided by it then is the same in the
    forward pass and where activation checkpointing repeats it, and the driver is not asked in each step.
    """
    return _known_memory(device, 0 if torch.compiler.is_compiling() else case)


@torch.compiler.assume_constant_result
def _known_memory(device: torch.device, case: int) -> int:
    is_real = device.type == 'cuda' and not torch._C._len_torch_dispatch_stack()
    return _free_memory(device, case) if is_real and torch.cuda.is_available() else ASSUMED


@lru_cache(maxsize=1024)
def _free_memory(device: torch.device, case: int) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    # what PyTorch has taken and holds ready
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
