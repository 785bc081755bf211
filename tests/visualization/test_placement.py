import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope

from mmdat.errors import UserError
from mmdat.visualization import Placement, find_placement

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackDetInputs', meta_keys=())
PILLOW = dict(backend='pillow', interpolation='bicubic')
MARK = (8, 12, 20, 10)  # left, top, width, height; its centre is 17.5, 16.5


def pipeline(*transforms, scope='mmdet', pack=PACK):
    init_default_scope(scope)
    return Compose([LOAD, *transforms, pack])


@pytest.mark.parametrize(
    ('size', 'scope', 'transforms', 'scale', 'shift'),
    [
        ((100, 150), 'mmdet', [], (1, 1), (0, 0)),
        (
            (427, 640),
            'mmdet',
            [dict(type='Resize', scale=(999, 320), keep_ratio=True)],
            (480 / 640, 320 / 427),
            (0, 0),
        ),
        ((100, 150), 'mmdet', [dict(type='Resize', scale=(450, 100), keep_ratio=False)], (3, 1), (0, 0)),
        # padded at the right and the bottom
        (
            (100, 150),
            'mmdet',
            [dict(type='Resize', scale=(300, 300), keep_ratio=True), dict(type='Pad', size_divisor=128)],
            (2, 2),
            (0, 0),
        ),
        ((100, 150), 'mmdet', [dict(type='Pad', size=(200, 200), pad_val=114)], (1, 1), (0, 0)),
        ((100, 150), 'mmdet', [dict(type='RandomFlip', prob=1.0)], (-1, 1), (150, 0)),
        (
            (100, 150),
            'mmdet',
            [
                dict(type='Resize', scale=(300, 300), keep_ratio=True),
                dict(type='RandomFlip', prob=1.0, direction='diagonal'),
                dict(type='Pad', size_divisor=64),
            ],
            (-2, -2),
            (300, 200),
        ),
        # 150 x 100 becomes 384 x 256, of which 224 x 224 in the middle remain
        (
            (100, 150),
            'mmpretrain',
            [
                dict(type='ResizeEdge', scale=256, edge='short', **PILLOW),
                dict(type='CenterCrop', crop_size=224),
            ],
            (2.56, 2.56),
            (-80, -16),
        ),
        ((1080, 1920), 'mmdet', [dict(type='Resize', scale=(1333, 800))], (1333 / 1920, 800 / 1080), (0, 0)),
        ((9, 1), 'mmdet', [dict(type='Resize', scale=(8, 72), keep_ratio=False)], (8, 8), (0, 0)),
    ],
)
def test_placement_is_that_of_the_pipeline(size, scope, transforms, scale, shift, tmp_path):
    pack = PACK if scope == 'mmdet' else dict(type='PackInputs')
    prepare = pipeline(*transforms, scope=scope, pack=pack)
    placement = find_placement(prepare, size)
    np.testing.assert_allclose(placement.scale, scale, rtol=1e-9)
    assert placement.shift == shift
    if min(size) < 50:
        return
    # a marked corner arrives where the placement says
    left, top, width, height = MARK
    left += 30 if scope == 'mmpretrain' else 0  # beyond what is cropped away
    image = np.zeros((*size, 3), np.uint8)
    image[top : top + height, left : left + width] = 255
    cv2.imwrite(str(tmp_path / 'marked.png'), image)
    inputs = prepare(dict(img_path=str(tmp_path / 'marked.png'), img_id=0))['inputs'].double().numpy()[0]
    inputs[inputs == 114] = 0  # padding
    y, x = (np.average(axis, weights=inputs) for axis in np.indices(inputs.shape))
    centre = np.array([left + width / 2, top + height / 2])
    np.testing.assert_allclose([x + 0.5, y + 0.5], centre * placement.scale + placement.shift, atol=0.3)


@pytest.mark.parametrize(
    'transform',
    [
        dict(type='Rotate', prob=1.0, min_mag=30.0, max_mag=30.0, level=10),
        dict(type='mmcv.Normalize', mean=[100.0] * 3, std=[50.0] * 3),
    ],
)
def test_what_cannot_be_drawn_is_refused(transform):
    with pytest.raises(UserError, match='does more to images than to resize'):
        find_placement(pipeline(transform), (100, 150))


def test_points_and_maps():
    """A 150 x 100 image, twice as large and flipped, in an input that is padded to 320 x 224."""
    placement = Placement((100, 150), scale=(-2, 2), shift=(300, 0))
    first = torch.tensor([-1.0, -1.0])  # centre of the first 16 x 16 patch: input 8, 8 from the borders
    np.testing.assert_allclose(placement.to_image(first, (14, 20), 16), (149 - 4 + 0.5, 3.5))
    np.testing.assert_allclose(placement.from_map(np.array([1, 2]), 16), ((300 - 40) / 2 - 0.5, 11.5))
    assert placement.to_map(149, 0, (14, 20), 16) == (0, 0)
    assert placement.to_map(0, 99, (14, 20), 16) == (12, 18)  # input 299, 199
    for y in range(13):
        for x in range(19):
            point = placement.from_map(np.array([y, x]), 16)
            if placement.contains(point):
                assert placement.to_map(*point, (14, 20), 16) == (y, x)
    # centres of patches lie on the image up to row 11 (input 184 of 200; the next 200) and column 18
    is_image = placement.covers((14, 20), 16)
    assert is_image[:12, :18].all()
    assert not is_image[13:].any()
    assert not is_image[:, 19:].any()
    assert placement.shown((224, 320)) == (slice(0, 100), slice(0, 150))
    assert placement.shown((100, 200)) == (slice(0, 50), slice(50, 150))


def test_a_part_of_the_image():
    placement = Placement((100, 150), scale=(2, 3), shift=(10, -30))
    part = placement.of_part(slice(20, 80), slice(50, 150), (4, 5))
    assert part.size == (300, 400)
    at = np.array([3, 7])
    x, y = placement.from_map(at, 8)
    expected = (x + 0.5 - 50) * 4 - 0.5, (y + 0.5 - 20) * 5 - 0.5
    np.testing.assert_allclose(part.from_map(at, 8), expected)


@pytest.mark.parametrize('query', [(150, 10), (-1, 10), (10, 100), (float('nan'), 1)])
def test_queries_outside_the_image(query):
    with pytest.raises(UserError, match=r'lies outside the image of 150 x 100 pixels'):
        Placement((100, 150)).to_map(*query, (10, 10), 16)


def test_queries_that_are_cropped_away():
    cropped = Placement((100, 150), shift=(-40, 0))
    assert cropped.to_map(40, 5, (4, 4), 16) == (0, 0)
    with pytest.raises(UserError, match='query 20 5 lies where the test pipeline crops'):
        cropped.to_map(20, 5, (4, 4), 16)


def test_the_last_border_belongs_to_the_last_pixel():
    assert Placement((64, 64)).to_map(63.5, 63.5, (4, 4), 16) == (3, 3)
