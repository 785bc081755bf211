"""From config and checkpoint to the picture, for a detector, a segmentor and a classifier."""

import cv2
import numpy as np
import pytest
import torch
from helpers.tasks import config

from mmdat.demo.untrained import save_untrained
from mmdat.errors import UserError
from mmdat.input_files import find_images
from mmdat.visualization import KeyPointPainter, paint_files
from mmdat.visualization.drawing import GAP, MARGIN, TITLE, panel_width


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (100, 150, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), pixels)
    return str(tmp_path / 'image.png')


# the classifier sees a square cut out of the image
@pytest.mark.parametrize(('name', 'aspect'), [('detector', 1.5), ('segmentor', 1.5), ('classifier', 1)])
def test_panels(name, aspect, image, tmp_path):
    cfg = config(name)
    save_untrained(cfg, tmp_path / 'weights.pth')
    picture = KeyPointPainter(cfg, str(tmp_path / 'weights.pth'), predictions=True)(image)
    width = panel_width(3)
    height = round(width / aspect)
    assert picture.shape[1] == 2 * MARGIN + 3 * width + 2 * GAP
    assert picture.shape[0] > TITLE + height + 20  # the legend
    panels = [
        picture[TITLE : TITLE + height, MARGIN + i * (width + GAP) :][:, :width].astype(int) for i in range(3)
    ]
    assert panels[0].mean() > 1.2 * panels[1].mean()  # only key points are drawn on a dimmed image
    assert (panels[1] != panels[2]).any()


def test_checkpoint_that_does_not_fit(image, tmp_path):
    cfg = config('classifier')
    save_untrained(cfg, tmp_path / 'weights.pth')
    weights = torch.load(tmp_path / 'weights.pth')['state_dict']
    del weights['head.fc.bias']
    torch.save(weights, tmp_path / 'short.pth')
    with pytest.raises(ValueError, match=r'1 missing: head\.fc\.bias'):
        KeyPointPainter(cfg, str(tmp_path / 'short.pth'))


def test_model_without_dat(tmp_path):
    cfg = config('classifier')
    cfg.model.backbone = dict(type='ResNet', depth=18)
    cfg.model.head.in_channels = 512
    save_untrained(cfg, tmp_path / 'weights.pth')
    with pytest.raises(UserError, match='ImageClassifier has no DAT backbone'):
        KeyPointPainter(cfg, str(tmp_path / 'weights.pth'))


def test_files_that_cannot_be_painted(image, tmp_path):
    """Each is named with the reason, and the files after it are painted."""
    cfg = config('classifier')
    save_untrained(cfg, tmp_path / 'weights.pth')
    paint = KeyPointPainter(cfg, str(tmp_path / 'weights.pth'))
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'empty.png').touch()
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder/image.png').symlink_to(image)
    (tmp_path / 'last.png').symlink_to(image)
    (tmp_path / 'taken.png').symlink_to(image)
    out = tmp_path / 'out'
    (out / 'taken.jpg').mkdir(parents=True)
    names = 'image.png none.png text.png empty.png folder taken.png last.png'.split()
    images, problems = find_images([str(tmp_path / name) for name in names])
    results = list(paint_files(paint, images, str(out), problems))
    assert results == [
        (None, f'{tmp_path}/none.png does not exist'),
        (out / 'image.jpg', ''),
        (None, f'{tmp_path}/text.png is cut short or no image'),
        (None, f'{tmp_path}/empty.png is empty'),
        (out / 'image_2.jpg', ''),
        (None, f'{tmp_path}/taken.png: {out}/taken.jpg cannot be written'),
        (out / 'last.jpg', ''),
    ]
    assert cv2.imread(str(out / 'last.jpg')).shape == cv2.imread(str(out / 'image.jpg')).shape
    with pytest.raises(UserError, match=r'folder .*image\.jpg cannot be made: File exists'):
        next(paint_files(paint, images, str(out / 'image.jpg')))
