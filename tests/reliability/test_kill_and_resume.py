"""A run that is killed and started again ends as if nothing had happened."""

import json
import os
import random
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from helpers.comparison import assert_same
from helpers.processes import run_script, run_together
from helpers.training import run_tool, start_tool, write_config

# Four epochs of two steps, with everything that has a state: momenta, schedule, averages, the best so far,
# and augmentation in workers that live on. Synchronising a file takes so long that kills hit the writing.
EXTRA = """
custom_imports = dict(imports=['slow_saving'])
model.update(test_cfg=dict(score_thr=0.0))
train_pipeline.insert(3, dict(type='PhotoMetricDistortion'))
train_dataloader.update(num_workers=1, persistent_workers=True)
train_cfg = dict(max_epochs=4)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=4, convert_to_iter_based=True)]
default_hooks.update(checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP_50'))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
"""
SLOW_SAVING = """
import os, time
fsync = os.fsync
os.fsync = lambda descriptor: (time.sleep(0.2), fsync(descriptor))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('killed')
    write_config(folder, EXTRA)
    (folder / 'slow_saving.py').write_text(SLOW_SAVING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join([str(folder), os.environ.get('PYTHONPATH', '')]))
        patch.syspath_prepend(folder)
        yield folder


def command(folder: Path, work_dir: Path) -> list[str]:
    return ['bash', 'tools/dist_train.sh', str(folder / 'small.py'), '2', '--work-dir', str(work_dir)]


@pytest.fixture(scope='module')
def undisturbed(folder) -> tuple[dict, float]:
    """How the run ends that nobody disturbs, and how many seconds it takes once the model is built."""
    work_dir = folder / 'undisturbed'
    arguments = str(folder / 'small.py'), '--launcher', 'pytorch', '--work-dir', str(work_dir)
    data = '--cfg-options', f'data_root={folder / "data"}'
    run_together(run_script, 2, work_dir, 'tools/train.py', *arguments, *data)
    (start,) = work_dir.glob('*/vis_data/config.py')
    return read_end(work_dir), max(
        path.stat().st_mtime for path in work_dir.iterdir()
    ) - start.stat().st_mtime


def read_end(work_dir: Path) -> dict:
    """All that a training leaves behind, but for times and paths."""
    content = torch.load(work_dir / 'epoch_4.pth', weights_only=False)
    hub = content['message_hub']
    end = {key: content[key] for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')}
    end['logs'] = {
        key: (buffer.data[0].tolist(), buffer.data[1].tolist())
        for key, buffer in hub['log_scalars'].items()
        if not key.endswith('time')
    }
    end['best'] = hub['runtime_info']['best_score'], Path(hub['runtime_info']['best_ckpt']).name
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    validations = [json.loads(line) for log in logs for line in log.read_text().splitlines() if 'mAP' in line]
    end['metrics'] = {key: value for key, value in validations[-1].items() if not key.endswith('time')}
    end['files'] = sorted(path.name for path in work_dir.glob('*.pth*'))
    return end


def kill(process) -> None:
    """The launcher, its processes and their workers, at once."""
    try:
        parent = psutil.Process(process.pid)
        victims = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    process.communicate()


def wait_for(process, work_dir: Path, pattern: str, count: int = 1) -> None:
    """Until the run has begun to write the `count`-th file of a name, or has ended."""
    seen = set()
    while process.poll() is None and len(seen) < count:
        for path in work_dir.glob(pattern):
            with suppress(FileNotFoundError):
                seen.add(path.stat().st_ino)
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones(folder, undisturbed, trials):
    expected, seconds = undisturbed
    for seed in range(trials(short=1, full=20)):
        rng = random.Random(seed)
        work_dir = folder / f'trial_{seed}'
        process = start_tool(folder, *command(folder, work_dir))
        if seed % 2:
            delay = rng.uniform(0, seconds)
            wait_for(process, work_dir, '*/vis_data/config.py')
            time.sleep(delay)
            moment = f'after {delay:.1f} s'
        else:
            count = rng.randint(2, 6)
            wait_for(process, work_dir, '*.part', count)
            moment = f'in save {count}'
        kill(process)
        left = sorted(path.name for path in work_dir.glob('*.pth*'))
        print(f'seed {seed}: killed {moment}, left {left}')
        code, output = run_tool(folder, *command(folder, work_dir))
        assert code == 0, output
        assert_same(read_end(work_dir), expected)
