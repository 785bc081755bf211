"""A detector, a segmentor and a classifier that are small enough to look into, with their test pipelines."""

from pathlib import Path

from mmengine.config import Config

from mmdat.demo.untrained import save_untrained
from mmdat.engine import load_config
from mmdat.visualization import ViewedModel

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


def viewed(cfg: Config, folder: Path) -> ViewedModel:
    """The model of a config, as initialised."""
    save_untrained(cfg, folder / 'weights.pth')
    return ViewedModel.load(cfg, str(folder / 'weights.pth'))
