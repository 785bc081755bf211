"""Downloads that are whole or not there."""

import hashlib
import os
import os.path as osp
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from .errors import CheckpointError
from .files import is_web_page, read_checkpoint

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte


def download(url: str, path: str) -> None:
    """Fetches a checkpoint, once for all processes of this computer, with a progress bar.

    The file appears under its name when it is complete and has proved to be a checkpoint. Until then it
    lies beside it as `NAME.part.pth`, from which this goes on, now and in later calls, where the server
    can send the rest of a file.

    Raises:
        OSError: If the server cannot be reached, refuses, or sends nothing more.
        CheckpointError: If what arrives is no checkpoint; then it is not kept.
    """
    os.makedirs(osp.dirname(path), exist_ok=True)
    root, suffix = osp.splitext(path)
    part = f'{root}.part{suffix}'
    with _lock(path):
        if osp.isfile(path):  # another process was faster
            return
        have = -1
        while _size(part) > have:
            have = _size(part)
            try:
                _fetch(url, part)
                break
            except HTTPError:
                raise
            except (OSError, HTTPException) as error:
                broken = error
        else:
            raise OSError(getattr(broken, 'reason', broken))
        try:
            read_checkpoint(part, lazy=True)
        except CheckpointError as error:
            os.remove(part)
            raise CheckpointError(
                f'{url} did not send a checkpoint: {str(error).replace(part, "it")}'
            ) from error
        os.replace(part, path)


def _fetch(url: str, part: str) -> None:
    """Appends what is missing of a file."""
    with _open(url, _size(part)) as response:
        start = _size(part) if response.status == 206 else 0
        length = response.headers.get('Content-Length')
        total = start + int(length) if length else None
        chunk = response.read(_CHUNK)
        if start == 0 and is_web_page(chunk):
            raise CheckpointError(f'{url} did not send a checkpoint but a web page: look at it in a browser')
        with open(part, 'ab' if start else 'wb') as file, _progress_bar(part, start, total) as advance:
            while chunk:
                file.write(chunk)
                advance(len(chunk))
                chunk = response.read(_CHUNK)
    if total is not None and _size(part) != total:
        raise OSError(f'the connection broke off at {_size(part)} of {total} bytes')


def _open(url: str, start: int) -> HTTPResponse:
    headers = {'User-Agent': 'mmdat'}
    if start:
        try:
            request = Request(url, headers=headers | {'Range': f'bytes={start}-'})
            response = urlopen(request, timeout=_TIMEOUT)
            said = response.headers.get('Content-Range', '')
            if response.status != 206 or said.startswith(f'bytes {start}-'):
                return response
            response.close()
        except HTTPError as error:
            if error.code != 416:  # nothing of the file lies beyond: it is another one now
                raise
    return urlopen(Request(url, headers=headers), timeout=_TIMEOUT)


def _size(path: str) -> int:
    return osp.getsize(path) if osp.isfile(path) else 0


def _lock(path: str) -> FileLock:
    """Excludes the other processes of this user on this computer.

    The lock's own file stays for ever, so it does not lie beside `path`.
    """
    name = hashlib.sha256(f'{osp.expanduser("~")}:{osp.abspath(path)}'.encode()).hexdigest()[:16]
    return FileLock(osp.join(tempfile.gettempdir(), f'mmdat-{name}.lock'))


@contextmanager
def _progress_bar(path: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    columns = (
        '{task.description}',
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(osp.basename(path).replace('.part', ''), completed=start, total=total)
        yield lambda count: progress.advance(task, count)
