"""Which checkpoint a training goes on from, and when it must not."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.toy import toy_config, train
from mmengine.config import Config

from mmdat.engine import PreflightError, load_config, resume

CONFIG = """
model = dict(
    type='Detector',
    backbone=dict(type='mmdat.DAT', arch='tiny', init_cfg=dict(checkpoint='a.pth')),
    heads=[dict(num_classes=80, norm=dict(type='SyncBN'))],
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
train_cfg = dict(max_epochs=12)
"""


@pytest.fixture
def cfg(tmp_path) -> Config:
    (tmp_path / 'dat_x.py').write_text(CONFIG)
    return load_config(str(tmp_path / 'dat_x.py'), work_dir=str(tmp_path / 'work'))


def save(cfg: Config, name: str, time: str = '20260101_000000', last: bool = True, **meta) -> Path:
    """A checkpoint as MMEngine would save it in a run of this config."""
    path = Path(cfg.work_dir) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(cfg=cfg.pretty_text, experiment_name=f'dat_x_{time}', time=time, iter=1, seed=5) | meta
    torch.save({'meta': meta, 'state_dict': {'x': torch.randn(3000)}, 'message_hub': {}}, path)
    if last:
        (Path(cfg.work_dir) / 'last_checkpoint').write_text(str(path))
    return path


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_nothing_to_go_on_from(cfg):
    resume(cfg, 'auto')
    assert 'resume' not in cfg
    save(cfg, 'pretrained.pth', last=False)  # the user's, and the best: not what a run goes on from
    save(cfg, 'best_acc_epoch_3.pth', last=False)
    resume(cfg, 'auto')
    assert 'resume' not in cfg


def test_the_last_checkpoint_or_another_or_none(cfg):
    save(cfg, 'epoch_2.pth', '20260102_000000')
    path = save(cfg, 'epoch_1.pth')  # `last_checkpoint` counts, a user may have gone back
    fresh = cfg.copy()
    resume(cfg, None)
    assert 'resume' not in cfg
    resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from) == (True, str(path))
    resume(fresh, 'elsewhere/epoch_1.pth')
    assert (fresh.resume, fresh.load_from) == (True, 'elsewhere/epoch_1.pth')


@pytest.mark.parametrize('empty', [True, False])
def test_without_last_checkpoint(cfg, capsys, empty):
    # a former run of the same directory came further, and copying has mixed the files' times up
    save(cfg, 'epoch_12.pth', '20250101_000000', iter=1200)
    newest = save(cfg, 'epoch_2.pth', '20260101_000500', iter=200)
    save(cfg, 'epoch_1.pth', '20260101_000000', iter=100)
    note = Path(cfg.work_dir) / 'last_checkpoint'
    note.write_text('\n') if empty else note.unlink()
    resume(cfg, 'auto')
    assert cfg.load_from == str(newest)
    assert f'{note} is missing or empty' in capsys.readouterr().out


def test_broken_checkpoints_are_passed_over(cfg, capsys):
    first = save(cfg, 'epoch_1.pth', '20260101_000001')
    for number in (2, 3, 4):
        broken = save(cfg, f'epoch_{number}.pth', f'20260101_00000{number}')
        spoil(broken) if number == 3 else broken.write_bytes(broken.read_bytes()[: 5000 * (number == 2)])
    resume(cfg, 'auto')
    assert cfg.load_from == str(first)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [['passed', 'over:']] * 2 + [['going', 'on']]
    assert 'epoch_4.pth is empty' in lines[0]
    assert 'epoch_3.pth is incomplete or damaged' in lines[1]


def test_no_whole_checkpoint(cfg):
    spoil(save(cfg, 'epoch_1.pth'))
    with pytest.raises(PreflightError, match=r'no whole .*epoch_1.*: --no-resume starts anew') as error:
        resume(cfg, 'auto')
    assert '\n' not in str(error.value)
    Path(cfg.work_dir, 'epoch_1.pth').unlink()
    with pytest.raises(PreflightError, match=r'epoch_1\.pth does not exist'):
        resume(cfg, 'auto')
    resume(cfg, None)
    assert 'resume' not in cfg


@pytest.mark.parametrize('original', ['stays', 'is gone'])
def test_a_work_directory_that_was_moved_or_copied(cfg, tmp_path, original):
    save(cfg, 'epoch_1.pth')
    shutil.copytree(cfg.work_dir, tmp_path / 'elsewhere')
    if original == 'is gone':
        shutil.rmtree(cfg.work_dir)
    cfg.work_dir = str(tmp_path / 'elsewhere')
    resume(cfg, 'auto')
    assert cfg.load_from == str(tmp_path / 'elsewhere' / 'epoch_1.pth')


def test_checkpoints_on_another_disk(cfg, tmp_path):
    cfg.default_hooks = dict(checkpoint=dict(out_dir=str(tmp_path / 'disk'), filename_tmpl='model-{}.pth'))
    save(cfg, '../disk/work/model-1.pth', '20260101_000001')
    newest = save(cfg, '../disk/work/model-2.pth', '20260101_000002')
    resume(fresh := cfg.copy(), 'auto')
    assert fresh.load_from == f'{tmp_path}/disk/work/model-2.pth'
    spoil(newest)
    resume(cfg, 'auto')
    assert cfg.load_from == f'{tmp_path}/disk/work/model-1.pth'


@pytest.mark.parametrize(
    'harmless',
    [
        {'train_cfg.max_epochs': 24},
        {'data_root': 'elsewhere'},
        {'optim_wrapper.optimizer.lr': 1},
        {'model.backbone.init_cfg': None},
        {'model.heads.0.norm.type': 'BN'},  # for want of a GPU
        {'model.test_cfg': dict(score_thr=0.1)},
    ],
)
def test_changes_that_a_run_goes_on_with(cfg, harmless):
    path = save(cfg, 'epoch_1.pth')
    cfg.merge_from_dict(harmless)
    resume(cfg, 'auto')
    assert cfg.load_from == str(path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model.heads.0.num_classes': 3}, r'another model, model\.heads\.0\.num_classes 80 instead of 3'),
        ({'model.type': 'Other'}, r"another model, model\.type 'Detector' instead of 'Other'"),
        ({'model.backbone.key_strides': (1, 1)}, r'model\.backbone\.key_strides unset instead of \(1, 1\)'),
        ({'experiment_name': 'dat_y'}, r'of a run of dat_x, not of dat_y'),
        ({'load_from': 'coco.pth'}, r'started without load_from, so load_from=coco\.pth would have no'),
    ],
)
def test_another_run_is_not_gone_on_with(cfg, change, message):
    path = save(cfg, 'epoch_1.pth')
    cfg.merge_from_dict(change)
    with pytest.raises(PreflightError, match=message) as error:
        resume(cfg, 'auto')
    assert '\n' not in str(error.value)
    assert '--no-resume starts anew' in str(error.value)
    resume(cfg, str(path))
    assert cfg.load_from == str(path)


def test_a_config_of_another_name(cfg, tmp_path):
    save(cfg, 'epoch_1.pth')
    (tmp_path / 'dat_y.py').write_text(CONFIG)
    other = load_config(str(tmp_path / 'dat_y.py'), work_dir=cfg.work_dir)
    with pytest.raises(PreflightError, match='of a run of dat_x, not of dat_y'):
        resume(other, 'auto')


def test_weights_that_a_run_started_from(cfg):
    """The same command goes on again and again, one without them too, and one with others never."""
    cfg.load_from = 'coco.pth'
    save(cfg, 'epoch_1.pth')
    for number in (2, 3):
        again = cfg.copy()
        resume(again, 'auto')
        assert again.load_from.endswith(f'epoch_{number - 1}.pth')
        assert again.started_from == 'coco.pth'
        save(again, f'epoch_{number}.pth')
        resume(again, 'auto')  # the config that the run has left in its work directory
        assert again.load_from.endswith(f'epoch_{number}.pth')
    without, other = cfg.copy(), cfg.copy()
    without.load_from, other.load_from = None, 'lvis.pth'
    resume(without, 'auto')
    assert without.started_from == 'coco.pth'
    with pytest.raises(PreflightError, match=r'started from coco\.pth, so load_from=lvis\.pth'):
        resume(other, 'auto')
    resume(again, None)
    assert (again.resume, again.load_from) == (False, 'coco.pth')


def test_the_seed_goes_on(cfg):
    save(cfg, 'epoch_1.pth')
    seeded = cfg.copy()
    seeded.randomness = dict(seed=7)
    for config, seed in ((cfg, 5), (seeded, 7)):
        resume(config, 'auto')
        assert config.randomness['seed'] == seed


def test_starting_anew_keeps_the_former_run_until_its_files_are_replaced(tmp_path):
    cfg = toy_config(tmp_path, max_keep_ckpts=1)
    train(cfg)
    former = tmp_path / 'epoch_4.pth'
    content = former.read_bytes()
    train(cfg, ('before_save_checkpoint', 1), go_on=None)
    assert former.read_bytes() == content
    train(cfg, ('before_save_checkpoint', 4), go_on=None)
    assert former.read_bytes() == content
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_3.pth')
    train(cfg)
    assert former.read_bytes() != content
