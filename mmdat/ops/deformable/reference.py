"""The equations of deformable attention in plain PyTorch: any dtype, any device, the truth of all tests."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..dense import attention
from .coordinates import Coordinates, query_points


def deformable_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_table: Tensor,
    sampling_locations: Tensor,
    query_size: tuple[int, int],
    coordinates: Coordinates = 'half_pixel',
) -> Tensor:
    """See `deformable_attention`. Materialises logits and bias: memory `O(B M N_q N_k)`."""
    bias = relative_position_bias(bias_table, sampling_locations, query_size, coordinates)
    return attention(q, k, v, bias)


def relative_position_bias(
    bias_table: Tensor,
    sampling_locations: Tensor,
    query_size: tuple[int, int],
    coordinates: Coordinates = 'half_pixel',
    indices: Tensor | None = None,
) -> Tensor:
    """Deformable relative position bias, the term `phi(B; R)` of Equation (9).

    `R` is half the displacement from key to query, so it lies in [-1, 1] for keys on the map, and the
    table is stretched over it: its first row stands for -1 and its last for +1, whatever the map's
    size. Beyond the table the bias falls to zero.

    Args:
        bias_table: `(M, T_h, T_w)`, a table for each head.
        sampling_locations: `(B, G, N_k, 2)`; heads are contiguous in the groups.
        query_size: Height and width of the query map.
        coordinates: Where the queries lie, see `coordinates.py`.
        indices: Of the queries, row-major on their map; all by default.

    Returns:
        `(B, M, N_q, N_k)` in the dtype of `sampling_locations`.
    """
    batch, groups, num_keys, _ = sampling_locations.shape
    num_heads = bias_table.shape[0]
    queries = query_points(
        *query_size, coordinates, dtype=sampling_locations.dtype, device=sampling_locations.device
    ).flatten(0, 1)
    if indices is not None:
        queries = queries[indices]
    # halved and flipped before the difference is taken, which is large
    queries, keys = ((points / 2).flip(-1) for points in (queries, sampling_locations))
    displacements = queries[:, None] - keys[:, :, None]
    tables = bias_table.to(sampling_locations.dtype).unflatten(0, (groups, num_heads // groups))
    bias = sample_bilinearly(tables.repeat(batch, 1, 1, 1), displacements.flatten(0, 1))
    return bias.view(batch, num_heads, queries.shape[0], num_keys)


def sample_features_reference(features: Tensor, sampling_locations: Tensor, dtype: torch.dtype) -> Tensor:
    """See `sample_features`. By PyTorch's operation, which wants maps `(B G, C / G, H, W)`."""
    batch, height, width, channels = features.shape
    groups = sampling_locations.shape[1]
    maps = features.view(batch, height, width, groups, channels // groups).permute(0, 3, 4, 1, 2)
    sampled = sample_bilinearly(
        maps.flatten(0, 1).to(sampling_locations.dtype),
        sampling_locations.flatten(0, 1).unsqueeze(1).flip(-1),
    )  # (B * G, C / G, 1, N_k)
    sampled = sampled.view(batch, channels, -1).transpose(1, 2)
    # once for all that follows, which would copy it each
    return sampled.to(dtype, memory_format=torch.contiguous_format)


def sample_bilinearly(images: Tensor, points: Tensor) -> Tensor:
    """Interpolates `(N, C, H, W)` at points `(N, H_out, W_out, 2)`, last dimension `(x, y)`: `(N, C, H_out,
    W_out)`.

    As `F.grid_sample` does with `align_corners=True`, zero outside. On GPUs that one may take cuDNN's
    sampler, which fails on large grids and which compilers cannot follow.
    """
    if torch.jit.is_tracing():  # exporters of traces know the general operation only
        return F.grid_sample(images, points, align_corners=True)
    bilinear, zeros = 0, 0
    return torch.grid_sampler_2d(images, points, bilinear, zeros, True)
