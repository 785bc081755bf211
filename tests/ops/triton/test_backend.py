"""The choice of the Triton kernels, and their launches, without a card: on tensors without numbers."""

import logging
from contextlib import nullcontext

import pytest
import torch
from helpers.memory import PeakMemory
from torch._subclasses.fake_tensor import FakeTensorMode

from mmdat.ops import deformable_attention, explain
from mmdat.ops.deformable.backends import BACKENDS, ladder
from mmdat.ops.deformable.backends import triton as triton_backend
from mmdat.ops.deformable.backends.portable import Portable
from mmdat.ops.deformable.inputs import Inputs
from mmdat.ops.triton import card as triton_card
from mmdat.ops.triton.tiles import Case, use_default

launch = pytest.importorskip('mmdat.ops.triton.launch', reason='needs Triton')
compiled = pytest.importorskip('helpers.launches').compiled

CARD = torch.device('cuda', 0)


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """An H100, on which all kernels compile."""
    monkeypatch.delenv('MMDAT_BACKEND', raising=False)
    monkeypatch.setattr(triton_card, 'capability', lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, 'device', lambda device: nullcontext())
    monkeypatch.setattr(launch.Launch, 'compile', lambda self: None)
    monkeypatch.setattr(triton_backend, 'self_check', lambda device, dtype: None)
    cached = triton_card.triton_obstacle, triton_card.compile_obstacle, triton_card._warn
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def fake():
    with FakeTensorMode():
        yield


def arguments(
    query_size=(14, 14),
    num_keys=49,
    table_size=(27, 27),
    head_dims=32,
    dtype=torch.bfloat16,
    device='cuda',
    batch=2,
    heads=4,
):
    def rows(length):
        return torch.empty(batch, length, heads, head_dims, dtype=dtype, device=device).transpose(1, 2)

    table = torch.empty(heads, *table_size, device=device)
    locations = torch.empty(batch, 2, num_keys, 2, device=device)
    return (
        *(rows(query_size[0] * query_size[1]), rows(num_keys), rows(num_keys)),
        *(table, locations, query_size),
    )


@pytest.mark.usefixtures('fake')
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize('head_dims', [16, 24, 128])
def test_serves(dtype, head_dims):
    assert explain(*arguments(dtype=dtype, head_dims=head_dims)) == 'triton: 76832 logits'
    assert explain(*arguments(dtype=dtype, table_size=(111, 111))).startswith('triton: ')


@pytest.mark.usefixtures('fake')
@pytest.mark.parametrize(
    ('settings', 'reason'),
    [
        (dict(head_dims=129), 'not triton: the kernels take up to 128 channels a head, not 129'),
        (dict(table_size=(27, 112)), 'not triton: the kernels take tables of up to 111 x 111, not 27 x 112'),
        (
            dict(dtype=torch.float64),
            'not triton: the kernels compute in float32 and half precision, not in torch.float64',
        ),
        (
            dict(query_size=(4096, 4096), heads=4, num_keys=1),
            'not triton: an image has 2^31 numbers or more',
        ),
    ],
)
def test_inputs_that_are_not_served(settings, reason):
    assert reason in explain(*arguments(**settings))
    with pytest.raises(ValueError, match=r'asks for the triton backend, but '):
        explain(*arguments(**settings), backend='triton')


def test_the_ladders():
    assert [backend.name for backend in ladder('cuda')] == ['triton', 'portable']
    assert 'triton' not in [backend.name for backend in ladder('cpu')]
    with pytest.raises(ValueError, match='asks for the triton backend, but the tensors are on cpu'):
        deformable_attention(*arguments(device='cpu'), backend='triton')


def no_triton(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'triton', None)


def old_triton(monkeypatch):
    monkeypatch.setattr('triton.__version__', '2.1.0')


MACHINES = {
    'no card': (
        lambda patch: patch.setattr(triton_card, 'capability', lambda device: None),
        'PyTorch finds no card here',
    ),
    'an old card': (
        lambda patch: patch.setattr(triton_card, 'capability', lambda device: (7, 5)),
        'the kernels need a card of sm_80 at least, not sm_75',
    ),
    'ROCm': (lambda patch: patch.setattr(torch.version, 'hip', '6.4'), 'the kernels were not tried on ROCm'),
    'no Triton': (no_triton, 'Triton cannot be imported: import of triton halted'),
    'an old Triton': (old_triton, 'the kernels need Triton 3.4 at least, not 2.1.0'),
}


