"""What PyTorch's counter counts, whatever computes: attention by an operator, and maps in chunks."""

import pytest
import torch
from helpers.narrow import ARCH
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmdat.backbones import DAT
from mmdat.layers import MLP, WindowAttention
from mmdat.ops import deformable_attention


def count(module, *inputs) -> int:
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


def test_deformable_attention(backend):
    q, k, v = (torch.randn(2, 4, n, 8, requires_grad=True) for n in (30, 7, 7))
    table, locations = torch.randn(4, 9, 11), torch.rand(2, 2, 7, 2)
    with FlopCounterMode(display=False) as counter:
        out = deformable_attention(q, k, v, table, locations, (5, 6), backend=backend)
        forward = counter.get_total_flops()
        out.sum().backward()
    product = 2 * 2 * 4 * 30 * 7 * 8
    assert forward == 2 * product
    recomputed = backend != 'reference'
    assert counter.get_total_flops() == forward + (4 + recomputed) * product


@torch.no_grad()
def test_all_backends_of_a_backbone_count_alike(monkeypatch):
    counts = []
    for backend in ('reference', 'portable'):
        monkeypatch.setenv('MMDAT_BACKEND', backend)
        counts.append(count(DAT(ARCH, img_size=64, window_size=4).eval(), torch.randn(1, 3, 64, 96)))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ('layer', 'multiply_adds'),
    [
        (MLP(32, 128), 2 * 32 * 128),
        (WindowAttention(32, 1, 8, shifted=True), 4 * 32 * 32 + 2 * 32 * 64),
    ],
)
@torch.no_grad()
def test_layers_in_chunks(layer: nn.Module, multiply_adds: int):
    assert count(layer, torch.randn(1, 256, 256, 32)) == 2 * 256**2 * multiply_adds
