import pytest
import torch
import torch.nn.functional as F

from mmdat.ops.deformable.gathers import sample_by_gathers


@pytest.mark.parametrize(
    ('number', 'channels', 'height', 'width', 'lines', 'columns'),
    [(2, 3, 5, 7, 4, 6), (1, 1, 1, 9, 3, 1), (3, 2, 8, 1, 1, 40), (1, 4, 1, 1, 2, 2)],
)
def test_equals_grid_sample(number, channels, height, width, lines, columns):
    torch.manual_seed(number)
    images = torch.randn(number, channels, height, width, dtype=torch.float64, requires_grad=True)
    points = 3 * torch.rand(number, lines, columns, 2, dtype=torch.float64) - 1.5
    points[0, 0, 0] = 1e9
    points.requires_grad_()
    ours = sample_by_gathers(images, points)
    expected = F.grid_sample(images, points, align_corners=True)
    torch.testing.assert_close(ours, expected, atol=1e-13, rtol=0)
    weights = torch.randn_like(expected)
    for mine, theirs in zip(
        *(torch.autograd.grad(out, (images, points), weights) for out in (ours, expected))
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


def test_points_on_pixels_and_borders():
    """At a border the pixel beyond it has no weight; its index is of the map even so."""
    images = torch.arange(12.0, dtype=torch.float64).view(1, 1, 3, 4)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 4), indexing='ij')
    points = torch.stack([x, y], dim=-1)[None].double()
    points[..., 0] = points[..., 0].mul(3).round() / 3
    torch.testing.assert_close(sample_by_gathers(images, points), images, atol=1e-14, rtol=0)


def test_what_is_not_finite_is_outside():
    points = torch.tensor([[[[float('nan'), 0.0], [0.0, float('inf')], [0.0, 0.0]]]])
    sampled = sample_by_gathers(torch.ones(1, 1, 3, 3), points)
    assert sampled.flatten().tolist() == [0, 0, 1]
