"""Compiles a C++ kernel for the machine at hand, once, and keeps it.

The library lies in `$XDG_CACHE_HOME/mmdat` (`~/.cache/mmdat` if that is not set), under a name that holds
the sources, the flags and the kind of processor: a new release, or another machine that shares the folder,
compiles its own.
"""

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / 'csrc'
# -ffast-math would break the rounding in simd::exp2; these are its safe parts
FLAGS = (
    '-std=c++17 -O3 -march=native -fopenmp -fPIC -shared '
    '-ffp-contract=fast -fno-math-errno -fno-trapping-math'
).split()

_logger = logging.getLogger('mmdat')


class BuildError(RuntimeError):
    """The kernel could not be compiled or loaded; the message says why and what to do."""


def load_library(name: str = 'deformable_attention') -> ctypes.CDLL:
    """The compiled kernel of `csrc/{name}.cpp`, compiled now if that was not done before.

    The compiler is `$CXX`, or else the first of c++, g++ and clang++; `$MMDAT_CXXFLAGS` adds flags. Of
    processes that ask at the same time one compiles, the others wait.

    Raises:
        BuildError: If there is no compiler, it fails, or its library does not load.
    """
    flags = [*FLAGS, *shlex.split(os.environ.get('MMDAT_CXXFLAGS', ''))]
    try:
        cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mmdat'
        library = cache / f'{name}-{_fingerprint(flags)}.so'
        if not library.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with open(library.with_suffix('.lock'), 'w') as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not library.exists():
                    _compile(name, library, flags)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f'the library of the CPU kernel cannot be kept or loaded: {error}') from error


def _compile(name: str, library: Path, flags: list[str]) -> None:
    compiler = os.environ.get('CXX') or next(filter(shutil.which, ('c++', 'g++', 'clang++')), None)
    if compiler is None:
        raise BuildError('there is no C++ compiler: install g++, or set CXX')
    _logger.warning(f'Compiling the CPU kernel {name}, once for this machine (about 15 s)')
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        command = [*shlex.split(compiler), *flags, str(SOURCES / f'{name}.cpp'), '-o', str(built)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise BuildError(f'{shlex.join(command)} failed: {result.stderr.strip()[-500:]}')
        built.rename(library)  # whole or not at all


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
