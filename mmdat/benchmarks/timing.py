"""Fair measurements in one process: contenders take turns, and medians are compared."""

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender: median, and half the range between the quartiles."""

    median: float
    spread: float


def interleaved_timings(
    contenders: Mapping[str, Callable[[], object]], repeats: int, turn: float = 0.05
) -> dict[str, Timing]:
    """Times functions in turns, so that a busy or hot machine hits all alike.

    Each function is called twice before, to warm up.

    Args:
        contenders: Functions by name.
        repeats: Turns of each, at least 2.
        turn: Seconds that a turn shall take at least: short functions are called several times in it, so that
            what the others leave in the caches is not measured.
    """
    calls = {}
    for name, function in contenders.items():
        function()
        calls[name] = max(1, int(turn / _seconds(function)))
    seconds = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            seconds[name].append(_seconds(function, calls[name]))
    timings = {}
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values, n=4, method='inclusive')
        timings[name] = Timing(median, (high - low) / 2)
    return timings


def _seconds(function: Callable[[], object], calls: int = 1) -> float:
    """Mean of some calls."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes that a call takes at its peak, beyond what was taken before: of the GPU if there is one.

    On CPUs the peak of the process's resident memory, which Linux lets a process reset.
    """
    gc.collect()
    if hasattr(_LIBC, 'malloc_trim'):
        _LIBC.malloc_trim(0)  # freed memory that the allocator keeps would hide a part of the peak
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    Path('/proc/self/clear_refs').write_text('5')
    before = _resident('VmRSS')
    function()
    return _resident('VmHWM') - before


def device_name() -> str:
    """Model of the GPU, or else of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path('/proc/cpuinfo')
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith('model name'):
            return line.split(':')[1].strip()
    return platform.processor() or platform.machine()


def _resident(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no {field}')
