"""The pictures of the paper: sampled keys (Figure 6), important keys (5), attention (7), what is seen (1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from mmengine.structures import BaseDataElement

from ..errors import UserError
from ..spelling import did_you_mean
from .deformable import (
    DeformableLayer,
    deformable_layers,
    find_dat,
    last_of_each_stage,
    propagate_scores,
    top_keys,
)
from .drawing import (
    GREY,
    ORANGE,
    QUERY_COLOURS,
    Panel,
    Row,
    box_mark,
    draw_box,
    draw_dots,
    draw_star,
    panel_width,
    point_mark,
    render,
    star_mark,
)
from .inspection import inspecting
from .key_points import dim, group_colours, key_points_drawer
from .placement import Placement, to_map_pixels
from .queries import default_queries
from .views import Canvas, View, ViewedModel
from .windows import WindowLayer, dcn_points, default_windows, window_layers

KINDS = ('points', 'keys', 'attention')
Query = tuple[float, float]  # (x, y) in pixels of the image

_COLUMNS, _MOST_COLUMNS = 3, 6  # of panels, and of those of heads
_LARGEST, _SMALLEST = 22, 4  # diameters of keys on a panel of the largest width
_LEAST_SPACING = 9  # pixels between the keys of the groups that are drawn


@dataclass(frozen=True)
class Keys:
    """The most important keys of a query or of an image.

    Args:
        positions: `(K, 2)` as `(y, x)`, in pixels of the map.
        scores: `(K,)`, attention or propagated scores.
        number: Of the keys from which they were chosen.
        stride: Pixels of the input for a pixel of the map.
        placement: Of the image on that input.
    """

    positions: np.ndarray
    scores: np.ndarray
    number: int
    stride: int
    placement: Placement

    def panel(
        self,
        canvas: Canvas,
        title: str,
        largest: float,
        query: Query | None = None,
        colour: str = QUERY_COLOURS[0],
    ) -> Panel:
        """Draws them, with diameters in proportion to their scores, `largest` being that of the full size."""
        placement = canvas.place(self.placement)
        points = placement.from_map(self.positions, self.stride)
        on_image = placement.contains(points)
        full = _full_diameter(canvas.image.shape[1])
        diameters = _SMALLEST + (full - _SMALLEST) * self.scores / largest
        if not on_image.all():
            title += f', {(~on_image).sum()} outside'

        def draw(axes: Axes) -> None:
            draw_dots(axes, points[on_image], diameters[on_image])  # small ones upon large ones
            if query is not None:
                draw_star(axes, canvas.point(*query), colour)

        return Panel(title, dim(canvas.image), draw)

    @property
    def title(self) -> str:
        return f'{len(self.scores)} of {self.number} keys'


def _full_diameter(width: int) -> float:
    return _LARGEST * max(width / 640, 0.5)


def _score_legend(word: str, largest: float, width: int) -> list[Artist]:
    full = _full_diameter(width)
    return [
        point_mark(f'key with {word} {largest:.2g}', full),
        point_mark(f'with {largest / 4:.2g}', _SMALLEST + (full - _SMALLEST) / 4),
    ]


def paint_points(subject: ViewedModel, view: View, prediction: BaseDataElement | None = None) -> np.ndarray:
    """Where the last deformable attention of each stage samples its keys (Figure 6).

    Args:
        subject: The model.
        view: The image.
        prediction: Shown in a panel of its own.

    Returns:
        A picture, `(H, W, 3)` uint8, BGR.

    Raises:
        UserError: If the model has no deformable attention.
    """
    layers = last_of_each_stage(_look_through(subject, view))
    number = len(layers) + (prediction is not None)
    columns = 2 if number == 4 else min(number, _COLUMNS)
    canvas = view.canvas(panel_width(columns))
    placement = canvas.place(view.placement)
    panels = _prediction_panel(subject, view, prediction, canvas)
    for layer in layers:
        points = layer.locations()[0]
        groups, rows, cols, _ = points.shape
        points = points[: _legible_groups(groups, rows * cols, canvas)]
        keys = f'{rows} x {cols} keys{_groups(len(points), groups)}'
        draw = key_points_drawer(points, placement, layer.map_size, layer.stride, layer.attn.coordinates)
        panels.append(Panel(f'stage {layer.stage + 1}: {keys}', dim(canvas.image), draw))
    first, last = group_colours(2)
    legend = [
        point_mark('reference point', 7, GREY, GREY),
        point_mark('deformed point, first group', 12, first),
        point_mark('last group', 12, last),
    ]
    return render(_in_rows(panels, columns, legend))


def paint_keys(
    subject: ViewedModel, view: View, prediction: BaseDataElement | None = None, top_k: int = 100
) -> np.ndarray:
    """The most important keys: those of the first deformable attention with the highest scores (Figure 5).

    Scores are propagated from the last to the first, see `propagate_scores`. Larger points have higher ones.

    Args:
        subject: The model.
        view: The image.
        prediction: Shown in a panel of its own.
        top_k: How many keys are drawn.

    Returns:
        A picture, `(H, W, 3)` uint8, BGR.

    Raises:
        UserError: If the model has no deformable attention.
    """
    layers = _look_through(subject, view)
    first, last = layers[0], layers[-1]
    is_image = torch.from_numpy(view.placement.covers(last.map_size, last.stride))
    with inspecting(subject.model):
        scores = propagate_scores(layers, is_image)[0][0].flatten().cpu()
        locations = first.locations()[0].flatten(0, 2).cpu()
    values, order = scores.topk(min(top_k, len(scores)))
    positions = to_map_pixels(locations[order], first.map_size)
    keys = Keys(positions, values.numpy(), len(scores), first.stride, view.placement)
    canvas = view.canvas(panel_width(1 + (prediction is not None)))
    largest = values[0].item()
    title = f'{keys.title}, scored through {len(layers)} layers'
    panels = _prediction_panel(subject, view, prediction, canvas)
    panels.append(keys.panel(canvas, title, largest))
    return render([Row(panels, _score_legend('score', largest, canvas.image.shape[1]))])


def paint_attention(
    subject: ViewedModel,
    view: View,
    queries: Sequence[Query] = (),
    prediction: BaseDataElement | None = None,
    top_k: int = 30,
    by_head: bool = False,
    layer: str | None = None,
    swin: ViewedModel | None = None,
) -> np.ndarray:
    """To which keys queries attend most (Figure 7), and which they can see at all (Figure 1).

    A panel for each query; below it the same for Swin, at the same stride. The last row shows all queries and
    what they can see: in two successive blocks of Swin, the second with shifted windows; in a deformable
    convolution without offsets; and in DAT, where all queries share the keys.

    Args:
        subject: The model.
        view: The image.
        queries: `(x, y)` in pixels of the image; by default those of `default_queries`.
        prediction: For the default queries; by default it is made where needed.
        top_k: How many keys are drawn.
        by_head: A panel for each head, instead of one for the mean over heads.
        layer: Name of the deformable attention, such as `'stages.2.blocks.5.attn'`; by default the last.
        swin: A Swin. Without one the last row shows windows of 7.

    Returns:
        A picture, `(H, W, 3)` uint8, BGR.

    Raises:
        UserError: If the model has no deformable attention, or none of this name; if a query lies outside the
            image; or if the Swin has no window attention, or none at this stride.
    """
    chosen = _choose(_look_through(subject, view), layer)
    if not queries:
        queries = default_queries(view, prediction or subject.predict(view))
    stage, stride = chosen.stage + 1, chosen.stride
    cells = [_cell(query, view, chosen.map_size, stride) for query in queries]
    found = _attended(subject, view, chosen, cells, top_k, by_head)
    rows = _attention_rows('DAT', stage, view, queries, found)
    windows = [default_windows(cell, chosen.map_size) for cell in cells]
    window_map, placement = chosen.map_size, view.placement
    if swin is not None:
        swin_view = swin.look_at(view.path)
        local = _window_layers(swin, swin_view, stride)
        window_map, placement = local[-1].map_size, swin_view.placement
        swin_cells = [_cell(query, swin_view, window_map, stride) for query in queries]
        windows = [[layer.window_of(cell) for layer in local[-2:]] for cell in swin_cells]
        found = [
            _attended_in_window(local[-1], cell, stride, placement, top_k, by_head) for cell in swin_cells
        ]
        rows += _attention_rows('Swin', stage, view, queries, found)
    boxes = [
        [_corners(window.box(window_map), stride, placement) for window in of_query] for of_query in windows
    ]
    rows.append(_visible_row(view, queries, boxes, cells, chosen))
    return render(rows)


def _cell(query: Query, view: View, map_size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The pixel of a map that covers a query."""
    try:
        return view.placement.to_map(*query, map_size, stride)
    except UserError as error:
        raise UserError(f'{view.path}: {error}') from None


