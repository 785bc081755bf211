import json

import pytest

from mmdat.analysis import learning


@pytest.fixture
def work_dirs(tmp_path):
    """Logs of two seeds; the second DAT on flowers was started twice."""

    def write(folder, metric, values):
        folder.mkdir(parents=True)
        lines = [dict(loss=1.0, step=step) for step in (1, 2)]
        lines += [{metric: value, 'time': 0.1, 'step': 3 * step} for step, value in enumerate(values, 1)]
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))

    for task, network in ((task, network) for task in learning.TASKS for network in learning.NETWORKS):
        for seed, end in ((0, 50.0), (1, 60.0)):
            run = tmp_path / f'{task}_{network}/seed{seed}/20260101_000002/vis_data'
            write(run, learning.TASKS[task].metric, [20.0, end + (network == 'swin')])
    write(tmp_path / 'flowers5_dat/seed1/20260101_000001/vis_data', 'accuracy/top1', [99.0])
    return tmp_path


def test_curves_are_those_of_the_latest_runs(work_dirs):
    curves = learning.read_curves(work_dirs)
    assert curves['flowers5', 'dat'] == [[(3, 20.0), (6, 50.0)], [(3, 20.0), (6, 60.0)]]
    assert curves['camvid', 'swin'] == [[(3, 20.0), (6, 51.0)], [(3, 20.0), (6, 61.0)]]


def test_table_and_picture(work_dirs, tmp_path):
    curves = learning.read_curves(work_dirs)
    table = learning.to_markdown(curves)
    assert '| flowers5, top-1 accuracy | DAT | 50.0, 60.0 | 55.0 | 50.0 to 60.0 |' in table
    assert '| camvid, mIoU | Swin | 51.0, 61.0 | 56.0 | 51.0 to 61.0 |' in table
    learning.draw(curves, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_finished_runs_are_kept(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(learning.subprocess, 'run', lambda command, check: commands.append(command))
    finished = tmp_path / 'runs/flowers5_dat/seed0/finished'
    for folder in (f'{task}_{network}/seed0' for task in learning.TASKS for network in learning.NETWORKS):
        (tmp_path / 'runs' / folder).mkdir(parents=True)
    finished.touch()
    learning.run(tmp_path / 'tools/train.py', tmp_path / 'data', tmp_path / 'runs', [0])
    assert [command[2] for command in commands] == [
        f'{tmp_path}/configs/learning/{name}.py' for name in ('flowers5_swin', 'camvid_dat', 'camvid_swin')
    ]
    assert f'data_root={tmp_path}/data/camvid' in commands[-1]
    assert 'randomness.seed=0' in commands[-1]
