"""Where deformable attention samples its keys, drawn on the image (Figure 6 of the supplement)."""

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from torch import Tensor

from ..ops.deformable import Coordinates, reference_points
from .drawing import GREY, INK, draw_dots, draw_lines, draw_upon
from .placement import Placement

ORANGE, YELLOW = '#ff6e00', '#fff03c'  # as in Figure 6
_LARGEST_COVER = 0.4  # share of the image under lines, from which on they become fainter


def to_image(
    locations: Tensor,
    map_size: tuple[int, int],
    stride: int,
    scale_factor: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Turns locations on a feature map into pixels of the image.

    Pixel `p` of the map stands for the pixels `s p` to `s p + s - 1` of the network's input, so its
    centre is at `s (p + 0.5) - 0.5`. Resizing keeps the borders of an image where they are.

    Args:
        locations: `(..., 2)` as `(y, x)`; -1 and +1 are the centres of the map's border pixels.
        map_size: Height and width of the map.
        stride: Pixels of the input per pixel of the map.
        scale_factor: What the image's width and height were multiplied by to make the input.

    Returns:
        `(..., 2)` as `(x, y)` in float64; (0, 0) is the centre of the first pixel.
    """
    return Placement((0, 0), scale_factor).to_image(locations, map_size, stride)


def draw_key_points(
    image: np.ndarray,
    sampling_locations: Tensor,
    map_size: tuple[int, int],
    stride: int,
    scale_factor: tuple[float, float] = (1.0, 1.0),
    coordinates: Coordinates = 'half_pixel',
) -> np.ndarray:
    """Draws the keys of one deformable attention, each with a line from its reference point (grey).

    Groups run from orange to yellow. The image is dimmed, so that the points stand out.

    Args:
        image: `(H, W, 3)` uint8, BGR.
        sampling_locations: `(G, H_k, W_k, 2)`, one image of what `DAT.sampling_locations` returns.
        map_size: As for `to_image`, as well as `stride` and `scale_factor`.
        coordinates: Where the reference points lie, the attention's own setting.

    Returns:
        A picture of the image's size.
    """
    placement = Placement(image.shape[:2], scale_factor)
    draw = key_points_drawer(sampling_locations, placement, map_size, stride, coordinates)
    return draw_upon(dim(image), draw)


def key_points_drawer(
    sampling_locations: Tensor,
    placement: Placement,
    map_size: tuple[int, int],
    stride: int,
    coordinates: Coordinates = 'half_pixel',
) -> Callable[[Axes], None]:
    """What `draw_key_points` draws upon the dimmed image, for a panel; `placement` says where it lies."""
    groups, *grid, _ = sampling_locations.shape
    points, references = (
        placement.to_image(locations, map_size, stride)
        for locations in (sampling_locations, reference_points(*grid, coordinates))
    )
    points, references = points.reshape(groups, -1, 2), references.reshape(-1, 2)
    spacing = math.sqrt(placement.size[0] * placement.size[1] / points[..., 0].size)
    radius = min(max(0.12 * spacing, 3.0), 0.01 * max(placement.size))

    lengths = np.linalg.norm(points - references, axis=-1).sum()
    covered = lengths / (placement.size[0] * placement.size[1])  # by lines that are a pixel wide

    def draw(axes: Axes) -> None:
        for group, colour in zip(points, group_colours(groups)):
            draw_lines(axes, references, group, colour, alpha=0.35 / max(covered / _LARGEST_COVER, 1))
        draw_dots(axes, references[placement.contains(references)], max(radius, 3), GREY, None)
        for group, colour in zip(points, group_colours(groups)):
            draw_dots(axes, group[placement.contains(group)], 2 * radius, colour, INK)

    return draw


def group_colours(groups: int) -> list[str]:
    """The colour of the points of each group."""
    weights = np.linspace(0, 1, groups)[:, None]
    first, last = (np.array(to_rgb(colour)) for colour in (ORANGE, YELLOW))
    return [to_hex(colour) for colour in (1 - weights) * first + weights * last]


def dim(image: np.ndarray) -> np.ndarray:
    """The image as a background, on which points stand out."""
    return (image * 0.65).astype(np.uint8)
