"""Small modules whose kernels on CUDA can be counted by hand. New processes import this: it must be light."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    """Of 4 heads to itself, with a bias or without."""

    def __init__(self, num_positions: int | None = None):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4, num_positions, num_positions)) if num_positions else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, N, C)` to `(B, 4, N, C / 4)`."""
        q = x.unflatten(-1, (4, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q, q, self.bias)


class PlainAttention(Attention):
    """The same by its equation."""

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(-1, (4, -1)).transpose(1, 2)
        return ((q @ q.mT) / q.shape[-1] ** 0.5).softmax(-1) @ q


class Checkpointed(nn.Module):
    """A module that is computed again in the backward pass."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.module, x, use_reentrant=False)


class ChannelsLast(nn.Module):
    """A module for `(B, C, H, W)` that is given a map in channels-last layout."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.permute(0, 3, 1, 2))


class Reader(nn.Module):
    """Asks for numbers in all the ways that heads know: the host waits seven times, and copies twice."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() > 0:
            x = x + 1
        if (x > 0).any():
            x = x * 2
        x = x * len(x.nonzero())
        x = x + x[x > 0].sum()
        x = x * x.max().tolist()
        x = x + x.mean().cpu().to(x.device)
        return x + x.new_tensor([1.0]) * len(x.unique())


class Copier(nn.Module):
    """Copies as samples of a batch are copied."""

    def forward(self, x: Tensor) -> Tensor:
        copy = deepcopy(x.detach())
        assert copy.fake_mode is x.fake_mode
        return x + copy


class Gatherer(nn.Module):
    """Takes rows of a matrix of 8 columns by an index, in one of PyTorch's ways."""

    def __init__(self, way: str, count: int):
        super().__init__()
        self.way = way
        self.register_buffer('index', torch.zeros(count, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        match self.way:
            case 'index_select':
                return x.index_select(0, self.index)
            case 'index':
                return x[self.index]
            case 'gather':
                return x.gather(0, self.index[:, None].expand(-1, 8))
            case 'embedding':
                return F.embedding(self.index, x)
