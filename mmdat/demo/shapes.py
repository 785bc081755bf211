"""Pictures of simple things, drawn with exact visible masks: the content of the demo's data set."""

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

SUPERSAMPLING = 4
MIN_VISIBLE = 0.55  # of a thing's area, after everything in front of it is drawn

Colour = tuple[int, int, int]  # BGR
INK, GREY, WHITE = (34, 32, 30), (74, 70, 66), (245, 245, 245)
CREAM, RED = (222, 238, 246), (32, 28, 190)


class Layer(NamedTuple):
    """A flat polygon, or a stroke along `points` if it has a width; 1 is half the thing's size."""

    points: np.ndarray  # (N, 2) x, y within the unit disc
    colour: Colour
    width: float | None = None


class Thing(NamedTuple):
    """A drawn thing; `name` is one of COCO's categories."""

    name: str
    mask: np.ndarray  # (H, W) bool, the visible part
    full_area: int  # pixels, hidden ones included


def draw_scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, list[Thing]]:
    """Draw 3 to 7 things on a textured background; later things stand in front of earlier ones.

    Returns:
        The image, (H, W, 3) uint8 in BGR, and its things from back to front.
    """
    canvas = _background(rng, height, width)
    things: list[Thing] = []
    for _ in range(rng.integers(3, 8)):
        for _attempt in range(20):
            name = str(rng.choice(list(PAINTERS)))
            colours, alpha, (y, x) = _render(rng, PAINTERS[name](rng), height, width)
            mask = np.zeros((height, width), bool)
            window = np.s_[y : y + len(alpha), x : x + len(alpha)]
            mask[window] = alpha >= 0.5
            behind = [thing._replace(mask=thing.mask & ~mask) for thing in things]
            if all(map(_shows_enough, behind)):
                things = [*behind, Thing(name, mask, int(mask.sum()))]
                canvas[window] += alpha[..., None] * (colours - canvas[window])
                break
    grain = rng.normal(0, rng.uniform(3, 9), (height, width, 1))
    return np.clip(canvas + grain, 0, 255).round().astype(np.uint8), things


def _shows_enough(thing: Thing) -> bool:
    """Whether enough is visible, and without a hole (which COCO's polygons cannot express)."""
    if thing.mask.sum() < MIN_VISIBLE * thing.full_area:
        return False
    outside = np.pad(~thing.mask, 1, constant_values=True).astype(np.uint8)
    return cv2.connectedComponents(outside, connectivity=4)[0] == 2


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A muted vertical gradient with clouds of two sizes, (H, W, 3) float32."""
    top, bottom = (_muted(rng) for _ in range(2))
    canvas = np.linspace(top, bottom, height, dtype=np.float32)[:, None].repeat(width, axis=1)
    for cells, strength in ((4, 20), (24, 10)):
        clouds = rng.normal(0, strength, (cells, cells * width // height)).astype(np.float32)
        canvas += cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    return canvas


def _render(
    rng: np.random.Generator, layers: list[Layer], height: int, width: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Draw layers at a random size, tilt, aspect and place; the first one cuts out all others.

    Returns:
        Colours (S, S, 3) and coverage (S, S) in [0, 1], float32, and the square's top left (y, x).
    """
    radius = min(height, width) * np.exp(rng.uniform(np.log(0.075), np.log(0.24)))
    side = 2 * int(np.ceil(radius))
    tilt = np.deg2rad(rng.uniform(-15, 15))
    rotate = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    unit = radius * SUPERSAMPLING
    transform = rotate @ np.diag([rng.uniform(0.8, 1), 1]) * unit
    centre = side * SUPERSAMPLING / 2
    outlines = [np.round(layer.points @ transform.T + centre).astype(np.int32) for layer in layers]

    alpha = np.zeros((side * SUPERSAMPLING,) * 2, np.uint8)
    cv2.fillPoly(alpha, outlines[:1], 255)
    colours = np.full((*alpha.shape, 3), layers[0].colour, np.uint8)
    for outline, layer in zip(outlines, layers, strict=True):
        if layer.width is None:
            cv2.fillPoly(colours, [outline], layer.colour)
        else:
            cv2.polylines(colours, [outline], False, layer.colour, max(1, round(layer.width * unit)))
    alpha = cv2.resize(alpha, (side, side), interpolation=cv2.INTER_AREA) / 255
    colours = cv2.resize(colours, (side, side), interpolation=cv2.INTER_AREA)

    light = np.deg2rad(rng.uniform(0, 360))
    slope = np.linspace(-1, 1, side)
    tint = np.sin(light) * slope[:, None] + np.cos(light) * slope
    shade = rng.uniform(0.85, 1.05) + 0.15 * tint
    corner = (int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1)))
    return np.float32(colours * shade[..., None]), np.float32(alpha), corner


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * blue), round(255 * green), round(255 * red)


