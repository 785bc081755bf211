"""What PyTorch offers beyond first derivatives works for the layers with kernels, on maps of any size."""

import pytest
import torch
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves

from mmdat.layers import MLP, DeformableAttention, WindowAttention
from mmdat.ops.native import mlp, windows

LAYERS = {
    'mlp': lambda: MLP(4, 8),
    'window': lambda: WindowAttention(4, 2, window_size=3, shifted=True),
    'window kernel': lambda: WindowAttention(32, 1, window_size=3, shifted=True),
    'deformable': lambda: DeformableAttention(8, 2, 1, map_size=(3, 3)),
}
# on both sides of the size from which the MLP is computed in chunks
sizes = pytest.mark.parametrize('size', [(2, 3), (6, 12)])


@pytest.fixture(params=LAYERS)
def layer(request, monkeypatch):
    for module in (mlp, windows):
        monkeypatch.setattr(module, 'chunk_rows', lambda *weights: 5)
    torch.manual_seed(0)
    layer = LAYERS[request.param]()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer if 'kernel' in request.param or request.param == 'deformable' else layer.double()


def random_map(layer, size, batch=2):
    projection = layer.fc2 if isinstance(layer, MLP) else layer.proj
    return torch.randn(batch, *size, projection.out_features, dtype=projection.weight.dtype)


def assert_equals_the_plain_formula(compute, monkeypatch):
    results = compute()
    monkeypatch.setenv('MMDAT_BACKEND', 'reference')
    for result, expected in zip(results, compute(), strict=True):
        tolerance = 1e-9 if result.dtype == torch.float64 else 2e-5
        scale = expected.abs().max()
        assert (result - expected).abs().max() <= tolerance * scale


@sizes
def test_higher_derivatives(layer, size, monkeypatch):
    x = random_map(layer, size).requires_grad_()
    inputs = [x, *layer.parameters()]

    def compute():
        """First, second and third derivatives."""
        results, value = [], layer(x).sin().sum()
        for _ in range(3):
            grads = torch.autograd.grad(value, inputs, create_graph=True, materialize_grads=True)
            results += grads
            value = sum(g.square().sum() for g in grads)
        return results

    if isinstance(layer, DeformableAttention):
        with pytest.raises(
            (NotImplementedError, RuntimeError), match=r'grid_sampl.*(has none|not implemented)$'
        ):
            compute()
    else:
        assert_equals_the_plain_formula(compute, monkeypatch)


@sizes
def test_torch_func(layer, size, monkeypatch):
    x = random_map(layer, size)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, x):
        return functional_call(layer, parameters, x[None]).sin().sum()

    def compute():
        """With gradients of the image, without which `vmap` of PyTorch's `grid_sample` has none."""
        gradients_of_each_image = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, 0))(parameters, x)
        return tree_leaves([gradients_of_each_image, jacrev(loss, argnums=(0, 1))(parameters, x[0])])

    assert_equals_the_plain_formula(compute, monkeypatch)


@sizes
def test_forward_mode(layer, size, monkeypatch):
    x = random_map(layer, size)
    if isinstance(layer, DeformableAttention):
        with pytest.raises(NotImplementedError, match='forward AD with grid_sampler'):
            jvp(layer, (x,), (torch.ones_like(x),))
    else:
        assert_equals_the_plain_formula(lambda: jvp(layer, (x,), (torch.ones_like(x),)), monkeypatch)


@sizes
def test_exported_graphs_are_of_one_kind(layer, size):
    x = random_map(layer, size)
    graph = torch.export.export(layer.eval(), (x,)).graph
    ours = {node.target.name() for node in graph.nodes if 'mmdat' in str(node.target)}
    assert ours == ({'mmdat::deformable_attention_cpu'} if isinstance(layer, DeformableAttention) else set())
