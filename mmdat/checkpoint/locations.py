"""Where checkpoints come from: paths, addresses, the names of released files, and the Hugging Face Hub."""

import hashlib
import os
import os.path as osp
import re
from functools import lru_cache
from importlib import import_module
from urllib.parse import unquote, urlsplit

import torch

from ..released import RELEASED, Release, find_release
from ..spelling import did_you_mean
from .download import download
from .errors import CheckpointError

SCHEME = 'mmdat://'
HUGGING_FACE = 'hf://'
FOLDER = 'checkpoints'

_HUGGING_FACE = re.compile(r'hf://(?P<repo_id>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<filename>.+)')


def cache_folder() -> str:
    """Where PyTorch, and so MMEngine, keeps downloaded weights; moved by `TORCH_HOME`."""
    return osp.join(torch.hub.get_dir(), 'checkpoints')


def find_checkpoint(checkpoint: str) -> str:
    """The path of a checkpoint, which is downloaded if need be.

    Args:
        checkpoint: A path; an `http://` or `https://` address; `mmdat://NAME`, a released file, which is
            looked for in `checkpoints/` and in the cache folder first; or `hf://ORG/REPO/FILE`, with
            `@REVISION` after the repository if need be, of the Hugging Face Hub. `MMDAT_MIRROR` may hold an
            address below which released files lie as `NAME.pth`, to be used instead of the authors'.

    Raises:
        CheckpointError: If it cannot be found nor downloaded; says from where it is to be had. If a released
            file is not the one whose SHA-256 is known.
    """
    if checkpoint.startswith(SCHEME):
        return _find_released(checkpoint)
    if checkpoint.startswith(HUGGING_FACE):
        return _find_on_hugging_face(checkpoint)
    if checkpoint.startswith(('http://', 'https://')):
        for release in RELEASED.values():
            if release.share in checkpoint:  # the page in a browser, which is not the file
                return _find_released(SCHEME + release.name)
        path = osp.join(cache_folder(), _name_download(checkpoint))
        return path if osp.isfile(path) else _download(checkpoint, path, checkpoint)
    if '://' in checkpoint:
        raise CheckpointError(
            f'{checkpoint} is neither a path nor an address that starts http(s)://, {SCHEME} or '
            f'{HUGGING_FACE}'
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
                _check_sha256(path, release)
                return path
    mirror = os.environ.get('MMDAT_MIRROR')
    url = f'{mirror.rstrip("/")}/{release.name}.pth' if mirror else release.url
    path = _download(url, osp.join(cache_folder(), f'{release.name}.pth'), checkpoint)
    _check_sha256(path, release)
    return path


def _check_sha256(path: str, release: Release) -> None:
    if release.sha256 is None:
        return
    stat = os.stat(path)
    found = _sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if found != release.sha256:
        raise CheckpointError(
            f'{path} is not the released {release.name}: its SHA-256 is {found}, not {release.sha256}; '
            'remove it to download it again, or name it by its path if it is meant'
        )


@lru_cache
def _sha256(path: str, *state: int) -> str:
    """Of a file; `state` of it, so that none is read twice without need."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _find_on_hugging_face(checkpoint: str) -> str:
    match = _HUGGING_FACE.fullmatch(checkpoint)
    if match is None:
        raise CheckpointError(f'{checkpoint} must be {HUGGING_FACE}ORG/REPO/FILE, or ORG/REPO@REVISION/FILE')
    repo_id, revision, filename = match.group('repo_id', 'revision', 'filename')
    try:
        hub = import_module('huggingface_hub')
    except ImportError as error:
        raise CheckpointError(
            f'{checkpoint} needs the package huggingface_hub: `pip install huggingface_hub`, or download it '
            f'from https://huggingface.co/{repo_id}/tree/{revision or "main"}, and give its path'
        ) from error
    try:
        return hub.hf_hub_download(repo_id, filename, revision=revision)
    except Exception as error:  # of many types, of the hub itself and of what it downloads with
        reason = ' '.join(str(error).split())[:300]
        raise CheckpointError(
            f'{checkpoint} cannot be downloaded ({type(error).__name__}: {reason})'
        ) from error


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
