"""A disk that is full when a checkpoint is written: the last good one stays and is found."""

import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.training import run_tool, write_config

from mmdat.checkpoint import read_checkpoint

EXTRA = """
default_hooks.update(checkpoint=dict(max_keep_ckpts=1))
val_dataloader = val_cfg = val_evaluator = None
"""


@pytest.fixture
def work_dir(tmp_path) -> Path:
    path = tmp_path / 'work'
    path.mkdir()
    return path


@pytest.fixture
def small_disk(work_dir, request) -> Path:
    """The work directory as a disk of 64 MiB."""
    if not request.config.getoption('--full'):
        pytest.skip('takes a minute: --full')
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', str(work_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f'cannot mount a small disk: {mounted.stderr.strip()}')
    yield work_dir
    subprocess.run(['umount', str(work_dir)], check=True)


@contextmanager
def filled(disk: Path, left: int):
    """Leaves `left` bytes on a disk."""
    filler = disk / 'filler'
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    yield
    filler.unlink()


def check_refused(work_dir: Path, code: int, output: str) -> None:
    assert code == 1, output
    lines = [line for line in output.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    assert f'{work_dir}/epoch_2.pth could not be written' in lines[0]
    assert 'the same command goes on from the newest' in lines[0]
    assert [path.name for path in work_dir.glob('*.pth*')] == ['epoch_1.pth']
    assert read_checkpoint(str(work_dir / 'epoch_1.pth'))['meta']['epoch'] == 1


def check_goes_on(work_dir: Path, code: int, output: str) -> None:
    assert code == 0, output
    assert f'going on from {work_dir}/epoch_1.pth' in output
    assert [path.name for path in work_dir.glob('*.pth*')] == ['epoch_2.pth']


@pytest.mark.slow
def test_files_cannot_grow(tmp_path, work_dir, run_here):
    """`RLIMIT_FSIZE`, which anyone can set."""
    arguments = str(write_config(tmp_path, EXTRA)), '--work-dir', str(work_dir)
    data = '--cfg-options', f'data_root={tmp_path / "data"}'
    code, output = run_here('train.py', *arguments, *data, 'train_cfg.max_epochs=1')
    assert code == 0, output
    half = (work_dir / 'epoch_1.pth').stat().st_size // 2048
    limited = ['bash', '-c', f'ulimit -f {half}; exec "$@"', 'limited', sys.executable, 'tools/train.py']
    check_refused(work_dir, *run_tool(tmp_path, *limited, *arguments))
    check_goes_on(work_dir, *run_here('train.py', *arguments, *data))


@pytest.mark.slow
def test_the_disk_is_full(tmp_path, small_disk):
    config = str(write_config(tmp_path, EXTRA))
    command = ['bash', 'tools/dist_train.sh', config, '2', '--work-dir', str(small_disk)]
    code, output = run_tool(tmp_path, *command, options=('train_cfg.max_epochs=1',))
    assert code == 0, output
    with filled(small_disk, left=(small_disk / 'epoch_1.pth').stat().st_size // 2):
        check_refused(small_disk, *run_tool(tmp_path, *command))
    check_goes_on(small_disk, *run_tool(tmp_path, *command))
