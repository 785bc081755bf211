"""From config and checkpoint to the picture, for a detector, a segmentor and a classifier."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmdat.demo.untrained import save_untrained
from mmdat.engine import load_config
from mmdat.errors import UserError
from mmdat.visualization import KeyPointPainter, paint_files
from mmdat.visualization.painter import GAP, MIN_SIDE, TITLE_HEIGHT

ROOT = Path(__file__).parents[2]
ARCH = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 2, 4))
BACKBONE = dict(type='mmdat.DAT', arch=ARCH, out_indices=(3,))
SEGMENTOR = dict(
    default_scope='mmseg',
    model=dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=BACKBONE,
        decode_head=dict(
            type='FCNHead', in_channels=128, in_index=0, channels=8, num_convs=1, num_classes=150
        ),
        test_cfg=dict(mode='whole'),
    ),
    test_dataloader=dict(
        dataset=dict(
            type='ADE20KDataset',
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='Resize', scale=(256, 64), keep_ratio=True),
                dict(type='LoadAnnotations', reduce_zero_label=True),
                dict(type='PackSegInputs'),
            ],
        )
    ),
    visualizer=dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
    randomness=dict(seed=0),
)
CLASSIFIER = dict(
    default_scope='mmpretrain',
    model=dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
        backbone=BACKBONE,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=128),
    ),
    test_dataloader=dict(
        dataset=dict(
            type='ImageNet',
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='ResizeEdge', scale=72, edge='short'),
                dict(type='CenterCrop', crop_size=64),
                dict(type='PackInputs'),
            ],
        )
    ),
    visualizer=dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
    randomness=dict(seed=0),
)


def config(name):
    if name == 'detector':
        cfg = load_config(str(ROOT / 'configs/demo/mask_rcnn_dat_narrow_shapes.py'))
        cfg.model.backbone.arch = ARCH
        cfg.model.neck.in_channels = [16, 32, 64, 128]
        return cfg
    return Config(dict(segmentor=SEGMENTOR, classifier=CLASSIFIER)[name])


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
    width = round(MIN_SIDE * aspect)
    assert picture.shape == (TITLE_HEIGHT + MIN_SIDE, 3 * width + 2 * GAP, 3)
    panels = [picture[TITLE_HEIGHT:, i * (width + GAP) :][:, :width].astype(int) for i in range(3)]
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
    names = 'image.png none.png text.png empty.png folder folder/image.png taken.png last.png'.split()
    results = list(paint_files(paint, [str(tmp_path / name) for name in names], str(out)))
    assert results == [
        (out / 'image.jpg', ''),
        (None, f'{tmp_path}/none.png does not exist'),
        (None, f'{tmp_path}/text.png is no image, or broken'),
        (None, f'{tmp_path}/empty.png is no image, or broken'),
        (None, f'{tmp_path}/folder is a folder: name the images in it'),
        (None, f'{tmp_path}/folder/image.png: {out}/image.jpg is the picture of {image} already'),
        (None, f'{tmp_path}/taken.png: {out}/taken.jpg cannot be written'),
        (out / 'last.jpg', ''),
    ]
    assert cv2.imread(str(out / 'last.jpg')).shape == cv2.imread(str(out / 'image.jpg')).shape
    with pytest.raises(UserError, match=r'folder .*image\.jpg cannot be made: File exists'):
        next(paint_files(paint, [image], str(out / 'image.jpg')))