def _attended(
    subject: ViewedModel,
    view: View,
    layer: DeformableLayer,
    cells: Sequence[tuple[int, int]],
    top_k: int,
    by_head: bool,
) -> list[list[Keys]]:
    """For each query the keys that it attends to most: of all heads, or of each."""
    with inspecting(subject.model):
        weights = layer.weights([y * layer.map_size[1] + x for y, x in cells])[0].cpu()  # (M, Q, N_k)
        locations = layer.locations()[0].flatten(1, 2).cpu()  # (G, N_k, 2)
    found = []
    for of_query in weights.unbind(dim=1):
        found.append([])
        for head in range(len(weights)) if by_head else [None]:
            top, values = top_keys(of_query, locations, top_k, head)
            number = locations.shape[1] * (len(locations) if head is None else 1)
            positions = to_map_pixels(top, layer.map_size)
            found[-1].append(Keys(positions, values.numpy(), number, layer.stride, view.placement))
    return found


def _attended_in_window(
    layer: WindowLayer,
    cell: tuple[int, int],
    stride: int,
    placement: Placement,
    top_k: int,
    by_head: bool,
) -> list[Keys]:
    """The same for a query of Swin."""
    window = layer.window_of(cell)
    weights = layer.weights(window).cpu()
    found = []
    for scores in weights if by_head else weights.mean(dim=0, keepdim=True):
        number = int(window.visible.sum())
        values, order = scores.where(torch.from_numpy(window.visible), -1).topk(min(top_k, number))
        found.append(Keys(window.positions[order.numpy()], values.numpy(), number, stride, placement))
    return found


