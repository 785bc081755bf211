import pytest
import torch
from helpers.memory import PeakMemory

from mmdat.backbones.dat import DATBlock
from mmdat.layers import NeighborhoodAttention


def test_maps_smaller_than_the_neighbourhood_equal_maps_that_were_padded_before():
    torch.manual_seed(0)
    layer = NeighborhoodAttention(8, 2, kernel_size=5)
    for height, width in [(1, 1), (3, 9), (7, 2)]:
        x = torch.randn(2, height, width, 8)
        padded = torch.nn.functional.pad(x, (0, 0, 0, max(5 - width, 0), 0, max(5 - height, 0)))
        torch.testing.assert_close(layer(x), layer(padded)[:, :height, :width])


def test_a_query_sees_its_neighbourhood_only():
    """Perturbing a position changes exactly the positions whose neighbourhoods hold it."""
    torch.manual_seed(0)
    layer = NeighborhoodAttention(8, 2, kernel_size=5).double()
    x = torch.randn(1, 20, 20, 8, dtype=torch.float64)
    perturbed = x.clone()
    perturbed[0, 4, 10] += 1
    changed = (layer(x) - layer(perturbed)).abs().sum(-1)[0] > 1e-12
    expected = torch.zeros(20, 20, dtype=torch.bool)
    expected[:7, 8:13] = True  # the neighbourhoods of rows 0 and 1 are moved down to rows 0 to 4
    assert torch.equal(changed, expected)


@pytest.mark.parametrize(('embed_dims', 'num_heads'), [(64, 2), (128, 4)])
def test_a_block_at_the_size_of_detectors_needs_less_than_a_gigabyte(embed_dims, num_heads):
    """Stage 1 of an 800x1344 image, forward and backward."""
    with torch.device('meta'):
        attention = NeighborhoodAttention(embed_dims, num_heads)
        block = DATBlock(embed_dims, attention, mlp_ratio=4, drop_path=0, lpu=True, conv_mlp=True)
        x = torch.empty(1, 200, 336, embed_dims, requires_grad=True)
    with PeakMemory() as memory:
        block(x).sum().backward()
    assert memory.peak < 1e9
