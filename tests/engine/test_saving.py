"""Checkpoints are whole or absent, and the old ones go last."""

import errno
import os
import shutil
import signal

import pytest
import torch
from helpers.toy import Killed, toy_config, train

from mmdat.checkpoint import CheckpointError, read_checkpoint
from mmdat.engine import saving


@pytest.fixture
def old(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    path.write_bytes(b'old')
    return path


def test_written_beside_and_renamed(old, monkeypatch):
    def check(descriptor):
        names = {path.name: path.read_bytes() for path in old.parent.iterdir()}
        if len(names) == 2:
            assert names.pop(old.name) == b'old'
        assert list(names.values()) == [b'new']
        seen.append(descriptor)

    seen = []
    monkeypatch.setattr(os, 'fsync', check)
    saving.write_whole(b'new', str(old))
    assert len(seen) == 2  # the file, then its folder
    assert [path.name for path in old.parent.iterdir()] == [old.name]


@pytest.mark.parametrize('number', saving.NO_ROOM)
def test_no_room(old, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(CheckpointError, match=f'{old} could not be written .*before it are whole'):
        saving.write_whole(b'new', str(old))
    assert [path.read_bytes() for path in old.parent.iterdir()] == [b'old']


def test_what_a_killed_writer_leaves(old):
    child = os.fork()
    if child == 0:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        saving.write_whole(b'new', str(old))
    os.waitpid(child, 0)
    assert old.read_bytes() == b'old'
    assert len(list(old.parent.iterdir())) == 2
    saving.remove_parts(str(old.parent))
    assert list(old.parent.iterdir()) == [old]


def test_what_a_living_writer_writes_stays(old):
    part = f'{old}.other-1.part'
    with saving._open_locked(part):
        saving.remove_parts(str(old.parent))
        assert os.path.exists(part)
    saving.remove_parts(str(old.parent))
    assert not os.path.exists(part)


@pytest.fixture
def saves(monkeypatch):
    """Checks, whenever a toy training saves, that a whole checkpoint is on the disk; all names, in order."""
    names = []
    write_whole = saving.write_whole

    def write(content: bytes, path: str) -> None:
        if names:
            folder = os.path.dirname(path)
            whole = [name for name in os.listdir(folder) if name.endswith('.pth')]
            assert whole, path
            for name in whole:
                read_checkpoint(f'{folder}/{name}')
        write_whole(content, path)
        names.append(os.path.basename(path))

    monkeypatch.setattr(saving, 'write_whole', write)
    return names


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize('elsewhere', [False, True])
def test_old_checkpoints_go_after_the_new_one_is_there(tmp_path, saves, by_epoch, elsewhere):
    work_dir = tmp_path / 'work'
    folder = tmp_path / 'big_disk' / 'work' if elsewhere else work_dir
    settings = dict(out_dir=str(tmp_path / 'big_disk')) if elsewhere else {}
    cfg = toy_config(work_dir, by_epoch, max_keep_ckpts=1, published_keys=['meta', 'state_dict'], **settings)
    train(cfg)
    steps = [f'epoch_{n}' if by_epoch else f'iter_{5 * n}' for n in (1, 2, 3, 4)]
    assert saves[:4] == [f'{step}.pth' for step in steps]
    assert saves[4].startswith(f'{steps[-1]}-')  # published
    left = {path.name for path in folder.glob('*.pth*')}
    assert left == set(saves[3:])
    assert (work_dir / 'last_checkpoint').read_text() == str(folder / saves[3])


@pytest.mark.parametrize('rule', ['greater', 'less'])
def test_the_best_checkpoint_goes_after_the_new_best_is_there(tmp_path, saves, rule):
    train(toy_config(tmp_path, save_best='acc', rule=rule, max_keep_ckpts=1))
    best = [name for name in saves if name.startswith('best_')]
    left = {path.name for path in tmp_path.glob('*.pth')}
    assert left == {best[-1], 'epoch_4.pth'}
    if rule == 'greater':
        assert len(best) > 1  # the weights grow


def test_a_copied_run_leaves_the_best_of_the_original_alone(tmp_path):
    train(toy_config(tmp_path / 'original', save_best='acc', rule='greater'), ('before_train_iter', 12))
    best = next((tmp_path / 'original').glob('best_*'))
    shutil.copytree(tmp_path / 'original', tmp_path / 'copy')
    train(toy_config(tmp_path / 'copy', save_best='acc', rule='greater'))
    assert best.exists()
    assert len(list((tmp_path / 'copy').glob('best_*'))) == 1


@pytest.mark.parametrize('killed', [2, 3])
def test_killed_while_saving(tmp_path, monkeypatch, killed):
    """With only one checkpoint to keep, there is always one to go on from."""

    def die(descriptor):
        saved.append(descriptor)
        if len(saved) == 2 * killed - 1:
            raise KeyboardInterrupt

    saved = []
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', die)
        with pytest.raises(KeyboardInterrupt):
            train(toy_config(tmp_path, max_keep_ckpts=1))
    names = sorted(path.name for path in tmp_path.glob('epoch_*'))
    assert names[0] == f'epoch_{killed - 1}.pth'
    assert names[1].startswith(f'epoch_{killed}.pth.')
    train(toy_config(tmp_path, max_keep_ckpts=1))
    assert [path.name for path in tmp_path.glob('epoch_*')] == ['epoch_4.pth']
    assert torch.load(tmp_path / 'epoch_4.pth', weights_only=False)['meta']['iter'] == 20


@pytest.mark.parametrize('killed', [1, 2, 3, 4])
def test_killed_between_saving_and_removing(tmp_path, monkeypatch, killed):
    """Nothing superfluous stays."""

    def die(backend, keep):
        if backend._postponed:
            calls.append(keep)
            if len(calls) == killed:
                raise Killed
        catch_up(backend, keep)

    calls, catch_up = [], saving._PostponedRemoval.catch_up
    cfg = toy_config(tmp_path, max_keep_ckpts=1, save_best='acc', rule='greater')
    with monkeypatch.context() as patch:
        patch.setattr(saving._PostponedRemoval, 'catch_up', die)
        with pytest.raises(Killed):
            train(cfg)
    assert len(calls) == killed
    assert len(list(tmp_path.glob('*.pth'))) == 3
    train(cfg)
    assert {path.name for path in tmp_path.glob('*.pth')} == {'epoch_4.pth', 'best_acc_epoch_4.pth'}


def test_disk_full_while_saving(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    train(toy_config(tmp_path), ('before_train_iter', 8))
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', fail)
        with pytest.raises(CheckpointError, match=r'epoch_2\.pth .* \(No space left on device\)'):
            train(toy_config(tmp_path))
    assert [path.name for path in tmp_path.glob('epoch_*')] == ['epoch_1.pth']
    train(toy_config(tmp_path))
    assert (tmp_path / 'epoch_4.pth').exists()
