import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdat.export.substitutes import adaptive_avg_pool2d, substituted, upsampling_by_factor


@pytest.mark.parametrize('size', [(16, 16), (7, 12), (1, 5), (3, 2)])
@pytest.mark.parametrize('output', [1, 2, 3, 6, (3, None)])
def test_adaptive_pooling_by_products(size, output):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(x, output)
    torch.testing.assert_close(adaptive_avg_pool2d(x, output), expected, atol=1e-14, rtol=0)


def test_only_what_is_equal_is_substituted():
    """Sampling of another mode stays PyTorch's."""
    x, points = torch.randn(1, 2, 5, 6), 2 * torch.rand(1, 3, 4, 2) - 1
    for settings in (dict(mode='nearest'), dict(padding_mode='border'), dict(align_corners=False)):
        settings = dict(align_corners=True) | settings
        expected = F.grid_sample(x, points, **settings)
        with substituted():
            assert torch.equal(F.grid_sample(x, points, **settings), expected)


@pytest.mark.parametrize('grid_sample', [False, True])
def test_operations_of_a_graph(grid_sample):
    def function(x, points):
        sampled = F.grid_sample(x, points, align_corners=True) + torch.grid_sampler_2d(x, points, 0, 0, True)
        return nn.AdaptiveAvgPool2d(2)(sampled.clamp(-0.5, 0.5))

    arguments = torch.randn(1, 2, 5, 6), 2 * torch.rand(1, 3, 4, 2) - 1
    with substituted(grid_sample):
        graph = torch.jit.trace(function, arguments)
    assert ('grid_sampler' in str(graph.graph)) == grid_sample
    assert 'adaptive' not in str(graph.graph)
    torch.testing.assert_close(graph(*arguments), function(*arguments), atol=1e-6, rtol=0)


def test_upsampling_by_a_factor_is_recorded():
    wrappers = pytest.importorskip('mmseg.models.utils.wrappers')
    layer = nn.Sequential(wrappers.Upsample(scale_factor=2, mode='bilinear', align_corners=False))
    x, other = torch.randn(1, 2, 3, 4), torch.randn(2, 2, 5, 3)
    with upsampling_by_factor(layer):
        graph = torch.jit.trace(layer, x)
    assert 'forward' not in vars(layer[0])
    torch.testing.assert_close(graph(other), layer(other))
