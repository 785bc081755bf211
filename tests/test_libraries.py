"""DAT in full models of mmdet, mmsegmentation and mmpretrain: built from a config and trained for a step."""

import subprocess
import sys
from importlib import import_module

import pytest
import torch
from helpers.narrow import ARCH, WIDTHS
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from mmdat.backbones import DAT

BACKBONE = dict(
    type='mmdat.DAT',
    arch=ARCH,
    window_size=4,
    img_size=64,
    drop_path_rate=0.0,
)


def build(scope: str, model: dict) -> BaseModel:
    init_default_scope(scope)
    return import_module(f'{scope}.registry').MODELS.build(ConfigDict(model))


def step(model: BaseModel, data: dict) -> None:
    """One optimiser step; every parameter gets a finite gradient and the backbone moves."""
    wrapper = build_optim_wrapper(
        model, dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
    )
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    model.train()
    losses = model(**model.data_preprocessor(data, training=True), mode='loss')
    loss, _ = model.parse_losses(losses)
    wrapper.backward(loss)
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    wrapper.step()
    for name, p in model.backbone.named_parameters():
        assert not torch.equal(p, before[name]), name


def test_detector(mask_rcnn_config):
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    cfg = mask_rcnn_config
    cfg.model.backbone = BACKBONE
    cfg.model.neck.in_channels = WIDTHS
    model = build('mmdet', cfg.model)
    assert type(model.backbone) is DAT
    masks = torch.zeros(1, 96, 128, dtype=torch.uint8)
    masks[:, 20:60, 30:90] = 1
    sample = DetDataSample(
        metainfo=dict(img_shape=(96, 128), ori_shape=(96, 128), scale_factor=(1.0, 1.0)),
        gt_instances=InstanceData(
            bboxes=HorizontalBoxes(torch.tensor([[30.0, 20.0, 90.0, 60.0]])),
            labels=torch.tensor([3]),
            masks=BitmapMasks(masks.numpy(), 96, 128),
        ),
    )
    torch.manual_seed(0)
    image = torch.randint(0, 255, (3, 96, 128), dtype=torch.uint8)
    step(model, dict(inputs=[image], data_samples=[sample]))


def test_segmentor():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    norm = dict(type='BN')
    model = build(
        'mmseg',
        dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 96)),
            backbone=BACKBONE,
            decode_head=dict(
                type='UPerHead',
                in_channels=WIDTHS,
                in_index=[0, 1, 2, 3],
                channels=16,
                num_classes=5,
                norm_cfg=norm,
                loss_decode=dict(type='CrossEntropyLoss'),
            ),
            train_cfg=dict(),
            test_cfg=dict(mode='whole'),
        ),
    )
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 5, (1, 64, 96))))
    images = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
    step(model, dict(inputs=list(images), data_samples=[sample, sample]))


def test_classifier():
    from mmpretrain.structures import DataSample

    model = build(
        'mmpretrain',
        dict(
            type='ImageClassifier',
            data_preprocessor=dict(mean=[120.0] * 3, std=[60.0] * 3),
            backbone=BACKBONE | dict(out_indices=(3,)),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=5, in_channels=128),
        ),
    )
    sample = DataSample().set_gt_label(2)
    images = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    step(model, dict(inputs=list(images), data_samples=[sample, sample]))


# To import the libraries takes seconds: one process does so, without mmdat, and each case runs in a copy.
COPIES = """
import os, sys
import mmdet.models, mmpretrain.models, mmseg.models

for case in sys.argv[1:]:
    if os.fork() == 0:
        assert 'mmdat' not in sys.modules
        exec(case)
        sys.exit()
    os.wait()
"""
BUILD = """
from importlib import import_module
import torch
from mmengine.config import Config
cfg = Config.fromstring({config!r}, '.py')
with torch.device('meta'):
    for scope in {scopes}:
        model = import_module(scope + '.registry').MODELS.build(cfg.model)
        print({case!r}, scope, type(model).__module__)
"""
SCOPES = ['mmengine', 'mmdet', 'mmseg', 'mmpretrain']


@pytest.fixture(scope='module')
def resolved() -> str:
    """A line `CASE SCOPE MODULE` for each class that a type was resolved to."""
    full, short = "model = dict(type='mmdat.DAT')", "model = dict(type='DAT')"
    imported = "custom_imports = dict(imports=['mmdat'])\n"
    codes = [BUILD.format(case='full', config=full, scopes=[scope]) for scope in SCOPES]
    codes += ['import mmdat\n' + BUILD.format(case='short', config=short, scopes=SCOPES)]
    codes += [BUILD.format(case='custom_imports', config=imported + short, scopes=['mmdet'])]
    command = [sys.executable, '-c', COPIES, *codes]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize('case', ['full', 'short'])
def test_type_resolves_in_a_fresh_process(scope, case, resolved):
    """`mmdat.DAT` without more, `DAT` once mmdat is imported."""
    assert f'{case} {scope} mmdat.backbones.dat' in resolved.splitlines(), resolved


@pytest.mark.slow
def test_custom_imports(resolved):
    assert 'custom_imports mmdet mmdat.backbones.dat' in resolved.splitlines(), resolved
