import os
import subprocess

import pytest
from conftest import ROOT


@pytest.fixture
def run(tmp_path):
    """`run(failing)`: the script's exit code, and what it ran, by commands that only say their arguments."""
    for name in ('python', 'compute-sanitizer'):
        command = tmp_path / name
        command.write_text(
            f'#!/bin/bash\necho {name} "$@" >>{tmp_path}/log\necho report\n[[ "$*" != *"$FAILING"* ]]\n'
        )
        command.chmod(0o755)

    def run(failing: str) -> tuple[int, list[str]]:
        env = os.environ | {
            'PATH': f'{tmp_path}:{os.environ["PATH"]}',
            'VIRTUAL_ENV': '/',
            'FAILING': failing,
        }
        command = ['bash', str(ROOT / 'tools/gpu_report.sh'), str(tmp_path / 'out')]
        code = subprocess.run(command, env=env, capture_output=True, check=False).returncode
        return code, (tmp_path / 'log').read_text().splitlines()

    return run


@pytest.mark.parametrize(
    'failing', ['-m mmdat.check --device', 'benchmark_ops', 'benchmark_backbones', 'exitcode']
)
def test_all_runs_whatever_fails(failing, run, tmp_path):
    code, ran = run(failing)
    assert code == 1
    check, ops, backbones, sanitizer = ran
    assert check == f'python -m mmdat.check --device cuda --no-times --out {tmp_path}/out/check.md'
    assert ops == f'python {ROOT}/tools/benchmark_ops.py --device cuda --repeats 50'
    assert backbones == f'python {ROOT}/tools/benchmark_backbones.py --device cuda --repeats 20'
    assert sanitizer.endswith('python -m mmdat.check --device cuda --no-times --quick')
    for name in ('ops.md', 'backbones.md', 'sanitizer.txt'):
        assert (tmp_path / 'out' / name).read_text() == 'report\n'


def test_nothing_fails(run):
    assert run('no such word')[0] == 0
