import pytest
import torch
from helpers.goldens import case_settings, official_weights, read_golden
from helpers.narrow import ARCH
from helpers.published import save_classifier, save_mmcv, weights_of
from torch import nn

from mmdat.backbones import DAT
from mmdat.checkpoint import CheckpointError, from_official, load_pretrained

CLASSIFIERS = {
    'cvpr_base_128w4': 'dat_tiny_in1k_224.pth',
    'pp_base_128': 'dat_pp_tiny_in1k_224.pth',
    'pp_plain_128': 'ckpt_epoch_299.pth',
}


def narrow_dat(**settings) -> DAT:
    torch.manual_seed(0)
    return DAT(**dict(arch=ARCH, img_size=64, window_size=4) | settings)


def assert_loaded(backbone: DAT, official: dict, but: tuple[str, ...] = ()):
    ours = from_official(official)
    for key, value in backbone.state_dict().items():
        if not key.startswith(but):
            assert torch.equal(value, ours[f'backbone.{key}']), key


@pytest.mark.parametrize(('name', 'file_name'), CLASSIFIERS.items())
@pytest.mark.parametrize('prefix', ['', 'module.'])
@pytest.mark.parametrize('with_training_state', [False, True])
def test_classifiers_of_the_authors(tmp_path, name, file_name, prefix, with_training_state):
    case, _ = read_golden(name)
    weights = weights_of(name)
    settings = case['config'] if with_training_state else None
    path = save_classifier(tmp_path / file_name, weights, settings, prefix)
    init_cfg = dict(type='Pretrained', checkpoint=path)

    classifier = DAT(**case_settings(case) | dict(out_indices=(3,)), init_cfg=init_cfg)
    classifier.init_weights()
    assert_loaded(classifier, weights)

    # The authors' detectors train their output norms anew, that of the last stage as well.
    detector = DAT(**case_settings(case) | dict(out_indices=(1, 2, 3)), init_cfg=init_cfg)
    detector.init_weights()
    norms = ('norm1.', 'norm2.', 'norm3.')
    assert_loaded(detector, weights, but=norms)
    for key, value in detector.state_dict().items():
        if key.startswith(norms):
            assert torch.equal(value, torch.ones_like(value) if key.endswith('weight') else value * 0)


