import torch
from torch import nn


def are_plain(*layers: nn.Module) -> bool:
    """Whether layers may be replaced by a function of their weights.

    Not if one was replaced by an adapter, or has hooks. Nor while a tracer records the modules, which is how
    other libraries count multiply-adds by module.
    """
    return not torch.jit.is_tracing() and all(
        type(layer) in (nn.Linear, nn.GELU) and not layer._forward_hooks and not layer._forward_pre_hooks
        for layer in layers
    )
