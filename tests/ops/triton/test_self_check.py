"""A backend that computes wrong numbers is found before its first use, once for a machine."""

import json
import logging
import threading
from functools import partial

import pytest
import torch
from filelock import FileLock
from torch._subclasses.fake_tensor import FakeTensorMode

from mmdat.ops.deformable.backends.cpu import CPU, load
from mmdat.ops.deformable.backends.portable import Portable
from mmdat.ops.triton import self_check
from mmdat.ops.triton.self_check import verdict

DEVICE = torch.device('cpu')
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OUTPUTS = ['out', 'q', 'k', 'v', 'bias_table', 'sampling_locations']


class Counted(Portable):
    """Counts the checks, in each of which two shapes are computed twice."""

    calls = 0

    def forward(self, *args):
        self.calls += 1
        super().forward(*args)

    @property
    def checks(self) -> float:
        return self.calls / 4


class Wrong(Counted):
    """Spoils one row of one of the six outputs."""

    def __init__(self, name, spoil=lambda t: t.mul_(2)):
        self.name_of_wrong, self.spoil = name, spoil

    def forward(self, inputs, out, lse):
        super().forward(inputs, out, lse)
        if self.name_of_wrong == 'out':
            self.spoil(_largest_row(out))

    def backward(self, inputs, grad_out, out, lse, grads):
        super().backward(inputs, grad_out, out, lse, grads)
        if self.name_of_wrong != 'out':
            self.spoil(_largest_row(grads[OUTPUTS.index(self.name_of_wrong) - 1]))


def _largest_row(x):
    sizes = x.abs().mean(-1)
    return x[tuple((sizes == sizes.max()).nonzero()[0])]


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A machine on which nothing was checked yet; the CPU's kernel is not compiled anew for it."""
    load()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('MMDAT_SELF_CHECK', raising=False)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    monkeypatch.setattr(self_check, '_known', {})


@pytest.fixture
def new_process(monkeypatch):
    return lambda: monkeypatch.setattr(self_check, '_known', {})


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('backend', [CPU, Portable])
def test_right_backends_pass(backend, dtype):
    if backend is CPU and load()[0] is None:
        pytest.skip(load()[1])
    assert verdict(backend(), DEVICE, dtype) is None


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('name', OUTPUTS)
def test_one_wrong_row_is_found(name, dtype):
    said = verdict(Wrong(name), DEVICE, dtype)
    spoken = 'the output' if name == 'out' else f'the gradient of {name}'
    assert said.startswith(f'it failed the self-check on cpu in {str(dtype)[6:]}: ')
    assert f'{spoken} is off by' in said
    assert not said.endswith('.')


@pytest.mark.parametrize('name', OUTPUTS)
def test_what_is_not_written_or_differs_between_calls_is_found(name):
    assert 'is off by inf' in verdict(Wrong(name, lambda t: t.fill_(torch.nan)), DEVICE, torch.float32)
    random = torch.Generator().manual_seed(0)
    noise = Wrong(name, lambda t: t.mul_(1 + 1e-5 * torch.rand((), generator=random)))
    self_check._known.clear()
    assert self_check._failures(noise, DEVICE, torch.float32)[0].endswith('is not the same in two calls')


def test_a_kernel_that_raises_is_told_in_one_line(caplog):
    def fail(_):
        raise RuntimeError('ptxas died\nof this\nand that')

    with caplog.at_level(logging.WARNING, 'mmdat'):
        said = verdict(Wrong('q', fail), DEVICE, torch.float32)
    assert said == 'it failed the self-check on cpu in float32: RuntimeError: ptxas died'
    (record,) = caplog.records
    assert '\n' not in record.getMessage()
    assert 'report this to the issue tracker' in record.getMessage()


def test_a_verdict_is_kept(new_process, caplog, monkeypatch):
    backends = [Wrong('v'), Wrong('v'), Wrong('v')]
    first = verdict(backends[0], DEVICE, torch.float32)
    assert verdict(backends[0], DEVICE, torch.float32) is first
    new_process()
    assert verdict(backends[1], DEVICE, torch.float32) == first
    assert [backend.checks for backend in backends] == [0.5, 0, 0]  # it stops at the first wrong shape
    assert len(caplog.records) == 2  # in each process
    new_process()
    monkeypatch.setenv('LOCAL_RANK', '3')
    assert verdict(backends[2], DEVICE, torch.float32) == first
    assert len(caplog.records) == 2


