"""The fast backends against the reference in float64, their layouts, dtypes and registration with PyTorch."""

import pytest
import torch
from helpers.memory import PeakMemory

from mmdat.check.cases import CASES, COMPILED, Subject
from mmdat.layers import DeformableAttention
from mmdat.ops import deformable_attention
from mmdat.ops.deformable.backends import portable
from mmdat.ops.deformable.comparison import random_inputs
from mmdat.ops.deformable.inputs import Inputs
from mmdat.ops.deformable.operator import OPERATORS

fast_backends = pytest.mark.parametrize('backend', ['portable', 'cpu'], indirect=True)
both_coordinates = pytest.mark.parametrize('coordinates', ['half_pixel', 'corners'])


def failures(findings):
    return [str(finding) for finding in findings if not finding.is_fine()]


def compare(backend, **settings):
    return Subject(backend, torch.device('cpu'), False).compare(*random_inputs(**settings))


@fast_backends
@pytest.mark.parametrize('case', CASES, ids=str)
def test_cases_of_the_check(case, backend):
    assert failures(case(backend)) == []


@pytest.mark.parametrize('case', [case for case in CASES if case.of_equations], ids=str)
def test_cases_of_the_check_that_concern_the_equations(case):
    assert failures(case('reference')) == []


@pytest.mark.parametrize('case', CASES, ids=str)
def test_cases_of_the_check_with_keys_off_the_knots(case):
    """As other devices get them."""
    assert failures(case('portable', float32_positions=True)) == []


@pytest.mark.parametrize('backend', ['cpu'], indirect=True)
@pytest.mark.parametrize('threads', [1, 5])
def test_shares_of_threads_begin_and_end_inside_heads(threads, backend):
    settings = dict(query_size=(14, 14), num_keys=20, table_size=(27, 27), batch=3, groups=3)
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert failures(compare(backend, heads_of_a_group=4, **settings)) == []
    finally:
        torch.set_num_threads(usual)


@both_coordinates
@pytest.mark.parametrize('keys_of_a_block', [1, 4, 9, 22])
def test_blocks_of_the_portable_backend_join(keys_of_a_block, coordinates, monkeypatch):
    monkeypatch.setattr(portable, 'BLOCK_SIZE', 0)
    monkeypatch.setattr(portable, 'MIN_KEYS', keys_of_a_block)
    assert failures(compare('portable', num_keys=23, coordinates=coordinates)) == []


@fast_backends
def test_huge_logits_that_are_rounded_otherwise_in_the_backward_pass(backend):
    """As they may be when the number of threads changes in between."""
    (*inputs, _, _), grad_out = random_inputs()
    inputs[0] *= 1e30
    forward, backward = OPERATORS[backend]
    out, lse = forward(*inputs, (5, 6), 'corners')
    lse *= 1 - 1e-6
    grads = backward(grad_out, out, lse, *inputs, (5, 6), 'corners')
    assert all(tensor.isfinite().all() for tensor in grads)


@pytest.mark.parametrize('backend', ['reference', 'portable'], indirect=True)
@both_coordinates
def test_gradients(backend, coordinates):
    (*inputs, _, _), _ = random_inputs((2, 3), 4, (3, 4), 1, 1, 2, 2, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(
        lambda *args: deformable_attention(*args, (2, 3), coordinates, backend), inputs
    )


@fast_backends
def test_registration(backend):
    (*inputs, _, _), grad_out = random_inputs((2, 3), 4)
    settings = ([2, 3], 'corners')
    forward, backward = OPERATORS[backend]
    torch.library.opcheck(forward, (*(t.requires_grad_() for t in inputs), *settings))
    inputs = [t.detach() for t in inputs]
    torch.library.opcheck(backward, (grad_out, *forward(*inputs, *settings), *inputs, *settings))


@pytest.mark.parametrize('backend', ['cpu'], indirect=True)
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: t.double(), 'cannot serve: the kernel computes in float32, not in torch.float64'),
        (lambda t: t.bfloat16(), 'takes tensors of .*float32.* got .*bfloat16'),
        (lambda t: t[:, :, :1], 'does not fit 1 queries|each sampling location|needs shape'),
    ],
)
def test_operators_refuse_what_their_kernel_would_misread(change, message, backend):
    """All tensors, or one of them."""
    (*inputs, _, _), grad_out = random_inputs((2, 3), 4)
    forward, backward = OPERATORS[backend]
    out, lse = forward(*inputs, [2, 3], 'corners')
    for changed in (range(5), [0]):
        others = [change(t) if i in changed else t for i, t in enumerate(inputs)]
        with pytest.raises(ValueError, match=message if len(changed) > 1 else 'mmdat::|does not fit'):
            forward(*others, [2, 3], 'corners')
        with pytest.raises(ValueError, match=message if len(changed) > 1 else 'mmdat::|does not fit'):
            backward(grad_out, out, lse, *others, [2, 3], 'corners')
    with pytest.raises(ValueError, match='grad_out, out and lse do not fit q'):
        backward(grad_out[:, :, 1:], out, lse, *inputs, [2, 3], 'corners')


@pytest.mark.parametrize('backend', ['cpu'], indirect=True)
def test_operators_of_the_kernel_are_for_cpus_only(backend):
    """A graph that was exported on a CPU and moved must not hand other addresses to C++."""
    for operator in OPERATORS[backend]:
        name = operator._qualname
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, 'CPU')
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, 'CUDA')
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, 'CompositeExplicitAutograd')


def test_compile(backend):
    assert failures(COMPILED['aot_eager'](backend)) == []


@pytest.mark.slow
def test_compile_with_inductor():
    """With one backend, because the kernels are opaque to compilers."""
    assert failures(COMPILED['inductor']('portable')) == []


def test_export(backend, monkeypatch):
    monkeypatch.setenv('MMDAT_BACKEND', backend)
    torch.manual_seed(0)
    layer = DeformableAttention(embed_dims=16, num_heads=4, offset_groups=2, map_size=(8, 8), key_stride=2)
    torch.nn.init.normal_(layer.position_bias_table)
    x = torch.randn(2, 8, 10, 16)
    exported = torch.export.export(layer, (x,))
    assert (backend == 'reference') != any('mmdat' in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), layer(x))


def scratch_memory(query_size: tuple[int, int], num_keys: int) -> int:
    """Bytes that the portable backend takes beyond inputs and outputs, forward and backward."""
    with torch.device('meta'):
        q, k = (torch.empty(1, 3, length, 32) for length in (query_size[0] * query_size[1], num_keys))
        inputs = [q, k, torch.empty_like(k), torch.empty(3, 27, 27), torch.empty(1, 3, num_keys, 2)]
        out, lse = torch.empty_like(q), torch.empty(q.shape[:-1])
    grad_out, *grads = (torch.empty_like(t) for t in (out, *inputs))
    with PeakMemory() as memory:
        backend, arguments = portable.Portable(), Inputs(*inputs, query_size, 'corners')
        backend.forward(arguments, out, lse)
        backend.backward(arguments, grad_out, out, lse, grads)
    return memory.peak - sum(t.nbytes for t in (*inputs, out, lse, grad_out, *grads))


def test_memory_of_the_portable_backend_is_bounded_in_keys_and_linear_in_queries():
    scratch = scratch_memory((50, 80), 1000)
    assert scratch < 32 * 2**20
    assert scratch_memory((50, 80), 4000) == scratch
    assert scratch_memory((100, 160), 1000) < 4 * scratch
