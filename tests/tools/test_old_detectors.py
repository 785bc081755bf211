"""Detectors and segmentors as mmdet 2.26 and mmseg 0.29 saved them, evaluated by today's."""

import json
import pickle
import re
import runpy
import sys
from pathlib import Path

import cv2
import mmseg
import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers.goldens import case_settings, read_golden
from helpers.published import save_mmcv, weights_of
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from pycocotools import mask
from torch import nn

from mmdat.checkpoint import from_official

# MMEngine finds `mmseg::` configs of the upstream distribution only.
MMSEG_CONFIGS = Path(mmseg.__file__).parent / '.mim/configs'

CONV = 'weight bias'
BN = 'weight bias running_mean running_var num_batches_tracked'
FPN = {'neck.lateral_convs.*.conv': CONV, 'neck.fpn_convs.*.conv': CONV}
RPN = {f'rpn_head.{name}': CONV for name in ('rpn_conv', 'rpn_cls', 'rpn_reg')}
MASK = {f'mask_head.{name}': CONV for name in ('convs.*.conv', 'upsample', 'conv_logits')}
BOX = {f'bbox_head.{name}': CONV for name in ('fc_cls', 'fc_reg', 'shared_fcs.*')}


def conv_bn(*names: str) -> dict[str, str]:
    return {f'{n}.conv': 'weight' for n in names} | {f'{n}.bn': BN for n in names}


# Modules of necks and heads in those versions, and their weights.
OLD_NAMES = {
    'mmdet::_base_/models/retinanet_r50_fpn.py': FPN
    | {
        f'bbox_head.{name}': CONV
        for name in ('cls_convs.*.conv', 'reg_convs.*.conv', 'retina_cls', 'retina_reg')
    },
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py': FPN
    | RPN
    | {f'roi_head.{name}': value for name, value in (BOX | MASK).items()},
    'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py': FPN
    | RPN
    | {
        f'roi_head.{name.replace("head.", "head.*.", 1)}': value
        for name, value in (BOX | conv_bn('bbox_head.shared_convs.*') | MASK).items()
    },
    'mmseg::_base_/models/fpn_r50.py': FPN
    | conv_bn('decode_head.scale_heads.*.*')
    | {'decode_head.conv_seg': CONV},
    'mmseg::_base_/models/upernet_r50.py': conv_bn(
        'decode_head.psp_modules.*.*',
        'decode_head.bottleneck',
        'decode_head.lateral_convs.*',
        'decode_head.fpn_convs.*',
        'decode_head.fpn_bottleneck',
        'auxiliary_head.convs.*',
    )
    | {'decode_head.conv_seg': CONV, 'auxiliary_head.conv_seg': CONV},
}


def build(cfg: Config) -> nn.Module:
    scope = cfg.get('default_scope') or ('mmseg' if cfg.model.type == 'EncoderDecoder' else 'mmdet')
    init_default_scope(scope)
    return MODELS.build(cfg.model)


@pytest.mark.parametrize('config', OLD_NAMES)
def test_necks_and_heads_have_the_names_of_old(tmp_path, config):
    """So loading maps none of them. Should a library rename one, this is where it shows."""
    (tmp_path / 'config.py').write_text(f'_base_ = {config!r}\n'.replace('mmseg::', f'{MMSEG_CONFIGS}/'))
    cfg = Config.fromfile(tmp_path / 'config.py')
    cfg.model.backbone = dict(type='mmdat.DAT', arch='tiny')
    if config.startswith('mmseg'):
        cfg.model.pretrained = None
        cfg.model.data_preprocessor.size = (64, 64)
    with torch.device('meta'):
        model = build(cfg)
    names = {re.sub(r'\d+', '*', key) for key in model.state_dict() if not key.startswith('backbone.')}
    old = {
        f'{module}.{weight}' for module, weights in OLD_NAMES[config].items() for weight in weights.split()
    }
    assert names == old