def _muted(rng: np.random.Generator) -> Colour:
    return _hsv(rng.uniform(), rng.uniform(0.1, 0.45), rng.uniform(0.35, 0.85))


def _ring(
    corners: int, radius: float = 1, turn: float = 0, centre: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """A regular polygon; `turn` in parts of a full circle."""
    angles = 2 * np.pi * (np.arange(corners) / corners + turn)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + centre


def _disc(radius: float = 1, centre: tuple[float, float] = (0, 0)) -> np.ndarray:
    return _ring(48, radius, centre=centre)


def _line(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, np.float64)


def _spoke(turn: float, start: float, end: float) -> np.ndarray:
    """From one radius to another."""
    return _ring(1, turn=turn) * [[start], [end]]


def _stop_sign(rng: np.random.Generator) -> list[Layer]:
    # Strokes of the four letters on a grid 1 wide and 2 high
    letters = (
        [(1, 0), (0, 0), (0, 1), (1, 1), (1, 2), (0, 2)],
        [(0, 0), (1, 0), (0.5, 0), (0.5, 2)],
        [(0, 0), (1, 0), (1, 2), (0, 2), (0, 0)],
        [(0, 2), (0, 0), (1, 0), (1, 1), (0, 1)],
    )
    text = [np.array(s) * (0.23, 0.27) + (-0.67 + 0.37 * i, -0.27) for i, s in enumerate(letters)]
    plates = [Layer(_ring(8, 1, 1 / 16), WHITE), Layer(_ring(8, 0.9, 1 / 16), RED)]
    return plates + [Layer(points, WHITE, 0.09) for points in text]


def _traffic_light(rng: np.random.Generator) -> list[Layer]:
    lit = rng.integers(3)
    housing = [Layer(_line((-0.38, -0.92), (0.38, -0.92), (0.38, 0.92), (-0.38, 0.92)), INK)]
    return housing + [
        Layer(_disc(0.25, (0, 0.58 * (i - 1))), _hsv(hue, 0.9, 1.0 if i == lit else 0.4))
        for i, hue in enumerate((0.0, 0.12, 0.36))
    ]


def _sports_ball(rng: np.random.Generator) -> list[Layer]:
    turn = rng.uniform(0, np.pi)
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    seams = [
        _line((-1, 0), (1, 0)),
        _line((0, -1), (0, 1)),
        _disc(0.75, (-1.15, 0)),
        _disc(0.75, (1.15, 0)),
    ]
    ball = [Layer(_disc(), _hsv(rng.uniform(0.05, 0.09), 0.85, rng.uniform(0.8, 1)))]
    return ball + [Layer(seam @ rotate, INK, 0.07) for seam in seams]


def _kite(rng: np.random.Generator) -> list[Layer]:
    top, right, bottom, left, middle = (0, -1), (0.68, -0.25), (0, 1), (-0.68, -0.25), (0, -0.25)
    hue = rng.uniform()
    bright, other = _hsv(hue, 0.75, 0.95), _hsv(hue + rng.uniform(0.25, 0.75), 0.75, 0.95)
    return [
        Layer(_line(top, right, bottom, left), bright),
        Layer(_line(top, right, middle), other),
        Layer(_line(left, middle, bottom), other),
        Layer(_line(top, bottom), WHITE, 0.04),
        Layer(_line(left, right), WHITE, 0.04),
    ]


def _clock(rng: np.random.Generator) -> list[Layer]:
    hour, minute = rng.uniform(size=2)
    face = [Layer(_disc(), rng.choice([INK, GREY, RED]).tolist()), Layer(_disc(0.86), CREAM)]
    ticks = [Layer(_spoke(turn / 12, 0.68, 0.77), INK, 0.06) for turn in range(12)]
    hands = [Layer(_spoke(hour, 0, 0.4), INK, 0.1), Layer(_spoke(minute, 0, 0.62), INK, 0.06)]
    return face + ticks + hands


PAINTERS: dict[str, Callable[[np.random.Generator], list[Layer]]] = {
    'stop sign': _stop_sign,
    'traffic light': _traffic_light,
    'sports ball': _sports_ball,
    'kite': _kite,
    'clock': _clock,
}
