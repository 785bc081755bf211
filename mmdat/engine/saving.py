"""Checkpoints that are whole or absent: written beside, renamed, and only then the old ones removed."""

import errno
import fcntl
import os
import os.path as osp
import socket
from collections.abc import Callable
from contextlib import suppress
from glob import escape, glob
from pathlib import Path
from typing import Any, BinaryIO

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import MessageHub

from ..checkpoint import CheckpointError
from ..checkpoint.files import SUFFIXES

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk full, quota, limit of the size of a file
_PART = '.part'
_SUPERSEDED = 'superseded_ckpts'
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
    on the disk for that long. Each checkpoint names the files that it supersedes, so a resumed run can remove
    what a killed one did not come to. Its hooks look for their files where the work directory is now.
    """

    priority = 'LOWEST'  # after CheckpointHook

    def __init__(self):
        self._hooks = []

    def before_train(self, runner) -> None:
        """Takes the hooks over, and clears away what killed runs left half written."""
        self._hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        for hook in self._hooks:
            if runner._resume:
                _relocate(hook, runner.message_hub.get_info('last_ckpt'))
            if is_main_process() and '://' not in str(hook.out_dir):
                remove_parts(str(hook.out_dir))
                if runner._resume:
                    _remove_superseded(hook, runner)
            hook.file_backend = _PostponedRemoval(hook.file_backend, runner.message_hub)
        runner.message_hub.update_info(_SUPERSEDED, [])

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


def _remove_superseded(hook: CheckpointHook, runner) -> None:
    """Removes what the resumed checkpoint supersedes; files that are newer are of another run."""
    for name in runner.message_hub.get_info(_SUPERSEDED, []):
        path = osp.join(hook.out_dir, name)
        if osp.isfile(path) and osp.getmtime(path) <= osp.getmtime(runner._load_from):
            os.remove(path)


class _PostponedRemoval:
    """A storage backend that removes when told to; until then, checkpoints name what is to go."""

    def __init__(self, backend: Any, message_hub: MessageHub):
        self._backend = backend
        self._message_hub = message_hub
        self._postponed = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._postpone(self._backend.remove, path)

    def rmtree(self, path: str) -> None:
        self._postpone(self._backend.rmtree, path)

    def _postpone(self, remove: Callable[[str], None], path: str) -> None:
        self._postponed.append((remove, path))
        self._note()

    def _note(self) -> None:
        self._message_hub.update_info(_SUPERSEDED, [osp.basename(path) for _, path in self._postponed])

    def catch_up(self, keep: set[str | None]) -> None:
        """Removes, but for files of the same name that have been written since."""
        for remove, path in self._postponed:
            if path not in keep:
                remove(path)
        if self._postponed:
            self._postponed.clear()
            self._note()
