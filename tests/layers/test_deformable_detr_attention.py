import pytest
import torch

from mmdat.layers import DeformableDETRAttention


@pytest.fixture
def layer() -> DeformableDETRAttention:
    torch.manual_seed(0)
    layer = DeformableDETRAttention(6, num_heads=2, num_points=3).double()
    torch.nn.init.normal_(layer.offset.weight)
    return layer


def test_equation_11(layer):
    """Against mmcv's multi-scale deformable attention, of one scale."""
    ops = pytest.importorskip('mmcv.ops.multi_scale_deform_attn')
    height, width = 5, 7
    x = torch.randn(2, height, width, 6, dtype=torch.float64)
    y, x_ = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    pixels = torch.stack([y, x_], -1)[:, :, None, None] + layer.offset(x).unflatten(-1, (2, 3, 2))
    # mmcv's coordinates are (x, y), from 0 to 1 between the borders of the map
    locations = ((pixels + 0.5) / torch.tensor([height, width])).flip(-1)
    expected = ops.multi_scale_deformable_attn_pytorch(
        layer.v(x).flatten(1, 2).unflatten(-1, (2, 3)),
        torch.tensor([[height, width]]),
        locations.flatten(1, 2).unsqueeze(3),
        layer.weight(x).unflatten(-1, (2, 3)).softmax(-1).flatten(1, 2).unsqueeze(3),
    )
    torch.testing.assert_close(layer(x).flatten(1, 2), layer.proj(expected))


def test_sampling_locations_start_at_the_query(layer):
    torch.nn.init.zeros_(layer.offset.weight)
    torch.nn.init.zeros_(layer.offset.bias)
    locations = layer.sampling_locations(torch.randn(2, 3, 5, 6, dtype=torch.float64))
    assert locations.shape == (2, 2, 3, 5, 3, 2)
    assert torch.equal(locations[1, 1, 0, 4, 2], torch.tensor([-1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize('size', [(1, 1), (1, 4)])
def test_maps_of_one_pixel(layer, size):
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
