"""Reading checkpoint files without running what they hold."""

import os
import os.path as osp
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from .allowlist import allowed_globals
from .errors import CheckpointError

PYTORCH_SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt')
SAFETENSORS_SUFFIX = '.safetensors'
SUFFIXES = (*PYTORCH_SUFFIXES, SAFETENSORS_SUFFIX)

_ZIP = b'PK\x03\x04'
_LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # before PyTorch 1.6: its magic number, pickled
_NAME = re.compile(r'GLOBAL (\S+)|`?(\S+)`? must be imported')

_trusted = False


def trust_checkpoints(trust: bool = True) -> None:
    """Lets this process unpickle any file in full, which runs code that the file brings along.

    For files of which the maker is known. `--trust-checkpoint` of the tools calls this.
    """
    global _trusted
    _trusted = trust


def is_trusted() -> bool:
    """Whether `trust_checkpoints` has been called."""
    return _trusted


def read_checkpoint(path: str, map_location: Any = 'cpu', lazy: bool = False) -> dict:
    """Reads a file of PyTorch or safetensors, with weights and plain values in it.

    Args:
        path: File. Its suffix must be of `SUFFIXES` and agree with what is inside.
        map_location: As in `torch.load`.
        lazy: Leave tensors on the disk until they are used, where the format allows, and do without
            `check_whole`. For a look at a file that may be replaced later.

    Returns:
        What was saved, a dict. Of a safetensors file `{'meta': metadata, 'state_dict': tensors}`.

    Raises:
        CheckpointError: If the file is missing, damaged or no checkpoint; or if it asks for more than
            weights and plain values, and `trust_checkpoints` has not been called.
    """
    path = osp.expanduser(path)
    kind = _sniff(path) if lazy else check_whole(path)
    if kind == 'safetensors':
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(allowed_globals()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            mmap = lazy and kind == 'zip' and map_location == 'cpu'
            content = torch.load(path, map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if not _trusted:
            raise CheckpointError(_refused(path, str(error))) from None
        content = _read_trusted(path, map_location)
    except Exception as error:
        raise CheckpointError(_damaged(path, error)) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'{path} holds no weights but a {type(content).__name__}')
    return content


def _read_safetensors(path: str) -> dict:
    safetensors = require_safetensors(path)
    try:
        with safetensors.safe_open(path, 'pt') as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
            return {'meta': dict(file.metadata() or {}), 'state_dict': tensors}
    except Exception as error:  # damage shows in several types
        raise CheckpointError(_damaged(path, error)) from error


def require_safetensors(path: str) -> ModuleType:
    """The package, an optional extra.

    Raises:
        CheckpointError: If it is not installed.
    """
    try:
        return import_module('safetensors.torch')
    except ImportError as error:
        raise CheckpointError(
            f'{path} needs the package safetensors: `pip install safetensors`, or use a .pth file'
        ) from error


def check_whole(path: str) -> str:
    """Compares all that a file of PyTorch holds with its checksums, which PyTorch itself does not do.

    The format before PyTorch 1.6, safetensors, and files saved under `set_crc32_options(False)` have no
    checksums: there damage shows only where it prevents the reading.

    Returns:
        `'zip' | 'legacy' | 'safetensors'`, by content.

    Raises:
        CheckpointError: If the file is missing, damaged or no checkpoint.
    """
    path = osp.expanduser(path)
    kind = _sniff(path)
    if kind == 'zip':
        stat = os.stat(path)
        if damage := _find_damage(path, stat.st_size, stat.st_mtime_ns, stat.st_ino):
            raise CheckpointError(damage)
    return kind


@lru_cache
def _find_damage(path: str, *state: int) -> str | None:
    """What is wrong with a zip archive; `state` of the file, so that none is read twice without need."""
    try:
        with zipfile.ZipFile(path) as archive:
            if all(record.CRC == 0 for record in archive.infolist()):
                return None
            record = archive.testzip()
    except Exception as error:
        return _damaged(path, error)
    return record and _damaged(path, zipfile.BadZipFile(f'the checksum of {record} is wrong'))


def _read_trusted(path: str, map_location: Any) -> Any:
    try:
        return torch.load(path, map_location, weights_only=False)
    except Exception as error:  # whatever the file's code raises, for want of a module for instance
        raise CheckpointError(f'{path} cannot be unpickled ({type(error).__name__}: {error})') from error


def _sniff(path: str) -> str:
    """`'zip' | 'legacy' | 'safetensors'`, by content; everything else is an error."""
    if not osp.exists(path):
        raise CheckpointError(f'checkpoint {path} does not exist')
    if osp.isdir(path):
        raise CheckpointError(f'checkpoint {path} is a folder, name the file in it')
    suffix = osp.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise CheckpointError(f'{path} is not named like a checkpoint: these end in {", ".join(SUFFIXES)}')
    with open(path, 'rb') as file:
        head = file.read(1024)
    if not head:
        raise CheckpointError(f'checkpoint {path} is empty')
    if head.startswith(_ZIP):
        kind = 'zip'
    elif head.startswith(_LEGACY):
        kind = 'legacy'
    elif head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 2**32:
        kind = 'safetensors'
    else:
        raise CheckpointError(f'{path} is not a checkpoint but {_describe(head)}')
    if (kind == 'safetensors') != (suffix == SAFETENSORS_SUFFIX):
        holds, names = (
            ('safetensors data', SAFETENSORS_SUFFIX)
            if kind == 'safetensors'
            else ("PyTorch's own format", ' or '.join(PYTORCH_SUFFIXES))
        )
        raise CheckpointError(f'{path} has the wrong suffix: it holds {holds}, which ends in {names}')
    return kind


def is_web_page(head: bytes) -> bool:
    """Whether a file that begins so is HTML: what servers send when they mean something else."""
    return head.lstrip(b'\xef\xbb\xbf \t\r\n').startswith(b'<')


def _describe(head: bytes) -> str:
    if is_web_page(head):
        return 'a web page: download the file itself'
    if head.startswith(b'version https://git-lfs'):
        return 'a Git LFS pointer: run `git lfs pull`'
    if head[0] == 0x80:
        return 'a bare pickle, which is not read'
    text = all(byte >= 32 or byte in b'\t\r\n' for byte in head)
    return 'a text' if text else 'another or a damaged file'


def _damaged(path: str, error: Exception) -> str:
    reason = str(error).strip().split('\n')[0][:200]
    return f'{path} is incomplete or damaged, get it again ({type(error).__name__}: {reason})'


def _refused(path: str, message: str) -> str:
    match = _NAME.search(message)
    wants = f'asks for `{match[1] or match[2]}`' if match else 'asks for more than weights and plain values'
    return (
        f'{path} is refused: it {wants}, and reading it could run code of its maker; '
        'if you know and trust where it is from, --trust-checkpoint reads it'
    )
