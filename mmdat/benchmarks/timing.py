"""Fair measurements in one process: contenders take turns, and medians are compared."""

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..errors import UserError

_LIBC = ctypes.CDLL(None)
WARM_UP = 3  # calls of each contender on a GPU before it is timed


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender: median, and half the range between the quartiles."""

    median: float
    spread: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> 'Timing':
        low, median, high = statistics.quantiles(seconds, n=4, method='inclusive')
        return cls(median, (high - low) / 2)


Timings = Callable[[Mapping[str, Callable[[], object]], int], dict[str, Timing]]


def checked_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        UserError: If there is none, or it is a GPU that PyTorch does not see.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'{name!r} is no device of PyTorch, such as cpu, cuda or cuda:1') from None
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise UserError(f'PyTorch {torch.__version__} sees no GPU here: --device cpu measures the processor')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f'there is no {name} here, PyTorch sees {torch.cuda.device_count()} GPUs')
    return device


def timings_on(device: torch.device) -> Timings:
    """How to time on a device: `interleaved_timings` or `event_timings`."""
    return partial(event_timings, device=device) if device.type == 'cuda' else interleaved_timings


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
    return {name: Timing.of(values) for name, values in seconds.items()}


def event_timings(
    contenders: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, Timing]:
    """Times functions on a GPU in turns, by CUDA events.

    Before each call a buffer larger than the L2 cache is written, so that nothing of the inputs lies in it,
    as in a network, where other layers come between. That also keeps the GPU busy while the call is launched.

    Args:
        contenders: Functions by name.
        repeats: Timed calls of each, at least 2.
        device: The GPU.
    """
    with torch.cuda.device(device):
        flush = torch.empty(2 * _l2_bytes(device), dtype=torch.uint8, device=device)
        for function in contenders.values():
            for _ in range(WARM_UP):
                function()
        events = {name: [] for name in contenders}
        for _ in range(repeats):
            for name, function in contenders.items():
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                flush.zero_()
                start.record()
                function()
                end.record()
                events[name].append((start, end))
        torch.cuda.synchronize(device)
    return {
        name: Timing.of(start.elapsed_time(end) / 1e3 for start, end in pairs)
        for name, pairs in events.items()
    }


def _l2_bytes(device: torch.device) -> int:
    """Of the L2 cache, or more than cards have where PyTorch does not tell."""
    return getattr(torch.cuda.get_device_properties(device), 'L2_cache_size', 0) or 2**27


def _seconds(function: Callable[[], object], calls: int = 1) -> float:
    """Mean of some calls."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call takes at its peak on a device, beyond what was taken before.

    On CPUs the peak of the process's resident memory, which Linux lets a process reset.
    """
    gc.collect()
    if hasattr(_LIBC, 'malloc_trim'):
        _LIBC.malloc_trim(0)  # freed memory that the allocator keeps would hide a part of the peak
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    Path('/proc/self/clear_refs').write_text('5')
    before = _resident('VmRSS')
    function()
    return _resident('VmHWM') - before


def device_name(device: torch.device) -> str:
    """Model of a GPU or of the processor."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith('model name'):
            return line.split(':')[1].strip()
    return platform.processor() or platform.machine()


def in_one_line(error: Exception) -> str:
    """Kind and first line of what a contender raised, for a cell of a table."""
    first_line = (str(error).strip().splitlines() or [''])[0]
    return f'{type(error).__name__}: {first_line[:120]}'.replace('|', '/')


def _resident(field: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(field + ':'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no {field}')
