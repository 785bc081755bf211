from torch import Tensor, nn


class DepthwiseConv(nn.Conv2d):
    """Depth-wise 3x3 convolution with bias and zero padding, on channels-last maps."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to `(B, H, W, C)`."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
