"""Images that are hard on arithmetic give finite maps and gradients."""

import pytest
import torch
from helpers.narrow import ARCH

from mmdat.backbones import DAT

BACKBONES = [
    dict(key_strides=(1, 1, 2, 1)),
    dict(key_strides=(8, 4, 2, 1), block_patterns=('P', 'P', 'LQ', 'QP')),
    dict(offset_range='map', pos_bias='fixed'),
    dict(arch=ARCH | dict(generation='pp')),
    dict(arch=ARCH | dict(generation='pp'), offset_range=0, pos_bias='dwconv'),
]
IMAGES = {
    'zeros': lambda size: torch.zeros(2, 3, *size),
    'constant': lambda size: torch.full((2, 3, *size), 255.0),
    'one bright pixel': lambda size: torch.zeros(2, 3, *size).index_fill_(3, torch.tensor(0), 1e3),
    'denormal': lambda size: torch.full((2, 3, *size), 1e-40),
    '16 bits': lambda size: 65535 * torch.rand(2, 3, *size),
    'huge': lambda size: 1e15 * torch.randn(2, 3, *size),  # more overflows in the variance of a norm
}
SIZES = [(1, 1), (1, 40), (33, 33)]


@pytest.mark.parametrize('settings', BACKBONES)
@pytest.mark.parametrize('image', IMAGES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_backbones(settings, image, dtype, trials):
    torch.manual_seed(0)
    model = DAT(**dict(arch=ARCH, img_size=64, window_size=4) | settings)
    for size in trials(SIZES, [*SIZES, (224, 224), (320, 512)]):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
            maps = model(IMAGES[image](size))
        sum(out.float().square().mean() for out in maps).backward()
        assert all(out.isfinite().all() for out in maps)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_constant_images_have_constant_maps_inside():
    """Far from borders, windows and points see nothing but the constant."""
    model = DAT(ARCH, img_size=64, window_size=4, block_patterns=('L',) * 4).eval()
    with torch.no_grad():
        maps = model(torch.full((1, 3, 128, 128), 7.0))
    for out in maps:
        torch.testing.assert_close(out, out[..., :1, :1].expand_as(out), atol=1e-4, rtol=0)
