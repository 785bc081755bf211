"""What the network computes, which settings it takes, and what it tells about itself."""

import re

import pytest
import torch
from helpers.goldens import build_golden_model, make_input, read_golden
from helpers.narrow import ARCH, CVPR, PLUS, narrow_dat
from torch import nn

from mmdat.backbones import DAT
from mmdat.layers import DropPath

GOLDENS = [
    'cvpr_allD_128',
    'cvpr_allD_r1_128',
    'cvpr_base_128w4',
    'cvpr_base_224',
    'cvpr_convpatch_128',
    'cvpr_no_off_128',
    'cvpr_no_off_no_pe_128',
    'cvpr_orf14_128',
    'cvpr_orfneg_128',
    'cvpr_pe_dwc_128',
    'cvpr_pe_fixed_128',
    'cvpr_pe_none_128',
    'cvpr_r3_2_128',
    'cvpr_r3_2_224',
    'cvpr_r3_2_r4_2_128',
    'cvpr_stage4_only_128',
    'det_L_130x200',
    'det_base_128x192',
    'det_base_200x333',
    'det_oi123_200x333',
    'det_tiny_96x100',
    'pp_base_128',
    'pp_base_224',
    'pp_dwcpe_128',
    'pp_fixedpe_128',
    'pp_ls_128',
    'pp_nooff_128',
    'pp_orf2_128',
    'pp_plain_128',
    'pp_sra_128',
    'pp_stretch_160x192',
    'seg_base_160x160',
]


def golden_outputs(case: dict, backbone: DAT, head: nn.Linear | None, dtype: torch.dtype) -> dict:
    """What the goldens hold, computed by our model."""
    backbone.to(dtype)
    x = make_input(case['input_seed'], case['input_shape']).to(dtype)
    maps = [('patch', backbone.patch_embed)]
    maps += [(f'stage{i}', stage) for i, stage in enumerate(backbone.stages, start=1)]
    outputs = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: outputs.update({name: out.permute(0, 3, 1, 2)})
        )
        for name, module in maps
    ]
    with torch.no_grad():
        outs = backbone(x)
        if head is not None:
            outputs['logits'] = head.to(dtype)(outs[-1].mean((2, 3)))
        locations = backbone.sampling_locations(x)
    for hook in hooks:
        hook.remove()
    outputs |= {f'out{i}': out for i, out in zip(backbone.out_indices, outs)}
    for name, value in locations.items():
        _, stage, _, block, _ = name.split('.')
        outputs[f'pos_s{int(stage) + 1}b{block}'] = value
    return outputs


@pytest.mark.parametrize('name', GOLDENS)
def test_equals_the_authors_code(name):
    case, golden = read_golden(name)
    backbone, head = build_golden_model(case)
    # the authors' dense backbones also return the maps of stages that `out_indices` leaves out
    left_out = {f'out{i}' for i in range(4) if i not in backbone.out_indices}
    expected = {k: v for k, v in golden.items() if not k.startswith('ref_') and k not in left_out}
    assert {'stage3', 'stage4', 'logits' if head else 'out3'} <= expected.keys()

    outputs = golden_outputs(case, backbone, head, torch.float64)
    for key, value in expected.items():
        torch.testing.assert_close(outputs[key], value, atol=1e-9, rtol=0, msg=f'{name} {key}')

    outputs = golden_outputs(case, backbone, head, torch.float32)
    for key, value in expected.items():
        deviation = (outputs[key].double() - value).abs().max() / value.std()
        assert deviation < 1e-4, f'{name} {key}: {deviation} standard deviations'


