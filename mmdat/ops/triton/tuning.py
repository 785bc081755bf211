"""Which of its tiles each kernel gets on this card: measured once, and kept on disk.

Measured is with the tensors at hand, whose outputs a kernel writes whole each time. A choice holds for a
card, a `Case` and a class of shapes: powers of four of queries, keys and heads.
"""

import hashlib
import logging
import math
import os
import statistics
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch

from ..deformable.inputs import Inputs
from ..record import Record
from .tiles import Case, Tile, Trial, candidates

WARM_UPS, REPETITIONS = 2, 5

_logger = logging.getLogger('mmdat')


class Tuner:
    """Chooses tiles for one card.

    Args:
        record: Where choices are kept.
        seconds: Measures a call.
        may_measure: Whether it may be done now, see `may_measure`.
    """

    def __init__(
        self,
        record: Record,
        seconds: Callable[[Callable[[], None]], float],
        may_measure: Callable[[], bool],
    ):
        self._record = record
        self._seconds = seconds
        self._may_measure = may_measure
        self._chosen: dict[str, Tile] = {}

    def pick(self, shape: str, kernel: str, case: Case, trial: Trial) -> Tile:
        """The tile to run a kernel with.

        Args:
            shape: See `shape_class`.
            kernel: Its name in `tiles.KERNELS`.
            case: What its tiles depend on.
            trial: Runs it with a tile.
        """
        default, *others = candidates(kernel, case)
        if not others:
            return default
        key = f'{kernel}, {shape}: {tuple(case)}'
        if key not in self._chosen:
            if not self._may_measure():
                return default
            self._chosen[key] = self._kept(key, kernel, case, trial) or self._fastest(
                key, kernel, case, trial
            )
        return self._chosen[key]

    def _kept(self, key: str, kernel: str, case: Case, trial: Trial) -> Tile | None:
        """What an earlier run chose, if that still works."""
        kept = self._record.get(key)
        for tile in candidates(kernel, case):
            if kept == list(tile) and math.isfinite(_attempt(partial(trial, tile), self._seconds)):
                return tile
        return None

    def _fastest(self, key: str, kernel: str, case: Case, trial: Trial) -> Tile:
        _announce()
        tiles = candidates(kernel, case)
        seconds = {tile: _attempt(partial(trial, tile), self._seconds) for tile in tiles}
        tile = min(tiles, key=seconds.get)  # the default where none works, whose error then is raised
        if math.isfinite(seconds[tile]):
            self._record.put(key, list(tile))
        return tile


def _attempt(call: Callable[[], None], seconds: Callable[[Callable[[], None]], float]) -> float:
    try:
        return seconds(call)
    except Exception as error:  # a compiler's, too little shared memory, too little memory
        _logger.debug(f'a tile does not work: {error}')
        return math.inf


@cache
def _announce() -> None:
    _logger.warning('Trying the tiles of the Triton kernels, once for this card and each class of shapes')


def shape_class(inputs: Inputs) -> str:
    """Numbers of queries, keys and heads of all images, each rounded up to a power of four."""
    batch, num_heads, num_queries, _ = inputs.q.shape
    numbers = num_queries, inputs.k.shape[2], batch * num_heads
    rounded = (4 ** (((n - 1).bit_length() + 1) // 2) for n in numbers)
    return '{} queries, {} keys, {} heads'.format(*rounded)


@cache
def tuner(device: torch.device) -> Tuner:
    """Of a card. The name of its file has what choices depend on: card, versions and the kernels' text."""
    import triton

    versions = torch.cuda.get_device_name(device), triton.__version__, torch.version.cuda
    digest = hashlib.sha256(repr(versions).encode())
    for path in sorted(Path(__file__).parent.glob('*.py')):
        digest.update(path.read_bytes())
    return Tuner(
        Record(f'triton_tiles-{digest.hexdigest()[:16]}'),
        partial(_seconds, device),
        may_measure,
    )


def may_measure() -> bool:
    """Not where launches are recorded for a graph, which a measurement would break; nor where PyTorch must be
    deterministic, because each tile has its order of sums; nor where `MMDAT_AUTOTUNE=0` forbids it."""
    return not (
        os.environ.get('MMDAT_AUTOTUNE') == '0'
        or torch.are_deterministic_algorithms_enabled()
        or torch.cuda.is_current_stream_capturing()
    )


def _seconds(device: torch.device, call: Callable[[], None]) -> float:
    """The median of some calls on the card."""
    for _ in range(WARM_UPS):
        call()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPETITIONS)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1000
