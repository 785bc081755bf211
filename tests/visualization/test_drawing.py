import numpy as np
import pytest

from mmdat.visualization.drawing import (
    GAP,
    MARGIN,
    TITLE,
    WIDTH,
    Panel,
    Row,
    draw_box,
    draw_dots,
    draw_star,
    panel_width,
    point_mark,
    render,
)


def panel(width, height=60, **settings):
    return Panel(image=np.full((height, width, 3), (40, 80, 120), np.uint8), **settings)


@pytest.mark.parametrize('columns', [1, 2, 3, 6])
def test_rows_fit_the_page(columns):
    width = panel_width(columns)
    picture = render([Row([panel(width, title='title')] * columns)])
    assert picture.shape[1] == columns * width + GAP * (columns - 1) + 2 * MARGIN <= WIDTH
    assert picture.shape[0] == TITLE + 60 + GAP + MARGIN
    left = MARGIN + (columns - 1) * (width + GAP)
    assert (picture[TITLE : TITLE + 60, left : left + width] == (40, 80, 120)).all()  # pixel for pixel
    assert (picture[: TITLE - 4, left : left + width] < 100).any()  # the title


def test_titles_and_legends_are_whole():
    """Long titles are set smaller, long legends in several lines."""
    title = 'a title that is much longer than what it stands above, as it happens'
    legend = [point_mark(f'a mark with a long explanation, number {i}', 10) for i in range(5)]
    picture = render([Row([panel(200, title=title)] * 2, legend)])
    gap = picture[:TITLE, MARGIN + 200 + 2 : MARGIN + 200 + GAP]
    assert (gap == 255).all()
    assert (picture[:TITLE, MARGIN + 100 : MARGIN + 200] < 200).any()
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1], picture[:, -MARGIN:]):
        assert (edge == 255).all()
    below = picture[TITLE + 60 + GAP :]
    lines = (below < 128).any(axis=(1, 2))
    assert (np.diff(lines.astype(int), prepend=0) == 1).sum() >= 5


def test_marks_at_the_border_are_whole():
    """They reach beyond the image."""

    def draw(axes):
        draw_dots(axes, np.array([[0, 30], [150, 30]]), 12, '#00ff00')
        draw_star(axes, np.array([299, 30]), '#ff0000')

    picture = render([Row([panel(300, title='', draw=draw)])]).astype(int)
    green = (picture[..., 1] > 200) & (picture[..., [0, 2]] < 50).all(axis=-1)
    y, x = np.nonzero(green[:, : MARGIN + 100])
    assert (x.min(), x.max()) == (MARGIN - 5, MARGIN + 5)  # half a pixel beyond is mixed with the border
    assert (y.min(), y.max()) == (TITLE + 25, TITLE + 35)
    red = (picture[..., 2] > 200) & (picture[..., :2] < 50).all(axis=-1)
    assert np.nonzero(red)[1].max() > MARGIN + 299 + 4


def test_boxes_lie_between_pixels():
    picture = render(
        [
            Row(
                [
                    panel(
                        100,
                        title='',
                        draw=lambda axes: draw_box(axes, 19.5, 9.5, 59.5, 39.5, '#ffffff', False),
                    )
                ]
            )
        ]
    )
    inside = picture[TITLE + 25, MARGIN + 40]
    outside = picture[TITLE + 25, MARGIN + 80]
    assert (inside > outside).all()
    line = (picture[TITLE + 25, MARGIN : MARGIN + 100] == 255).all(axis=-1)
    assert np.flatnonzero(line)[[0, -1]].tolist() == pytest.approx([18.5, 60.5], abs=1)
