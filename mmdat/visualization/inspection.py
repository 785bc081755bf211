"""Looking into a model that stays as it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..apis.prediction import evaluating


@contextmanager
def inspecting(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, block by block as written also where a block is compiled.

    Afterwards the mode of each module and the random numbers of Python, NumPy and PyTorch are as before.
    """
    numbers = random.getstate(), np.random.get_state()
    devices = list({p.device for p in model.parameters() if p.device.type == 'cuda'})
    try:
        with (
            evaluating(model),
            torch.random.fork_rng(devices),
            torch.compiler.set_stance('force_eager'),  # compiled blocks do not heed hooks that come later
        ):
            yield
    finally:
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])


def record(modules: dict[str, nn.Module], run: nn.Module, *args: Any) -> dict[str, tuple[tuple, Any]]:
    """What modules get and give while `run(*args)` runs.

    Args:
        modules: By name.
        run: A module that calls them.
        *args: Its input.

    Returns:
        By name, in the order of `modules`, for each that was called: the positional arguments and the output
        of its last call.
    """
    seen, handles = {}, []
    for name, module in modules.items():

        def keep(module: nn.Module, inputs: tuple, output: Any, name: str = name) -> None:
            seen[name] = inputs, output

        handles.append(module.register_forward_hook(keep))
    try:
        run(*args)
    finally:
        for handle in handles:
            handle.remove()
    return {name: seen[name] for name in modules if name in seen}
