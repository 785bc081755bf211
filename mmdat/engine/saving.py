"""Checkpoints that are whole or absent: written beside, renamed, and only then the old ones removed."""

import errno
import fcntl
import os
import os.path as osp
import socket
from contextlib import suppress
from glob import escape, glob
from pathlib import Path
from typing import Any, BinaryIO

from mmengine.dist import master_only
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook

from ..checkpoint import CheckpointError
from ..checkpoint.files import SUFFIXES

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota, limit of the size of a file
_PART = '.part'
_put = LocalBackend.put


def guard_saving() -> None:
    """Has all checkpoints that MMEngine writes to a local file system written by `write_whole`.

    This changes the whole process, so only the tools of mmdat do it.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        is_checkpoint = str(filepath).endswith(SUFFIXES)
        write_whole(obj, str(filepath)) if is_checkpoint else _put(self, obj, filepath)

    LocalBackend.put = put


def write_whole(content: bytes, path: str) -> None:
    """Writes a file so that `path` is, at any moment and after a power failure, the old or the new one.

    Raises:
        CheckpointError: If it cannot be written; then nothing is left behind, and the old file stays.
    """
    part = f'{path}.{socket.gethostname()}-{os.getpid()}{_PART}'
    try:
        os.makedirs(osp.dirname(path) or '.', exist_ok=True)
        with _open_locked(part) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, path)
        _sync_folder(osp.dirname(path) or '.')
    except OSError as error:
        with suppress(OSError):
            os.remove(part)
        raise CheckpointError(
            f'{path} could not be written ({error.strerror}): the checkpoints before it are whole, '
            'and the same command goes on from the newest'
        ) from error


def remove_parts(folder: str) -> None:
    """Removes what killed runs left of checkpoints half written; a writer that lives holds a lock."""
    for suffix in SUFFIXES:
        for part in glob(f'{escape(folder)}/*{suffix}.*{_PART}'):
            with suppress(OSError), open(part, 'rb') as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.remove(part)


def _open_locked(path: str) -> BinaryIO:
    while True:
        file = open(path, 'wb')  # noqa: SIM115, the caller closes it
        with suppress(OSError):  # file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if osp.exists(path):
            return file
        file.close()  # `remove_parts` came between the two


def _sync_folder(folder: str) -> None:
    """Makes a renaming last; where a folder cannot be opened or synchronised, there is no way to."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class RemoveAfterSaveHook(Hook):
    """Lets every `CheckpointHook` keep its old files until the new one and `last_checkpoint` are written.

    MMEngine removes first, for `max_keep_ckpts` and `save_best`, and then saves. Here there is one file more
    on the disk for that long; a run that is killed just then leaves it there. Of a resumed run, the hooks
    look for their files where the work directory is now.
    """

    priority = 'LOWEST'  # after CheckpointHook

    def __init__(self):
        self._hooks = []

    def before_train(self, runner) -> None:
        """Takes the hooks over, and clears away what killed runs left half written."""
        self._hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        for hook in self._hooks:
            hook.file_backend = _PostponedRemoval(hook.file_backend)
            if '://' not in str(hook.out_dir):
                master_only(remove_parts)(str(hook.out_dir))
            if runner._resume:
                _relocate(hook, runner.message_hub.get_info('last_ckpt'))

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        self._remove()

    def after_train_epoch(self, runner) -> None:
        self._remove()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        self._remove()

    def _remove(self) -> None:
        for hook in self._hooks:
            best = getattr(hook, 'best_ckpt_path_dict', {}).values()
            hook.file_backend.catch_up(keep={hook.last_ckpt, getattr(hook, 'best_ckpt_path', None), *best})


def _relocate(hook: CheckpointHook, last: str | None) -> None:
    """Paths that a checkpoint brought along are of the time of the save; files elsewhere are of others."""

    def here(path: str | None) -> str | None:
        path = path and hook.file_backend.join_path(hook.out_dir, osp.basename(path))
        return path if path and hook.file_backend.exists(path) else None

    hook.last_ckpt = here(last)
    if hasattr(hook, 'best_ckpt_path'):
        hook.best_ckpt_path = here(hook.best_ckpt_path)
    if hasattr(hook, 'best_ckpt_path_dict'):
        hook.best_ckpt_path_dict = {key: here(path) for key, path in hook.best_ckpt_path_dict.items()}


class _PostponedRemoval:
    """A storage backend that removes when told to."""

    def __init__(self, backend: Any):
        self._backend = backend
        self._postponed = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._postponed.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self._postponed.append((self._backend.rmtree, path))

    def catch_up(self, keep: set[str | None]) -> None:
        """Removes, but for files of the same name that have been written since."""
        for remove, path in self._postponed:
            if path not in keep:
                remove(path)
        self._postponed.clear()