@pytest.mark.parametrize('name', ['det_base_128x192', 'det_oi123_200x333', 'seg_base_160x160'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_backbones_of_detectors_and_segmentors_of_the_authors(tmp_path, name, prefix):
    case, _ = read_golden(name)
    weights = weights_of(name)
    heads = {'neck.lateral_convs.0.conv.weight': torch.ones(1), 'decode_head.conv_seg.bias': torch.ones(1)}
    full = {f'backbone.{key}': value for key, value in weights.items()} | heads
    path = save_mmcv(tmp_path / 'epoch_12.pth', full, prefix)
    backbone = DAT(**case_settings(case))
    report = load_pretrained(backbone, path)
    assert_loaded(backbone, weights)
    assert report.dropped['not of the backbone'] == list(heads)
    assert report.loaded == len(backbone.state_dict())


def test_another_resolution(tmp_path):
    case, golden = read_golden('cvpr_resize_128to192')
    base, _ = read_golden('cvpr_base_128w4')
    weights = official_weights(base['keys'], case['offset_gain'])
    path = save_classifier(tmp_path / 'dat_base_in1k_224.pth', weights)
    settings = case_settings({'model': 'cvpr', 'config': case['target']})
    backbone = DAT(**settings, out_indices=(3,)).double()
    report = load_pretrained(backbone, path)
    tables = {key: value for key, value in golden.items() if key.endswith('_table')}
    for key, expected in from_official(tables).items():
        actual = backbone.state_dict()[key.removeprefix('backbone.')]
        torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0, msg=key)
    assert len(report.resized) == len(tables)
    assert 'resized (bicubic): ' in str(report)
    assert 'stages.3.blocks.1.attn.position_bias_table: (12, 7, 7) -> (12, 11, 11)' in str(report)


def save_own(tmp_path, model: nn.Module, **changes) -> str:
    """A file as MMEngine saves it, of a detector with this backbone."""
    state_dict = nn.ModuleDict({'backbone': model}).state_dict()
    state_dict |= {'bbox_head.weight': torch.zeros(3)} | changes
    path = str(tmp_path / 'epoch_1.pth')
    torch.save({'meta': {}, 'state_dict': state_dict}, path)
    return path


def test_own_detector_file_into_a_backbone_with_fewer_outputs(tmp_path):
    source = narrow_dat()
    target = narrow_dat(out_indices=(0, 1))
    report = load_pretrained(target, save_own(tmp_path, source))
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    assert 'backbone.norm3.weight' in report.dropped['output norms that are not built']
    assert len(report.dropped['stages that are not built']) > 50


def test_own_file_at_another_size_is_resized(tmp_path):
    target = narrow_dat(img_size=96, window_size=6)
    load_pretrained(target, save_own(tmp_path, narrow_dat()))
    assert target.stages[2].blocks[1].attn.position_bias_table.shape == (4, 11, 11)


@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'state_dict': s}, lambda s: {'model': s}])
def test_own_bare_backbone(tmp_path, wrap):
    source, target = narrow_dat(), narrow_dat(frozen_stages=2)
    for value in source.state_dict().values():
        value.add_(1)
    torch.save(wrap(source.state_dict()), tmp_path / 'x.pt')
    report = load_pretrained(target, str(tmp_path / 'x.pt'))
    assert report.loaded == len(target.state_dict())
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize('prefix', ['teacher.backbone', 'teacher.backbone.'])
def test_a_backbone_elsewhere(tmp_path, prefix):
    source, target = narrow_dat(), narrow_dat()
    source.patch_embed.norm.bias.data.fill_(7)
    model = nn.ModuleDict({'teacher': nn.ModuleDict({'backbone': source}), 'backbone': narrow_dat()})
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'x.pth')
    load_pretrained(target, str(tmp_path / 'x.pth'), prefix)
    assert (target.patch_embed.norm.bias == 7).all()
    with pytest.raises(CheckpointError, match=r'no weights below student\.'):
        load_pretrained(target, str(tmp_path / 'x.pth'), 'student')


@pytest.mark.parametrize(
    ('settings', 'changes', 'message'),
    [
        (dict(pos_bias=None), {}, r'2 unexpected: .*position_bias_table'),
        (dict(pos_bias='dwconv'), {}, r'missing: .*position_bias_conv\.weight.*unexpected'),
        ({}, {'backbone.patch_embed.norm.scale': torch.zeros(1)}, r'unexpected: .*patch_embed\.norm\.scale'),
        (dict(mlp_ratio=2), {}, r'mlp\.fc1\.weight \(64, 16\) instead of \(32, 16\)'),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(tmp_path, settings, changes, message):
    model = narrow_dat(**settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as info:
        load_pretrained(model, save_own(tmp_path, narrow_dat(), **changes))
    assert '\n' not in str(info.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'layer1.conv.weight': torch.zeros(1)}, r'holds no DAT, but layer1\.conv\.weight'),
        ({'optimizer': {}, 'epoch': 3}, 'holds no weights, only optimizer, epoch'),
        ({'model': {'x': torch.zeros(1), 'epoch': 3}}, 'not weights, but found among them: epoch'),
        ({}, 'holds no weights, only nothing'),
        ({1: torch.zeros(1)}, 'holds no weights, only 1'),
        ({'state_dict': None}, 'holds no weights, only state_dict'),
        ({'patch_proj.0.weight': torch.zeros(1), 'blocks.0': torch.zeros(1)}, r'not keys of .*: blocks\.0'),
    ],
)
def test_a_file_of_another_network_is_an_error(tmp_path, content, message):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(narrow_dat(), str(tmp_path / 'x.pth'))
