"""`python -m mmdat.check`: what is told, and the exit code."""

import subprocess
import sys

import pytest
import torch

from mmdat.check import __main__ as command
from mmdat.check import report, sweep
from mmdat.check.cases import CASES, Case, Finding, NotServedError
from mmdat.check.environment import describe_environment, devices, variable
from mmdat.check.report import correctness_section
from mmdat.check.sweep import Outcome

CPU = torch.device('cpu')
FINE = Finding('out', 1e-7, 2e-6)


def look(subject):
    yield FINE


def raise_(error):
    def look(subject):
        yield FINE
        raise error

    return look


@pytest.fixture
def few_cases(monkeypatch):
    """Replaces all cases by one of each outcome."""
    monkeypatch.setattr(sweep, 'LAYER_CASES', {})
    found = [
        Case('good', '1', look, of_equations=True),
        Case('refused', '1', raise_(NotServedError('heads | are\ntoo large'))),
        Case('no memory', '1', raise_(torch.OutOfMemoryError('CUDA out of memory'))),
    ]
    monkeypatch.setattr(sweep, 'CASES', found)
    return found


def test_all_goes_well(few_cases, capsys, tmp_path):
    assert (
        command.main(['--quick', '--no-times', '--device', 'cpu', '--out', str(tmp_path / 'report.md')]) == 0
    )
    said = capsys.readouterr().out
    assert (tmp_path / 'report.md').read_text().split() == said.split()
    assert '| cpu | good | 1 | 0 | 0 | out | 1.0e-07 | 2.0e-06 |' in said
    assert '| portable | refused | 0 | 0 | 1: heads / are too large |  |  |  |' in said
    assert '| cpu | no memory | 0 | 0 | 1: there is not enough memory |' in said
    assert '| reference | good | 1 |' in said
    assert '| reference | refused |' not in said
    assert f'| PyTorch | {torch.__version__}, ' in said
    assert '| deformable attention | 50x80 x 1000, 12 | float32, bfloat16, float16 | ' in said
    assert '| MLP | 2 x 64 x 104 x 96 | bfloat16 | reference: ' in said
    assert said.endswith('**All 3 checks passed.**\n\n')


@pytest.mark.parametrize(
    ('bad', 'told'),
    [
        (lambda s: iter([FINE, Finding('k', 0.5, 1e-5)]), 'k: 5.0e-01, 1.0e-05 allowed'),
        (lambda s: iter([Finding('v', float('nan'), 1e-5)]), 'v: nan, 1.0e-05 allowed'),
        (raise_(RuntimeError('it broke\nhere')), 'RuntimeError: it broke'),
    ],
)
def test_a_failure_is_told_and_counts(bad, told, few_cases, capsys):
    few_cases.append(Case('bad', 'one', bad))
    assert command.main(['--quick', '--no-times']) == 1
    said = capsys.readouterr().out
    assert f'- portable, bad: one: {told}\n' in said
    assert '| portable | bad | 0 | 1 | 0 |' in said
    assert said.endswith('**Of 5 checks 2 failed.**\n\n')


def test_many_failures_are_counted():
    outcomes = [Outcome('cpu', CASES[0], error=f'{index}') for index in range(45)]
    said = correctness_section(CPU, outcomes)
    assert '45 failures:' in said
    assert ': 39\n' in said
    assert ': 40\n' not in said
    assert said.endswith('- and 5 more')


