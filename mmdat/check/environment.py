"""What a report must say of the machine on which it was made."""

import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import torch

import mmdat

from ..benchmarks.timing import device_name
from ..ops.native.build import cache_folder
from ..ops.triton.self_check import driver_version

LIBRARIES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision', 'timm', 'triton')
VARIABLES = ('MMDAT_', 'TRITON_', 'TORCH', 'CUDA_', 'PYTORCH_', 'NVIDIA_TF32', 'OMP_', 'MKL_', 'CXX')


def devices() -> list[torch.device]:
    """The processor, and the first GPU of each kind."""
    kinds = {}
    for index in range(torch.cuda.device_count()):
        kinds.setdefault(torch.cuda.get_device_name(index), torch.device('cuda', index))
    return [torch.device('cpu'), *kinds.values()]


def describe_environment() -> list[tuple[str, str]]:
    """Names and values: versions, devices, compiler, caches and variables."""
    cpu = torch.device('cpu')
    installed = {name: _version_of(name) for name in LIBRARIES}
    rows = [
        ('mmdat', f'{mmdat.__version__}, {Path(mmdat.__file__).parent}'),
        ('Python', f'{platform.python_version()}, {platform.platform()}'),
        (
            'PyTorch',
            f'{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}',
        ),
        *((name, said) for name, said in installed.items() if said),
        ('not installed', ', '.join(name for name, said in installed.items() if not said) or 'nothing'),
        ('processor', f'{device_name(cpu)}, {os.cpu_count()} cores, {torch.get_num_threads()} threads'),
        ('C++ compiler', _compiler()),
        *((f'cuda:{index}', _describe_gpu(index)) for index in range(torch.cuda.device_count())),
    ]
    if torch.cuda.is_available():
        rows.append(('driver', driver_version()))
    else:
        rows.append(('GPU', 'PyTorch sees none'))
    rows.append(('cache', _describe_cache()))
    rows += [(name, value) for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)]
    return rows


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _version_of(library: str) -> str | None:
    if find_spec(library) is None:
        return None
    distributions = packages_distributions().get(library)
    return f'{version(distributions[0])} ({distributions[0]})' if distributions else 'of unknown version'


def _compiler() -> str:
    """As `mmdat/ops/native/build.py` finds it."""
    command = os.environ.get('CXX') or next(filter(shutil.which, ('c++', 'g++', 'clang++')), None)
    if command is None:
        return 'none, so the CPU kernels cannot be compiled'
    try:
        said = subprocess.run(
            [*shlex.split(command), '--version'], capture_output=True, text=True, timeout=60
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return f'{command}, which does not run: {error}'
    return f'{command}: {(said.stdout.splitlines() or ["says no version"])[0]}'


def _describe_gpu(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    return (
        f'{properties.name}, sm_{properties.major}{properties.minor}, {properties.multi_processor_count} '
        f'multiprocessors, {properties.total_memory / 2**30:.1f} GiB, L2 '
        f'{getattr(properties, "L2_cache_size", 0) / 2**20:.0f} MiB'
    )


def _describe_cache() -> str:
    """Its kernels, and what self-checks found."""
    folder = cache_folder()
    try:
        kernels = len(list(folder.glob('*.so')))
        verdicts = [json.loads(path.read_text()) for path in sorted(folder.glob('self_check-*.json'))]
        failed = [f'{v["of"]["backend"]} on {v["of"]["device"]}' for v in verdicts if v['failures']]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f'{folder}, which cannot be read: {error}'
    said = f'{folder}: {kernels} compiled kernels, {len(verdicts)} self-checks'
    return f'{said}, of which failed: {"; ".join(failed)}' if failed else said
