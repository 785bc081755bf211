"""Where maps, the network's input and the image lie on each other."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from ..errors import UserError

_VALID = 250  # of the channel that tells image from padding
_LARGEST_RESIDUAL = 1.0  # in steps of the ramps


@dataclass(frozen=True)
class Placement:
    """How an image lies on the input of a network.

    Lengths are counted from borders: pixel `i` covers `i` to `i + 1`, and its centre is at `i + 0.5`. On each
    axis the position `t` of the image is at `scale * t + shift` of the input.

    Args:
        size: Height and width of the image.
        scale: Of x and y. Negative where the image is flipped.
        shift: Of x and y. Not 0 where the image is cropped, flipped, or padded at the left or the top.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)

    def to_image(self, locations: Tensor, map_size: tuple[int, int], stride: int) -> np.ndarray:
        """Turns locations on a map into pixels of the image.

        Args:
            locations: `(..., 2)` as `(y, x)`; -1 and +1 are the centres of the map's border pixels.
            map_size: Height and width of the map.
            stride: Pixels of the input for a pixel of the map.

        Returns:
            `(..., 2)` as `(x, y)` in float64; (0, 0) is the centre of the first pixel.
        """
        return self.from_map(to_map_pixels(locations, map_size), stride)

    def from_map(self, positions: np.ndarray, stride: int) -> np.ndarray:
        """The same of positions that are counted in pixels of the map, `(..., 2)` as `(y, x)`."""
        on_input = ((np.asarray(positions, float) + 0.5) * stride)[..., ::-1]
        return (on_input - self.shift) / self.scale - 0.5

    def to_map(self, x: float, y: float, map_size: tuple[int, int], stride: int) -> tuple[int, int]:
        """The pixel of a map, `(y, x)`, that covers a point of the image.

        Raises:
            UserError: If the point lies outside the image, or the input does not show it.
        """
        height, width = self.size
        if not (-0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5):
            raise UserError(f'the query {x:g} {y:g} lies outside the image of {width} x {height} pixels')
        on_input = (np.array([x, y]) + 0.5) * self.scale + self.shift
        column, row = np.floor(on_input / stride + 1e-6).astype(int).tolist()
        # rounded sizes, and the image's last border, lie a hair beyond the map
        column, row = (n - (n == size) for n, size in zip((column, row), map_size[::-1]))
        if not (0 <= row < map_size[0] and 0 <= column < map_size[1]):
            raise UserError(f'the query {x:g} {y:g} lies where the test pipeline crops the image away')
        return row, column

    def covers(self, map_size: tuple[int, int], stride: int) -> np.ndarray:
        """Which pixels of a map have their centre on the image, `(H, W)`; the others are padding."""
        rows, columns = np.indices(map_size)
        return self.contains(self.from_map(np.stack([rows, columns], axis=-1), stride))

    def contains(self, points: np.ndarray) -> np.ndarray:
        """Which points `(..., 2)`, as `(x, y)`, lie on the image: booleans `(...)`."""
        return ((points >= -0.5) & (points <= np.array(self.size)[::-1] - 0.5)).all(axis=-1)

    def shown(self, input_size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of the image that an input of this height and width shows."""
        slices = []
        for axis in (1, 0):
            ends = np.array([0, input_size[1 - axis]]) - self.shift[axis]
            low, high = np.sort(ends / self.scale[axis]).round().astype(int).clip(0, self.size[1 - axis])
            slices.append(slice(int(low), int(high)))
        return slices[0], slices[1]

    def of_part(self, rows: slice, columns: slice, zoom: tuple[float, float]) -> 'Placement':
        """The placement of a part of the image that is enlarged by `zoom`, in x and y."""
        zoom = np.array(zoom)
        size = tuple(round((s.stop - s.start) * z) for s, z in ((rows, zoom[1]), (columns, zoom[0])))
        scale = np.array(self.scale)
        shift = self.shift + scale * (columns.start, rows.start)
        return replace(self, size=size, scale=tuple((scale / zoom).tolist()), shift=tuple(shift.tolist()))


def to_map_pixels(locations: Tensor, map_size: tuple[int, int]) -> np.ndarray:
    """Normalised locations `(..., 2)` as positions in pixels of the map, in float64; both `(y, x)`."""
    locations = locations.detach().cpu().double().numpy()
    return (locations + 1) / 2 * (np.array(map_size) - 1)


def find_placement(pipeline: Callable[[dict], dict | None], image_size: tuple[int, int]) -> Placement:
    """Finds out what a test pipeline does to the shape of an image: it resizes, crops, pads and flips.

    The pipeline is run on an image whose colours tell where each pixel comes from, so that nothing needs to
    be known about its transforms.

    Args:
        pipeline: As of a dataset; it begins with loading the file `img_path`.
        image_size: Height and width.

    Raises:
        UserError: If the colours come out otherwise, by a rotation for instance.
    """
    height, width = image_size
    image = np.full((height, width, 3), 255, np.uint8)
    ramps = [np.arange(n) * min(255 / max(n - 1, 1), 16) for n in (width, height)]  # fine enough where small
    image[..., 0] = ramps[0].round()
    image[..., 1] = ramps[1].round()[:, None]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / 'ramps.png')
        cv2.imwrite(path, image)
        inputs = pipeline(dict(img_path=path, img_id=0))['inputs'].double().numpy()
    is_image = inputs[2] >= _VALID
    scale, shift = [], []
    for axis, (size, ramp) in enumerate(zip((width, height), ramps)):
        step = ramp[1] if size > 1 else 1.0
        lines = np.where(is_image, inputs[axis], np.nan)
        lines = lines if axis == 0 else lines.T  # along the last axis
        known = ~np.isnan(lines)
        if not known.any():
            raise _unknown()
        filled, count = np.where(known, lines, 0), known.sum(axis=0)
        at = np.flatnonzero(count)
        mean = filled.sum(axis=0)[at] / count[at]
        spread = np.abs(filled[:, at] - mean)[known[:, at]].max()
        factor, offset = _fit(at + 0.5, mean / step + 0.5, size)
        residual = np.abs(mean / step + 0.5 - (factor * (at + 0.5) + offset)).mean() * step
        if max(spread, residual) > _LARGEST_RESIDUAL:
            raise _unknown()
        # inputs are made of whole pixels
        resized = max(round(size / abs(factor)), 1)
        scale.append(float(np.copysign(resized / size, factor)))
        shift.append(float(np.mean(at + 0.5 - scale[-1] * (factor * (at + 0.5) + offset)).round()))
    return Placement(image_size, tuple(scale), tuple(shift))


def _fit(at_input: np.ndarray, at_image: np.ndarray, size: int) -> tuple[float, float]:
    """The line `at_image = factor * at_input + offset`."""
    # resized images have borders that repeat
    inside = (at_image > 1) & (at_image < size - 1)
    if inside.sum() < 2:
        return size / len(at_input), float(at_image.mean() - size / len(at_input) * at_input.mean())
    factor, offset = np.polyfit(at_input[inside], at_image[inside], 1)
    return float(factor), float(offset)


def _unknown() -> UserError:
    return UserError(
        'the test pipeline does more to images than to resize, crop, pad and flip them: where the network '
        'looks cannot be drawn on the image'
    )
