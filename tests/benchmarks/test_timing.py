"""Times on a GPU, with a GPU that is made up."""

import pytest
import torch

from mmdat.benchmarks import timing
from mmdat.benchmarks.timing import checked_device, event_timings, timings_on
from mmdat.errors import UserError

DEVICE = torch.device('cuda', 0)


class FakeGPU:
    """Runs what it is given in the order of the calls, on a clock of its own (ms)."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        monkeypatch.setattr(torch.cuda, 'device', lambda device: torch.no_grad())
        monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: self.log.append('synchronize'))
        monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: self)
        monkeypatch.setattr(torch.cuda, 'Event', lambda enable_timing: FakeEvent(self))
        monkeypatch.setattr(torch, 'empty', self.empty)

    L2_cache_size = 1000

    def empty(self, size, dtype, device):
        assert (size, dtype, device) == (2000, torch.uint8, DEVICE)
        return self

    def zero_(self):
        self.run('flush', 100)

    def run(self, name, milliseconds):
        self.now += milliseconds
        self.log.append(name)


class FakeEvent:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.time = self.gpu.now

    def elapsed_time(self, end):
        assert self.gpu.log[-1] == 'synchronize'
        return end.time - self.time


def test_events_around_cold_calls_in_turns(monkeypatch):
    gpu = FakeGPU(monkeypatch)
    durations = iter([50, 50, 50, 3, 1, 2])
    contenders = {'a': lambda: gpu.run('a', next(durations)), 'b': lambda: gpu.run('b', 7)}
    timings = event_timings(contenders, 3, DEVICE)
    assert gpu.log == [*'aaabbb', *['flush', 'a', 'flush', 'b'] * 3, 'synchronize']
    assert timings['a'].median == pytest.approx(2e-3)
    assert timings['a'].spread == pytest.approx(0.5e-3)
    assert timings['b'] == timing.Timing(pytest.approx(7e-3), pytest.approx(0))


def test_how_to_time_depends_on_the_device(monkeypatch):
    assert timings_on(torch.device('cpu')) is timing.interleaved_timings
    assert timings_on(DEVICE).func is event_timings
    assert timings_on(DEVICE).keywords == {'device': DEVICE}


def test_no_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(UserError, match='sees no GPU here: --device cpu measures the processor') as error:
        checked_device('cuda')
    assert '\n' not in str(error.value)
    assert checked_device('cpu') == torch.device('cpu')
