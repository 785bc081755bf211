import re

import torch
from conftest import ROOT
from torch import nn

from mmdat.layers import ChannelsFirst, DeformableAttention, Downsample


def test_it_is_the_layer_itself():
    torch.manual_seed(0)
    layer = DeformableAttention(embed_dims=16, num_heads=4, offset_groups=2, map_size=(8, 8))
    x = torch.randn(2, 16, 7, 9)
    y = ChannelsFirst(layer)(x)
    assert y.is_contiguous()
    torch.testing.assert_close(y, layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_layers_that_change_the_shape():
    assert ChannelsFirst(Downsample(8, 16, 2, False, bias=False))(torch.randn(1, 8, 6, 4)).shape == (
        1,
        16,
        3,
        2,
    )


def test_example_of_the_readme():
    """A network of torchvision with deformable attention runs, and learns in it."""
    block = re.search(r'```python\n(from torchvision.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)[1]
    assert len(block.strip().splitlines()) <= 5
    names = {}
    exec(block, names)
    network = names['network']
    layers = [module for module in network.modules() if isinstance(module, ChannelsFirst)]
    assert len(layers) == 1
    assert network(torch.randn(2, 3, 96, 64)).shape == (2, 1000)
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in layers[0].parameters() if p.requires_grad and p.ndim > 1)
    assert isinstance(network, nn.Module)