def test_a_verdict_holds_for_what_it_was_made_of(new_process, tmp_path, monkeypatch):
    backend = Counted()
    source = tmp_path / 'kernel.py'
    source.write_text('one')
    ask = partial(verdict, backend, DEVICE, torch.float32, [source])
    asked = 0
    for change in (
        lambda: None,
        lambda: source.write_text('another'),
        lambda: monkeypatch.setattr(torch, '__version__', '99.0'),
    ):
        change()
        new_process()
        assert ask() is None
        asked += 1
        assert backend.checks == asked
        new_process()
        assert ask() is None
        assert backend.checks == asked
    new_process()
    assert verdict(backend, DEVICE, torch.float32, [source], {'triton': '9'}) is None
    assert backend.checks == asked + 1
    assert verdict(backend, DEVICE, torch.float16, [source]) is None
    assert backend.checks == asked + 2


@pytest.mark.parametrize('text', ['', '{', '[]', '{"failures": "none"}', '{"failures": [1]}', 'null', '\0'])
def test_a_broken_file_is_checked_again(text, tmp_path, new_process):
    backend = Counted()
    verdict(backend, DEVICE, torch.float32)
    (path,) = tmp_path.glob('mmdat/self_check-*.json')
    path.write_text(text)
    new_process()
    assert verdict(backend, DEVICE, torch.float32) is None
    assert backend.checks == 2
    assert json.loads(path.read_text())['failures'] == []
    assert not list(path.parent.glob('*.part'))


def test_a_folder_that_cannot_be_written_costs_a_check_a_process(monkeypatch, tmp_path, new_process):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    backend = Wrong('k')
    for process in (1, 2):
        for _ in range(2):
            assert 'the gradient of k is off' in verdict(backend, DEVICE, torch.float32)
        assert backend.checks == process / 2
        new_process()


def test_one_checks_and_the_others_wait(monkeypatch):
    """Threads stand for processes: each with a memory of its own would make 4 checks."""
    monkeypatch.setattr(self_check, '_known', Forgetful())
    backend = Wrong('bias_table')
    said = []
    threads = [
        threading.Thread(target=lambda: said.append(verdict(backend, DEVICE, torch.float32)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 4
    assert len(set(said)) == 1
    assert 'bias_table' in said[0]
    assert backend.checks == 0.5


def test_a_lock_that_is_held_for_ever_stops_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(self_check, 'PATIENCE', 0.1)
    backend = Counted()
    assert verdict(backend, DEVICE, torch.float32) is None
    (path,) = tmp_path.glob('mmdat/self_check-*.json')
    path.unlink()
    self_check._known.clear()
    with FileLock(path.with_suffix('.lock')):
        assert verdict(backend, DEVICE, torch.float32) is None
    assert backend.checks == 2


class Forgetful(dict):
    def __setitem__(self, key, value):
        pass


def test_variable_skips_it(monkeypatch):
    backend = Wrong('q')
    monkeypatch.setenv('MMDAT_SELF_CHECK', '0')
    assert verdict(backend, DEVICE, torch.float32) is None
    assert backend.checks == 0
    monkeypatch.delenv('MMDAT_SELF_CHECK')
    assert verdict(backend, DEVICE, torch.float32) is not None


def test_no_check_where_tensors_are_fake_or_memory_is_out():
    backend = Counted()
    with FakeTensorMode():
        assert verdict(backend, DEVICE, torch.float32) is None
    assert backend.checks == 0

    def out_of_memory(_):
        raise torch.OutOfMemoryError('CUDA out of memory')

    assert verdict(Wrong('q', out_of_memory), DEVICE, torch.float32) is None
    assert not self_check._known  # it is made later
    assert verdict(backend, DEVICE, torch.float32) is None
    assert backend.checks == 1


def test_no_check_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: True)
    backend = Counted()
    assert verdict(backend, torch.device('cuda', 0), torch.float16) is None
    assert backend.checks == 0
    assert not self_check._known


def test_what_surrounds_the_call_neither_matters_nor_changes():
    backend = Counted()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with (
        torch.autocast('cpu', dtype=torch.bfloat16),
        torch.inference_mode(),
        torch.device('meta'),
        torch.utils.flop_counter.FlopCounterMode(display=False) as flops,
    ):
        assert verdict(backend, DEVICE, torch.float32) is None
        assert torch.is_autocast_enabled('cpu')
        assert torch.is_inference_mode_enabled()
    assert backend.checks == 1
    assert flops.get_total_flops() == 0
    assert torch.get_rng_state().equal(state)

    self_check._known.clear()
    torch.func.grad(lambda x: x.sum() + (verdict(Wrong('q'), DEVICE, torch.float64) is None))(torch.ones(2))
    assert next(iter(self_check._known.values())).startswith('it failed')


def test_compilers_meet_a_verdict_and_not_a_check():
    backend = Wrong('sampling_locations')
    check = torch.compiler.assume_constant_result(lambda device, dtype: verdict(backend, device, dtype))

    @partial(torch.compile, fullgraph=True, backend='eager')
    def double_if_right(x):
        return x * 2 if check(x.device, x.dtype) is None else x * 3

    assert double_if_right(torch.ones(2)).tolist() == [3, 3]
    assert backend.checks == 0.5
