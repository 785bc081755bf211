import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.training import write_config


def run(script: str, *args: str, path: str | None = None, **env: str) -> subprocess.CompletedProcess:
    python = str(Path(sys.executable).parent)
    env = os.environ | {'PATH': f'{path or python}:{os.environ["PATH"]}', 'VIRTUAL_ENV': sys.prefix} | env
    command = ['bash', str(ROOT / 'tools' / script), *args]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_usage(script):
    result = run(script, 'config.py')
    assert result.returncode == 2
    assert result.stderr.startswith('usage: ')


@pytest.mark.parametrize('gpus', ['0', '-1', 'config.py'])
def test_number_of_gpus(gpus):
    result = run('dist_train.sh', 'config.py', gpus)
    assert result.returncode == 2
    assert f"must be a positive number, got '{gpus}'" in result.stderr


def test_check_says_once_what_all_processes_would_do(tmp_path):
    config = write_config(tmp_path)
    result = run('dist_train.sh', str(config), '2', '--check', '--cfg-options', f'data_root={tmp_path}/data')
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('batch size') == 1
    assert '4 images, 2 in each of 2 processes' in result.stdout


def test_what_torchrun_is_asked_for(tmp_path):
    """After one check, and with the time that nodes wait for each other."""
    python = tmp_path / 'python'
    python.write_text('#!/bin/bash\necho "$@"\n')
    python.chmod(0o755)
    result = run('dist_test.sh', 'c.py', 'a.pth', '2', '--tta', path=str(tmp_path), NNODES='2', NODE_RANK='1')
    check, torchrun = result.stdout.splitlines()
    tool = f'{ROOT}/tools/test.py c.py a.pth --tta --launcher pytorch'
    assert check == f'{tool} --preflight'
    assert torchrun == (
        '-m torch.distributed.run --nnodes=2 --node_rank=1 --master_addr=127.0.0.1 --master_port=29500 '
        f'--rdzv_conf=timeout=900 --nproc_per_node=2 {tool}'
    )
    assert result.stderr == 'node 1 of 2: meeting the others at 127.0.0.1:29500, within 900 seconds\n'


def test_without_slurm(tmp_path):
    """With a PATH that has the shell's own tools, but no srun."""
    for tool in ('bash', 'dirname'):
        (tmp_path / tool).symlink_to(f'/usr/bin/{tool}' if tool == 'dirname' else '/bin/bash')
    result = run('slurm_train.sh', 'part', 'job', 'config.py', 'work', PATH=str(tmp_path))
    assert result.returncode == 1
    assert 'srun not found' in result.stderr
    assert 'dist_train.sh' in result.stderr


@pytest.mark.parametrize(
    ('script', 'args', 'expected'),
    [
        ('slurm_train.sh', ['c.py', 'out', '--amp'], 'train.py c.py --work-dir out --amp --launcher slurm'),
        ('slurm_test.sh', ['c.py', 'a.pth', '--tta'], 'test.py c.py a.pth --tta --launcher slurm'),
    ],
)
def test_what_slurm_is_asked_for(tmp_path, script, args, expected):
    srun = tmp_path / 'srun'
    srun.write_text('#!/usr/bin/env bash\necho "$@"\n')
    srun.chmod(0o755)
    result = run(script, 'gpu', 'dat', *args, path=str(tmp_path), GPUS='4', SRUN_ARGS='--mem=1G --qos=x')
    assert result.returncode == 0, result.stderr
    assert '--partition=gpu --job-name=dat --gres=gpu:4 --ntasks=4 --ntasks-per-node=4' in result.stdout
    assert '--mem=1G --qos=x' in result.stdout
    assert result.stdout.strip().endswith(expected)