@pytest.mark.usefixtures('fake')
@pytest.mark.parametrize('machine', MACHINES)
@pytest.mark.parametrize(('num_keys', 'next_backend'), [(49, 'reference'), (10**6, 'portable')])
def test_machines_that_are_not_served(machine, num_keys, next_backend, monkeypatch):
    change, reason = MACHINES[machine]
    change(monkeypatch)
    said = explain(*arguments(num_keys=num_keys))
    assert said.startswith(f'{next_backend}: ')
    assert f'not triton: {reason}' in said


@pytest.mark.usefixtures('fake')
def test_a_failing_compiler_is_told_of_once(monkeypatch, caplog):
    """It fails for the last kernel of the backward pass, before a forward pass is returned."""
    compiled = []

    def compile(self):
        compiled.append(self.kernel.fn.__name__)
        if compiled[-1] == 'queries_kernel':
            raise RuntimeError('PassManager::run failed\nmore')

    monkeypatch.setattr(launch.Launch, 'compile', compile)
    monkeypatch.setattr(Portable, 'pays_from', lambda self, inputs: 0)
    with caplog.at_level(logging.WARNING, 'mmdat'):
        for _ in range(2):  # with fake tensors, which the operator of the next backend takes
            out = deformable_attention(*arguments())
            assert out.shape == (2, 4, 196, 32)
            assert out.dtype == torch.bfloat16
    assert len(caplog.records) == 1
    assert compiled.count('queries_kernel') == 1
    reason = 'Triton cannot compile its kernels: RuntimeError: PassManager::run failed'
    assert caplog.messages == [f'Deformable attention is slower than it could be on this card: {reason}']
    assert explain(*arguments()) == f'portable: 76832 logits, not triton: {reason}'


@pytest.mark.usefixtures('fake')
def test_a_compiler_that_fails_for_one_configuration_only(monkeypatch):
    def compile(self):
        if self.constants.get('HEAD_DIMS') == 64:
            raise RuntimeError('out of resource: shared memory')

    monkeypatch.setattr(launch.Launch, 'compile', compile)
    assert explain(*arguments(head_dims=64)).startswith('reference: ')
    assert explain(*arguments(head_dims=32)).startswith('triton: ')


@pytest.mark.usefixtures('fake')
def test_a_failed_self_check_is_heeded(monkeypatch):
    said = 'it failed the self-check on this card'
    monkeypatch.setattr(
        triton_backend, 'self_check', lambda device, dtype: said if dtype == torch.float16 else None
    )
    assert f'not triton: {said}' in explain(*arguments(dtype=torch.float16))
    assert explain(*arguments()).startswith('triton: ')


