from torch import Tensor, nn

from ..ops.native.chunks import chunk_rows, computes_in_chunks
from ..ops.native.mlp import ChunkedMLP
from .depthwise_conv import DepthwiseConv

MIN_CHUNKS = 4  # with less, recomputation costs more than it saves


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
        if self.conv is None and computes_in_chunks(x, self.fc1, self.fc2):
            rows = chunk_rows(self.fc1, self.fc2)
            if x.numel() >= MIN_CHUNKS * rows * x.shape[-1]:
                return self._forward_in_chunks(x, rows)
        x = self.fc1(x)
        if self.conv is not None:
            x = x + self.conv(x)
        return self.fc2(self.act(x))

    def _forward_in_chunks(self, x: Tensor, rows: int) -> Tensor:
        fc1, fc2 = self.fc1, self.fc2
        return ChunkedMLP.apply(x.flatten(0, -2), fc1.weight, fc1.bias, fc2.weight, fc2.bias, rows).view(
            x.shape
        )
