"""The attentions on a GPU that is not there: fake tensors, which have shapes, dtypes and a device."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdat.layers import (
    MLP,
    DeformableAttention,
    DeformableDETRAttention,
    NeighborhoodAttention,
    SpatialReductionAttention,
    WindowAttention,
)

READS = {'_local_scalar_dense', 'nonzero', 'is_nonzero', 'equal', 'masked_select', 'repeat_interleave'}
VIEWS = {
    '_unsafe_view',
    'detach',
    'alias',
    '_reshape_alias',
    'prim::device',
    'empty',
    'empty_like',
    'new_empty',
}


class Operators(TorchDispatchMode):
    """Counts what is launched on the GPU, and what the host waits for: copies between devices, and reads."""

    def __init__(self):
        super().__init__()
        self.kernels, self.waits, self.dtypes = Counter(), Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix('aten::')
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        devices = {t.device.type for t in tensors}
        # a number on the host may go along with a launch
        between = 'copy' in name and devices == {'cpu', 'cuda'}
        if 'cuda' in devices and (name in READS or between):
            self.waits[name] += 1
        if 'cuda' in devices and not func.is_view and name not in VIEWS:
            self.kernels[name] += 1
            self.dtypes += [(name, t.dtype) for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        return out


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda *args: True)
    monkeypatch.delenv('MMDAT_BACKEND', raising=False)
    with FakeTensorMode(allow_fallback_kernels=False), torch.device('cuda'):
        yield


# With the most kernels of a forward pass in mixed precision. The first three had 33, 76 and 160.
LAYERS = {
    'shifted windows': (lambda: WindowAttention(96, 3, 7, shifted=True), (2, 200, 336, 96), 16),
    'deformable': (lambda: DeformableAttention(384, 12, 3, (14, 14), 2, 5), (2, 50, 84, 384), 38),
    'neighbourhoods': (lambda: NeighborhoodAttention(64, 2), (2, 200, 336, 64), 30),
    'MLP': (lambda: MLP(96, 384), (2, 200, 336, 96), 5),
    'windows': (lambda: WindowAttention(96, 3, 7), (2, 200, 336, 96), 11),
    'fixed bias': (
        lambda: DeformableAttention(384, 12, 3, (14, 14), 2, 5, pos_bias='fixed'),
        (2, 50, 84, 384),
        38,
    ),
    'points': (lambda: DeformableDETRAttention(384, 12, 16), (2, 50, 84, 384), 25),
    'reduction': (lambda: SpatialReductionAttention(96, 3, 8), (2, 200, 336, 96), 40),
}


@pytest.mark.parametrize('name', LAYERS)
def test_few_kernels_and_no_waits(name, cuda):
    build, shape, most = LAYERS[name]
    layer, x = build(), torch.empty(shape)
    with torch.autocast('cuda', torch.bfloat16):
        for step in range(2):
            with Operators() as operators:
                assert layer(x).shape == x.shape
            assert not operators.waits, step
    assert operators.kernels.total() <= most, operators.kernels


@pytest.mark.parametrize('name', ['shifted windows', 'neighbourhoods'])
def test_what_training_keeps(name, cuda):
    """Little more than twice the map in half precision. Queries, keys and values alone are three times it."""
    build, shape, _ = LAYERS[name]
    layer, x = build(), torch.empty(shape, requires_grad=True)
    sizes = {}
    with (
        torch.autocast('cuda', torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.update({t.untyped_storage()._cdata: t.untyped_storage().nbytes()}) or t,
            lambda t: t,
        ),
    ):
        layer(x)
    assert sum(sizes.values()) < 2.3 * 2 * x.numel()


@pytest.mark.parametrize('offset_range', [2.0, 'map'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_positions_are_never_rounded_to_half_precision(dtype, offset_range, cuda):
    """From the last projection of the offsets on."""
    layer = DeformableAttention(64, 2, 2, (14, 14), offset_range=offset_range, coordinates='corners')
    with Operators() as operators, torch.autocast('cuda', dtype):
        locations = layer.sampling_locations(torch.empty(2, 14, 14, 64))
    assert locations.dtype == torch.float32
    names = [name for name, _ in operators.dtypes]
    after = operators.dtypes[len(names) - names[::-1].index('mm') - 1 :]
    assert len(after) > 2
    assert {dtype for _, dtype in after} == {torch.float32}


def test_positions_of_points_are_never_rounded_to_half_precision(cuda):
    layer = DeformableDETRAttention(64, 2, 4)
    with Operators() as operators, torch.autocast('cuda', torch.bfloat16):
        assert layer.sampling_locations(torch.empty(2, 14, 14, 64)).dtype == torch.float32
    assert {dtype for _, dtype in operators.dtypes} == {torch.float32}


def test_layers_with_hooks_or_adapters_are_served_too(cuda):
    layer = WindowAttention(64, 2, 7, shifted=True)
    layer.proj = nn.Sequential(layer.proj)
    with Operators() as operators, torch.autocast('cuda', torch.bfloat16):
        layer(torch.empty(2, 20, 30, 64))
    assert operators.kernels['_scaled_dot_product_efficient_attention'] == 1
    assert not operators.waits


class CapturedError(Exception):
    """A graph was made, and shall not run."""


COMPILED = {
    'shifted windows': ('_scaled_dot_product_efficient_attention', lambda: WindowAttention(32, 1, 7, True)),
    'neighbourhoods': ('_scaled_dot_product_efficient_attention', lambda: NeighborhoodAttention(32, 1)),
    'fixed bias': (
        '_scaled_dot_product_efficient_attention',
        lambda: DeformableAttention(32, 1, 1, (14, 14), 2, pos_bias='fixed'),
    ),
    'reduction': ('scaled_dot_product_attention', lambda: SpatialReductionAttention(32, 1, 8)),
}


@pytest.mark.parametrize('name', COMPILED)
def test_one_graph_serves_all_sizes(name, monkeypatch):
    """On CPUs that take the way of CUDA, because compilers do not follow fake tensors."""
    monkeypatch.setattr('mmdat.ops.fused.attention.not_fused_reasons', lambda *args: [])
    monkeypatch.setattr('mmdat.ops.neighborhood._is_in_one_piece', lambda q: True)
    kernel, build = COMPILED[name]
    graphs = []

    def capture(graph, inputs):
        graphs.append(graph)

        def run(*args):
            raise CapturedError

        return run

    torch.compiler.reset()
    compiled = torch.compile(build(), backend=capture, fullgraph=True, dynamic=True)
    for size in [(40, 52), (42, 63), (30, 33), (64, 64)]:
        with pytest.raises(CapturedError), torch.autocast('cpu', torch.bfloat16):
            compiled(torch.empty(2, *size, 32, requires_grad=True))
    assert len(graphs) == 1
    assert sum(kernel in str(node.target) for node in graphs[0].graph.nodes) == 1