@pytest.mark.parametrize(
    'name', ['cvpr_base_224', 'cvpr_r3_2_128', 'det_base_200x333', 'det_tiny_96x100', 'pp_stretch_160x192']
)
def test_each_backend_equals_the_authors_code(name, backend, monkeypatch):
    monkeypatch.setenv('MMDAT_BACKEND', backend)
    dtype, tolerance = (torch.float32, 1e-5) if backend == 'cpu' else (torch.float64, 1e-9)
    case, golden = read_golden(name)
    outputs = golden_outputs(case, *build_golden_model(case), dtype)
    for key in golden.keys() & outputs.keys():
        deviation = (outputs[key] - golden[key]).abs().max() / golden[key].std()
        assert deviation < tolerance, f'{name} {key}: {deviation} standard deviations'


# Parameters in millions to the digits of the reference, of DAT-T with these settings.
PARAMETERS = [
    # Table 2
    (dict(), '28.3191'),
    (dict(arch='small'), '49.7004'),
    (dict(arch='base'), '87.8816'),
    (dict(arch='b', img_size=384, window_size=12), '88.1783'),
    # Table 6
    (dict(offset_range=0, pos_bias=None), '28.2888'),
    (dict(offset_range=0), '28.3191'),
    (dict(pos_bias=None), '28.2888'),
    (dict(pos_bias='fixed'), '29.7294'),
    (dict(pos_bias='dwconv'), '28.3080'),
    (dict(block_patterns=('P', 'P', 'LD', 'LD'), key_strides=(8, 4, 1, 1)), '30.6771'),
    # Table 7
    (dict(block_patterns=('LD', 'LD', 'LD', 'LD'), key_strides=(4, 2, 1, 1)), '28.3862'),
    (dict(block_patterns=('LS', 'LD', 'LD', 'LD'), key_strides=(1, 2, 1, 1)), '28.3415'),
    (dict(block_patterns=('LS', 'LS', 'LS', 'LD')), '28.2875'),
    # Table 8, where those of Deformable DETR include 192,080 entries of shift masks and 1,274 of
    # reference points: 27.9518, 31.1511 and 37.2634
    (dict(block_patterns=('LS', 'LS', 'LQ', 'LQ'), num_points=(1, 1, 16, 16)), '27.7585'),
    (dict(block_patterns=('LS', 'LS', 'LQ', 'LQ'), num_points=(1, 1, 49, 49)), '30.9578'),
    (dict(block_patterns=('LS', 'LS', 'LQ', 'LQ'), num_points=(1, 1, 196, 49)), '37.0700'),
    (dict(key_strides=(1, 1, 2, 1)), '28.3191'),
    # Table 9
    (dict(overlap_patches=True), '30.2640'),
    # DAT++
    (dict(arch='pp_tiny'), '23.96'),
    (dict(arch='pp_small'), '53.13'),
    (dict(arch='pp_b'), '93.69'),
    (dict(arch='pp_tiny', overlap_patches=False, lpu=False, conv_mlp=False), '22.77'),
]


@pytest.mark.parametrize(('settings', 'millions'), PARAMETERS)
def test_parameters_of_the_paper(settings, millions):
    """With the classifier's 1000 classes."""
    with torch.device('meta'):
        backbone = DAT(**settings, out_indices=(3,))
        head = nn.Linear(backbone.norm3.normalized_shape[0], 1000)
    count = sum(p.numel() for module in (backbone, head) for p in module.parameters())
    decimals = len(millions.partition('.')[2])
    assert f'{count / 1e6:.{decimals}f}' == millions


