"""Which tiles the kernels take: a few for each, by card, dtype, and size of heads and tables.

Sizes of images decide nothing here, so that a new size compiles nothing. The words are those of `bias.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

SMALL_TABLE = 16  # that of maps of 7 x 7 has 13 x 13 entries
KERNELS = ('forward', 'keys', 'queries', 'table')


class Tile(NamedTuple):
    """A tile of `rows x columns` queries and a block of `keys`, and how a kernel works on them.

    Attributes:
        chunk: Height and width of the part of the table that a program of `table_kernel` has gradients for.
    """

    rows: int
    columns: int
    keys: int
    warps: int
    stages: int
    chunk: int = 32


class Case(NamedTuple):
    """What tiles, and so compiled kernels, depend on.

    Attributes:
        capability: Of the card, `(9, 0)` for sm_90.
        dtype: Of queries, keys and values.
        head_dims: Channels of a head.
        table_size: Height and width of the bias table.
        heads: Of a group, that a program computes at once: see `heads_at_once`.
        precision: Of products of float32, `'ieee'` or `'tf32'`.
    """

    capability: tuple[int, int]
    dtype: torch.dtype
    head_dims: int
    table_size: tuple[int, int]
    heads: int
    precision: str

    @property
    def padded_head(self) -> int:
        """The next power of two, of which tensor cores need 16 at least."""
        return max(16, 1 << (self.head_dims - 1).bit_length())

    @property
    def is_small_card(self) -> bool:
        """Whether programs have 99 KiB of shared memory: workstations' cards, sm_86, sm_89 and sm_120."""
        return self.capability[0] == 12 or (self.capability[0] == 8 and self.capability[1] > 0)

    @property
    def unit(self) -> int:
        """Numbers that strides are counted in: a kernel loads as wide as it knows rows to be aligned."""
        return min(16, self.head_dims & -self.head_dims)


def heads_at_once(dtype: torch.dtype, head_dims: int, heads_of_a_group: int) -> int:
    """Two where heads come in pairs and a thread has the registers for both, see `bias.py`."""
    return 2 if dtype != torch.float32 and head_dims <= 32 and heads_of_a_group % 2 == 0 else 1


def candidates(kernel: str, case: Case) -> tuple[Tile, ...]:
    """The tiles to choose from, the default first."""
    small = max(case.table_size) <= SMALL_TABLE or case.dtype == torch.float32
    chunk = 16 if small else 32
    tiles = _float32(kernel, case) if case.dtype == torch.float32 else _half(kernel, case)
    return tuple(tile._replace(chunk=chunk) for tile in tiles)


Trial = Callable[[Tile], None]  # runs a kernel
Pick = Callable[[str, Case, Trial], Tile]  # says with which tile a kernel runs, after trials or without


def use_default(kernel: str, case: Case, trial: Trial) -> Tile:
    return candidates(kernel, case)[0]


def _half(kernel: str, case: Case) -> tuple[Tile, ...]:
    """The defaults are those that `docs/gpu_kernels.md` shows: the fewest instructions without spills."""
    head, major, small_card = case.padded_head, case.capability[0], case.is_small_card
    small = max(case.table_size) <= SMALL_TABLE
    if kernel == 'forward':
        if head > 64:
            return Tile(8, 16, 32, 4 if major == 10 else 8, 1), Tile(8, 8, 32, 4, 1)
        if small:
            return Tile(8, 8, 64, 4, 1 if major == 10 else 2), Tile(8, 8, 32, 4, 1)
        if major == 10:  # products there keep their sums in a memory of their own, not in registers
            return Tile(8, 16, 64, 4, 1), Tile(8, 16, 32, 4, 1)
        if major == 8 and head > 32:
            return Tile(16, 16, 32, 8, 2), Tile(8, 16, 32, 4, 2), Tile(8, 8, 32, 4, 2)
        return Tile(8, 16, 32, 4, 2), Tile(8, 8, 64, 4, 2), Tile(8, 8, 32, 4, 2)
    if kernel == 'keys':
        if major == 10:
            if case.heads == 2:
                return Tile(4, 8, 128, 4, 1), Tile(4, 8, 64, 4, 1)
            return (Tile(4, 8, 64, 4, 1), Tile(2, 8, 128, 4, 1))[:: 1 if head <= 32 else -1]
        if head > 64:
            return (Tile(2, 8, 64, 4, 1), Tile(4, 8, 32, 4, 1))[:: 1 if major == 9 else -1]
        if head > 32:
            return (Tile(4, 8, 64, 4, 1), Tile(2, 8, 64, 4, 1))[:: -1 if small_card else 1]
        return Tile(4, 8, 64, 4, 2), Tile(2, 8, 64, 4, 2)
    if kernel == 'queries':
        if head > 64:
            return Tile(8, 16, 16 if small_card else 32, 8, 1), Tile(8, 8, 32, 4, 1)
        if small:
            return Tile(8, 8, 32, 4, 1 if major == 10 else 2), Tile(8, 8, 16, 4, 1)
        if head > 32:
            return (Tile(8, 16, 16, 4, 2), Tile(8, 16, 32, 8, 2))[:: 1 if case.capability == (8, 0) else -1]
        if major == 10:
            return Tile(8, 16, 32, 4, 1), Tile(8, 16, 16, 4, 2), Tile(8, 8, 32, 4, 2)
        if major == 9:
            return Tile(8, 16, 16, 4, 1), Tile(8, 16, 32, 4, 1), Tile(8, 8, 32, 4, 2)
        return Tile(8, 16, 16, 4, 2), Tile(8, 8, 32, 4, 2), Tile(8, 8, 16, 4, 2)
    if small:
        return Tile(8, 16, 16, 4, 1), Tile(8, 16, 32, 4, 1)
    if head > 64:
        return (Tile(8, 16, 16, 8, 1), Tile(8, 16, 16, 4, 1))[:: -1 if small_card else 1]
    return Tile(16, 16, 16, 8, 1), Tile(8, 16, 16, 4, 1)


def _float32(kernel: str, case: Case) -> tuple[Tile, ...]:
    head, major = case.padded_head, case.capability[0]
    if kernel == 'forward':
        if head > 64:
            return Tile(8, 8, 16, 4, 1), Tile(8, 16, 16, 8, 1)
        return Tile(8, 16, 16, 4, 1), Tile(8, 8, 16, 4, 1)
    if kernel == 'keys':
        if head > 64:
            return Tile(4, 8, 32, 8, 1), Tile(2, 8, 32, 4, 1)
        return Tile(4 if head <= 32 and major < 12 else 2, 8, 64, 4, 1), Tile(4, 8, 32, 4, 1)
    if kernel == 'queries':
        if head > 64 and (major == 10 or case.is_small_card):
            return Tile(4, 8, 16, 2, 1), Tile(4, 16, 16, 4, 1)
        if head > 32:
            return Tile(4, 16, 16, 4, 2 if major == 12 else 1), Tile(8, 8, 16, 4, 1)
        return Tile(8, 16, 16, 4, 1), Tile(8, 8, 16, 4, 1)
    tiles = Tile(8, 16, 16, 4, 1), Tile(8, 16, 16, 8, 1)
    return tiles[::-1] if case.precision == 'tf32' and head > 64 else tiles
