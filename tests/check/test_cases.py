"""The cases find what is wrong."""

from contextlib import nullcontext

import pytest
import torch
from helpers import fused

from mmdat.check import cases, layers
from mmdat.check.cases import CAPTURED, CASES, COMPILED, Finding
from mmdat.check.layers import LAYER_CASES
from mmdat.ops import deformable_attention
from mmdat.ops.deformable.comparison import NAMES, clear_of_knots, random_inputs, truth
from mmdat.ops.deformable.coordinates import query_points
from mmdat.ops.deformable.inputs import Inputs
from mmdat.ops.fused import groups, neighborhood
from mmdat.ops.native import windows

GROUPS = {case.group: case for case in reversed(CASES)}  # the first of each
# that compare results with each other, not with what is right
RELATIVE = {'layouts', 'autocast', 'two calls'}
ALL_BUT_OUT = {'no images', 'bias without effect', 'huge logits', 'a position that is NaN', *RELATIVE}


def failures(findings):
    return [finding for finding in findings if not finding.is_fine()]


class Spoil(torch.autograd.Function):
    """Multiplies what passes forward, or the gradient that passes back."""

    @staticmethod
    def forward(ctx, x, forward, backward):
        ctx.factor = backward
        return x * forward

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None, None


@pytest.fixture
def spoil(monkeypatch):
    """`spoil(name)`: from then on the output or the gradient of an input is wrong by a tenth."""

    def spoil(name):
        def attend(*args, backend):
            inputs = Inputs(*args)
            if backend == 'reference':  # with whose errors those of others are compared
                return deformable_attention(*inputs, backend=backend)
            if name == 'out':
                return Spoil.apply(deformable_attention(*inputs, backend=backend), 1.1, 1)
            spoiled = inputs._replace(**{name: Spoil.apply(getattr(inputs, name), 1, 1.1)})
            return deformable_attention(*spoiled, backend=backend)

        monkeypatch.setattr(cases, 'deformable_attention', attend)

    return spoil


@pytest.mark.parametrize('group', sorted(GROUPS.keys() - ALL_BUT_OUT))
@pytest.mark.parametrize('name', ['out', *NAMES])
@pytest.mark.parametrize('float32_positions', [False, True])
def test_each_wrong_result_is_found(group, name, float32_positions, spoil):
    case = GROUPS[group]
    assert failures(case('portable', 'cpu', float32_positions)) == []
    spoil(name)
    assert [finding.what for finding in failures(case('portable', 'cpu', float32_positions))] == [name]


def test_other_cases_can_fail(monkeypatch):
    calls = iter(range(10**6))

    def attend(q, *args, backend):
        """Different in each call, and what is not finite is lost."""
        out = deformable_attention(q, *args, backend=backend)
        return (out.nan_to_num(0) * (1 + next(calls) / 10)).contiguous() + 1

    monkeypatch.setattr(cases, 'deformable_attention', attend)
    for group in ALL_BUT_OUT - {'no images'}:
        assert failures(GROUPS[group]('portable')), group


def test_a_compiled_layer_that_differs_is_found(monkeypatch):
    monkeypatch.setattr(torch, 'compile', lambda layer, **_: lambda x: layer(x) * 1.01)
    assert failures(COMPILED['inductor']('reference'))


def test_graphs_are_captured_and_replayed(monkeypatch):
    """Without a GPU: what is replayed is what was captured, unless a tensor has lost its numbers."""

    class Graph:
        def replay(self):
            pass

    for name in ('Stream', 'current_stream'):
        monkeypatch.setattr(torch.cuda, name, lambda: type('', (), {'wait_stream': lambda *_: None})())
    for name in ('device', 'stream', 'graph'):
        monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', Graph)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    found = failures(CAPTURED('portable'))
    assert [finding.what for finding in found] == ['out', *NAMES]  # an empty graph restores nothing


# Of each layer the first case, by the last backend that CPUs have.
ON_CPU = [
    ([name for name in names if name not in ('fused', 'triton')][-1], group[0])
    for names, group in LAYER_CASES.items()
]


@pytest.mark.parametrize(('backend', 'case'), ON_CPU, ids=str)
def test_wrong_layers_are_found(backend, case, monkeypatch):
    assert failures(case(backend)) == []
    results = layers._results

    def wrong(function, arguments):
        found = results(function, arguments)
        if arguments[0].dtype == torch.float32:
            found['gradient 1'] = found['gradient 1'] * 1.001
        return found

    monkeypatch.setattr(layers, '_results', wrong)
    assert [finding.what for finding in failures(case(backend))] == ['gradient 1']


@pytest.mark.parametrize(
    'case', [case for names, group in LAYER_CASES.items() if 'fused' in names for case in group], ids=str
)
def test_fused_layers_are_as_exact_as_is_asked(case, monkeypatch):
    """On CPUs that take the way of CUDA, with the kernel in equations."""
    monkeypatch.setattr(groups, 'attend', fused.attend)
    monkeypatch.setattr(groups, 'attend_backward', fused.attend_backward)
    for module in (windows, neighborhood):
        monkeypatch.setattr(module._Fused, 'not_supported_reasons', lambda self, inputs: [])
    monkeypatch.setitem(windows._LADDERS, 'cpu', windows._LADDERS['cuda'])
    findings = list(case('fused'))
    assert len(findings) == 7
    assert failures(findings) == []


def test_findings_that_are_no_numbers_are_bad():
    assert not Finding('out', float('nan'), 1).is_fine()
    assert not Finding('out', float('inf'), 1).is_fine()
    assert Finding('out', 1, 1).is_fine()


@pytest.mark.parametrize('coordinates', ['half_pixel', 'corners'])
@pytest.mark.parametrize('table_size', [(27, 27), (1, 139), (70, 2)])
def test_keys_are_moved_off_the_knots(coordinates, table_size):
    inputs, _ = random_inputs((17, 70), 50, table_size, coordinates=coordinates)
    inputs.sampling_locations[0, 0] = 0  # where some displacements are on knots
    moved = clear_of_knots(inputs).sampling_locations
    assert (moved - inputs.sampling_locations).abs().max() < 0.5
    assert inputs.sampling_locations[0, 0].eq(0).all()  # not in place
    points = query_points(17, 70, coordinates, dtype=torch.float64)
    for axis, queries in enumerate((points[:, 0, 0], points[0, :, 1])):
        knots = table_size[axis] - 1
        displacements = (queries - moved[..., axis, None].double()) / 2
        positions = (displacements + 1) * (knots / 2)
        if knots:
            assert (positions - positions.round()).abs().min() > 0.9e-3
        else:
            assert moved[..., axis].equal(inputs.sampling_locations[..., axis])


def test_off_the_knots_float32_positions_give_the_same_gradients():
    inputs, grad_out = random_inputs((17, 70), 50, (27, 139))
    inputs = clear_of_knots(inputs)
    nudged = inputs._replace(sampling_locations=inputs.sampling_locations + 1e-6)
    for name, expected in truth(inputs, grad_out).items():
        error = (truth(nudged, grad_out)[name] - expected).abs().max() / expected.abs().max()
        assert error < 1e-3, name