@pytest.mark.parametrize('size', [(1, 1), (2, 7), (4, 4), (33, 130), (64, 64), (64, 96), (50, 171)])
@pytest.mark.parametrize(
    'settings',
    [
        {},
        dict(key_strides=(8, 4, 2, 3), block_patterns=('LD',) * 4),
        PLUS,
        PLUS | dict(offset_range=0),
        PLUS | dict(overlap_patches=False, offset_range=2.0),
        dict(key_strides=(8, 4, 2, 1), block_patterns=('P', 'P', 'LQ', 'QP')),
    ],
)
def test_any_input_size(size, settings):
    model = narrow_dat(**settings)
    maps = model(torch.randn(2, 3, *size))
    for i, out in enumerate(maps):
        stride = 4 * 2**i
        assert out.shape == (2, 16 * 2**i, -(-size[0] // stride), -(-size[1] // stride))
        assert out.is_contiguous()
        assert out.isfinite().all()
    sum(out.sum() for out in maps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize('settings', [CVPR | dict(overlap_patches=True), PLUS])
@pytest.mark.parametrize('pos_bias', ['relative', 'fixed', 'dwconv', None])
def test_position_biases_at_other_sizes(pos_bias, settings):
    model = narrow_dat(**settings, pos_bias=pos_bias)
    assert all(out.isfinite().all() for out in model(torch.randn(1, 3, 90, 45)))


@pytest.mark.parametrize('settings', [{}, PLUS])
def test_images_of_a_batch_are_independent(settings):
    model = narrow_dat(**settings).eval()
    x = torch.randn(3, 3, 70, 50)
    for one, all_ in zip(model(x[1:2]), model(x)):
        torch.testing.assert_close(one, all_[1:2], atol=1e-5, rtol=1e-5)


def test_outputs_are_normalised():
    with torch.no_grad():
        maps = narrow_dat()(10 * torch.randn(2, 3, 64, 64))
    for out in maps:
        torch.testing.assert_close(out.mean(1), torch.zeros_like(out[:, 0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize('out_indices', [(3,), (1, 2, 3), (0, 2), (1,)])
def test_out_indices_choose_maps_and_leave_no_parameter_unused(out_indices):
    every = narrow_dat().eval()
    chosen = narrow_dat(out_indices=out_indices).eval()
    missing, _ = chosen.load_state_dict(every.state_dict(), strict=False)
    assert not missing
    x = torch.randn(1, 3, 64, 64)
    maps = chosen(x)
    assert len(maps) == len(out_indices)
    for i, out in zip(out_indices, maps):
        torch.testing.assert_close(out, every(x)[i])
    sum(out.square().sum() for out in maps).backward()
    assert all(p.grad is not None for p in chosen.parameters())


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3, 4])
def test_frozen_stages_stay_frozen_under_train(frozen_stages):
    model = narrow_dat(frozen_stages=frozen_stages, drop_path_rate=0.5)
    model.train()
    frozen = [model.patch_embed] if frozen_stages >= 0 else []
    frozen += model.stages[: max(frozen_stages, 0)]
    frozen += [getattr(model, f'norm{i}') for i in range(max(frozen_stages, 0))]
    frozen_parameters = {p for module in frozen for p in module.parameters()}
    assert not any(m.training for module in frozen for m in module.modules())
    for p in model.parameters():
        assert p.requires_grad == (p not in frozen_parameters)
    if frozen_stages < 4:
        model(torch.randn(1, 3, 64, 64))[-1].sum().backward()
        assert all(p.grad is None for p in frozen_parameters)
        assert model.stages[3].blocks[0].mlp.fc1.weight.grad is not None


def test_layer_wise_learning_rate_decay():
    """The groups that mmpretrain's constructor makes."""
    optimizers = pytest.importorskip('mmpretrain.engine.optimizers')
    classifiers = pytest.importorskip('mmpretrain.models.classifiers')
    backbone = narrow_dat(arch=PLUS['arch'] | dict(depths=(1, 2, 2, 1)), out_indices=(0, 3))
    head = dict(type='LinearClsHead', num_classes=5, in_channels=128)
    model = classifiers.ImageClassifier(backbone, neck=dict(type='GlobalAveragePooling'), head=head)
    constructor = optimizers.LearningRateDecayOptimWrapperConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1.0, weight_decay=0.1)),
        dict(layer_decay_rate=0.5),
    )
    groups = {group['param_name']: group for group in constructor(model).optimizer.param_groups}
    assert groups.keys() == dict(model.named_parameters()).keys()
    depths = {}
    for name, group in groups.items():
        assert group['lr'] == 0.5 ** (7 - group['layer_id'])
        module = re.match(r'head|backbone\.(patch_embed|norm\d|stages\.\d\.(downsample|blocks\.\d))', name)[0]
        assert depths.setdefault(module, group['layer_id']) == group['layer_id']
    assert list(depths.items()) == [
        ('backbone.patch_embed', 0),
        ('backbone.stages.0.blocks.0', 1),
        ('backbone.stages.1.downsample', 1),
        ('backbone.stages.1.blocks.0', 2),
        ('backbone.stages.1.blocks.1', 3),
        ('backbone.stages.2.downsample', 3),
        ('backbone.stages.2.blocks.0', 4),
        ('backbone.stages.2.blocks.1', 5),
        ('backbone.stages.3.downsample', 5),
        ('backbone.stages.3.blocks.0', 6),
        ('backbone.norm0', 7),
        ('backbone.norm3', 7),
        ('head', 7),
    ]


def test_stochastic_depth_rises_over_the_blocks():
    model = DAT(ARCH, drop_path_rate=0.7)
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    torch.testing.assert_close(torch.tensor(rates), torch.linspace(0, 0.7, 8))


def test_sampling_locations():
    model = narrow_dat(key_strides=(1, 1, 2, 1))
    locations = model.sampling_locations(torch.randn(2, 3, 64, 96))
    assert {name: tuple(value.shape) for name, value in locations.items()} == {
        'stages.2.blocks.1.attn': (2, 2, 2, 3, 2),
        'stages.3.blocks.1.attn': (2, 4, 2, 3, 2),
    }
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(arch='huge'), "unknown arch 'huge'"),
        (dict(arch=ARCH | dict(dims=3)), "unknown key of arch 'dims'"),
        (dict(arch=dict(embed_dims=16)), 'arch lacks'),
        (dict(arch=ARCH | dict(depths=(2, 2))), 'depths must be one entry for each of the 4 stages'),
        (dict(arch=ARCH | dict(num_heads=(3, 2, 4, 8))), 'channels=16, num_heads=3'),
        (dict(arch=ARCH | dict(offset_groups=(1, 1, 3, 4))), 'num_heads=4, offset_groups=3'),
        (dict(arch=ARCH | dict(generation='cvpr22')), "unknown generation 'cvpr22', did you mean 'cvpr'"),
        (dict(window_size=0), 'window_size=0'),
        (dict(neighborhood_size=6), 'neighborhood_size=6'),
        (dict(num_points=(1, 1, 0, 1)), r'from 1 to 1024, got num_points=\(1, 1, 0, 1\)'),
        (dict(img_size=-1), 'img_size=-1'),
        (dict(block_patterns=('LS', 'LX', 'LD', 'LD')), r"letters of L \(local window\).*, got .*'LX'"),
        (dict(key_strides=(1, 1, 0, 1)), r'at least 1, got key_strides=\(1, 1, 0, 1\)'),
        (dict(offset_kernel_sizes=(9, 7, 4, 3)), 'each an odd integer'),
        (dict(offset_range=-1), 'offset_range=-1'),
        (dict(pos_bias='absolute'), "pos_bias='absolute'"),
        (dict(drop_path_rate=1.0), 'drop_path_rate=1.0'),
        (dict(out_indices=(0, 4)), r'out_indices=\(0, 4\)'),
        (dict(out_indices=()), r'out_indices=\(\)'),
        (dict(frozen_stages=5), 'frozen_stages=5'),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DAT(**settings)


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'key_stride'"):
        DAT(key_stride=(1, 1, 2, 1))


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 3), (2,)])
def test_what_a_neck_needs(out_indices):
    backbone = narrow_dat(out_indices=out_indices)
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert backbone.out_channels == tuple(out.shape[1] for out in maps)
    assert backbone.out_strides == tuple(64 // out.shape[2] for out in maps)
