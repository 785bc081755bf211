"""Attention by the fused kernel for CUDA: what it is given, what is said of it, and how exact it is."""

import pytest
import torch
from helpers import fused
from torch._subclasses.fake_tensor import FakeTensorMode

from mmdat.ops import (
    attention,
    explain_attention,
    explain_neighborhood_attention,
    explain_window_attention,
)
from mmdat.ops.dense import attention as formula
from mmdat.ops.fused import kernel


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.delenv('MMDAT_BACKEND', raising=False)


@pytest.fixture
def on_cuda(monkeypatch):
    """CPUs that take the way of CUDA, with the kernel in equations."""
    monkeypatch.setattr(kernel, 'attend', fused.attend)
    monkeypatch.setattr('mmdat.ops.fused.attention.not_fused_reasons', lambda *args: [])


# Of windows, of windows of four kinds in two images, of fixed tables, and none.
@pytest.mark.parametrize(
    ('batch', 'bias'),
    [
        ((6,), (3, 49, 49)),
        ((2, 4), (4, 3, 49, 49)),
        ((2, 4), (3, 49, 49)),
        ((2,), (3, 49, 49)),
        ((2, 2, 2), (2, 1, 3, 49, 49)),
        ((5,), None),
    ],
)
def test_equals_the_equation(batch, bias, on_cuda):
    q, k, v = (torch.randn(*batch, 49, 3, 8).double().transpose(-2, -3) for _ in range(3))
    bias = None if bias is None else torch.randn(bias).double()
    torch.testing.assert_close(attention(q, k, v, bias), formula(q, k, v, bias), atol=1e-12, rtol=0)


def test_a_bias_that_is_a_view_of_the_table(on_cuda):
    """As windows have it, with the heads innermost, and 56 keys, whose rows need no padding."""
    q, k, v = (torch.randn(2, 3, 56, 8).double() for _ in range(3))
    bias = torch.randn(56, 56, 3).double().permute(2, 0, 1)
    torch.testing.assert_close(attention(q, k, v, bias), formula(q, k, v, bias), atol=1e-12, rtol=0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_logits_are_not_rounded_before_the_bias_is_added(dtype, on_cuda):
    """Large logits that a bias brings together again: rounded, they would differ by more than their sum."""
    q, k, v = (4 * torch.randn(2, 3, 49, 32).to(dtype).double() for _ in range(3))
    bias = (-q @ k.mT * 32**-0.5).to(dtype).double()
    exact = formula(q, k, v, bias)

    def error(function):
        return (function(q.to(dtype), k.to(dtype), v.to(dtype), bias.float()) - exact).norm() / exact.norm()

    assert error(attention) < torch.finfo(dtype).eps
    assert error(attention) < error(formula) / 3


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (dict(), 'fused: 14406 logits'),
        (dict(dtype=torch.float16), 'fused: 14406 logits'),
        (dict(device='cpu'), 'reference: 14406 logits, not fused: the map is on cpu'),
        (
            dict(dtype=torch.float64),
            'reference: 14406 logits, not fused: the fused kernel computes in float32',
        ),
        (dict(head_dims=6), 'reference: 14406 logits, not fused: the fused kernel needs heads of a multiple'),
        (dict(batch=0), 'reference: 0 logits, not fused: the map is empty'),
    ],
)
def test_what_is_said(settings, expected):
    settings = dict(device='cuda', dtype=torch.float32, head_dims=8, batch=2) | settings
    with FakeTensorMode():
        shape = settings['batch'], 3, 49, settings['head_dims']
        q = torch.empty(shape, device=settings['device'], dtype=settings['dtype'])
        assert explain_attention(q, q, q).startswith(expected)


def layer_inputs(channels, heads, *bias):
    shapes = (2, 8, 8, channels), (3 * channels, channels), (3 * channels,), (channels, channels), (channels,)
    return [torch.empty(shape, device='cuda') for shape in (*shapes, (heads, *bias))]


@pytest.mark.parametrize(
    ('variable', 'expected'),
    [
        ('', 'fused: '),
        ('fused', 'fused: '),
        ('cpu', 'fused: '),
        ('reference', 'reference: asked for by the variable MMDAT_BACKEND'),
    ],
)
def test_what_is_said_of_layers(variable, expected, monkeypatch):
    monkeypatch.setenv('MMDAT_BACKEND', variable)
    with FakeTensorMode():
        assert explain_window_attention(*layer_inputs(64, 2, 16, 16)).startswith(expected)
        assert explain_neighborhood_attention(*layer_inputs(64, 2, 13, 13)).startswith(expected)


def test_what_follows_single_operations_gets_them():
    with FakeTensorMode():
        inputs = layer_inputs(64, 2, 16, 16)
        said = []
        torch.vmap(lambda x: said.append(explain_window_attention(x, *inputs[1:])) or x)(inputs[0])
    assert 'not fused: ' in said[0]
    assert 'torch.func transforms the single operations' in said[0]
