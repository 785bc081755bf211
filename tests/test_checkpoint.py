import pytest
import torch
from goldens import (
    build_golden_model,
    dat_settings,
    fill_rule,
    official_weights,
    read_golden,
    requires_goldens,
)
from torch import nn

from mmdat.backbones import DAT
from mmdat.checkpoint import from_official, load_pretrained, resize_bias_tables

NARROW = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 2, 4))


def narrow_dat(**settings) -> DAT:
    return DAT(**dict(arch=NARROW, img_size=64, window_size=4) | settings)


@pytest.fixture
def golden_case():
    return read_golden('cvpr_base_128w4')


@requires_goldens
@pytest.mark.parametrize('name', ['cvpr_base_128w4', 'pp_base_128', 'pp_sra_128', 'det_base_128x192'])
def test_from_official_is_pure_and_complete(name):
    case, _ = read_golden(name)
    official = official_weights(case['keys'], case['offset_gain'])
    before = {key: value.clone() for key, value in official.items()}
    ours = from_official(official)
    assert official.keys() == before.keys()
    assert all(torch.equal(official[key], before[key]) for key in before)
    models = {'backbone', 'head'} if 'cls_head.weight' in official else {'backbone'}
    assert {key.partition('.')[0] for key in ours} == models
    derived = ('relative_position_index', 'attn_mask')
    assert len(ours) == sum(not key.endswith(derived) for key in official)
    learned = sum(v.numel() for k, v in official.items() if not k.endswith(derived))
    assert sum(value.numel() for value in ours.values()) == learned == case['n_params']


def test_from_official_names_keys_it_does_not_know():
    with pytest.raises(ValueError, match=r'stages\.0\.attns\.0\.proj_x\.weight'):
        from_official({'stages.0.attns.0.proj_x.weight': torch.zeros(1)})


@requires_goldens
def test_resized_tables_equal_the_authors_code():
    case, golden = read_golden('cvpr_resize_128to192')
    base, _ = read_golden('cvpr_base_128w4')
    weights = from_official(official_weights(base['keys'], case['offset_gain']))
    target = DAT(**dat_settings(case['target'])).double()
    prefixed = {f'backbone.{key}': value for key, value in target.state_dict().items()}
    resized, report = resize_bias_tables(weights, prefixed)
    tables = {key: value for key, value in golden.items() if key.endswith('_table')}
    assert len(report) == len(tables) == 10
    for key, expected in from_official(tables).items():
        torch.testing.assert_close(resized[key], expected, atol=1e-9, rtol=0, msg=key)

    head = nn.Linear(*resized['head.fc.weight'].T.shape).double()
    model = nn.ModuleDict({'backbone': target, 'head': nn.ModuleDict({'fc': head})}).eval()
    missing, unexpected = model.load_state_dict(resized, strict=False)
    assert not unexpected
    assert missing == [f'backbone.norm{i}.{p}' for i in range(3) for p in ('weight', 'bias')]
    x = fill_rule().make_input(case['input_seed'], case['input_shape'])
    logits = head(target(x)[-1].mean((2, 3)))
    torch.testing.assert_close(logits, golden['logits'], atol=1e-9, rtol=0)


@requires_goldens
@pytest.mark.parametrize('wrap', [lambda w: w, lambda w: {'model': w, 'epoch': 299}])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_authors_file_as_init_cfg(tmp_path, golden_case, wrap, prefix):
    case, _ = golden_case
    official = official_weights(case['keys'], case['offset_gain'])
    path = str(tmp_path / 'dat_tiny_in1k_224.pth')
    torch.save(wrap({prefix + key: value for key, value in official.items()}), path)
    init_cfg = dict(type='Pretrained', checkpoint=path)
    backbone = DAT(**dat_settings(case['config']), init_cfg=init_cfg)
    backbone.init_weights()
    expected, _ = build_golden_model(case)
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[key].float(), msg=key)


def save_own(tmp_path, model: nn.Module, **changes) -> str:
    """A file as MMEngine saves it, of a detector with this backbone."""
    state_dict = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    state_dict |= {'bbox_head.weight': torch.zeros(3)} | changes
    path = str(tmp_path / 'epoch_1.pth')
    torch.save({'meta': {}, 'state_dict': state_dict}, path)
    return path


def test_own_detector_file_into_a_backbone_with_fewer_outputs(tmp_path):
    source = narrow_dat()
    target = narrow_dat(out_indices=(0, 1))
    load_pretrained(target, save_own(tmp_path, source))
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key


def test_own_file_at_another_size_is_resized(tmp_path):
    target = narrow_dat(img_size=96, window_size=6)
    load_pretrained(target, save_own(tmp_path, narrow_dat()))
    assert target.stages[2].blocks[1].attn.position_bias_table.shape == (4, 11, 11)


@pytest.mark.parametrize(
    ('settings', 'changes', 'message'),
    [
        (dict(pos_bias=None), {}, '2 unexpected: .*position_bias_table'),
        (dict(pos_bias='dwconv'), {}, 'missing: .*position_bias_conv.weight.*unexpected'),
        ({}, {'backbone.patch_embed.norm.scale': torch.zeros(1)}, 'unexpected: patch_embed.norm.scale'),
        (dict(mlp_ratio=2), {}, r'mlp.fc1.weight \(64, 16\) instead of \(32, 16\)'),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(tmp_path, settings, changes, message):
    model = narrow_dat(**settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_pretrained(model, save_own(tmp_path, narrow_dat(), **changes))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_of_another_network_is_an_error(tmp_path):
    path = str(tmp_path / 'resnet.pth')
    torch.save({'layer1.conv.weight': torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r'missing: patch_embed.*unexpected: layer1\.conv\.weight'):
        load_pretrained(narrow_dat(), path)
