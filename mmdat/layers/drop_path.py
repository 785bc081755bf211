from torch import Tensor, nn


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
        keep_prob = 1 - self.drop_prob
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(keep_prob)
        return x * (keep / keep_prob)

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'
