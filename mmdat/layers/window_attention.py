import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import attention
from ..ops.chunks import chunk_rows, computes_in_chunks
from ..ops.window_attention import (
    ChunkedWindowAttention,
    shift_masks,
    window_kinds,
    window_partition,
    window_reverse,
)


class WindowAttention(nn.Module):
    """Local attention in windows, and Swin's shifted-window attention (paper Section 3.3).

    Maps of any size: they are padded with zeros at the right and the bottom to whole windows, and
    cropped again. Padded positions are ordinary keys.

    Args:
        embed_dims: Channels.
        num_heads: Heads, a divisor of `embed_dims`.
        window_size: Side of the windows, in pixels of the map.
        shifted: Roll the map by `ceil(window_size / 2)` before the windows are cut. Swin rolls by the
            floor; the released DAT weights were trained with the ceiling.
    """

    def __init__(self, embed_dims: int, num_heads: int, window_size: int, shifted: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = (window_size + 1) // 2 if shifted else 0
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        self.reset_parameters()
        self.register_buffer(
            'relative_position_index', relative_position_index(window_size), persistent=False
        )
        masks = shift_masks(window_size, self.shift) if shifted else None
        self.register_buffer('shift_masks', masks, persistent=False)
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to `(B, H, W, C)`."""
        bias = self.relative_position_bias()
        if computes_in_chunks(x, self.qkv, self.proj):
            weights = self.qkv.weight, self.qkv.bias, self.proj.weight, self.proj.bias
            rows = chunk_rows(self.qkv, self.proj)
            return ChunkedWindowAttention.apply(x, *weights, bias, self.shift_masks, self.shift, rows)
        return self._attend(x, bias)

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        size, shift = self.window_size, self.shift
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        _, padded_height, padded_width, _ = x.shape
        if shift:
            x = x.roll((-shift, -shift), dims=(1, 2))
            kinds = window_kinds(padded_height // size, padded_width // size, x.device)
            bias = bias + self.shift_masks[kinds].unsqueeze(1)
        x = window_partition(x, size)  # (B, windows, N, C)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        x = attention(q, k, v, bias).transpose(2, 3).flatten(3)
        x = window_reverse(self.proj(x), size, padded_height, padded_width)
        if shift:
            x = x.roll((shift, shift), dims=(1, 2))
        return x[:, :height, :width]

    def relative_position_bias(self) -> Tensor:
        """Bias of each head, `(M, N, N)` for the `N` positions of a window."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def reset_parameters(self) -> None:
        """Initialises the bias table."""
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)

    # No checkpoint holds the buffers. A module that was built on the meta device has them without values
    # after `to_empty()`, and still on the meta device after `load_state_dict(..., assign=True)`.

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._compute_buffers(self.relative_position_index.device)
        return self

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        if self.relative_position_index.is_meta:
            self._compute_buffers(self.relative_position_bias_table.device)

    def _compute_buffers(self, device: torch.device) -> None:
        self.relative_position_index = relative_position_index(self.window_size).to(device)
        if self.shift:
            masks = shift_masks(self.window_size, self.shift)
            self.shift_masks = masks.to(device, self.shift_masks.dtype)


def relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for each pair of positions of a window, `(N, N)`, query first."""
    axis = torch.arange(window_size)
    positions = torch.stack(torch.meshgrid(axis, axis, indexing='ij'), dim=-1).flatten(0, 1)
    y, x = (positions[:, None] - positions[None] + window_size - 1).unbind(-1)
    return y * (2 * window_size - 1) + x
