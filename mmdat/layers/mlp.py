from torch import Tensor, nn

from ..ops import mlp
from .depthwise_conv import DepthwiseConv


class MLP(nn.Module):
    """Two linear layers with a GELU between, on channels-last maps.

    Args:
        embed_dims: Channels of input and output.
        hidden_dims: Channels between.
        conv: Add a depth-wise convolution of the hidden map to it before the GELU (DAT++).
    """

    def __init__(self, embed_dims: int, hidden_dims: int, conv: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.conv = DepthwiseConv(hidden_dims) if conv else None
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to `(B, H, W, C)`."""
        if self.conv is None:
            return mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
        x = self.fc1(x)
        return self.fc2(self.act(x + self.conv(x)))
