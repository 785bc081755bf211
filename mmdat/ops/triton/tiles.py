"""Which tiles the kernels take: a few for each, by card, dtype, size of heads and tables, and kind of map.

Sizes of images decide nothing here but the length of runs, so that a new size compiles nothing. The words are
those of `bias.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

RUNS = (1, 2, 4)  # for which `keys_kernel` is compiled
SMALL_TABLE = 16  # that of maps of 7 x 7 has 13 x 13 entries
KERNELS = ('forward', 'keys', 'queries')


class Tile(NamedTuple):
    """A tile of `rows x columns` queries and a block of `keys`, and how a kernel works on them.

    Attributes:
        lanes: Columns that lie in the lanes of a warp, where single cells are loaded.
        chunk: Height and width of the part of the table that a program of `queries_kernel` has gradients for.
        split: Groups of keys with a sum of their own in this part.
    """

    rows: int
    columns: int
    keys: int
    warps: int
    stages: int
    lanes: int = 4
    chunk: int = 32
    split: int = 4


class Case(NamedTuple):
    """What tiles, and so compiled kernels, depend on.

    Attributes:
        capability: Of the card, `(9, 0)` for sm_90.
        dtype: Of queries, keys and values.
        head_dims: Channels of a head.
        table_size: Height and width of the bias table.
        run: See `run_length`.
        precision: Of products of float32, `'ieee'` or `'tf32'`.
    """

    capability: tuple[int, int]
    dtype: torch.dtype
    head_dims: int
    table_size: tuple[int, int]
    run: int
    precision: str

    @property
    def padded_head(self) -> int:
        """The next power of two, of which tensor cores need 16 at least."""
        return max(16, 1 << (self.head_dims - 1).bit_length())

    @property
    def unit(self) -> int:
        """Numbers that strides are counted in: a kernel loads as wide as it knows rows to be aligned."""
        return min(16, self.head_dims & -self.head_dims)


def run_length(step: float) -> int:
    """The longest run of queries, `step` knots apart, that spans two cells at most, whatever the key."""
    return max(run for run in RUNS if (run - 1) * step <= 1)


def candidates(kernel: str, case: Case) -> tuple[Tile, ...]:
    """The tiles to choose from, the default first."""
    chunk = 16 if max(case.table_size) <= SMALL_TABLE else 32
    tiles = _float32(kernel, case) if case.dtype == torch.float32 else _half(kernel, case)
    return tuple(tile._replace(chunk=chunk, split=tile.warps) for tile in tiles)


Trial = Callable[[Tile], None]  # runs a kernel
Pick = Callable[[str, Case, Trial], Tile]  # says with which tile a kernel runs, after trials or without


def use_default(kernel: str, case: Case, trial: Trial) -> Tile:
    return candidates(kernel, case)[0]


def _half(kernel: str, case: Case) -> tuple[Tile, ...]:
    head = case.padded_head
    if kernel == 'forward':
        if head > 64:
            return Tile(8, 8, 32, 4, 1), Tile(8, 16, 32, 8, 1)
        if max(case.table_size) <= SMALL_TABLE:
            return Tile(8, 8, 64, 4, 2), Tile(8, 8, 32, 4, 2)
        return Tile(8, 16, 64, 4, 2), Tile(8, 16, 32, 4, 2), Tile(8, 8, 64, 4, 2)
    if kernel == 'keys':
        if head > 32:
            return Tile(4, 8, 64, 4, 1), Tile(4, 8, 64, 8, 1)
        stages = 2 if case.capability == (8, 0) else 1
        return Tile(8, 8, 64, 4, stages), Tile(4, 8, 64, 4, stages)
    if head > 32:
        return Tile(16, 16, 16, 8, 1), Tile(8, 16, 16, 4, 1)
    if max(case.table_size) <= SMALL_TABLE:
        return Tile(8, 16, 32, 4, 1), Tile(8, 16, 16, 4, 1)
    return Tile(16, 16, 32, 8, 1), Tile(16, 16, 16, 8, 1), Tile(8, 16, 32, 4, 1)


def _float32(kernel: str, case: Case) -> tuple[Tile, ...]:
    if kernel == 'forward':
        return Tile(8, 8, 32, 4, 1), Tile(8, 16, 32, 8, 1)
    if kernel == 'keys':
        return Tile(4, 8, 64, 4, 1), Tile(4, 8, 32, 4, 1)
    return Tile(16, 16, 16, 8, 1), Tile(8, 16, 16, 4, 1)
