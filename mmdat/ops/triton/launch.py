"""Both passes as launches of kernels, which can be run, compiled for the card at hand, or only listed.

Nothing here waits for the card, or asks it for anything: what is decided depends on shapes, strides and
dtypes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..deformable.coordinates import query_axis
from ..deformable.inputs import Inputs
from .backward import keys_kernel, prepare_kernel, queries_kernel, table_kernel
from .bias import LARGEST_BLOCK, cells_size, pack_cells_kernel, pack_points_kernel
from .forward import forward_kernel
from .tiles import Case, Pick, Tile, use_default

_TENTS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
_TYPES = {torch.float32: 'fp32', torch.float16: 'fp16', torch.bfloat16: 'bf16', torch.int32: 'i32'}
_PACKED_AT_ONCE = 256


class Launch(NamedTuple):
    """One kernel with its arguments.

    Attributes:
        args: In the order of its parameters, up to the compile-time constants.
        constants: Those, by name.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: tuple
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 1

    def options(self) -> dict[str, Any]:
        return dict(**self.constants, num_warps=self.warps, num_stages=self.stages)

    def run(self) -> None:
        self.kernel[self.grid](*self.args, **self.options())

    def compile(self) -> None:
        """For the current card, and loads it there, which shows whether it has enough shared memory.

        The tensors may be on the meta device.
        """
        _ = self.kernel.warmup(*self.args, grid=self.grid, **self.options()).run

    def signature(self) -> dict[str, str]:
        """Types of `args` by the names of the parameters, in Triton's words: `'*bf16'`, `'fp32'`, `'i32'`."""

        def type_of(arg) -> str:
            if isinstance(arg, Tensor):
                return f'*{_TYPES[arg.dtype]}'
            return 'fp32' if isinstance(arg, float) else 'i32'

        return dict(zip(self.kernel.arg_names, map(type_of, self.args)))


