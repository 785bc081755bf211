"""Training, going on and testing by the tools, as a user does."""

import pickle
from pathlib import Path

import pytest
import torch

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmdat.DAT',
        arch=dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), offset_groups=(1, 1, 2, 4)),
        img_size=64,
        window_size=4,
        out_indices=(3,),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=128, topk=(1,)),
)
data_root = 'data/'
data_preprocessor = dict(num_classes=10, mean=[120.0] * 3, std=[60.0] * 3)
_load = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64)), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root=data_root, pipeline=_load),
)
val_dataloader = test_dataloader = train_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy')
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=9)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
"""


@pytest.fixture
def config(folder) -> str:
    """Path of a config below `configs`; the paths in it count from the working directory."""
    path = folder / 'configs' / 'tiny' / 'dat_x.py'
    path.parent.mkdir(parents=True)
    path.write_text(CONFIG)
    return 'configs/tiny/dat_x.py'


WORK = Path('work_dirs/tiny/dat_x')


def scores(path: str) -> torch.Tensor:
    with open(path, 'rb') as file:
        return torch.stack([prediction['pred_score'] for prediction in pickle.load(file)])


def test_fine_tuned_heads_are_kept(run_here, config):
    """`load_ignore` is for the start; the config in the work directory has it for ever."""
    assert run_here('train.py', config, '--work-dir', 'first')[0] == 0
    tuning = ['--cfg-options', 'load_from=first/epoch_2.pth', 'load_ignore=head.fc']
    code, output = run_here('train.py', config, *tuning)
    assert code == 0, output
    assert 'left as initialised, as asked for: head.fc' in output

    # the same command goes on
    code, output = run_here('train.py', config, *tuning, 'train_cfg.max_epochs=3')
    assert code == 0, output
    assert f'going on from {WORK}/epoch_2.pth' in output
    assert 'missing: none; unexpected: none' in output
    assert 'left as initialised' not in output

    code, output = run_here('test.py', WORK / 'dat_x.py', WORK / 'epoch_2.pth', '--out', 'recorded.pkl')
    assert code == 0, output
    assert run_here('test.py', config, WORK / 'epoch_2.pth', '--out', 'plain.pkl')[0] == 0
    assert torch.equal(scores('recorded.pkl'), scores('plain.pkl'))


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)


def test_a_damaged_checkpoint(run_here, config):
    assert run_here('train.py', config)[0] == 0
    spoil(WORK / 'epoch_2.pth')
    message = f'error: {WORK}/epoch_2.pth is incomplete or damaged'
    for command in (
        ['test.py', config, WORK / 'epoch_2.pth'],
        ['train.py', config, '--resume', WORK / 'epoch_2.pth'],
    ):
        code, output = run_here(*command)
        assert code == 1
        assert output.startswith(message)
    code, output = run_here('train.py', config)
    assert code == 0, output
    assert f'passed over: {WORK}/epoch_2.pth is incomplete or damaged' in output
    assert f'going on from {WORK}/epoch_1.pth' in output
    assert run_here('test.py', config, WORK / 'epoch_2.pth')[0] == 0  # written again


def test_another_number_of_classes(run_here, config):
    assert run_here('train.py', config)[0] == 0
    code, output = run_here('train.py', config, '--cfg-options', 'model.head.num_classes=3')
    assert code == 1
    assert output.startswith(
        f'error: {WORK}/epoch_2.pth is of a run of another model, model.head.num_classes 10'
    )
    assert '--no-resume' in output
    assert output.count('\n') == 1


def test_disk_full(run_here, config, monkeypatch):
    """What is written besides checkpoints needs room, too."""

    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device', 'last_checkpoint')

    monkeypatch.setattr('mmengine.runner.Runner.train', fail)
    code, output = run_here('train.py', config)
    assert code == 1
    assert 'error: no room to write: [Errno 28] No space left on device' in output
    assert 'Traceback' not in output
