"""Compiles a C++ kernel for the machine at hand, once, and keeps it.

The library lies in `$XDG_CACHE_HOME/mmdat` (`~/.cache/mmdat` if that is not set), under a name that holds
the sources, the flags and the kind of processor: a new release, or another machine that shares the folder,
compiles its own.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

SOURCES = Path(__file__).parent / 'csrc'
# -ffast-math would break the rounding in simd::exp2; these are its safe parts
FLAGS = (
    '-std=c++17 -O3 -march=native -fopenmp -fPIC -shared '
    '-ffp-contract=fast -fno-math-errno -fno-trapping-math'
).split()

PATIENCE = 300  # seconds, for another process that compiles, and for a compiler

_logger = logging.getLogger('mmdat')


class BuildError(RuntimeError):
    """The kernel could not be compiled or loaded; the message says why and what to do."""


def load_library(name: str = 'deformable_attention') -> ctypes.CDLL:
    """The compiled kernel of `csrc/{name}.cpp`, compiled now if that was not done before.

    The compiler is `$CXX`, or else the first of c++, g++ and clang++; `$MMDAT_CXXFLAGS` adds flags. Of
    processes that ask at the same time one compiles, the others wait.

    Raises:
        BuildError: If there is no compiler, it fails, its library does not load, or another process compiles
            for `PATIENCE` seconds.
    """
    flags = [*FLAGS, *shlex.split(os.environ.get('MMDAT_CXXFLAGS', ''))]
    try:
        cache = cache_folder()
        library = cache / f'{name}-{_fingerprint(flags)}.so'
        if not library.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(library.with_suffix('.lock')):
                if not library.exists():
                    _compile(name, library, flags)
        return ctypes.CDLL(str(library))
    except (OSError, NotImplementedError) as error:  # the latter where files cannot be locked
        raise BuildError(f'the library of the CPU kernel cannot be kept or loaded: {error}') from error


def cache_folder() -> Path:
    """Where what is made once for a machine is kept; it need not exist yet."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmdat'


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=1)
        except Timeout:
            _logger.warning(f'Waiting for another process that compiles the CPU kernel and holds {path}')
            lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise BuildError(
            f'another process has held {path} for {PATIENCE} s: end it, or delete the file if there is none'
        ) from None
    try:
        yield
    finally:
        lock.release()


def _compile(name: str, library: Path, flags: list[str]) -> None:
    compiler = os.environ.get('CXX') or next(filter(shutil.which, ('c++', 'g++', 'clang++')), None)
    if compiler is None:
        raise BuildError('there is no C++ compiler: install g++, or set CXX')
    _logger.warning(f'Compiling the CPU kernel {name}, once for this machine (about 15 s)')
    for left_by_a_killed_process in library.parent.glob(f'{library.stem}.*.part'):
        left_by_a_killed_process.unlink(missing_ok=True)
    part = library.with_suffix(f'.{os.getpid()}.part')  # for itself, as that one's compiler may still run
    command = [*shlex.split(compiler), *flags, str(SOURCES / f'{name}.cpp'), '-o', str(part)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if result.returncode:
            raise BuildError(f'{shlex.join(command)} failed: {result.stderr.strip()[-500:]}')
        part.rename(library)  # whole or not at all
    except subprocess.TimeoutExpired:
        raise BuildError(f'{shlex.join(command)} did not end in {PATIENCE} s') from None
    finally:
        part.unlink(missing_ok=True)


def _fingerprint(flags: list[str]) -> str:
    digest = hashlib.sha256(repr((flags, platform.machine(), _processor_features())).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _processor_features() -> str:
    """What `-march=native` depends on, as far as the operating system tells."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(('flags', 'Features'))), platform.processor())
