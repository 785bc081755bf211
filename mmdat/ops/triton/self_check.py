"""Compares a fused kernel with the equations before its first use on a card, where nobody may have run it.

Small shapes, the output and all gradients, in the dtype of use, twice, against the equations in float64 on
the CPU, which takes a few hundred milliseconds besides compiling the kernel. The verdict is kept in the
folder of `cache_folder`, under a name that holds what it depends on: the card and its driver, the versions,
and the sources of the kernel. Of processes that ask at the same time one checks, the others wait and read.
Where `MMDAT_SELF_CHECK` is 0 no check is made and no verdict heeded.
"""

import hashlib
import inspect
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ..deformable.backends.base import CheckedBackend
from ..deformable.comparison import relative_errors
from ..native.build import cache_folder

PATIENCE = 300  # seconds, for another process that checks
_logger = logging.getLogger('mmdat')
_known: dict[tuple, str | None] = {}


def verdict(
    backend: CheckedBackend,
    device: torch.device,
    dtype: torch.dtype,
    sources: Sequence[Path] = (),
    versions: Mapping[str, str] | None = None,
) -> str | None:
    """Why a backend must not be used on a device, if it does not compute there what the equations say.

    The first call with these arguments may make the check, all others look its verdict up. While a CUDA graph
    is captured, and where tensors are fake, no check is made. Nothing of the caller changes: neither random
    numbers nor autocast, gradient modes or streams.

    Args:
        backend: What to check. Only its `trials` are run.
        device: Where.
        dtype: Of use.
        sources: Files of the kernel, besides that of the backend's class; a change in them makes a new check.
        versions: Of what else the kernel depends on, besides PyTorch.

    Returns:
        `None` if it passed, or was not checked, else a sentence without a full stop. It never raises.
    """
    if os.environ.get('MMDAT_SELF_CHECK') == '0':
        return None
    key = backend.operation, backend.name, device, dtype, _tf32(device, dtype)
    if key in _known:
        return _known[key]
    if _must_wait(device):
        return None
    try:
        said = _kept_verdict(backend, device, dtype, sources, versions or {})
    except torch.OutOfMemoryError:  # which is no fault of the kernel; it will be checked later
        return None
    except Exception as error:  # of what surrounds the check
        _logger.warning(
            f'The self-check of the kernel {backend.name} for {backend.operation} could not be made: '
            f'{_first_line(error)}'
        )
        said = None
    _known[key] = said
    return said


def triton_verdict(backend: CheckedBackend, device: torch.device, dtype: torch.dtype) -> str | None:
    """`verdict` on a backend whose kernels are in this folder."""
    import triton

    sources = sorted(Path(__file__).parent.glob('*.py'))
    return verdict(backend, device, dtype, sources, {'triton': triton.__version__})


def _must_wait(device: torch.device) -> bool:
    """Whether no tensor can be computed now, or it would become part of a graph."""
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
        return True
    return device.type == 'cuda' and (
        not torch.cuda.is_available() or torch.cuda.is_current_stream_capturing()
    )


def _kept_verdict(
    backend: CheckedBackend,
    device: torch.device,
    dtype: torch.dtype,
    sources: Sequence[Path],
    versions: Mapping[str, str],
) -> str | None:
    """The verdict on disk, made now if there is none."""
    depends_on = _dependencies(backend, device, dtype, sources, versions)
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / f'self_check-{backend.name}-{digest}.json'
    kept, checked_here = _read(path), False
    if kept is None:
        with _locked(path.with_suffix('.lock')):
            kept = _read(path)
            if kept is None:
                kept, checked_here = {'failures': _in_a_thread(backend, device, dtype)}, True
                _write(path, kept | {'of': depends_on})
    if not kept['failures']:
        return None
    reason = (
        f'it failed the self-check on {depends_on["device"]} in {str(dtype).removeprefix("torch.")}: '
        f'{", ".join(kept["failures"])}'
    )
    if checked_here or os.environ.get('LOCAL_RANK', '0') == '0':
        _logger.warning(
            f'The kernel {backend.name} for {backend.operation} is not used: {reason}. Please report this to '
            'the issue tracker of mmdat with the output of `python -m mmdat.check`. '
            f'Deleting {path} checks again, MMDAT_SELF_CHECK=0 uses the kernel all the same.'
        )
    return reason


