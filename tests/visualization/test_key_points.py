import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from mmdat.ops.deformable import reference_points
from mmdat.visualization import draw_key_points, to_image
from mmdat.visualization.drawing import GREY
from mmdat.visualization.key_points import ORANGE, YELLOW


def bgr(colour):
    return [round(255 * channel) for channel in to_rgb(colour)][::-1]


@pytest.mark.parametrize(
    ('yx', 'scale_factor', 'xy'),
    [
        ((-1, -1), (1, 1), (7.5, 7.5)),  # centre of the first 16x16 patch
        ((1, 1), (1, 1), (151.5, 103.5)),  # of the last one: 16 * 9 + 7.5, 16 * 6 + 7.5
        ((0, 0), (1, 1), (79.5, 55.5)),  # of the 160x112 input
        ((-1, 1), (1, 1), (151.5, 7.5)),  # y comes first in, x first out
        ((-1, -1), (0.5, 0.5), (15.5, 15.5)),  # an image of twice the size
        ((0, 0), (0.5, 0.25), (159.5, 223.5)),
    ],
)
def test_to_image(yx, scale_factor, xy):
    np.testing.assert_allclose(to_image(torch.tensor(yx), (7, 10), 16, scale_factor), xy)


def test_a_map_pixel_lies_on_its_patch():
    # grid_sample's pixel centres are -1, -1 + 2 / (n - 1), ...
    y, x = torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 5), indexing='ij')
    centres = to_image(torch.stack([y, x], dim=-1), (3, 5), 8)
    image = np.arange(24)[:, None] * 1j + np.arange(40)  # pixel (x, y) holds x + iy
    patches = image.reshape(3, 8, 5, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(centres[..., 0] + 1j * centres[..., 1], patches, atol=1e-5)


def test_points_are_drawn_where_they_lie():
    image = np.full((112, 160, 3), 100, np.uint8)
    locations = reference_points(2, 3).repeat(2, 1, 1, 1)  # two groups
    locations[0, 0, 0] = torch.tensor([-1.0, 1.0])
    locations[1, 1, 2] = torch.tensor([1.0, -1.0])
    picture = draw_key_points(image, locations, (7, 10), 16)
    assert picture.shape == image.shape
    assert picture[8, 152].tolist() == bgr(ORANGE)
    assert picture[104, 8].tolist() == bgr(YELLOW)
    assert picture[4, 80].tolist() == [65] * 3  # dimmed, and nothing else
    assert (image == 100).all()


def test_many_long_lines_do_not_hide_the_image():
    """As with DAT++ on large images, whose points move over the whole map."""
    image = np.zeros((300, 400, 3), np.uint8)
    references = reference_points(20, 30).repeat(4, 1, 1, 1)
    offsets = torch.rand(references.shape, generator=torch.manual_seed(0)) * 2 - 1
    near, far = (draw_key_points(image, references + reach * offsets, (20, 30), 10) for reach in (0.01, 1.0))
    brightness = [np.median(picture.max(axis=-1)) for picture in (near, far)]
    assert brightness[0] == 0
    assert 0 < brightness[1] < 60


@pytest.mark.parametrize('coordinates', ['half_pixel', 'corners'])
def test_points_without_offset_hide_their_references(coordinates):
    image = np.zeros((112, 160, 3), np.uint8)
    locations = reference_points(3, 4, coordinates)[None]
    picture = draw_key_points(image, locations, (7, 10), 16, coordinates=coordinates)
    assert (picture == bgr(ORANGE)).all(axis=-1).any()
    assert not (picture == bgr(GREY)).all(axis=-1).any()
    moved = draw_key_points(image, locations - 0.5, (7, 10), 16, coordinates=coordinates)
    assert (moved == bgr(GREY)).all(axis=-1).any()


def test_padding_is_not_drawn_upon():
    """The input is padded at the right and the bottom; points there lie outside of the image."""
    image = np.zeros((100, 120, 3), np.uint8)
    outside = torch.ones(1, 1, 1, 2)
    assert to_image(outside, (7, 10), 16).tolist() == [[[[151.5, 103.5]]]]
    assert draw_key_points(image, outside, (7, 10), 16).shape == image.shape