def _attention_rows(
    name: str, stage: int, view: View, queries: Sequence[Query], found: Sequence[Sequence[Keys]]
) -> list[Row]:
    """A panel for each query, or, where there are several heads, rows of panels for each."""
    largest = max(keys.scores.max().item() for of_query in found for keys in of_query)
    num_heads = len(found[0])
    columns = _columns_of_heads(num_heads) if num_heads > 1 else min(len(queries), _COLUMNS)
    canvas = view.canvas(panel_width(columns))
    legend = [star_mark('query'), *_score_legend('attention', largest, canvas.image.shape[1])]
    panels = []
    for query, of_query, colour in zip(queries, found, _colours(queries)):
        panels.append([])
        for head, keys in enumerate(of_query):
            title = f'{name} head {head}' if num_heads > 1 else f'{name}, stage {stage}: {keys.title}'
            panels[-1].append(keys.panel(canvas, title, largest, query, colour))
    if num_heads == 1:
        panels = [[panel for (panel,) in panels]]
    return [
        row
        for i, block in enumerate(panels)
        for row in _in_rows(block, columns, legend if i == len(panels) - 1 else ())
    ]


def _columns_of_heads(number: int) -> int:
    """As many as make whole rows, if these are not too short."""
    whole = (n for n in range(_MOST_COLUMNS, _COLUMNS - 1, -1) if number % n == 0)
    return next(whole, min(number, _MOST_COLUMNS))


def _colours(queries: Sequence[Query]) -> list[str]:
    return [QUERY_COLOURS[i % len(QUERY_COLOURS)] for i in range(len(queries))]