def forward(
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    case: Case,
    pick: Pick,
    execute: Callable[[Launch], None] = Launch.run,
) -> None:
    """Fills `out` and `lse` as `DeformableBackend.forward` says."""
    q, k, v = (_rows(x, case.unit) for x in inputs[:3])
    shared = _Shared.of(inputs, case, execute)

    def trial(tile: Tile) -> None:
        args = (q, k, v, shared.cells, shared.points, out, lse, shared.scale, *shared.steps)
        execute(
            Launch(
                forward_kernel,
                (shared.heads // case.heads * shared.tiles(tile),),
                (*args, *_strides(case.unit, q, k, v), *shared.sizes),
                dict(**shared.constants, **_tile(tile)),
                tile.warps,
                tile.stages,
            )
        )

    trial(pick('forward', case, trial))


def backward(
    inputs: Inputs,
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    grads: tuple[Tensor, ...],
    case: Case,
    pick: Pick,
    execute: Callable[[Launch], None] = Launch.run,
) -> None:
    """Fills `grads` as `DeformableBackend.backward` says."""
    q, k, v, out, grad_out = (_rows(x, case.unit) for x in (*inputs[:3], out, grad_out))
    grad_q, grad_k, grad_v, grad_table, grad_locations = grads
    lse = aligned(lse)
    shared = _Shared.of(inputs, case, execute)
    batch, num_heads, num_keys, _ = k.shape
    groups = grad_locations.shape[1]
    delta = torch.empty_like(lse)
    slopes = [slope for _, _, slope in _axes(inputs)]
    by_heads = grad_locations.new_empty(batch, groups, num_heads // groups // case.heads, num_keys, 2)

    def trial_of_keys(tile: Tile) -> None:
        tiles = shared.tiles(tile)
        queries = tile.rows * tile.columns
        q_tiles, grad_tiles = (
            q.new_empty(shared.heads * tiles * queries * case.padded_head) for _ in range(2)
        )
        stats = lse.new_empty(shared.heads * tiles * queries * 2)
        execute(
            Launch(
                prepare_kernel,
                (shared.heads * tiles,),
                (
                    *(q, out, grad_out, lse, delta, q_tiles, grad_tiles, stats),
                    *(*_strides(case.unit, q, out, grad_out), num_heads, *inputs.query_size),
                ),
                dict(
                    HEAD_DIMS=case.head_dims,
                    D=case.padded_head,
                    UNIT=case.unit,
                    ROWS=tile.rows,
                    COLUMNS=tile.columns,
                ),
            )
        )
        args = (q_tiles, grad_tiles, stats, k, v, shared.cells, shared.points, grad_k, grad_v, by_heads)
        execute(
            Launch(
                keys_kernel,
                (shared.heads // case.heads * triton.cdiv(num_keys, tile.keys),),
                (*args, shared.scale, *shared.steps, *slopes, *_strides(case.unit, k, v), *shared.sizes),
                dict(**shared.constants, **_tile(tile)),
                tile.warps,
                tile.stages,
            )
        )

    trial_of_keys(pick('keys', case, trial_of_keys))
    torch.sum(by_heads, 2, out=grad_locations)

    def trial_of_queries(tile: Tile) -> None:
        args = (q, k, v, shared.cells, shared.points, grad_out, lse, delta, grad_q)
        execute(
            Launch(
                queries_kernel,
                (shared.heads // case.heads * shared.tiles(tile),),
                (*args, shared.scale, *shared.steps, *_strides(case.unit, q, k, v, grad_out), *shared.sizes),
                dict(**shared.constants, **_tile(tile)),
                tile.warps,
                tile.stages,
            )
        )

    trial_of_queries(pick('queries', case, trial_of_queries))

    def trial_of_table(tile: Tile) -> None:
        sizes = num_heads // case.heads, case.heads, *case.table_size
        by_tile = grad_table.new_empty(batch, sizes[0], shared.tiles(tile), *sizes[1:])
        args = (q, k, v, shared.cells, shared.points, grad_out, lse, delta, by_tile)
        chunks = math.prod(triton.cdiv(size, tile.chunk) for size in case.table_size)
        execute(
            Launch(
                table_kernel,
                (shared.heads // case.heads * shared.tiles(tile), chunks),
                (*args, shared.scale, *shared.steps, *_strides(case.unit, q, k, v, grad_out), *shared.sizes),
                dict(**shared.constants, **_tile(tile), TENTS=_TENTS[case.dtype], CHUNK=tile.chunk),
                tile.warps,
                tile.stages,
            )
        )
        torch.sum(by_tile, (0, 2), out=grad_table.view(sizes))

    trial_of_table(pick('table', case, trial_of_table))


def launches(case: Case, pick: Pick = use_default) -> list[Launch]:
    """What both passes launch, in this order, with tensors without numbers on the meta device: to be
    compiled.

    Sizes that compiled kernels do not depend on are 1. The tiles are the default ones if `pick` says nothing
    else.
    """
    found: list[Launch] = []

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device='meta')

    rows, lse = empty(1, case.heads, 1, case.head_dims, dtype=case.dtype), empty(1, case.heads, 1)
    table, locations = empty(case.heads, *case.table_size), empty(1, 1, 1, 2)
    inputs = Inputs(rows, rows, rows, table, locations, (1, 1), 'half_pixel')
    forward(inputs, rows, lse, case, pick, found.append)
    backward(inputs, rows, rows, lse, inputs.tensors(), case, pick, found.append)
    return found


class _Shared(NamedTuple):
    """What all kernels but `prepare_kernel` take alike."""

    cells: Tensor
    points: Tensor
    scale: float
    steps: tuple[float, float]
    sizes: tuple[int, ...]
    constants: dict[str, Any]
    heads: int  # of all images

    @classmethod
    def of(cls, inputs: Inputs, case: Case, execute: Callable[[Launch], None]) -> '_Shared':
        table, locations = aligned(inputs.bias_table), aligned(inputs.sampling_locations)
        num_heads, *table_size = table.shape
        batch, groups, num_keys, _ = locations.shape
        scale = case.head_dims**-0.5
        cells_h, cells_w = cells_size(table_size)
        numbers = cells_h * cells_w * 4
        cells = table.new_empty(
            num_heads // case.heads, numbers, dtype=torch.int32 if case.heads == 2 else torch.float32
        )
        execute(
            Launch(
                pack_cells_kernel,
                (triton.cdiv(numbers, _PACKED_AT_ONCE), num_heads // case.heads),
                (table, cells, 1 / scale, *table_size, cells_h, cells_w),
                dict(HEADS=case.heads, BLOCK=_PACKED_AT_ONCE),
            )
        )
        num_points = triton.cdiv(num_keys, LARGEST_BLOCK.value) * LARGEST_BLOCK.value
        points = locations.new_empty(batch, groups, num_points, 2)
        (y_first, y_step, y_slope), (x_first, x_step, x_slope) = _axes(inputs)
        execute(
            Launch(
                pack_points_kernel,
                (batch * groups * triton.cdiv(num_points, _PACKED_AT_ONCE),),
                (
                    *(locations, points, y_first, y_slope, x_first, x_slope),
                    *(num_keys, num_points, *table_size, cells_h, cells_w),
                ),
                dict(BLOCK=_PACKED_AT_ONCE),
            )
        )
        height, width = inputs.query_size
        return cls(
            cells=cells,
            points=points,
            scale=scale,
            steps=(y_step, x_step),
            sizes=(num_heads, groups, height, width, num_keys, num_points, *table_size, cells_h, cells_w),
            constants=dict(
                HEAD_DIMS=case.head_dims,
                D=case.padded_head,
                UNIT=case.unit,
                PRECISION=case.precision,
                HEADS=case.heads,
            ),
            heads=batch * num_heads,
        )

    def tiles(self, tile: Tile) -> int:
        """In a map of queries."""
        _, _, height, width, *_ = self.sizes
        return triton.cdiv(height, tile.rows) * triton.cdiv(width, tile.columns)


def _axes(inputs: Inputs) -> list[tuple[float, float, float]]:
    """`first, step, slope` of `bias.py` along y and along x."""
    axes = []
    for size, knots in zip(inputs.query_size, inputs.bias_table.shape[1:]):
        first, step = query_axis(size, inputs.coordinates)
        slope = (knots - 1) / 4  # displacements lie in [-2, 2]
        axes.append((slope * (first + 2), slope * step, slope))
    return axes


def _tile(tile: Tile) -> dict[str, int]:
    return dict(ROWS=tile.rows, COLUMNS=tile.columns, KEYS=tile.keys, WARPS=tile.warps)


def _rows(x: Tensor, unit: int) -> Tensor:
    """`(B, M, N, d)` with contiguous rows that allow the widest loads; a copy if these do not."""
    _, num_heads, length, head_dims = x.shape
    _, head_stride, row_stride, stride = x.stride()
    fits = (
        stride == 1
        and not any(stride % unit for stride in x.stride()[:3])
        and (num_heads - 1) * head_stride + (length - 1) * row_stride + head_dims < 2**31
        and _starts_aligned(x)
    )
    return x if fits else x.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)


def aligned(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x if _starts_aligned(x) else x.clone()


def _starts_aligned(x: Tensor) -> bool:
    """At a multiple of 16 bytes; Triton compiles for this."""
    return x.data_ptr() % 16 == 0


def _strides(unit: int, *tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride // unit for x in tensors for stride in x.stride()[:3])
