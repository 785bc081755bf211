"""The kernels that sample features in Triton's interpreter, on CPU tensors: see `interpreted.py`."""

import os

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmdat.layers import DeformableAttention, DeformableDETRAttention
from mmdat.ops import explain_sampling, sample_features
from mmdat.ops.deformable import sampling
from mmdat.ops.deformable.comparison import random_features
from mmdat.ops.deformable.reference import sample_features_reference
from mmdat.ops.triton import sampling as kernels
from mmdat.ops.triton.self_check import triton_verdict

assert os.environ['TRITON_INTERPRET'] == '1'

NAMES = 'out', 'features', 'sampling_locations'

for operator in sampling.OPERATORS:
    operator.register_kernel('cpu')(operator._init_fn)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """Makes the CPU a card."""
    monkeypatch.delenv('MMDAT_BACKEND', raising=False)
    monkeypatch.setattr(sampling.TritonSampling, 'device_type', 'cpu')
    monkeypatch.setattr(sampling, 'obstacle', torch.compiler.assume_constant_result(lambda *args: None))


def run(sample, features, locations, grad_out):
    """Output and gradients, by name."""
    features, locations = features.detach().requires_grad_(), locations.detach().requires_grad_()
    out = sample(features, locations, grad_out.dtype)
    return dict(zip(NAMES, (out.detach(), *torch.autograd.grad(out, (features, locations), grad_out))))


def check(features, locations, grad_out, limit=1e-5):
    """Returns the results, compared with PyTorch's operation in float64. What no kernel writes is NaN."""
    inputs = sampling.SampledInputs(features, locations, grad_out.dtype)
    results = {
        name: tensor.fill_(torch.nan)
        for name, tensor in zip(NAMES, (inputs.empty_output(), *inputs.empty_grads()))
    }
    kernels.forward(features, locations, results['out'])
    kernels.backward(grad_out, features, locations, tuple(results.values())[1:])
    expected = run(sample_features_reference, features.double(), locations.double(), grad_out.double())
    for name, ours in results.items():
        size = expected[name].abs().max().clamp(min=0.25)
        error = (ours.double() - expected[name]).abs().max() / size
        assert error < (2e-3 if ours.dtype == torch.float16 else limit), f'{name}: {error:.1e}'
    return results


def anywhere(map_size, num_points, batch, groups, channels, spread=1.2):
    """As `random_features`, with points that are on no pixel."""
    features, locations, grad_out = random_features(map_size, num_points, batch, groups, channels)
    generator = torch.Generator().manual_seed(1)
    return features, spread * (2 * torch.rand(locations.shape, generator=generator) - 1), grad_out


@pytest.mark.parametrize(
    'shape',
    [
        ((9, 11), 40, 2, 2, 64),
        ((13, 10), 33, 1, 3, 15),  # channels of no power of two
        ((3, 7), 21, 2, 1, 160),  # more channels than a program holds
        ((1, 12), 5, 1, 1, 16),
        ((12, 1), 1, 1, 2, 32),
        ((1, 1), 3, 1, 1, 8),
        ((9, 5), 1057, 1, 1, 16),  # more points than are looked at together
    ],
    ids=str,
)
def test_sizes(shape):
    check(*anywhere(*shape))


@pytest.mark.parametrize('features_dtype', [torch.float32, torch.float16])
def test_half_precision(features_dtype):
    features, locations, grad_out = anywhere((9, 11), 40, 2, 2, 48)
    results = check(features.to(features_dtype), locations, grad_out.half())
    assert [t.dtype for t in results.values()] == [torch.float16, features_dtype, torch.float32]


def test_points_on_pixels_on_the_border_and_outside():
    """Where gradients of positions jump. All coordinates are exact in float32."""
    features, _, grad_out = random_features((9, 17), num_points=121, batch=1, groups=1, channels=16)
    steps = torch.arange(-5, 6) / 4  # from a pixel outside to a pixel outside along y, on every second pixel
    locations = torch.cartesian_prod(steps, steps)[None, None]
    results = check(features, locations, grad_out, limit=1e-6)
    corners = [12, 20, 100, 108]
    assert locations[0, 0, corners].abs().eq(1).all()
    assert results['out'][0, corners].equal(features[:, ::8, ::16].flatten(0, 2))
    assert results['out'][0, 0].eq(0).all()


def test_all_points_on_one_pixel():
    features, _, grad_out = random_features((10, 10), num_points=500, batch=1, groups=1, channels=16)
    results = check(features, torch.full((1, 1, 500, 2), 1 / 3), grad_out, limit=5e-5)
    assert results['features'].abs().amax(-1).gt(1e-2).sum() == 1


