from importlib import import_module

import pytest
from helpers.narrow import ARCH
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from mmdat.backbones import DAT

CONSTRUCTOR = 'mmdat.LayerDecayOptimWrapperConstructor'


def build(model: nn.Module, **paramwise_cfg) -> dict[str, dict]:
    """The groups by the names of their parameters."""
    cfg = ConfigDict(
        type='OptimWrapper',
        constructor=CONSTRUCTOR,
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1),
        paramwise_cfg=paramwise_cfg,
    )
    names = {p: name for name, p in model.named_parameters()}
    return {names[g['params'][0]]: g for g in build_optim_wrapper(model, cfg).optimizer.param_groups}


def detector() -> nn.Module:
    backbone = DAT(ARCH | dict(depths=(1, 2, 2, 1)), out_indices=(0, 3), frozen_stages=0)
    return nn.ModuleDict({'backbone': backbone, 'neck': nn.Conv2d(1, 1, 1), 'backbone_like': nn.Linear(1, 1)})


def test_rates_fall_from_the_head_to_the_image():
    model = detector()
    groups = build(model, layer_decay_rate=0.5)
    assert groups.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {
        'backbone.stages.0.blocks.0.norm1.weight': 0.5**6,
        'backbone.stages.1.downsample.projection.weight': 0.5**6,
        'backbone.stages.1.blocks.0.attn.qkv.weight': 0.5**5,
        'backbone.stages.1.blocks.1.mlp.fc1.bias': 0.5**4,
        'backbone.stages.2.blocks.1.attn.position_bias_table': 0.5**2,
        'backbone.stages.3.blocks.0.attn.qkv.weight': 0.5,
        'backbone.norm0.weight': 1.0,
        'neck.weight': 1.0,
        'backbone_like.weight': 1.0,
    }
    assert {name: groups[name]['lr'] for name in expected} == expected


def test_other_options_stay_mmengines():
    groups = build(
        detector(),
        layer_decay_rate=0.5,
        norm_decay_mult=0.0,
        custom_keys={
            'position_bias': dict(decay_mult=0.0),
            'stages.3': dict(lr_mult=0.1),
            'neck': dict(lr_mult=3.0),
        },
    )
    assert groups['backbone.stages.0.blocks.0.norm1.weight']['weight_decay'] == 0
    assert groups['backbone.stages.2.blocks.1.attn.position_bias_table']['weight_decay'] == 0
    assert groups['backbone.stages.2.blocks.1.attn.q.weight']['weight_decay'] == 0.1
    assert groups['backbone.stages.3.blocks.0.attn.qkv.weight']['lr'] == 0.1 * 0.5
    assert groups['neck.weight']['lr'] == 3


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_resolves_in_every_library(scope):
    import_module(f'{scope}.registry')
    with DefaultScope.overwrite_default_scope(scope):
        assert build(detector(), layer_decay_rate=0.5)['backbone.norm3.weight']['lr'] == 1


@pytest.mark.parametrize('options', [{}, dict(layer_decay_rate=0), dict(layer_decay_rate='0.9')])
def test_the_rate_is_checked(options):
    with pytest.raises(ValueError, match=r'layer_decay_rate in \(0, 1\]'):
        build(detector(), **options)


def test_a_model_without_depths_is_refused():
    with pytest.raises(ValueError, match='no part of ModuleDict has get_layer_depth'):
        build(nn.ModuleDict({'backbone': nn.Linear(1, 1)}), layer_decay_rate=0.5)


def test_agrees_with_mmpretrain():
    optimizers = pytest.importorskip('mmpretrain.engine.optimizers')
    classifiers = pytest.importorskip('mmpretrain.models.classifiers')
    head = dict(type='LinearClsHead', num_classes=5, in_channels=128)
    model = classifiers.ImageClassifier(
        DAT(ARCH, out_indices=(3,)), neck=dict(type='GlobalAveragePooling'), head=head
    )
    theirs = optimizers.LearningRateDecayOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1)),
        dict(layer_decay_rate=0.7),
    )(model).optimizer.param_groups
    ours = build(model, layer_decay_rate=0.7)
    assert {g['param_name']: g['lr'] for g in theirs} == {name: g['lr'] for name, g in ours.items()}
