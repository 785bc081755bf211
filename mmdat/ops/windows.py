"""The windows of a map: how they are cut, and the plain formula of their attention (paper Section 3.3)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused.attention import attention
from .sizes import crop, missing


def attend_in_windows(
    x: Tensor,
    qkv: Callable[[Tensor], Tensor],
    proj: Callable[[Tensor], Tensor],
    bias: Tensor,
    masks: Tensor | None,
    window_size: int,
    shift: int,
) -> Tensor:
    """Cuts a map into windows, attends in them, projects, and puts the windows together again.

    Args:
        x: `(B, H, W, C)`, any size. It is padded with zeros at the right and the bottom to whole windows;
            padded positions are ordinary keys.
        qkv: The layer that maps `C` channels to those of queries, keys and values, `3 C`.
        proj: The layer that maps the output's channels.
        bias: Added to the logits of the heads, `(M, N, N)` for the `N` positions of a window.
        masks: Added too, those of `shift_masks`, or `None`.
        window_size: Side of the windows, `sqrt(N)`.
        shift: By how much the map is rolled before it is cut.

    Returns:
        `(B, H, W, C)`.
    """
    _, height, width, _ = x.shape
    num_heads, size = bias.shape[0], window_size
    x = F.pad(x, (0, 0, 0, missing(width, size), 0, missing(height, size)))
    _, padded_height, padded_width, _ = x.shape
    if shift:
        x = x.roll((-shift, -shift), dims=(1, 2))
    if masks is not None:
        kinds = window_kinds(padded_height // size, padded_width // size, x.device)
        bias = bias + masks[kinds].unsqueeze(1)
    x = window_partition(x, size)  # (B, windows, N, C)
    q, k, v = qkv(x).unflatten(-1, (3, num_heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind()
    x = attention(q, k, v, bias).transpose(2, 3).flatten(3)
    x = window_reverse(proj(x), size, padded_height, padded_width)
    if shift:
        x = x.roll((shift, shift), dims=(1, 2))
    return crop(x, 0, 0, height, width)


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Cuts `(B, H, W, C)` into windows, `(B, windows, window_size ** 2, C)`."""
    batch, height, width, channels = x.shape
    rows, columns = height // window_size, width // window_size
    x = x.view(batch, rows, window_size, columns, window_size, channels).transpose(2, 3)
    return x.reshape(batch, rows * columns, window_size**2, channels)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Inverse of `window_partition`: back to `(B, H, W, C)`."""
    rows, columns = height // window_size, width // window_size
    x = windows.unflatten(2, (window_size, window_size)).unflatten(1, (rows, columns)).transpose(2, 3)
    return x.reshape(windows.shape[0], height, width, windows.shape[-1])


def shift_masks(window_size: int, shift: int) -> Tensor:
    """Keeps apart what the roll brought together from opposite borders, in each kind of window.

    Returns:
        `(4, N, N)`: windows inside, at the right border, at the bottom, and in the corner. 0 inside a region
        and -100 (the released value) across.
    """
    rolled = torch.arange(window_size) >= window_size - shift
    masks = []
    for bottom in (0, 1):
        for right in (0, 1):
            regions = (2 * bottom * rolled[:, None] + right * rolled).flatten()
            masks.append(regions[:, None] != regions)
    return torch.stack(masks) * -100.0


def window_kinds(rows: int, columns: int, device: torch.device | str = 'cpu') -> Tensor:
    """Which of the shift masks each window of a map has, `(rows * columns,)`."""
    bottom = torch.arange(rows, device=device) == rows - 1
    right = torch.arange(columns, device=device) == columns - 1
    return (2 * bottom[:, None] + 1 * right).flatten()
