"""Bilinear sampling of features at deformed points, Equations (7) and (8), forward and backward.

    sample:    features of points, by blocks of points
    locations: gradients of positions, by blocks of points
    features:  gradients of features, by tiles of pixels

Each writes its own numbers only: nothing is atomic, and sums have one order. Features are channels-last, so a
pixel's channels are one piece of memory.

The last kernel gathers, where a scatter would need atomic additions. A point gives to pixel `i` of an axis
the weight `max(0, 1 - |t - i|)`, a tent around the point's coordinate `t`, so the gradient of a tile of
pixels is a product of matrices: weights of points, times gradients of what was sampled at these. A program
looks which blocks have points that touch its tile, and leaves out all others.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .forward import image_and_head, tile_of_queries
from .launch import Launch, aligned

SIZES = 'num_groups height width num_points'.split()
_ROWS, _COLUMNS = 8, 8  # of a tile of pixels
_POINTS, _BLOCKS = 32, 32  # in a block, and blocks that are looked at together, one for each bit of a word
_MAX_CHANNELS = 128  # that a program holds
_NUMBERS = 2048  # that a program samples


@triton.jit
def load_points(locations_ptr, n, exist, height, width):
    """Coordinates of points in pixels, rounded as PyTorch rounds them.

    Points that do not exist, or touch no pixel, or whose position is not a number, are two pixels before the
    map.
    """
    y = tl.load(locations_ptr + n * 2, mask=exist, other=0.0)
    x = tl.load(locations_ptr + n * 2 + 1, mask=exist, other=0.0)
    y = (y + 1) * 0.5 * (height - 1).to(tl.float32)
    x = (x + 1) * 0.5 * (width - 1).to(tl.float32)
    y = tl.where(exist & (y >= -1) & (y < height), y, -2.0)
    return y, tl.where(exist & (x >= -1) & (x < width), x, -2.0)


@triton.jit
def tent(t):
    """Weight of a pixel at a distance."""
    return tl.maximum(1 - tl.abs(t), 0.0)


@triton.jit
def mask_of(exist, channels, CHANNELS: tl.constexpr, D: tl.constexpr):
    """Of rows that exist, and those of `channels` that are there."""
    if CHANNELS % D == 0:
        return exist[:, None]
    else:
        return exist[:, None] & (channels < CHANNELS)[None, :]


@triton.jit
def load_pixels(
    features_ptr, row, column, channels, height, width, num_groups, CHANNELS: tl.constexpr, D: tl.constexpr
):
    """Features `(n, D)` in float32, zero outside the map."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    at = (row * width + column) * (num_groups * CHANNELS)
    features = tl.load(
        features_ptr + at[:, None] + channels[None, :], mask=mask_of(inside, channels, CHANNELS, D), other=0.0
    )
    return features.to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def sample_kernel(
    features_ptr,
    locations_ptr,
    out_ptr,
    num_groups,
    height,
    width,
    num_points,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    POINTS: tl.constexpr,
):
    """`out` `(B, N, G CHANNELS)`. One program: a block of points of a group, and `D` of its channels."""
    blocks = tl.cdiv(num_points, POINTS)
    b, g = image_and_head(tl.program_id(0) // blocks, num_groups, 1)
    features_ptr += b * (height * width * (num_groups * CHANNELS)) + g * CHANNELS
    locations_ptr += (b * num_groups + g) * num_points * 2
    out_ptr += b * (num_points * (num_groups * CHANNELS)) + g * CHANNELS

    n = tl.program_id(0) % blocks * POINTS + tl.arange(0, POINTS)
    exist = n < num_points
    channels = tl.program_id(1) * D + tl.arange(0, D)
    y, x = load_points(locations_ptr, n, exist, height, width)
    out = tl.zeros((POINTS, D), tl.float32)
    for corner in tl.static_range(4):
        row = tl.floor(y).to(tl.int32) + corner // 2
        column = tl.floor(x).to(tl.int32) + corner % 2
        features = load_pixels(features_ptr, row, column, channels, height, width, num_groups, CHANNELS, D)
        out += (tent(y - row) * tent(x - column))[:, None] * features
    at = n * (num_groups * CHANNELS)
    tl.store(out_ptr + at[:, None] + channels[None, :], out, mask=mask_of(exist, channels, CHANNELS, D))


@triton.jit(do_not_specialize=SIZES)
def locations_kernel(
    grad_ptr,
    features_ptr,
    locations_ptr,
    grad_locations_ptr,
    num_groups,
    height,
    width,
    num_points,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    POINTS: tl.constexpr,
):
    """Gradients of positions `(B, G, N, 2)`. One program: a block of points of a group.

    A point on a pixel is at the start of a cell, as in `F.grid_sample`.
    """
    blocks = tl.cdiv(num_points, POINTS)
    b, g = image_and_head(tl.program_id(0) // blocks, num_groups, 1)
    grad_ptr += b * (num_points * (num_groups * CHANNELS)) + g * CHANNELS
    features_ptr += b * (height * width * (num_groups * CHANNELS)) + g * CHANNELS
    locations_ptr += (b * num_groups + g) * num_points * 2
    grad_locations_ptr += (b * num_groups + g) * num_points * 2

    n = tl.program_id(0) % blocks * POINTS + tl.arange(0, POINTS)
    exist = n < num_points
    y, x = load_points(locations_ptr, n, exist, height, width)
    grad_y = tl.zeros((POINTS, D), tl.float32)
    grad_x = tl.zeros((POINTS, D), tl.float32)
    for first in tl.static_range(0, CHANNELS, D):
        channels = first + tl.arange(0, D)
        at = n * (num_groups * CHANNELS)
        mask = mask_of(exist, channels, CHANNELS, D)
        grad = tl.load(grad_ptr + at[:, None] + channels[None, :], mask=mask, other=0.0).to(tl.float32)
        for corner in tl.static_range(4):
            row = tl.floor(y).to(tl.int32) + corner // 2
            column = tl.floor(x).to(tl.int32) + corner % 2
            features = load_pixels(
                features_ptr, row, column, channels, height, width, num_groups, CHANNELS, D
            )
            weight_y = tent(y - row)
            weight_x = tent(x - column)
            grad_y += grad * features * (weight_x if corner // 2 else -weight_x)[:, None]
            grad_x += grad * features * (weight_y if corner % 2 else -weight_y)[:, None]
    tl.store(grad_locations_ptr + n * 2, tl.sum(grad_y, 1) * ((height - 1) * 0.5), mask=exist)
    tl.store(grad_locations_ptr + n * 2 + 1, tl.sum(grad_x, 1) * ((width - 1) * 0.5), mask=exist)


@triton.jit(do_not_specialize=SIZES)
def features_kernel(
    grad_ptr,
    locations_ptr,
    grad_features_ptr,
    num_groups,
    height,
    width,
    num_points,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Gradients of features `(B, H, W, G CHANNELS)`.

    One program: a tile of pixels of a group, and `D` of its channels, with all points. It looks at `BLOCKS`
    blocks of points at once, and makes one bit of each: so it waits for memory and other threads once for
    them all. A gradient that is not finite spoils the tiles that its point touches, not its four pixels only.
    """
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    b, g = image_and_head(tl.program_id(0) // tiles, num_groups, 1)
    grad_ptr += b * (num_points * (num_groups * CHANNELS)) + g * CHANNELS
    locations_ptr += (b * num_groups + g) * num_points * 2
    grad_features_ptr += b * (height * width * (num_groups * CHANNELS)) + g * CHANNELS
    pixels, exist, first_row, first_column = tile_of_queries(
        tl.program_id(0) % tiles, height, width, ROWS, COLUMNS
    )
    pixel = tl.arange(0, ROWS * COLUMNS)
    channels = tl.program_id(1) * D + tl.arange(0, D)
    sums = tl.zeros((ROWS * COLUMNS, D), tl.float32)
    for first in range(0, num_points, BLOCKS * POINTS):
        all_n = first + tl.arange(0, BLOCKS)[:, None] * POINTS + tl.arange(0, POINTS)[None, :]
        all_y, all_x = load_points(locations_ptr, all_n, all_n < num_points, height, width)
        touch = touches(all_y - first_row, all_x - first_column, ROWS, COLUMNS)
        bits = tl.sum(tl.max(touch.to(tl.int32), 1) << tl.arange(0, BLOCKS), 0)
        for block in range(0, BLOCKS):
            if (bits >> block) & 1:
                n = first + block * POINTS + tl.arange(0, POINTS)
                y, x = load_points(locations_ptr, n, n < num_points, height, width)
                y -= first_row
                x -= first_column
                at = n * (num_groups * CHANNELS)
                mask = mask_of(touches(y, x, ROWS, COLUMNS), channels, CHANNELS, D)
                grad = tl.load(grad_ptr + at[:, None] + channels[None, :], mask=mask, other=0.0)
                weights = tent(y[None, :] - (pixel // COLUMNS)[:, None])
                weights *= tent(x[None, :] - (pixel % COLUMNS)[:, None])
                sums = add_product(weights, grad, sums)
    at = pixels * (num_groups * CHANNELS)
    tl.store(
        grad_features_ptr + at[:, None] + channels[None, :], sums, mask=mask_of(exist, channels, CHANNELS, D)
    )


@triton.jit
def touches(y, x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether points have a weight in a tile, from which their coordinates are counted."""
    return (y > -1) & (y < ROWS) & (x > -1) & (x < COLUMNS)


@triton.jit
def add_product(weights, rows, sums):
    """`sums + weights rows`. In half precision weights are split in two, which together are exact enough."""
    if rows.dtype == tl.float32:
        return tl.dot(weights, rows, sums, input_precision='ieee')
    else:
        rounded = weights.to(rows.dtype)
        sums = tl.dot(rounded, rows, sums)
        return tl.dot((weights - rounded.to(tl.float32)).to(rows.dtype), rows, sums)


def forward(
    features: Tensor, locations: Tensor, out: Tensor, execute: Callable[[Launch], None] = Launch.run
) -> None:
    """Fills `out` `(B, N, C)` with what features `(B, H, W, C)` are at locations `(B, G, N, 2)`."""
    shared = _Shared.of(features, locations)
    execute(
        Launch(
            sample_kernel,
            (shared.groups * shared.blocks, shared.chunks),
            (aligned(features), aligned(locations), out, *shared.sizes),
            dict(**shared.constants, POINTS=shared.points),
        )
    )


def backward(
    grad_out: Tensor,
    features: Tensor,
    locations: Tensor,
    grads: tuple[Tensor, Tensor],
    execute: Callable[[Launch], None] = Launch.run,
) -> None:
    """Fills `grads`, those of features and locations."""
    grad_out, features, locations = map(aligned, (grad_out, features, locations))
    grad_features, grad_locations = grads
    shared = _Shared.of(features, locations)
    execute(
        Launch(
            locations_kernel,
            (shared.groups * shared.blocks,),
            (grad_out, features, locations, grad_locations, *shared.sizes),
            dict(**shared.constants, POINTS=shared.points),
        )
    )
    _, height, width, _ = features.shape
    rows = _ROWS // 2 if grad_out.dtype == torch.float32 else _ROWS  # without tensor cores, in registers
    tiles = triton.cdiv(height, rows) * triton.cdiv(width, _COLUMNS)
    execute(
        Launch(
            features_kernel,
            (shared.groups * tiles, shared.chunks),
            (grad_out, locations, grad_features, *shared.sizes),
            dict(**shared.constants, ROWS=rows, COLUMNS=_COLUMNS, POINTS=_POINTS, BLOCKS=_BLOCKS),
        )
    )


class Case(NamedTuple):
    """What compiled kernels depend on.

    Attributes:
        features: Dtype of the features.
        out: Dtype of what is sampled.
        channels: Of a group.
    """

    features: torch.dtype
    out: torch.dtype
    channels: int


def launches(case: Case) -> list[Launch]:
    """What both passes launch, with tensors without numbers on the meta device: to be compiled."""
    found: list[Launch] = []
    features = torch.empty(1, 1, 1, case.channels, dtype=case.features, device='meta')
    locations = torch.empty(1, 1, 1, 2, device='meta')
    out = torch.empty(1, 1, case.channels, dtype=case.out, device='meta')
    forward(features, locations, out, found.append)
    backward(out, features, locations, (features, locations), found.append)
    return found


class _Shared(NamedTuple):
    """What all kernels take alike, and how many programs they need."""

    sizes: tuple[int, ...]
    constants: dict[str, int]
    groups: int  # of all images
    chunks: int  # of the channels of a group
    points: int  # in a block
    blocks: int  # of points

    @classmethod
    def of(cls, features: Tensor, locations: Tensor) -> '_Shared':
        _, height, width, channels = features.shape
        batch, groups, num_points, _ = locations.shape
        channels //= groups
        held = min(_MAX_CHANNELS, max(16, triton.next_power_of_2(channels)))  # tensor cores need 16
        points = _NUMBERS // held
        return cls(
            sizes=(groups, height, width, num_points),
            constants=dict(CHANNELS=channels, D=held),
            groups=batch * groups,
            chunks=triton.cdiv(channels, held),
            points=points,
            blocks=triton.cdiv(num_points, points),
        )