def _dependencies(
    backend: CheckedBackend,
    device: torch.device,
    dtype: torch.dtype,
    sources: Sequence[Path],
    versions: Mapping[str, str],
) -> dict[str, str]:
    """What a verdict holds for."""
    cuda = device.type == 'cuda'
    digest = hashlib.sha256()
    for path in (Path(inspect.getfile(type(backend))), Path(__file__), *sorted(sources)):
        digest.update(path.read_bytes())
    return {
        'backend': f'{backend.name} for {backend.operation}',
        'device': torch.cuda.get_device_name(device) if cuda else device.type,
        'capability': str(torch.cuda.get_device_capability(device)) if cuda else '',
        'driver': driver_version() if cuda else '',
        'torch': torch.__version__,
        'dtype': str(dtype),
        'tf32': str(_tf32(device, dtype)),
        'sources': digest.hexdigest(),
        **versions,
    }


@cache
def driver_version() -> str:
    """Version of NVIDIA's driver, as far as Linux tells."""
    try:
        said = Path('/proc/driver/nvidia/version').read_text()
    except OSError:
        return 'unknown'
    found = re.search(r'\d+\.\d+(\.\d+)?', said)
    return found.group() if found else 'unknown'


def _tf32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of float32 may be rounded to TF32, so that another kernel is used."""
    if device.type != 'cuda' or dtype != torch.float32:
        return False
    matmul = torch.backends.cuda.matmul  # whose older attribute raises where the newer one was set
    return matmul.fp32_precision == 'tf32' if hasattr(matmul, 'fp32_precision') else matmul.allow_tf32


def _read(path: Path) -> dict | None:
    """A kept verdict, or `None` where there is none, or none that can be understood."""
    try:
        kept = json.loads(path.read_text())
        failures = kept['failures']
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return kept if isinstance(failures, list) and all(isinstance(f, str) for f in failures) else None


def _write(path: Path, kept: dict) -> None:
    """Whole or not at all; where nothing can be kept, each process checks for itself."""
    part = path.with_suffix(f'.{os.getpid()}.part')
    try:
        part.write_text(json.dumps(kept, indent=1))
        part.replace(path)
    except OSError as error:
        _logger.info(f'The verdict of a self-check cannot be kept: {error}')


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock of all processes of the machine, or none where that cannot be had."""
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except (OSError, NotImplementedError, Timeout):
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _in_a_thread(backend: CheckedBackend, device: torch.device, dtype: torch.dtype) -> list[str]:
    """What `_failures` says, in a thread of its own, which has none of the caller's modes.

    Autocast, gradient and inference mode, transforms of `torch.func`, modes that follow operations, default
    devices and current streams all belong to a thread.
    """
    outcome = []

    def check() -> None:
        try:
            outcome.append(_failures(backend, device, dtype))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=check, name='mmdat self-check', daemon=True)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _failures(backend: CheckedBackend, device: torch.device, dtype: torch.dtype) -> list[str]:
    """What a backend computes otherwise than the equations say; empty if nothing."""
    failures = []
    for expected, run in backend.trials(dtype):
        if device.type == 'cuda':  # what others have broken before is not the kernel's fault
            torch.cuda.synchronize(device)
        try:
            with torch.cuda.device(device) if device.type == 'cuda' else nullcontext():
                ours, again = (run(device) for _ in range(2))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return [f'{type(error).__name__}: {_first_line(error)}']
        limit = _limit(device, dtype)
        for name, error in relative_errors(ours, expected).items():
            if not error <= limit:
                failures.append(f'{_spoken(name)} is off by {error:.1e}, {limit:.1e} allowed')
            elif not ours[name].equal(again[name]):
                failures.append(f'{_spoken(name)} is not the same in two calls')
        if failures:
            break
    return failures


def _spoken(name: str) -> str:
    return 'the output' if name == 'out' else f'the gradient of {name}'


def _limit(device: torch.device, dtype: torch.dtype) -> float:
    """Of `relative_errors`. Wrong formulas are off by a multiple of it, rounding by a part of it."""
    if dtype in (torch.float16, torch.bfloat16):
        return 8 * torch.finfo(dtype).eps
    return 8 * 2**-11 if _tf32(device, dtype) else 1e-4


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [''])[0][:300]
