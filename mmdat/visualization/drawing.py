"""Panels with titles, marks and legends, put together to one picture.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. Kinds of marks differ in shape.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

ORANGE, BLUE, INK, GREY = '#E69F00', '#0072B2', '#1e1e1e', '#aaaaaa'
QUERY_COLOURS = ('#D55E00', '#56B4E9', '#F0E442', '#009E73', '#CC79A7', '#0072B2')  # vermilion first

WIDTH = 1290  # of a picture; pages show it at about two thirds of that
LARGEST_PANEL = 640
MARGIN, GAP, TITLE, FONT = 14, 12, 30, 17  # pixels
_DPI = 100
_POINTS = 72 / _DPI  # in a pixel
_BORDER = 1.1  # of dots


@dataclass(frozen=True)
class Panel:
    """One image of a picture.

    Args:
        title: A few words.
        image: `(H, W, 3)` uint8, BGR. All panels of a row have the same size.
        draw: Draws upon it, in pixels of the image.
    """

    title: str
    image: np.ndarray
    draw: Callable[[Axes], None] = field(default=lambda axes: None)


@dataclass(frozen=True)
class Row:
    """Panels side by side, and what their marks mean."""

    panels: Sequence[Panel]
    legend: Sequence[Artist] = ()


def panel_width(columns: int) -> int:
    """Width in pixels of the panels of a row with so many."""
    return min(LARGEST_PANEL, (WIDTH - 2 * MARGIN - GAP * (columns - 1)) // columns)


def render(rows: Sequence[Row]) -> np.ndarray:
    """Puts rows below each other: a picture `(H, W, 3)` uint8, BGR, of `WIDTH` or less."""
    widths = [_across(len(row.panels), row.panels[0].image.shape[1]) for row in rows]
    width = max(widths) + 2 * MARGIN
    legends = [_legend_height(row.legend, width) for row in rows]
    heights = [TITLE + row.panels[0].image.shape[0] + GAP + legend for row, legend in zip(rows, legends)]
    height = sum(heights) + GAP * (len(rows) - 1) + MARGIN
    figure = _figure(width, height)
    top = 0
    for row, row_height in zip(rows, heights):
        size = _title_size(figure, row)
        for i, panel in enumerate(row.panels):
            left = MARGIN + i * _across(1, panel.image.shape[1]) + i * GAP
            _add_panel(figure, panel, size, left, top, width, height)
        legend_top = top + TITLE + row.panels[0].image.shape[0] + GAP
        if row.legend:
            _add_legend(figure, row.legend, width, 1 - legend_top / height)
        top += row_height + GAP
    return _to_array(figure)


def draw_upon(image: np.ndarray, draw: Callable[[Axes], None]) -> np.ndarray:
    """The image with marks on it and nothing around: `(H, W, 3)` uint8, BGR."""
    height, width = image.shape[:2]
    figure = _figure(width, height)
    _add_image(figure, (0, 0, 1, 1), image, draw)
    return _to_array(figure)


def _across(columns: int, width: int) -> int:
    return columns * width + GAP * (columns - 1)


def _figure(width: int, height: int) -> Figure:
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor='white')
    FigureCanvasAgg(figure)
    return figure


def _add_panel(
    figure: Figure, panel: Panel, title_size: float, left: int, top: int, width: int, height: int
) -> None:
    rows, columns = panel.image.shape[:2]
    bottom = height - top - TITLE - rows
    place = left / width, bottom / height, columns / width, rows / height
    _add_image(figure, place, panel.image, panel.draw)
    above = left / width, (bottom + rows + 8) / height
    figure.text(*above, panel.title, fontsize=title_size, color=INK)


def _title_size(figure: Figure, row: Row) -> float:
    """The size of letters, in points, with which all titles of a row fit above their panels."""
    size, width = FONT * _POINTS, row.panels[0].image.shape[1]
    for panel in row.panels:
        text = figure.text(0, 0, panel.title, fontsize=size)
        while text.get_window_extent(figure.canvas.get_renderer()).width > width:
            size *= 0.95  # widths are not quite in proportion
            text.set_fontsize(size)
        text.remove()
    return size


def _add_image(figure: Figure, place: tuple, image: np.ndarray, draw: Callable[[Axes], None]) -> None:
    axes = figure.add_axes(place)
    axes.imshow(image[..., ::-1], interpolation='none')
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5), autoscale_on=False)
    axes.set_axis_off()
    draw(axes)


def _to_array(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., 2::-1].copy()


def _add_legend(figure: Figure, handles: Sequence[Artist], width: int, top: float) -> Legend:
    """In as many columns as the width allows."""
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(
            handles=handles,
            ncols=columns,
            loc='upper left',
            bbox_to_anchor=(MARGIN / width, top),
            fontsize=FONT * _POINTS,
            labelcolor=INK,
            frameon=False,
            borderpad=0,
            borderaxespad=0,
            columnspacing=1.5,
            handletextpad=0.5,
        )
        if columns == 1 or legend.get_window_extent(figure.canvas.get_renderer()).width <= width - 2 * MARGIN:
            return legend
        legend.remove()


def _legend_height(handles: Sequence[Artist], width: int) -> int:
    if not handles:
        return 0
    figure = _figure(width, 400)
    return (
        int(_add_legend(figure, handles, width, 1).get_window_extent(figure.canvas.get_renderer()).height) + 4
    )


def draw_star(axes: Axes, point: np.ndarray, colour: str = QUERY_COLOURS[0]) -> None:
    """A query at `(x, y)`."""
    axes.plot(*point, clip_on=False, zorder=5, **_star(colour))


def draw_dots(
    axes: Axes,
    points: np.ndarray,
    diameter: float | np.ndarray,
    colour: str = ORANGE,
    edge: str | None = INK,
) -> None:
    """Keys at `(N, 2)`, as `(x, y)`, with diameters in pixels; the later upon the earlier."""
    border = _BORDER if edge else 0
    sizes = np.broadcast_to((np.asarray(diameter, float) + border) * _POINTS, len(points)) ** 2
    style = dict(edgecolors=edge or 'none', linewidths=border * _POINTS)
    axes.scatter(*points.T, s=sizes, c=colour, clip_on=False, zorder=3, **style)


def draw_lines(axes: Axes, starts: np.ndarray, ends: np.ndarray, colour: str, alpha: float) -> None:
    """Thin lines between points `(N, 2)`, as `(x, y)`."""
    lines = LineCollection(np.stack([starts, ends], axis=1), colors=colour, linewidths=_POINTS, alpha=alpha)
    axes.add_collection(lines, autolim=False)


def draw_box(
    axes: Axes, left: float, top: float, right: float, bottom: float, colour: str, dashed: bool
) -> None:
    """A region between pixels, filled thinly."""
    style = dict(linestyle='--' if dashed else '-', linewidth=2.2, clip_on=False, zorder=4)
    size = right - left, bottom - top
    axes.add_patch(Rectangle((left, top), *size, facecolor=colour, alpha=0.15, zorder=2))
    axes.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=INK, **style | dict(linewidth=4)))
    axes.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=colour, **style))


def star_mark(label: str, colour: str = QUERY_COLOURS[0]) -> Artist:
    """The star of a query, for a legend."""
    return Line2D([], [], linestyle='', label=label, **_star(colour))


def point_mark(label: str, diameter: float, colour: str = ORANGE, edge: str = INK) -> Artist:
    """A key, for a legend."""
    style = dict(marker='o', markersize=diameter * _POINTS, markerfacecolor=colour, markeredgecolor=edge)
    return Line2D([], [], linestyle='', label=label, markeredgewidth=0.8, **style)


def box_mark(label: str, dashed: bool, colour: str = GREY) -> Artist:
    """The border of a region, for a legend."""
    return Patch(
        facecolor='white', edgecolor=colour, linestyle='--' if dashed else '-', linewidth=2.2, label=label
    )


def _star(colour: str) -> dict:
    return dict(
        marker='*',
        markersize=22 * _POINTS,
        markerfacecolor=colour,
        markeredgecolor='white',
        markeredgewidth=1.2,
    )
