"""Where deformable attention samples its keys, drawn on the image (Figure 6 of the supplement)."""

import math

import cv2
import numpy as np
from torch import Tensor

from ..ops.deformable import Coordinates, reference_points
from .placement import Placement

ORANGE, YELLOW, GREY, INK = (0, 110, 255), (60, 240, 255), (170, 170, 170), (30, 30, 30)  # BGR


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
    return draw_placed_key_points(image, sampling_locations, placement, map_size, stride, coordinates)


def draw_placed_key_points(
    image: np.ndarray,
    sampling_locations: Tensor,
    placement: Placement,
    map_size: tuple[int, int],
    stride: int,
    coordinates: Coordinates = 'half_pixel',
) -> np.ndarray:
    """`draw_key_points` for images that are cropped or flipped, too; `placement` says how."""
    groups, *grid, _ = sampling_locations.shape
    points, references = (
        placement.to_image(locations, map_size, stride)
        for locations in (sampling_locations, reference_points(*grid, coordinates))
    )
    points, references = points.reshape(groups, -1, 2), references.reshape(-1, 2)
    spacing = math.sqrt(image.shape[0] * image.shape[1] / points[..., 0].size)
    radius = min(max(0.12 * spacing, 3.0), 0.01 * max(image.shape[:2]))

    dimmed = dim(image)
    lined = dimmed.copy()
    for group, colour in zip(points, group_colours(groups)):
        for reference, point in zip(references, group):
            _line(lined, reference, point, colour)
    picture = cv2.addWeighted(dimmed, 0.7, lined, 0.3, 0)
    for reference in references:
        _dot(picture, reference, radius / 2, GREY)
    for group, colour in zip(points, group_colours(groups)):
        for point in group:
            _dot(picture, point, radius + 1, INK)
            _dot(picture, point, radius, colour)
    return picture


def group_colours(groups: int) -> list[list[float]]:
    """The colour of the points of each group, BGR."""
    weights = np.linspace(0, 1, groups)[:, None]
    return ((1 - weights) * ORANGE + weights * YELLOW).tolist()


def dim(image: np.ndarray) -> np.ndarray:
    """The image as a background, on which points stand out."""
    return (image * 0.65).astype(np.uint8)


def _line(picture: np.ndarray, start: np.ndarray, end: np.ndarray, colour: tuple) -> None:
    cv2.line(picture, _fixed_point(start), _fixed_point(end), colour, 1, cv2.LINE_AA, 4)


def _dot(picture: np.ndarray, centre: np.ndarray, radius: float, colour: tuple) -> None:
    cv2.circle(picture, _fixed_point(centre), round(radius * 16), colour, -1, cv2.LINE_AA, 4)


def _fixed_point(xy: np.ndarray) -> tuple[int, int]:
    """The 1/16 pixels in which cv2 takes coordinates for `shift=4`."""
    x, y = np.round(xy * 16).astype(int).tolist()
    return x, y