# A Mask R-CNN and a SemanticFPN around the goldens' backbone, as small; they detect something untrained.
DETECTOR = """
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py']
default_scope = 'mmdet'
model = dict(
    backbone=dict(_delete_=True, type='mmdat.DAT', **{backbone!r}),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=3),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(in_channels=32, conv_out_channels=32, num_classes=3),
    ),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=50), rcnn=dict(score_thr=0.0, max_per_img=20)),
)
_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(192, 128), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape', 'scale_factor')),
]
test_dataloader = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root='{root}/',
        ann_file='annotations.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('a', 'b', 'c')),
        test_mode=True,
        pipeline=_pipeline,
    ),
)
test_evaluator = dict(type='CocoMetric', ann_file='{root}/annotations.json', metric=['bbox', 'segm'])
test_cfg = dict()
"""
SEGMENTOR = """
_base_ = ['{base}/_base_/models/fpn_r50.py']
default_scope = 'mmseg'
model = dict(
    pretrained=None,
    data_preprocessor=dict(size_divisor=32, test_cfg=dict(size_divisor=32)),
    backbone=dict(_delete_=True, type='mmdat.DAT', **{backbone!r}),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=32),
    decode_head=dict(in_channels=[32, 32, 32, 32], channels=16, num_classes=3),
)
test_dataloader = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        data_root='{root}/',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('a', 'b', 'c'), palette=[[0, 0, 0], [1, 1, 1], [2, 2, 2]]),
        img_suffix='.png',
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
    ),
)
test_evaluator = dict(type='IoUMetric')
test_cfg = dict()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with two pictures, boxes and labels."""
    rng = np.random.default_rng(0)
    for name in ('images', 'labels'):
        (tmp_path / name).mkdir()
    images, annotations = [], []
    for i in (1, 2):
        cv2.imwrite(f'{tmp_path}/images/{i}.png', rng.integers(0, 255, (128, 192, 3), dtype=np.uint8))
        cv2.imwrite(f'{tmp_path}/labels/{i}.png', rng.integers(0, 3, (128, 192), dtype=np.uint8))
        images.append(dict(id=i, file_name=f'{i}.png', height=128, width=192))
        corners = [10, 20, 60, 20, 60, 90, 10, 90]
        box = dict(bbox=[10, 20, 50, 70], area=3500, segmentation=[corners], iscrowd=0)
        annotations.append(dict(id=i, image_id=i, category_id=i, **box))
    categories = [dict(id=i, name=name) for i, name in enumerate('abc', start=1)]
    coco = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'annotations.json').write_text(json.dumps(coco))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_tool(monkeypatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, 'argv', [str(ROOT / 'tools' / arguments[0]), *map(str, arguments[1:])])
    runpy.run_path(sys.argv[0], run_name='__main__')


def evaluate(monkeypatch, checkpoint: Path) -> list[dict]:
    """Predictions of `tools/test.py`."""
    run_tool(monkeypatch, 'test.py', 'config.py', checkpoint, '--out', 'out.pkl')
    with open('out.pkl', 'rb') as file:
        return pickle.load(file)


def predict(model: nn.Module, cfg: Config) -> list:
    """Predictions without any of our tools."""
    loader = Runner.build_dataloader(cfg.test_dataloader)
    with torch.no_grad():
        return [sample for data in loader for sample in model.eval().test_step(data)]


def old_weights(name: str, model: nn.Module) -> tuple[dict, dict]:
    """A golden backbone and random heads, under the names of old and under today's."""
    generator = torch.Generator().manual_seed(0)
    heads = {}
    for key, value in model.state_dict().items():
        if key.startswith('backbone.'):
            continue
        heads[key] = value
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
            heads[key] = 1 + noise.abs() if key.endswith('running_var') else noise
    official = weights_of(name)
    old = {f'backbone.{key}': value for key, value in official.items()} | heads
    return old, from_official(official) | heads


def test_a_detector_of_mmdet_2(folder, monkeypatch):
    case, _ = read_golden('det_base_128x192')
    (folder / 'config.py').write_text(DETECTOR.format(backbone=case_settings(case), root=folder))
    cfg = Config.fromfile('config.py')
    model = build(cfg)
    old, native = old_weights('det_base_128x192', model)
    model.load_state_dict(native, strict=True)
    expected = predict(model, cfg)
    save_mmcv(folder / 'epoch_12.pth', old, 'module.')
    run_tool(monkeypatch, 'convert_checkpoint.py', 'epoch_12.pth', 'clean.pth', '--config', 'config.py')
    for name in ('epoch_12.pth', 'clean.pth'):
        found = evaluate(monkeypatch, folder / name)
        assert len(found) == len(expected) == 2
        for prediction, sample in zip(found, expected):
            instances = sample.pred_instances
            assert len(instances) == 20
            assert instances.scores.std() > 1e-3
            for key in ('bboxes', 'scores', 'labels'):
                torch.testing.assert_close(
                    prediction['pred_instances'][key], instances[key], atol=1e-5, rtol=1e-5
                )
            assert len(prediction['pred_instances']['masks']) == 20
            areas = [cv2.countNonZero(m.numpy().astype(np.uint8)) for m in instances.masks]
            assert areas == [int(mask.area(rle)) for rle in prediction['pred_instances']['masks']]


def test_a_segmentor_of_mmseg_0(folder, monkeypatch):
    case, _ = read_golden('seg_base_160x160')
    text = SEGMENTOR.format(backbone=case_settings(case), root=folder, base=MMSEG_CONFIGS)
    (folder / 'config.py').write_text(text)
    cfg = Config.fromfile('config.py')
    model = revert_sync_batchnorm(build(cfg))
    old, native = old_weights('seg_base_160x160', model)
    model.load_state_dict(native, strict=True)
    expected = predict(model, cfg)
    save_mmcv(folder / 'iter_80000.pth', old)
    found = evaluate(monkeypatch, folder / 'iter_80000.pth')
    assert len(found) == len(expected) == 2
    for prediction, sample in zip(found, expected):
        logits = sample.seg_logits.data
        assert logits.std() > 0.1
        torch.testing.assert_close(prediction['seg_logits']['data'], logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(prediction['pred_sem_seg']['data'], sample.pred_sem_seg.data)
