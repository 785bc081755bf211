"""A data set of six small images for each of the three libraries, to be spoilt by tests."""

import io
import json
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmdat.engine.checks.data import check_annotations

HEIGHT, WIDTH = 24, 32
IMAGES = 6
VICTIM = 'img/3.jpg'
DATA = {
    'mmdet': dict(
        type='CocoDataset',
        ann_file='coco.json',
        data_prefix=dict(img='img/'),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='Resize', scale=(WIDTH, HEIGHT), keep_ratio=True),
            dict(type='PackDetInputs'),
        ],
    ),
    'mmseg': dict(
        type='BaseSegDataset',
        ann_file='names.txt',
        data_prefix=dict(img_path='img', seg_map_path='seg'),
        metainfo=dict(classes=('cat', 'dog')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='Resize', scale=(WIDTH, HEIGHT), keep_ratio=True),
            dict(type='PackSegInputs'),
        ],
    ),
    'mmpretrain': dict(
        type='CustomDataset',
        data_prefix='img',
        ann_file='labels.txt',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=HEIGHT),
            dict(type='PackInputs'),
        ],
    ),
}
GREY = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
PICTURE = cv2.cvtColor(GREY, cv2.COLOR_GRAY2BGR)


def encode(picture: np.ndarray | Image.Image, format_: str = '.jpg', *options, **settings) -> bytes:
    if isinstance(picture, np.ndarray):
        return cv2.imencode(format_, picture, options)[1].tobytes()
    buffer = io.BytesIO()
    picture.save(buffer, format_, **settings)
    return buffer.getvalue()


JPEG, PNG = encode(PICTURE), encode(PICTURE, '.png')
ALL = pytest.mark.parametrize('library', DATA)


def write_small_data(folder: Path) -> None:
    """Images, label maps, annotations of COCO and a list of a classifier."""
    for name in ('img', 'seg'):
        (folder / name).mkdir()
    for i in range(IMAGES):
        (folder / f'img/{i}.jpg').write_bytes(JPEG)
        (folder / f'seg/{i}.png').write_bytes(encode(GREY // 128, '.png'))
    (folder / 'coco.json').write_text(json.dumps(coco()))
    (folder / 'names.txt').write_text(''.join(f'{i}\n' for i in range(IMAGES)))
    (folder / 'labels.txt').write_text(''.join(f'{i}.jpg {i % 2}\n' for i in range(IMAGES)))


def coco() -> dict:
    """An annotation file; each image holds a cat of 8 x 8 pixels."""
    box = dict(category_id=3, bbox=[4, 4, 8, 8], area=64, iscrowd=0)
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', height=HEIGHT, width=WIDTH) for i in range(IMAGES)],
        annotations=[
            dict(box, id=i, image_id=i, segmentation=[[4, 4, 12, 4, 12, 12, 4, 12]]) for i in range(IMAGES)
        ],
        categories=[dict(id=3, name='cat'), dict(id=5, name='dog')],
    )


HEADS = {'mmdet': 'bbox_head', 'mmseg': 'decode_head', 'mmpretrain': 'head'}


def check(library: str, root: Path, split: str = 'train', num_classes: int = 2, **changes) -> None:
    config = dict(
        default_scope=library,
        model={HEADS[library]: dict(num_classes=num_classes)},
    )
    for name in ('train', split):
        dataset = dict(deepcopy(DATA[library]), data_root=str(root), **changes)
        config[f'{name}_dataloader'] = dict(dataset=dataset)
    check_annotations(Config(config), split)
