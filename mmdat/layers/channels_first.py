from torch import Tensor, nn


class ChannelsFirst(nn.Module):
    """Takes a layer of this package, whose maps are `(B, H, W, C)`, into a network of `(B, C, H, W)` maps.

    Args:
        layer: Maps `(B, H, W, C)` to `(B, H', W', C')`.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, C, H, W)` to `(B, C', H', W')`, contiguous."""
        x = self.layer(x.permute(0, 2, 3, 1))  # (B, H, W, C)
        return x.permute(0, 3, 1, 2).contiguous()
