"""Layers of large maps on CPUs, computed chunk by chunk.

The maps between the linear layers of an MLP or an attention are several times as large as its input, and live
for a moment. As whole maps they do not fit into the caches, and the memory they take anew in each layer costs
the CPU more than many of the operations on them. A chunk of them fits. Training keeps the layer's input only,
and recomputes the chunks in the backward pass, which costs less than storing them.
"""

import torch
from torch import Tensor

from ..ladder import observer_reason

CACHED_NUMBERS = 2**17  # of a chunk of the input, for each thread: an MLP's hidden ones then take 2 MiB


def not_chunked_reasons(x: Tensor) -> list[str]:
    """Why a map cannot be computed in chunks, or gains nothing."""
    if x.device.type != 'cpu':
        return [f'the map is on {x.device.type}, where chunks save nothing']
    if reason := observer_reason(x):
        return [reason]
    if x.dtype not in (torch.float32, torch.float64):
        return [f'sums over chunks are rough in {x.dtype}']
    return []


def chunk_rows(*weights: Tensor) -> int:
    """Rows of a chunk of a map that goes through linear layers with these weights.

    With gradients, those of the weights are read and written once a chunk: larger chunks make that cheap.
    """
    channels = weights[0].shape[1]
    rows_of_weights = sum(weight.numel() for weight in weights) // channels
    least = 2 * rows_of_weights if torch.is_grad_enabled() else rows_of_weights // 2
    return max(CACHED_NUMBERS // channels, least) * torch.get_num_threads()