def test_positions_that_are_not_finite_are_outside():
    features, locations, grad_out = anywhere((5, 5), 4, 1, 1, 16, spread=0.5)
    locations[0, 0, :3, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    results = run(sample_features, features, locations, grad_out)
    alone = run(sample_features, features, locations[:, :, 3:], grad_out[:, 3:])
    assert results['out'][:, :3].eq(0).all()
    assert results['sampling_locations'][:, :, :3].eq(0).all()
    assert results['features'].equal(alone['features'])


@pytest.mark.parametrize(
    'layout',
    [
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
        lambda t: t[:1].expand(t.shape),
    ],
    ids=['transposed', 'every second', 'not aligned', 'broadcast'],
)
def test_layouts(layout):
    inputs = [layout(t) for t in anywhere((5, 6), 9, 2, 2, 16)]
    expected = run(sample_features_reference, *inputs)
    for name, ours in run(sample_features, *inputs).items():
        torch.testing.assert_close(ours, expected[name], atol=1e-5, rtol=1e-5)
        assert ours.is_contiguous()


@pytest.mark.parametrize('empty', ['images', 'points'])
def test_nothing_to_do(empty):
    features, locations, grad_out = anywhere((5, 6), 9, 2, 2, 16)
    if empty == 'images':
        inputs = features[:0], locations[:0], grad_out[:0]
    else:
        inputs = features, locations[:, :, :0], grad_out[:, :0]
    results = run(sample_features, *inputs)
    assert results['out'].shape == inputs[2].shape
    assert results['features'].equal(torch.zeros_like(inputs[0]))


def test_two_calls_are_bitwise_equal():
    inputs = anywhere((9, 9), 100, 1, 1, 16)
    first, second = (run(sample_features, *inputs) for _ in range(2))
    for name in NAMES:
        assert first[name].equal(second[name]), name


def test_registration():
    features, locations, grad_out = anywhere((5, 6), 9, 1, 2, 16)
    forward, backward = sampling.OPERATORS
    torch.library.opcheck(forward, (features.requires_grad_(), locations.requires_grad_(), torch.float32))
    inputs = features.detach(), locations.detach(), torch.float32
    torch.library.opcheck(backward, (grad_out, *inputs))
    with pytest.raises(ValueError, match='where G divides C, got'):
        forward(features[..., :15], locations, torch.float32)
    with pytest.raises(ValueError, match='takes positions of float32'):
        forward(features, locations.half(), torch.float32)
    with pytest.raises(ValueError, match='cannot serve: the kernels make'):
        forward(features.bfloat16(), locations, torch.float16)


def test_second_derivatives_are_refused():
    features, locations, _ = anywhere((5, 6), 9, 1, 2, 16)
    features.requires_grad_()
    (grad,) = torch.autograd.grad(sample_features(features, locations).sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match='no second derivatives'):
        grad.sum().backward()


LAYERS = {
    'deformable': lambda: DeformableAttention(32, 2, 2, (8, 8), 2),
    'points': lambda: DeformableDETRAttention(32, 2, 3),
}


def layer_results(layer, forward, x):
    x = x.clone().requires_grad_()
    out = forward(x)
    return out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])


@pytest.mark.parametrize(
    ('name', 'way'), [('deformable', 'compiled'), ('deformable', 'checkpointed'), ('points', 'checkpointed')]
)
def test_layers(name, way, monkeypatch):
    """As a compiler captures them, and in half precision with activation checkpointing."""
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.randn(1, 8, 10, 32)
    torch.compiler.reset()
    forward = {
        'compiled': torch.compile(layer, fullgraph=True, backend='aot_eager'),
        'checkpointed': lambda x: checkpoint(layer, x, use_reentrant=False),
    }[way]
    results, calls = {}, []
    execute = kernels.forward
    monkeypatch.setattr(kernels, 'forward', lambda *args: calls.append(args) or execute(*args))
    for backend in ('triton', 'reference'):
        monkeypatch.setattr(sampling.TritonSampling, 'device_type', 'cpu' if backend == 'triton' else 'cuda')
        with torch.autocast('cpu', dtype=torch.float16, enabled=way == 'checkpointed'):
            results[backend] = layer_results(layer, forward if backend == 'triton' else layer, x)
    assert calls
    close = dict(atol=1e-4, rtol=1e-5) if way == 'compiled' else dict(atol=2e-2, rtol=2e-2)
    for ours, expected in zip(results['triton'], results['reference']):
        assert ours.dtype == expected.dtype
        torch.testing.assert_close(ours, expected, **close)


def test_explain(monkeypatch):
    features, locations, _ = anywhere((5, 6), 9, 1, 2, 16)
    assert explain_sampling(features, locations) == 'triton: 18 points'
    said = explain_sampling(features.double(), locations)
    assert said.startswith(
        'reference: 18 points, not triton: the kernels compute in float32 and half precision'
    )
    monkeypatch.setenv('MMDAT_BACKEND', 'reference')
    assert explain_sampling(features, locations).startswith('reference: asked for by the variable')


def test_self_check(monkeypatch, tmp_path):
    """Right kernels pass it. An eighth of a pixel is found in all that depends on it."""
    dtype = torch.float16  # which checks features of float32, too
    shape = dict(map_size=(5, 5), num_points=20, batch=1, groups=1, channels=16)
    monkeypatch.setattr(sampling, 'SHAPES', [shape] * 2)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('MMDAT_SELF_CHECK', raising=False)
    backend, device = sampling.TritonSampling(), torch.device('cpu')
    assert triton_verdict(backend, device, dtype) is None
    forward, backward = kernels.forward, kernels.backward
    monkeypatch.setattr(kernels, 'forward', lambda x, at, *args: forward(x, at + 1 / 16, *args))
    monkeypatch.setattr(kernels, 'backward', lambda g, x, at, *args: backward(g, x, at + 1 / 16, *args))
    monkeypatch.setattr('mmdat.ops.triton.self_check._known', {})
    for path in tmp_path.glob('mmdat/self_check-*.json'):
        path.unlink()
    said = triton_verdict(backend, device, dtype)
    for what in ('the output', 'the gradient of features', 'the gradient of sampling_locations'):
        assert f'{what} is off by' in said
