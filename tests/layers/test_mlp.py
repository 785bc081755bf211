import pytest
import torch
from torch.nn import functional as F

from mmdat.layers import MLP
from mmdat.ops.native import chunks, mlp


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_chunks_equal_the_plain_formula(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(chunks, 'CACHED_NUMBERS', 64)
    torch.manual_seed(0)
    layer = MLP(8, 32).to(dtype)
    x = torch.randn(2, 60, 61, 8, dtype=dtype, requires_grad=True)
    weights = torch.randn_like(x)

    def gradients(y):
        return torch.autograd.grad((y * weights).sum(), (x, *layer.parameters()))

    result, expected = layer(x), layer.fc2(F.gelu(layer.fc1(x)))
    assert 'mlp_portable' in type(result.grad_fn).__name__
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=0)
    for grad, value in zip(gradients(result), gradients(expected)):
        torch.testing.assert_close(grad, value, atol=tolerance * value.abs().max().item(), rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, atol=tolerance, rtol=0)


def test_chunks_keep_the_input_only():
    layer = MLP(16, 64)
    x = torch.randn(1, 512, 512, 16, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert sum(sizes) < x.numel() + 3000


@pytest.mark.parametrize('size', [(1, 1), (0, 5)])
def test_tiny_maps(size):
    assert MLP(8, 32)(torch.randn(1, *size, 8)).shape == (1, *size, 8)


@pytest.mark.parametrize('name', ['fc1', 'act', 'fc2'])
def test_hooked_layers_are_called(name, monkeypatch):
    """Where chunks would serve, which know the weights only."""
    monkeypatch.setattr(mlp, 'chunk_rows', lambda *weights: 5)
    layer, x = MLP(8, 32), torch.randn(2, 6, 5, 8)
    calls = []
    getattr(layer, name).register_forward_hook(lambda module, args, out: calls.append(out.shape))
    layer(x)
    assert calls == [(*x.shape[:3], 8 if name == 'fc2' else 32)]
