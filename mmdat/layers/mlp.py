from torch import Tensor, nn

from ..ops import mlp
from .depthwise_conv import DepthwiseConv
from .plain import are_plain


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
        fc1, fc2 = self.fc1, self.fc2
        if self.conv is None and are_plain(fc1, self.act, fc2):
            return mlp(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        x = fc1(x)
        if self.conv is not None:
            x = x + self.conv(x)
        return fc2(self.act(x))