def test_times_are_those_beside_sdpa(few_cases, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(report, 'benchmark_beside_sdpa', lambda *args, **_: asked.append(args) or 'THE TIMES')
    assert command.main(['--quick']) == 0
    ((backends, shapes, device, dtype, _),) = asked
    assert backends == ['cpu', 'portable']
    assert len(shapes) == 2
    assert (device, dtype) == (CPU, torch.float32)
    assert '## Times on cpu\n\nTHE TIMES\n' in capsys.readouterr().out


def test_a_section_that_fails_is_told_and_the_rest_is_kept(few_cases, monkeypatch, capsys, tmp_path):
    def break_down(*args, **kwargs):
        raise RuntimeError('CUDA error: an illegal memory access')

    monkeypatch.setattr(report, 'benchmark_beside_sdpa', break_down)
    path = tmp_path / 'report.md'
    assert command.main(['--quick', '--out', str(path)]) == 1
    assert '**RuntimeError: CUDA error: an illegal memory access**' in path.read_text()
    assert path.read_text().endswith('**Of 3 checks 1 failed.**\n')


def test_slow_cases_are_those_that_compile(monkeypatch):
    monkeypatch.setattr(sweep, 'CASES', [])
    monkeypatch.setattr(sweep, 'LAYER_CASES', {})
    monkeypatch.setattr(sweep, 'COMPILED', {'inductor': Case('torch.compile', '1', look, of_equations=True)})
    assert [o.backend for o in sweep.sweep(CPU)] == ['reference', 'cpu', 'portable']
    assert list(sweep.sweep(CPU, quick=True)) == []


@pytest.mark.parametrize(
    ('arguments', 'told', 'code'),
    [
        (['--device', 'cuda'], 'sees no GPU here', 1),
        (['--device', 'gpu'], 'no device of PyTorch', 1),
        (['--out', '/no/such/folder/report.md'], '--out needs a file in a folder that exists', 2),
        (['--out', '/tmp'], '--out needs a file', 2),
    ],
)
def test_what_is_wrong_is_one_line(arguments, told, code, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    try:
        found = command.main(arguments)
    except SystemExit as exit_:
        found = exit_.code
    assert found == code
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_a_wrong_variable_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv('MMDAT_BACKEND', 'fast')
    assert command.main(['--quick', '--no-times']) == 1
    assert capsys.readouterr().err.startswith("error: unknown backend 'fast' in the variable MMDAT_BACKEND")


def test_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setenv('MMDAT_CXXFLAGS', '-g')
    (tmp_path / 'mmdat').mkdir()
    (tmp_path / 'mmdat' / 'a.so').touch()
    verdict = tmp_path / 'mmdat' / 'self_check-triton-1.json'
    verdict.write_text('{"failures": ["the output is off"], "of": {"backend": "triton", "device": "Card 9"}}')
    monkeypatch.setitem(sys.modules, 'mmseg', None)
    monkeypatch.setattr('mmdat.check.environment.find_spec', lambda name: None if name == 'timm' else 'there')
    monkeypatch.setenv('CXX', 'no-such-compiler -O3')
    rows = dict(describe_environment())
    assert rows['not installed'] == 'timm'
    assert rows['mmdet'].endswith('(onedl-mmdetection)')
    assert rows['cache'].endswith('1 compiled kernels, 1 self-checks, of which failed: triton on Card 9')
    assert rows['MMDAT_CXXFLAGS'] == '-g'
    assert rows['C++ compiler'].startswith('no-such-compiler -O3, which does not run: ')
    verdict.write_text('?')
    assert 'which cannot be read' in dict(describe_environment())['cache']


def test_one_gpu_of_each_kind(monkeypatch):
    names = ['A', 'A', 'B', 'A', 'B']
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: len(names))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda index: names[index])
    assert devices() == [CPU, torch.device('cuda', 0), torch.device('cuda', 2)]


def test_variables_are_put_back(monkeypatch):
    import os

    monkeypatch.setenv('MMDAT_BACKEND', 'cpu')
    monkeypatch.delenv('MMDAT_SELF_CHECK', raising=False)
    with variable('MMDAT_BACKEND', 'portable'), variable('MMDAT_SELF_CHECK', '0'):
        assert (os.environ['MMDAT_BACKEND'], os.environ['MMDAT_SELF_CHECK']) == ('portable', '0')
    assert os.environ['MMDAT_BACKEND'] == 'cpu'
    assert 'MMDAT_SELF_CHECK' not in os.environ


def test_with_pytorch_and_mmengine_only():
    """The whole of it, where the libraries of OpenMMLab that use DAT are missing."""
    script = (
        'import sys; sys.modules.update(dict.fromkeys(["mmcv", "mmdet", "mmseg", "mmpretrain", "timm"])); '
        'from mmdat.check.__main__ import main; '
        'from mmdat.check import environment, sweep; '
        'sweep.CASES, sweep.LAYER_CASES = sweep.CASES[::12], {}; '
        'find_spec = environment.find_spec; '
        'environment.find_spec = lambda name: name in sys.modules and sys.modules[name] or None; '
        'sys.exit(main(["--quick", "--no-times", "--device", "cpu"]))'
    )
    result = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert '| not installed | mmcv, mmdet, mmseg, mmpretrain,' in result.stdout
    assert '**All ' in result.stdout
