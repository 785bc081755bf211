"""Layers of large maps on CPUs, computed chunk by chunk.

The maps between the linear layers of an MLP or an attention are several times as large as its input, and live
for a moment. As whole maps they do not fit into the caches, and the memory they take anew in each layer costs
the CPU more than many of the operations on them. A chunk of them fits. Training keeps the layer's input only,
and recomputes the chunks in the backward pass, which costs less than storing them.
"""

import torch
from torch import Tensor

CACHED_NUMBERS = 2**17  # of a chunk of the input, for each thread: an MLP's hidden ones then take 2 MiB


def computes_in_chunks(x: Tensor) -> bool:
    """Whether a layer may compute a map in chunks.

    Other devices hide what chunks avoid. What only follows the operations (tracing, compilation, fake
    tensors) or changes their dtype (autocast) sees the plain formula.
    """
    return (
        x.device.type == 'cpu'
        and type(x) is Tensor
        and not torch.is_autocast_enabled('cpu')
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def chunk_rows(channels: int, parameters: int) -> int:
    """Rows of a chunk of a map with so many channels, for a layer with so many weights.

    With gradients, those of the weights are read and written once a chunk, which must not weigh.
    """
    passes = 2 if torch.is_grad_enabled() else 0.5
    return max(CACHED_NUMBERS // channels, int(passes * parameters / channels)) * torch.get_num_threads()