def _visible_row(
    view: View,
    queries: Sequence[Query],
    boxes: Sequence[Sequence[np.ndarray]],
    cells: Sequence[tuple[int, int]],
    layer: DeformableLayer,
) -> Row:
    """What queries can see in Swin, DCN and DAT, with a colour for each query.

    Args:
        view: The image.
        queries: On it.
        boxes: Corners of the windows of each query, `(2, 2)` as `(x, y)`, on the image.
        cells: Queries on the map of DAT.
        layer: That of DAT.
    """
    canvas = view.canvas(panel_width(_COLUMNS))
    placement = canvas.place(view.placement)
    limits = np.array(canvas.image.shape[1::-1]) - 0.5
    colours = _colours(queries)
    locations = layer.locations()[0]
    groups = len(locations)
    locations = locations[: _legible_groups(groups, locations[0, ..., 0].numel(), canvas)]
    keys = placement.to_image(locations, layer.map_size, layer.stride).reshape(-1, 2)
    keys = keys[placement.contains(keys)]
    diameter = max(min(9, canvas.image.shape[1] / max(len(keys), 1) ** 0.5 / 3), 4)

    def draw_stars(axes: Axes) -> None:
        for query, colour in zip(queries, colours):
            draw_star(axes, canvas.point(*query), colour)

    def draw_swin(axes: Axes) -> None:
        for i, (of_query, colour) in enumerate(zip(boxes, colours)):
            for corners, dashed in zip(of_query, (False, True)):
                start, end = (canvas.point(*corner).clip(-0.5, limits) for corner in corners)
                inset = 5 * i + 2 * dashed  # several queries may have the same window
                draw_box(axes, *(start + inset), *(end - inset), colour, dashed)
        draw_stars(axes)

    def draw_dcn(axes: Axes) -> None:
        draw_stars(axes)
        for i, (cell, colour) in enumerate(zip(cells, colours)):
            points = placement.from_map(dcn_points(cell), layer.stride)
            inside = placement.contains(points)
            draw_dots(axes, points[inside], _ring_diameters(cell, cells[i + 1 :])[inside], colour)

    def draw_dat(axes: Axes) -> None:
        draw_dots(axes, keys, diameter)
        draw_stars(axes)

    background = dim(canvas.image)
    panels = [
        Panel('Swin: the windows of each query', background, draw_swin),
        Panel('DCN without offsets: points of each query', background, draw_dcn),
        Panel(f'DAT: keys that all share{_groups(len(locations), groups)}', background, draw_dat),
    ]
    legend = [
        star_mark('query', colours[0]),
        box_mark('its window', dashed=False, colour=colours[0]),
        box_mark('its shifted window', dashed=True, colour=colours[0]),
        point_mark('its points', 9, colours[0]),
        point_mark('keys of all queries', 9, ORANGE),
    ]
    return Row(panels, legend)


def _ring_diameters(cell: tuple[int, int], later: Sequence[tuple[int, int]]) -> np.ndarray:
    """Diameters of a query's points of DCN: larger where points of later queries will lie upon them."""
    above = [set(map(tuple, dcn_points(other).tolist())) for other in later]
    return np.array([9 + 4 * sum(tuple(p) in points for points in above) for p in dcn_points(cell).tolist()])


def _legible_groups(groups: int, keys: int, canvas: Canvas) -> int:
    """Of how many groups, the first of all, the keys are drawn: all where there is room."""
    height, width = canvas.image.shape[:2]
    return max(min(int(height * width / _LEAST_SPACING**2 / keys), groups), 1)


def _groups(shown: int, groups: int) -> str:
    """The end of a title."""
    if groups == 1:
        return ''
    return f', {groups} groups' if shown == groups else f', {shown} of {groups} groups'


def _corners(box: tuple[int, int, int, int], stride: int, placement: Placement) -> np.ndarray:
    """The borders of a box of a map as corners on the image, top left first."""
    top, left, bottom, right = box
    borders = np.array([[top, left], [bottom, right]]) - 0.5
    return np.sort(placement.from_map(borders, stride), axis=0)


def _look_through(subject: ViewedModel, view: View) -> list[DeformableLayer]:
    backbone = find_dat(subject.model)
    with inspecting(subject.model):
        return deformable_layers(backbone, view.inputs)


def _choose(layers: list[DeformableLayer], name: str | None) -> DeformableLayer:
    if name is None:
        return layers[-1]
    by_name = {layer.name: layer for layer in layers}
    if name not in by_name:
        raise UserError(
            f'no deformable attention is named {name!r}{did_you_mean(name, by_name)} '
            f'(there are {", ".join(by_name)})'
        )
    return by_name[name]


def _window_layers(swin: ViewedModel, view: View, stride: int) -> list[WindowLayer]:
    model = getattr(swin.model, 'backbone', swin.model)
    with inspecting(swin.model):
        layers = window_layers(model, view.inputs)
    if stride not in layers:
        raise UserError(
            f'{type(model).__name__} has no window attention at stride {stride}, where DAT is looked at'
        )
    return layers[stride]


def _prediction_panel(
    subject: ViewedModel, view: View, prediction: BaseDataElement | None, canvas: Canvas
) -> list[Panel]:
    if prediction is None:
        return []
    return [Panel('predictions', subject.draw_prediction(view, prediction, canvas))]


def _in_rows(panels: list[Panel], columns: int, legend: Sequence[Artist]) -> list[Row]:
    """Rows of so many panels, with the legend below the last."""
    starts = range(0, len(panels), columns)
    return [Row(panels[i : i + columns], legend if i == starts[-1] else ()) for i in starts]
