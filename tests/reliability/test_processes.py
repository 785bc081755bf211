"""Whatever ends a run, no process of it stays, and a run that succeeded says so."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import psutil
import pytest
from helpers.training import run_tool, start_tool, write_config

TRAIN = ('bash', 'tools/dist_train.sh', '{config}', '2', '--work-dir', '{work_dir}')
TRAIN_ALONE = (sys.executable, 'tools/train.py', '{config}', '--work-dir', '{work_dir}')
ENDLESS = (
    'train_cfg.max_epochs=100000',
    'train_cfg.val_interval=100000',
    'default_hooks.checkpoint.interval=100000',
    'train_dataloader.num_workers=1',
    'train_dataloader.persistent_workers=True',
)
SECOND_EPOCH = r'Epoch\(train\) +\[2\]'
# For processes to end in. torchrun gives its own 30 seconds.
GRACE = 10.0

# A module next to the config, and what the config says of it.
FAILING_HOOK = """
import os
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class FailingHook(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3 and os.environ['RANK'] == '1':
            raise RuntimeError('failed on purpose')
"""
USE_FAILING_HOOK = """
custom_imports = dict(imports=['failing_hook'])
custom_hooks = [dict(type='FailingHook')]
"""

# The last thing that rank 0 does at exit holds Python's lock, while the other rank, at last, joins the
# collective: the thread of gloo that then lets go of the tensor waits for the lock until Python has gone.
LATE_COLLECTIVE = """
import atexit
atexit.register(sum, range(10**8))  # functions run from the last to the first
import os, sys, time
import torch
import torch.distributed as dist
from mmdat.engine import run_tool

store, rank = sys.argv[1], int(os.fork() == 0)

def main():
    dist.init_process_group('gloo', store=dist.FileStore(store, 2), rank=rank, world_size=2)
    time.sleep(0.5 * rank)
    work = dist.all_reduce(torch.rand(1000), async_op=True)
    if rank == 1:
        work.wait()
        os._exit(0)

run_tool(main)
"""


class Run:
    """A training of tests/helpers, and all processes that come of it: a mark in their environment tells."""

    def __init__(self, monkeypatch, folder, command: tuple[str, ...] = TRAIN, extra: str = ''):
        self.mark = str(folder)
        monkeypatch.setenv('MMDAT_TEST_RUN', self.mark)
        config = write_config(folder, extra)
        command = [part.format(config=config, work_dir=folder / 'work') for part in command]
        self.launcher = start_tool(folder, *command, options=ENDLESS)

    def wait_for(self, pattern: str) -> None:
        output = ''
        for line in self.launcher.stdout:
            output += line
            if re.search(pattern, line):
                return
        raise AssertionError(f'ended without {pattern!r}:\n{output[-5000:]}')

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get('MMDAT_TEST_RUN') == self.mark:
                    found.append(process)
            except psutil.Error:  # has ended meanwhile
                continue
        return found

    def rank(self, rank: int) -> psutil.Process:
        children = psutil.Process(self.launcher.pid).children()
        return next(child for child in children if child.environ().get('RANK') == str(rank))

    def left_behind(self) -> list[psutil.Process]:
        """The processes that stay. Ends them."""
        deadline = time.monotonic() + GRACE
        while (stayed := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in stayed:
            process.kill()
        return stayed


@pytest.fixture
def full(trials):
    if not trials(0, 1):
        pytest.skip('runs with --full')


def signal_launcher(number: signal.Signals) -> Callable[[Run], None]:
    return lambda run: run.launcher.send_signal(number)


ENDS = {
    'one process is killed': lambda run: run.rank(1).kill(),
    'Ctrl-C': signal_launcher(signal.SIGINT),
    'the launcher is terminated': signal_launcher(signal.SIGTERM),
    'the launcher is killed': signal_launcher(signal.SIGKILL),
}


@pytest.mark.slow
@pytest.mark.parametrize('how', ENDS)
def test_no_process_stays(how, tmp_path, monkeypatch, trials):
    if not trials(how == 'the launcher is killed', True):
        pytest.skip('runs with --full')
    run = Run(monkeypatch, tmp_path)
    run.wait_for(SECOND_EPOCH)
    assert len(run.processes()) == 5  # launcher, two processes, a data loader's worker of each
    ENDS[how](run)
    assert run.left_behind() == []
    run.launcher.communicate()
    assert run.launcher.returncode != 0


@pytest.mark.slow
@pytest.mark.usefixtures('full')
def test_no_process_stays_after_an_error_in_one(tmp_path, monkeypatch):
    (tmp_path / 'failing_hook.py').write_text(FAILING_HOOK)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
    run = Run(monkeypatch, tmp_path, extra=USE_FAILING_HOOK)
    run.wait_for('RuntimeError: failed on purpose')
    assert run.left_behind() == []
    run.launcher.communicate()
    assert run.launcher.returncode == 1


@pytest.mark.slow
@pytest.mark.usefixtures('full')
def test_under_nohup_a_run_outlives_its_terminal(tmp_path, monkeypatch):
    run = Run(monkeypatch, tmp_path, ('nohup', *TRAIN))
    run.wait_for(SECOND_EPOCH)
    run.launcher.send_signal(signal.SIGHUP)
    run.wait_for(r'Epoch\(train\) +\[6\]')
    run.launcher.kill()
    assert run.left_behind() == []


@pytest.mark.slow
@pytest.mark.usefixtures('full')
def test_no_data_loader_stays_without_a_launcher(tmp_path, monkeypatch):
    run = Run(monkeypatch, tmp_path, TRAIN_ALONE)
    run.wait_for(SECOND_EPOCH)
    assert len(run.processes()) == 2
    run.launcher.kill()
    assert run.left_behind() == []


def test_python_has_gone_before_a_collective_ends(tmp_path):
    command = [sys.executable, '-c', LATE_COLLECTIVE, tmp_path / 'store']
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures('full')
def test_a_run_that_succeeded_exits_with_zero(tmp_path):
    """Each time; once, `tests/test_main_job.py` and `test_kill_and_resume.py` look at it too."""
    config = str(write_config(tmp_path))
    command = [part.format(config=config, work_dir=tmp_path / 'work') for part in TRAIN]
    for _ in range(50):
        code, output = run_tool(tmp_path, *command, '--no-resume', options=('train_cfg.max_epochs=1',))
        assert code == 0, output[-5000:]
