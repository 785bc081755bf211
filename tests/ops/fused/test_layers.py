"""Windows and neighbourhoods by the fused kernel for CUDA: all but the kernel itself, on CPUs."""

import pytest
import torch
from helpers import fused

from mmdat.ops.fused import groups
from mmdat.ops.fused import neighborhood as neighborhood_module
from mmdat.ops.fused.neighborhood import neighborhood_attention_layer
from mmdat.ops.fused.tiles import Projections
from mmdat.ops.fused.windows import fused_window_attention
from mmdat.ops.native import windows
from mmdat.ops.windows import shift_masks


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(groups, 'attend', fused.attend)
    monkeypatch.setattr(groups, 'attend_backward', fused.attend_backward)


def projections(channels: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = (3 * channels, channels), (3 * channels,), (channels, channels), (channels,)
    return [torch.randn(shape, dtype=dtype) / 3 for shape in shapes]


def windows_by_kernel(x, w_qkv, b_qkv, w_proj, b_proj, bias, masks, shift) -> torch.Tensor:
    return fused_window_attention(x, Projections(w_qkv, b_qkv, w_proj, b_proj), bias, masks, shift)


def results(function, inputs) -> list[torch.Tensor]:
    """The output, and the gradients of all tensors."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = function(*inputs)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weight).sum(), inputs)]


def assert_equal(ours, expected):
    for i, (result, value) in enumerate(zip(ours, expected, strict=True)):
        torch.testing.assert_close(
            result, value, atol=1e-12 * max(value.abs().max().item(), 1), rtol=0, msg=str(i)
        )


# Whole windows, padding that a window inside reaches into, windows that hold nothing else, one window.
@pytest.mark.parametrize('size', [(8, 12), (10, 13), (5, 9), (11, 15), (3, 2), (4, 4), (1, 20)])
@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('masked', [False, True])
def test_windows(size, shifted, masked):
    side, shift = 4, 2 if shifted else 0
    inputs = [
        torch.randn(2, *size, 6).double(),
        *projections(6, torch.float64),
        torch.randn(2, 16, 16).double(),
    ]
    masks = shift_masks(side, 2).double() if masked else None
    assert_equal(
        results(lambda *tensors: windows_by_kernel(*tensors, masks, shift), inputs),
        results(lambda *tensors: windows._formula(*tensors, masks, shift), inputs),
    )


@pytest.mark.parametrize('window_size', [1, 3, 7])
def test_windows_of_other_sizes(window_size):
    shift = (window_size + 1) // 2
    inputs = [torch.randn(1, 17, 20, 4).double(), *projections(4, torch.float64)]
    inputs.append(torch.randn(1, window_size**2, window_size**2).double())
    masks = shift_masks(window_size, shift).double()
    assert_equal(
        results(lambda *tensors: windows_by_kernel(*tensors, masks, shift), inputs),
        results(lambda *tensors: windows._formula(*tensors, masks, shift), inputs),
    )


# One tile, two and more, with each remainder that tiles of 8 leave, and of 11 for that kernel.
@pytest.mark.parametrize(
    ('size', 'kernel_size'),
    [((7, 7), 7), ((8, 29), 7), ((16, 24), 7), ((19, 33), 7), ((30, 9), 5), ((5, 6), 1), ((25, 34), 11)],
)
@pytest.mark.parametrize('max_logits', [1, 2**25])
def test_neighborhoods(size, kernel_size, max_logits, monkeypatch):
    monkeypatch.setattr(neighborhood_module, 'MAX_LOGITS', max_logits)
    inputs = [torch.randn(2, *size, 6).double(), *projections(6, torch.float64)]
    inputs.append(torch.randn(2, 2 * kernel_size - 1, 2 * kernel_size - 1).double())
    expected = results(neighborhood_attention_layer, inputs)
    monkeypatch.setattr(neighborhood_module._Fused, 'not_supported_reasons', lambda self, inputs: [])
    assert_equal(results(neighborhood_attention_layer, inputs), expected)
