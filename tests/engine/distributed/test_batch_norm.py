import pytest
import torch
from helpers.batch_norm import train_on_share
from helpers.processes import run_together
from torch import nn

from mmdat.engine import CPUSyncBN


@pytest.mark.parametrize(('sizes', 'settings'), [((2, 3), {}), ((5, 0), dict(momentum=None, eps=1e-3))])
def test_equals_batch_norm_of_the_whole_batch(sizes, settings, tmp_path):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 4, 3, 6)
    x = (100 + x).requires_grad_()  # far from zero, where sums of squares lose digits
    layer = nn.BatchNorm2d(4, **settings)
    for _ in range(3):
        out = layer(x)
        (out * weight).sum().backward()

    shares = run_together(train_on_share, 2, tmp_path, x.detach(), weight, sizes, settings)
    close = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([share['out'] for share in shares]), out.detach(), **close)
    torch.testing.assert_close(torch.cat([share['grad'] for share in shares]), x.grad, **close)
    torch.testing.assert_close(sum(share['weight'] for share in shares), layer.weight.grad, **close)
    for share in shares:
        for key, value in layer.state_dict().items():
            torch.testing.assert_close(share['state'][key], value, **close, msg=key)


def test_weights_are_those_of_pytorchs_layer():
    layer, theirs = CPUSyncBN(3), nn.SyncBatchNorm(3)
    layer.load_state_dict(theirs.state_dict())
    assert layer.state_dict().keys() == theirs.state_dict().keys()


def test_one_process_and_evaluation_are_plain():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    layer, plain = CPUSyncBN(3), nn.BatchNorm2d(3)
    for mode in (True, False):
        torch.testing.assert_close(layer.train(mode)(x), plain.train(mode)(x))
