"""The comparison on GPUs, with models and clocks that are made up."""

import pytest
import torch
from torch import nn

from mmdat.benchmarks import gpu_backbones
from mmdat.benchmarks.backbones import Case, build_dat, infer, train
from mmdat.benchmarks.gpu_backbones import Autocast, benchmark_gpu_backbones
from mmdat.benchmarks.timing import Timing

CPU = torch.device('cpu')
CASE = Case('small', (4, 3, 16, 16), dense=False)


class Toy(nn.Module):
    """Takes `seconds`, half of them where its weights are channels-last."""

    def __init__(self, seconds, breaks_in=()):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.seconds, self.breaks_in = seconds, breaks_in
        self.dtypes = set()

    def forward(self, x):
        channels_last = not self.conv.weight.is_contiguous()
        assert channels_last == (not x.is_contiguous())
        if (channels_last, self.training) in self.breaks_in:
            raise RuntimeError('no such layout')
        out = self.conv(x)
        Toy.taken = self.seconds / (2 if channels_last else 1) * (3 if self.training else 1)
        Toy.dtype = out.dtype
        return out


@pytest.fixture
def rows(monkeypatch):
    def timings(contenders, repeats):
        found = {}
        for name, call in contenders.items():
            call()
            assert Toy.dtype == torch.bfloat16
            found[name] = Timing(Toy.taken, Toy.taken / 10)
        return found

    monkeypatch.setattr(gpu_backbones, 'timings_on', lambda device: timings)
    monkeypatch.setattr(gpu_backbones, 'peak_memory', lambda function, device: 5 * 2**20)

    def rows(dat, swins):
        monkeypatch.setattr(gpu_backbones, 'build_dat', lambda case, arch='tiny': dat[arch])
        monkeypatch.setattr(
            gpu_backbones, 'SWINS', {name: lambda case, toy=toy: toy for name, toy in swins.items()}
        )
        text = benchmark_gpu_backbones(CPU, [CASE], repeats=2, compiled=False)
        return [line[2:-2].split(' | ') for line in text.splitlines() if line.startswith('| ')][1:]

    return rows


def test_each_in_its_best_mode(rows):
    channels_last = [(True, False), (True, True)]
    found = rows(
        dict(tiny=Toy(2.0), pp_tiny=Toy(4.0)),
        # names of modules that are installed anyway
        {'torch': Toy(1.0, breaks_in=channels_last), 'numpy': Toy(8.0)},
    )
    assert found == [
        ['DAT-T', '4 ± 0', '1.00', 'channels-last', '1 ± 0', '1.00', 'channels-last', '5 MiB'],
        ['DAT++-T', '2 ± 0', '0.50', 'channels-last', '1 ± 0', '0.50', 'channels-last', '5 MiB'],
        ['Swin-T (torch)', '4 ± 0', '1.00', 'NCHW', '1 ± 0', '1.00', 'NCHW', '5 MiB'],
        ['Swin-T (numpy)', '1 ± 0', '0.25', 'channels-last', '0 ± 0', '0.25', 'channels-last', '5 MiB'],
    ]


def test_a_model_that_does_not_run_stops_nobody(rows):
    broken = Toy(1.0, breaks_in=[(a, b) for a in (False, True) for b in (False, True)])
    found = rows(dict(tiny=Toy(2.0), pp_tiny=broken), {'torch': Toy(1.0)})
    assert found[1] == ['DAT++-T', *['RuntimeError: no such layout', '', ''] * 2, '']
    assert [row[0] for row in found] == ['DAT-T', 'DAT++-T', 'Swin-T (torch)']
    assert found[0][2] == '0.50'


@pytest.mark.parametrize('arch', ['tiny', 'pp_tiny'])
@pytest.mark.parametrize('run', [infer, train])
def test_real_models_under_autocast(arch, run):
    """In the layouts and under the calls of the comparison."""
    case = Case('small', (1, 3, 64, 64), settings=dict(key_strides=(1, 1, 2, 1)))
    model = Autocast(build_dat(case, arch), torch.bfloat16)
    for mode in (gpu_backbones.Mode(False, False), gpu_backbones.Mode(True, False)):
        gpu_backbones._call(model, mode, run, torch.randn(case.shape))()
        grads = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        assert bool(grads) == (run is train)
