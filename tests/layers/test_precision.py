"""What mixed precision must not touch: positions, and convolutions that PyTorch gets wrong on small maps."""

import pytest
import torch
from torch import nn

from mmdat.layers import ConvStem, DeformableAttention, DeformableDETRAttention, Downsample


def offsets(channels: int, stride: int, kernel_size: int) -> nn.Module:
    """The offset network of a deformable attention, on channels-last maps."""
    attention = DeformableAttention(
        channels, 1, 1, (4, 4), stride, kernel_size, offset_range='map', pos_bias=None, coordinates='corners'
    )
    attention.forward = lambda x: attention.offset(x.permute(0, 3, 1, 2))
    return attention


LAYERS = {
    'down-projection': (16, lambda: Downsample(16, 32, 2, overlap=True, bias=False)),
    'plain patches': (16, lambda: Downsample(16, 32, 4, overlap=False, bias=True)),
    'overlapping patches': (3, lambda: Downsample(3, 96, 4, overlap=True, bias=True)),
    'stem': (3, lambda: ConvStem(3, 64)),
    'offsets, stage 1': (32, lambda: offsets(32, 8, 9)),
    'offsets, stage 2': (16, lambda: offsets(16, 4, 7)),
}


def leave_junk_in_memory() -> None:
    """What PyTorch forgets to write is whatever lay there before, often zeros."""
    for _ in range(4):
        junk = [torch.full((size,), 1e30) for size in (2**8, 2**10, 2**12, 2**13, 2**14, 2**16)]
        del junk


def output_and_gradients(layer: nn.Module, x: torch.Tensor, autocast: bool) -> dict[str, torch.Tensor]:
    layer.zero_grad()
    x = x.clone().requires_grad_()
    leave_junk_in_memory()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = layer(x).float()
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    grads = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {'output': out.detach(), 'input': x.grad, **grads}


@pytest.mark.parametrize('name', LAYERS)
@pytest.mark.parametrize('size', [(1, 1), (2, 1), (1, 9), (3, 3), (4, 4), (8, 8), (20, 20)])
def test_convolutions_of_small_maps_in_bfloat16(name, size):
    torch.manual_seed(0)
    channels, build = LAYERS[name]
    layer, x = build(), torch.randn(2, *size, channels)
    exact = output_and_gradients(layer, x, autocast=False)
    rough = output_and_gradients(layer, x, autocast=True)
    assert rough.keys() == exact.keys()
    for key, value in exact.items():
        assert (rough[key] - value).norm() < 0.03 * value.norm(), key


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'layer',
    [
        DeformableAttention(16, 2, 2, (4, 4), offset_range=3.0),
        DeformableAttention(16, 2, 2, (4, 4), offset_range='map'),
        DeformableDETRAttention(16, 2, 4),
    ],
)
def test_positions_are_in_float32(layer, dtype):
    inputs = {}
    proj = layer.offset if isinstance(layer, DeformableDETRAttention) else layer.offset.proj
    hook = proj.register_forward_hook(lambda module, args, out: inputs.update(x=args[0], out=out))
    x = torch.randn(2, 6, 7, 16)
    with torch.autocast('cpu', dtype):
        locations = layer.sampling_locations(x)
    hook.remove()
    assert locations.dtype == inputs['out'].dtype == torch.float32
    expected = nn.functional.linear(inputs['x'].float(), proj.weight, proj.bias)
    torch.testing.assert_close(inputs['out'], expected, atol=0, rtol=0)


def test_positions_of_a_model_in_bfloat16():
    layer = DeformableAttention(16, 2, 2, (4, 4)).bfloat16()
    x = torch.randn(2, 6, 7, 16, dtype=torch.bfloat16)
    assert layer.sampling_locations(x).dtype == torch.float32
    assert layer(x).dtype == torch.bfloat16
