"""The choice of the kernels that sample features, and their launches, without a card: on fake tensors."""

import logging
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmdat.ops import explain_sampling, sample_features
from mmdat.ops.deformable import sampling
from mmdat.ops.triton import card

kernels = pytest.importorskip('mmdat.ops.triton.sampling', reason='needs Triton')
Launch = pytest.importorskip('mmdat.ops.triton.launch').Launch
compiled = pytest.importorskip('helpers.launches').compiled


@pytest.fixture(autouse=True)
def h100(monkeypatch):
    """A card on which all kernels compile."""
    monkeypatch.delenv('MMDAT_BACKEND', raising=False)
    monkeypatch.setattr(card, 'capability', lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, 'device', lambda device: nullcontext())
    monkeypatch.setattr(Launch, 'compile', lambda self: None)
    monkeypatch.setattr(sampling, 'triton_verdict', lambda *args: None)
    for function in (card.triton_obstacle, card.compile_obstacle, card._warn):
        function.cache_clear()
    yield
    card.compile_obstacle.cache_clear()


@pytest.fixture
def fake():
    with FakeTensorMode():
        yield


def arguments(size=(50, 84), num_points=70, dtype=torch.bfloat16, device='cuda'):
    features = torch.empty(2, *size, 96, dtype=dtype, device=device)
    return features, torch.empty(2, 3, num_points, 2, device=device)


@pytest.mark.usefixtures('fake')
def test_serves():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert explain_sampling(*arguments(dtype=dtype)) == 'triton: 420 points'
    features, locations = arguments(dtype=torch.float32)  # as layers have them under autocast
    assert explain_sampling(features, locations, torch.float16).startswith('triton: ')
    out = sample_features(features, locations.half(), torch.float16)
    assert out.dtype == torch.float16
    assert out.shape == (2, 70, 96)


@pytest.mark.usefixtures('fake')
@pytest.mark.parametrize(
    ('settings', 'dtype', 'reason'),
    [
        (
            dict(dtype=torch.float64),
            None,
            'the kernels compute in float32 and half precision, not in torch.float64',
        ),
        (
            dict(),
            torch.float32,
            'the kernels make torch.float32 of the same or of float32, not of torch.bfloat16',
        ),
        (dict(size=(5000, 5000)), None, 'an image has 2^31 numbers or more'),
    ],
)
def test_inputs_that_are_not_served(settings, dtype, reason):
    inputs = *arguments(**settings), dtype
    assert explain_sampling(*inputs) == f'reference: 420 points, not triton: {reason}'
    assert sample_features(*inputs).dtype == (dtype or inputs[0].dtype)


@pytest.mark.usefixtures('fake')
def test_what_the_card_or_its_compiler_cannot(monkeypatch, caplog):
    """Said once, and PyTorch's operation serves."""

    def fail(self):
        raise RuntimeError('PassManager::run failed\nmore')

    monkeypatch.setattr(Launch, 'compile', fail)
    with caplog.at_level(logging.WARNING, 'mmdat'):
        for _ in range(2):
            assert sample_features(*arguments()).shape == (2, 70, 96)
    reason = 'Triton cannot compile its kernels: RuntimeError: PassManager::run failed'
    assert caplog.messages == [f'The sampling of keys is slower than it could be on this card: {reason}']
    monkeypatch.undo()
    monkeypatch.setattr(card, 'capability', lambda device: (7, 5))
    assert 'a card of sm_80 at least, not sm_75' in explain_sampling(*arguments())


@pytest.mark.usefixtures('fake')
def test_a_failed_self_check_is_heeded(monkeypatch):
    said = 'it failed the self-check on this card'
    monkeypatch.setattr(
        sampling, 'triton_verdict', lambda backend, device, dtype: said if dtype == torch.float16 else None
    )
    assert explain_sampling(*arguments(dtype=torch.float16)).endswith(f'not triton: {said}')
    assert explain_sampling(*arguments()).startswith('triton: ')


@pytest.mark.usefixtures('fake')
def test_compilers_follow():
    """One graph without breaks; with dynamic shapes one for all maps."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    for dynamic, expected in ((False, [1, 2, 3]), (True, [1, 1, 1])):
        torch.compiler.reset()
        graphs.clear()
        function = torch.compile(sample_features, fullgraph=True, dynamic=dynamic, backend=keep)
        counts = []
        for size in ((14, 15), (20, 30), (10, 90)):
            assert function(*arguments(size, num_points=size[0] * 5)).shape == (2, size[0] * 5, 96)
            counts.append(len(graphs))
        assert counts == expected
        for graph in graphs:
            assert 'mmdat.sample_features_triton' in str(graph.graph)


def test_a_new_size_compiles_nothing():
    """The same constants, and the same of what Triton tells arguments apart by."""

    def compiled_for(size, num_points):
        features, locations = arguments(size, num_points, device='meta')
        out, launches = features.new_empty(2, num_points, 96), []
        kernels.forward(features, locations, out, launches.append)
        kernels.backward(out, features, locations, (features, locations), launches.append)
        return compiled(launches)

    first, *others = (
        compiled_for(*shape) for shape in [((50, 84), 4200), ((1, 40), 1), ((33, 64), 16), ((16, 16), 256)]
    )
    assert [name for name, *_ in first] == ['sample_kernel', 'locations_kernel', 'features_kernel']
    for other in others:
        assert other == first
    case = kernels.Case(torch.bfloat16, torch.bfloat16, 32)
    assert compiled(kernels.launches(case)) == first
