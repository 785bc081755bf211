import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.sizes import missing
from .precision import Conv2d


class Downsample(nn.Module):
    """Convolution that divides the sides of a map by its stride, then layer norm.

    Patch embedding and the down-projections between stages (paper Section 3.3, Table 9). Sides that
    the stride does not divide are padded with zeros at the right and the bottom, so a map of `H` rows
    leaves with `ceil(H / stride)`. (The authors' code leaves out what is over.)

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Patch size; the kernel is as large.
        overlap: Overlapping patches (DAT-T* of Table 9): kernel `2 * stride - 1`, zero padding.
        bias: Whether the convolution has a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, overlap: bool, bias: bool):
        super().__init__()
        kernel_size = 2 * stride - 1 if overlap else stride
        self.overlap = overlap
        self.projection = Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2 if overlap else 0,
            bias=bias,
        )
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C_in)` to `(B, ceil(H / stride), ceil(W / stride), C_out)`."""
        _, height, width, _ = x.shape
        x = x.permute(0, 3, 1, 2)  # (B, C, H, W)
        if not self.overlap:
            rows, columns = self.projection.stride
            x = F.pad(x, (0, missing(width, columns), 0, missing(height, rows)))
        x = self.projection(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        return self.norm(x)


class ConvStem(Downsample):
    """Patch embedding of DAT++ by overlapping convolutions: two of stride 2 with their norms, a GELU between.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the output; there are half as many between.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels // 2, 2, overlap=True, bias=True)
        self.act = nn.GELU()
        self.downsample = Downsample(out_channels // 2, out_channels, 2, overlap=True, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C_in)` to `(B, ceil(H / 4), ceil(W / 4), C_out)`."""
        return self.downsample(self.act(super().forward(x)))
