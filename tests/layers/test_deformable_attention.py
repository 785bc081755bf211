import pytest
import torch
from helpers.goldens import build_attention, make_input, read_golden

from mmdat.layers import DeformableAttention


@pytest.mark.parametrize(
    'name',
    [
        'grad_cvpr_s3_r1',
        'grad_cvpr_s3_r2',
        'grad_cvpr_s4_r1',
        'grad_pp_s1_r8',
        'grad_pp_s3_r2',
        'grad_pp_s3_r2_stretch',
    ],
)
def test_gradients_equal_the_authors_code(name, backend, monkeypatch):
    monkeypatch.setenv('MMDAT_BACKEND', backend)
    dtype = torch.float32 if backend == 'cpu' else torch.float64
    case, golden = read_golden(name)
    attention, official_name_of = build_attention(case)
    attention.to(dtype)
    x = make_input(case['input_seed'], case['block_input_shape']).to(dtype).requires_grad_()
    y = attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    w = make_input(case['input_seed'] + 1, y.shape)
    loss = (y * w).sum() / y.numel() ** 0.5
    loss.backward()

    def check(ours, theirs, name):
        error = (ours.view_as(theirs) - theirs).abs().max()
        assert error < (1e-9 if dtype == torch.float64 else 1e-5 * max(theirs.abs().max(), 1)), name

    check(y, golden['y'], 'y')
    check(loss, golden['loss'], 'loss')
    check(x.grad, golden['grad_input'], 'input')
    assert official_name_of.keys() == dict(attention.named_parameters()).keys()
    for ours, parameter in attention.named_parameters():
        theirs = official_name_of[ours]
        norm = torch.tensor(case['grad_norms'][theirs], dtype=torch.float64)
        check(parameter.grad.norm(), norm, f'norm of {theirs}')
        if f'grad/{theirs}' in golden:  # the largest gradients are stored as norms only
            check(parameter.grad, golden[f'grad/{theirs}'], theirs)


def attention(**settings) -> DeformableAttention:
    torch.manual_seed(0)
    defaults = dict(embed_dims=16, num_heads=4, offset_groups=2, map_size=(8, 8))
    return DeformableAttention(**defaults | settings)


def test_offsets_stay_in_range():
    layer = attention(offset_range=3.0, key_stride=2)
    torch.nn.init.normal_(layer.offset.proj.weight, std=100)
    x = torch.randn(2, 12, 10, 16)
    resting = attention(offset_range=0, key_stride=2).sampling_locations(x)
    offsets = layer.sampling_locations(x) - resting
    cells = offsets.abs().amax((0, 1, 2, 3)) * torch.tensor([6.0, 5.0])
    torch.testing.assert_close(cells, torch.full((2,), 3.0))


@pytest.mark.parametrize('coordinates', ['half_pixel', 'corners'])
def test_unbounded_offsets_keep_points_on_the_map(coordinates):
    layer = attention(offset_range='map', coordinates=coordinates)
    torch.nn.init.normal_(layer.offset.proj.weight, std=100)
    locations = layer.sampling_locations(torch.randn(2, 12, 10, 16))
    torch.testing.assert_close(locations.amax((0, 1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(locations.amin((0, 1, 2, 3)), -torch.ones(2))


def test_groups_move_apart():
    layer = attention()
    locations = layer.sampling_locations(torch.randn(1, 8, 8, 16))
    assert not torch.allclose(locations[:, 0], locations[:, 1])


def test_without_offsets_the_offset_network_is_idle():
    layer = attention(offset_range=0)
    assert not any(p.requires_grad for p in layer.offset.parameters())
    layer(torch.randn(1, 8, 8, 16)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters() if p.requires_grad)


def test_without_offsets_keys_of_dat_plus_plus_are_averages():
    layer = attention(offset_range=0, coordinates='corners', key_stride=4, pos_bias=None)
    x = torch.randn(2, 3, 6, 16)
    torch.nn.init.zeros_(layer.k.weight)  # so both keys, of 3x4 and of 3x2 pixels, weigh the same
    mean = (x[:, :, :4].mean((1, 2)) + x[:, :, 4:].mean((1, 2))) / 2
    expected = layer.proj(layer.v(mean))[:, None, None].expand(x.shape)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize('coordinates', ['half_pixel', 'corners'])
def test_one_pixel(coordinates):
    layer = attention(coordinates=coordinates)
    out = layer(torch.randn(3, 1, 1, 16))
    assert out.shape == (3, 1, 1, 16)
    assert out.isfinite().all()


def test_without_numbers():
    """As counters of FLOPs build the network; the meta device knows no autocast."""
    layer = attention(key_stride=2).to('meta')
    assert layer(torch.empty(2, 9, 7, 16, device='meta')).shape == (2, 9, 7, 16)
