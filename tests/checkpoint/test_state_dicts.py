"""Weights that other code loads into a `DAT`, by `load_state_dict`: right, or refused."""

import warnings

import pytest
import torch
from conftest import ROOT
from helpers.goldens import case_settings, read_golden
from helpers.narrow import ARCH
from helpers.published import save_classifier, save_mmcv, weights_of
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from torch import nn

from mmdat.backbones import DAT
from mmdat.checkpoint import CheckpointError, from_official

DETECTOR = 'det_tiny_96x100'


def narrow_dat(**settings) -> DAT:
    return DAT(**dict(arch=ARCH, img_size=64, window_size=4) | settings)


def golden_dat(name: str, **settings) -> DAT:
    case, _ = read_golden(name)
    return DAT(**case_settings(case) | settings)


def assert_loaded(backbone: DAT, official: dict):
    ours = from_official(official)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, ours[f'backbone.{key}']), key


def load_plainly(model: nn.Module, path: str) -> None:
    model.load_state_dict(torch.load(path, weights_only=False)['state_dict'])


@pytest.mark.parametrize('load', [load_plainly, load_checkpoint])
def test_detectors_of_the_authors(tmp_path, load):
    weights = weights_of(DETECTOR)
    model = nn.ModuleDict({'backbone': golden_dat(DETECTOR), 'head': nn.Linear(1, 1)})
    head = {'head.weight': torch.full((1, 1), 3.0), 'head.bias': torch.zeros(1)}
    load(model, save_mmcv(tmp_path / 'x.pth', {f'backbone.{k}': v for k, v in weights.items()} | head))
    assert_loaded(model['backbone'], weights)
    assert model['head'].weight.item() == 3


@pytest.fixture
def retinanet():
    """A config of RetinaNet with the backbone of a golden case."""
    case, _ = read_golden(DETECTOR)
    cfg = Config.fromfile(ROOT / 'configs/retinanet/dat_pp_t_1x_coco.py')
    settings = ConfigDict(case_settings(case))
    cfg.model.backbone = ConfigDict(type='mmdat.DAT', **settings | dict(out_indices=(1, 2, 3)))
    dims = settings.arch.embed_dims
    cfg.model.neck.update(in_channels=[2 * dims, 4 * dims, 8 * dims], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    return cfg


def init_detector(cfg: Config, path: str) -> nn.Module:
    from mmdet.apis import init_detector

    return init_detector(cfg, path, device='cpu')


def init_inferencer(cfg: Config, path: str) -> nn.Module:
    from mmdet.apis import DetInferencer

    return DetInferencer(cfg, path, device='cpu', show_progress=False).model


@pytest.mark.parametrize('door', [init_detector, init_inferencer])
@pytest.mark.filterwarnings('ignore')
def test_detectors_of_the_authors_by_the_doors_of_mmdet(tmp_path, retinanet, door):
    from mmdet.registry import MODELS

    weights = weights_of(DETECTOR)
    with DefaultScope.overwrite_default_scope('mmdet'):
        expected = MODELS.build(retinanet.model)
    rest = {k: v for k, v in expected.state_dict().items() if not k.startswith('backbone.')}
    path = save_mmcv(tmp_path / 'x.pth', {f'backbone.{k}': v for k, v in weights.items()} | rest)
    model = door(retinanet, path)
    assert_loaded(model.backbone, weights)
    for key, value in rest.items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize('door', [init_detector, init_inferencer])
@pytest.mark.filterwarnings('ignore')
def test_classifiers_of_the_authors_are_refused_by_the_doors_of_mmdet(tmp_path, retinanet, door):
    path = save_classifier(tmp_path / 'dat_pp_tiny_in1k_224.pth', weights_of('pp_base_128'))
    with pytest.raises(CheckpointError, match=r'for backbone holds no weights of a DAT .*init_cfg'):
        door(retinanet, path)


def test_a_classifier_of_the_authors_into_a_bare_backbone():
    weights = weights_of('pp_base_128')
    backbone = golden_dat('pp_base_128', out_indices=(3,))
    backbone.load_state_dict(weights)
    assert_loaded(backbone, weights)


@pytest.mark.parametrize(
    ('name', 'settings', 'message'),
    [
        ('cvpr_base_128w4', {}, 'does not tell whether its weights are of CVPR.*generation='),
        ('pp_base_128', dict(arch=ARCH), 'differ in generation, pp and cvpr'),
        (DETECTOR, dict(pos_bias=None), 'unexpected: .*position_bias_table'),
    ],
)
def test_weights_of_the_authors_that_do_not_fit_are_refused(name, settings, message):
    backbone = golden_dat(name, **settings)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        backbone.load_state_dict(weights_of(name), strict=False)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ('state_dict', 'found'),
    [
        ({}, 'nothing at all'),
        ({'patch_proj.0.weight': torch.zeros(1)}, 'nothing at all'),
        ({'bbox_head.weight': torch.zeros(1)}, 'nothing at all'),
        ({'backbone.layer1.0.conv1.weight': torch.zeros(1)}, r'layer1\.0\.conv1\.weight'),
    ],
)
@pytest.mark.parametrize(
    'load', [lambda model, path: model.load_state_dict(torch.load(path), strict=False), load_checkpoint]
)
def test_a_backbone_that_would_stay_random_is_refused(tmp_path, state_dict, found, load):
    model = nn.ModuleDict({'backbone': narrow_dat()})
    path = str(tmp_path / 'x.pth')
    torch.save(state_dict, path)
    with pytest.raises(CheckpointError, match=found):
        load(model, path)


@pytest.mark.parametrize('strict', [False, True])
def test_own_weights_at_another_size_are_resized(strict):
    source = nn.ModuleDict({'backbone': narrow_dat()})
    target = nn.ModuleDict({'backbone': narrow_dat(img_size=96, window_size=6)})
    state_dict = source.state_dict()
    target.load_state_dict(state_dict, strict=strict)
    table = 'backbone.stages.2.blocks.1.attn.position_bias_table'
    expected = nn.functional.interpolate(state_dict[table][None], (11, 11), mode='bicubic')[0]
    assert torch.equal(target.state_dict()[table], expected)
    assert state_dict[table].shape == (4, 7, 7)  # what was given is as it was
    assert torch.equal(target['backbone'].norm3.weight, source['backbone'].norm3.weight)


def test_other_differences_stay_pytorchs():
    backbone, state_dict = narrow_dat(), narrow_dat().state_dict()
    del state_dict['norm0.weight']
    with pytest.raises(RuntimeError, match=r'Missing key.*norm0\.weight'):
        backbone.load_state_dict(state_dict)
    state_dict['norm0.scale'] = torch.zeros(1)
    with warnings.catch_warnings(action='error'):
        missing, unexpected = backbone.load_state_dict(state_dict, strict=False)
    assert (missing, unexpected) == (['norm0.weight'], ['norm0.scale'])
