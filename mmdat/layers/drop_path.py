import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.constants import keep


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for single images of the batch while training.

    Args:
        drop_prob: Probability in [0, 1) that an image's branch is dropped. The branches that stay are
            scaled by `1 / (1 - drop_prob)`.
    """

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        ones = _ones((len(x), *[1] * (x.ndim - 1)), x.dtype, x.device)
        return x * F.dropout(ones, self.drop_prob)

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'


@keep
def _ones(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(shape, dtype=dtype, device=device)
