import torch
from torch import Tensor, nn

from ..ops import window_attention
from ..ops.dense import attention_weights
from ..ops.windows import attend_in_windows, heads_in_windows, pad_to_windows, shift_masks
from .plain import are_plain


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
        bias, qkv, proj = self.relative_position_bias(), self.qkv, self.proj
        if are_plain(qkv, proj):
            weights = qkv.weight, qkv.bias, proj.weight, proj.bias
            return window_attention(x, *weights, bias, self.shift_masks, self.shift)
        return attend_in_windows(x, qkv, proj, bias, self.shift_masks, self.window_size, self.shift)

    def attention_weights(self, x: Tensor) -> Tensor:
        """How much the positions of each window attend to each other, to be looked at.

        By the plain formula, whatever serves `forward`, and in float32 at least.

        Args:
            x: Input `(B, H, W, C)`, as for `forward`.

        Returns:
            `(B, windows, M, N, N)`, query before key. Windows are those of the padded and rolled map,
            row-major.
        """
        bias, size = self.relative_position_bias(), self.window_size
        x = pad_to_windows(x, size)
        q, k, _, bias = heads_in_windows(x, self.qkv, bias, self.shift_masks, size, self.shift)
        return attention_weights(q, k, bias)

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