@pytest.mark.usefixtures('fake')
def test_compilers_follow(monkeypatch):
    """One graph without breaks; with dynamic shapes one for all maps."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    def call(*args):
        *tensors, height, width = args
        return deformable_attention(*tensors, (height, width))

    for dynamic, expected in ((False, [1, 2, 3]), (True, [1, 1, 1])):
        torch.compiler.reset()
        graphs.clear()
        function = torch.compile(call, fullgraph=True, dynamic=dynamic, backend=keep)
        counts = []
        for size in ((14, 14), (20, 30), (10, 90)):
            *tensors, _ = arguments(size, num_keys=size[0] * 5)
            out = function(*tensors, *size)
            assert out.shape == (2, 4, size[0] * size[1], 32)
            counts.append(len(graphs))
        assert counts == expected
        for graph in graphs:
            assert 'mmdat.deformable_attention_triton' in str(graph.graph)


def on_meta(execute, **settings) -> None:
    """Both passes on tensors without numbers, which any read of a number by the host would stop."""
    inputs = Inputs(*arguments(**settings, device='meta'), 'corners')
    with torch.device('meta'):
        out, lse = torch.empty_like(inputs.q), torch.empty(inputs.q.shape[:-1])
        grads = [torch.empty_like(t) for t in inputs.tensors()]
    case = triton_backend._case(inputs)
    launch.forward(inputs, out, lse, case, use_default, execute)
    launch.backward(inputs, out, out, lse, grads, case, use_default, execute)


def test_a_new_size_compiles_nothing():
    """The same constants, and the same of what Triton tells arguments apart by."""

    def compiled_for(**settings):
        launches = []
        on_meta(launches.append, **settings)
        return compiled(launches)

    sizes = [((50, 84), 4200, 2), ((1, 40), 1, 1), ((33, 64), 16, 16), ((25, 42), 1050, 3), ((7, 7), 49, 128)]
    sizes += [((40, n), 13 * n, n) for n in (47, 60, 63, 75, 84)]
    (first, *others) = (compiled_for(query_size=size, num_keys=n, batch=b) for size, n, b in sizes)
    assert [name for name, *_ in first] == [
        *('pack_cells_kernel', 'pack_points_kernel', 'forward_kernel'),
        *('pack_cells_kernel', 'pack_points_kernel', 'prepare_kernel'),
        *('keys_kernel', 'queries_kernel', 'table_kernel'),
    ]
    for other in others:
        assert other == first
    case = Case((9, 0), torch.bfloat16, 32, (27, 27), 2, 'ieee')
    assert compiled(launch.launches(case)) == first


@pytest.mark.parametrize('size', [dict(batch=40_000, query_size=(1, 1)), dict(table_size=(111, 111))])
def test_grids_have_no_more_programs_than_cards_take(size):
    launches = []
    on_meta(launches.append, **size)
    for one in launches:
        assert one.grid[0] < 2**31
        assert all(programs < 2**16 for programs in one.grid[1:]), one.kernel.fn.__name__


def test_memory_is_linear_in_queries_and_in_keys():
    def scratch(query_size, num_keys):
        with PeakMemory() as memory:
            on_meta(lambda one: None, query_size=query_size, num_keys=num_keys, batch=1, heads=2)
        return memory.peak

    base = scratch((40, 80), 1000)
    of_keys = scratch((40, 80), 2000) - base
    of_queries = scratch((80, 80), 1000) - base
    assert scratch((80, 80), 2000) == pytest.approx(base + of_keys + of_queries, rel=0.01)
    queries = 2 * 40 * 80 * 32 * 2  # bytes of q
    assert scratch((40, 80), 1000) < 8 * queries + 6 * of_keys  # inputs, outputs and gradients among them


@pytest.mark.parametrize(
    ('dtypes', 'expected'),
    [
        ([torch.bfloat16] * 3, torch.bfloat16),
        ([torch.float16] * 3, torch.float16),
        ([torch.float32] * 3, torch.float32),
        ([torch.bfloat16, torch.float16, torch.float16], torch.float32),
        ([torch.float32, torch.float16, torch.float16], torch.float32),
    ],
)
def test_dtypes(dtypes, expected):
    *rows, table, locations, size = arguments(device='cpu')
    rows = [t.to(dtype) for t, dtype in zip(rows, dtypes)]
    inputs = Inputs(*rows, table.bfloat16(), locations.half(), size, 'corners')
    assert BACKENDS['triton'].dtypes(inputs) == (expected,) * 3 + (torch.float32,) * 2


def test_tf32_where_pytorch_allows_it():
    usual = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision('high')
        assert triton_backend._precision(torch.float32) == 'tf32'
        assert triton_backend._precision(torch.bfloat16) == 'ieee'
        torch.set_float32_matmul_precision('highest')
        assert triton_backend._precision(torch.float32) == 'ieee'
    finally:
        torch.set_float32_matmul_precision(usual)


class Driver:
    """Of a card that is not there: the compiler works for it, and loads nothing."""

    def __init__(self, shared_memory: int):
        self.utils = self
        self._shared_memory = shared_memory

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget('cuda', 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def launcher_cls(self, source, metadata):
        return None

    def get_device_properties(self, device):
        return {'max_shared_mem': self._shared_memory}

    def load_binary(self, name, kernel, shared, device):
        return 'module', 'function', 0, 0, 1024


def test_the_first_use_compiles_and_loads_both_passes(monkeypatch, tmp_path):
    """By Triton's compiler, for a card with much and one with little shared memory."""
    from triton.compiler import compiler
    from triton.runtime.driver import driver

    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, 'device', lambda device: nullcontext())
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    case = Case((9, 0), torch.bfloat16, 16, (13, 13), 2, 'ieee')
    for shared_memory, expected in ((227 * 1024, None), (4 * 1024, 'out of resource: shared memory')):
        monkeypatch.setattr(driver, '_active', Driver(shared_memory))
        compiler.max_shared_mem.cache_clear()
        for kernel in {one.kernel for one in launch.launches(case)}:
            kernel.device_caches.clear()
        triton_card.compile_obstacle.cache_clear()
        said = triton_card.compile_obstacle(CARD, 'attention', launch.launches, case)
        assert said is None if expected is None else expected in said
    compiler.max_shared_mem.cache_clear()
