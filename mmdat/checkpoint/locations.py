"""Where checkpoints come from: paths, addresses and the names of released files."""

import hashlib
import os
import os.path as osp
import re
from urllib.parse import unquote, urlsplit

import torch

from ..released import RELEASED, find_release
from ..spelling import did_you_mean
from .download import download
from .errors import CheckpointError

SCHEME = 'mmdat://'
FOLDER = 'checkpoints'


def cache_folder() -> str:
    """Where PyTorch, and so MMEngine, keeps downloaded weights; moved by `TORCH_HOME`."""
    return osp.join(torch.hub.get_dir(), 'checkpoints')


def find_checkpoint(checkpoint: str) -> str:
    """The path of a checkpoint, which is downloaded if need be.

    Args:
        checkpoint: A path; an `http://` or `https://` address; or `mmdat://NAME`, a released file, which is
            looked for in `checkpoints/` and in the cache folder first. `MMDAT_MIRROR` may hold an address
            below which released files lie as `NAME.pth`, to be used instead of the authors'.

    Raises:
        CheckpointError: If it cannot be found nor downloaded; says from where it is to be had.
    """
    if checkpoint.startswith(SCHEME):
        return _find_released(checkpoint)
    if checkpoint.startswith(('http://', 'https://')):
        for release in RELEASED.values():
            if release.share in checkpoint:  # the page in a browser, which is not the file
                return _find_released(SCHEME + release.name)
        path = osp.join(cache_folder(), _name_download(checkpoint))
        return path if osp.isfile(path) else _download(checkpoint, path, checkpoint)
    if '://' in checkpoint:
        raise CheckpointError(
            f'{checkpoint} is neither a path nor an address that starts http(s):// or {SCHEME}'
        )
    path = osp.expanduser(checkpoint)
    if not osp.exists(path):
        release = find_release(file_stem(path))
        hint = f': {SCHEME}{release.name} instead of the path downloads it' if release else ''
        raise CheckpointError(f'checkpoint {checkpoint} does not exist{hint}')
    return path


def file_stem(checkpoint: str) -> str:
    """The name of a checkpoint without folders and suffix."""
    path = urlsplit(checkpoint).path if checkpoint.startswith(('http://', 'https://')) else checkpoint
    return osp.splitext(osp.basename(unquote(path)))[0]


def _name_download(url: str) -> str:
    """A file name that two addresses share only if they hold the same."""
    name = unquote(osp.basename(urlsplit(url).path))
    stem, suffix = osp.splitext(name)
    if not suffix:
        raise CheckpointError(f'{url} does not end in the name of a file: download it, and give its path')
    if re.search('-[0-9a-f]{8,}$', stem):  # such as those of PyTorch and OpenMMLab, a hash of the content
        return name
    return f'{stem}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{suffix}'


def _find_released(checkpoint: str) -> str:
    name = checkpoint.removeprefix(SCHEME).removesuffix('.pth')
    release = find_release(name)
    if release is None:
        hint = did_you_mean(name, RELEASED)
        raise CheckpointError(
            f'{checkpoint} is not a released checkpoint{hint} (they are: {", ".join(RELEASED)})'
        )
    for folder in (FOLDER, cache_folder()):
        for file_name in release.file_names:
            path = osp.join(folder, f'{file_name}.pth')
            if osp.isfile(path):
                return path
    mirror = os.environ.get('MMDAT_MIRROR')
    url = f'{mirror.rstrip("/")}/{release.name}.pth' if mirror else release.url
    return _download(url, osp.join(cache_folder(), f'{release.name}.pth'), checkpoint)


def _download(url: str, path: str, checkpoint: str) -> str:
    try:
        download(url, path)
    except OSError as error:
        folders = f'{osp.abspath(FOLDER)} or {osp.dirname(path)}' if checkpoint != url else osp.dirname(path)
        raise CheckpointError(
            f'{checkpoint} is not on this computer and cannot be downloaded ({error}): get it from {url} '
            f'and put it into {folders} as {osp.basename(path)}'
        ) from error
    return path
