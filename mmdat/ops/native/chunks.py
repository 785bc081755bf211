"""Layers of large maps on CPUs, computed chunk by chunk.

The maps between the linear layers of an MLP or an attention are several times as large as its input, and live
for a moment. As whole maps they do not fit into the caches, and the memory they take anew in each layer costs
the CPU more than many of the operations on them. A chunk of them fits. Training keeps the layer's input only,
and recomputes the chunks in the backward pass, which costs less than storing them.
"""

import torch
from torch import Tensor, nn

CACHED_NUMBERS = 2**17  # of a chunk of the input, for each thread: an MLP's hidden ones then take 2 MiB


def computes_in_chunks(x: Tensor, *layers: nn.Module) -> bool:
    """Whether a map may be computed in chunks, with the weights of these linear layers.

    Other devices hide what chunks avoid. What only follows the operations (tracing, compilation, fake
    tensors), changes their dtype (autocast) or has replaced or hooked a layer (adapters) gets the plain
    formula, as do short dtypes, in which sums over chunks would be rough.
    """
    return (
        x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.float64)
        and type(x) is Tensor
        and not torch.is_autocast_enabled('cpu')
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and all(
            type(layer) is nn.Linear and not layer._forward_hooks and not layer._forward_pre_hooks
            for layer in layers
        )
    )


def chunk_rows(*layers: nn.Linear) -> int:
    """Rows of a chunk of a map that goes through these layers.

    With gradients, those of the weights are read and written once a chunk, which must not weigh.
    """
    channels = layers[0].in_features
    rows_of_weights = sum(layer.weight.numel() for layer in layers) // channels
    least = 2 * rows_of_weights if torch.is_grad_enabled() else rows_of_weights // 2
    return max(CACHED_NUMBERS // channels, least) * torch.get_num_threads()
