"""The bias of deformable attention, `phi(B; R)` of Equation (9), as kernels compute it for tiles of pairs.

A *tile* is `ROWS x COLUMNS` neighbouring queries, a *block* is `KEYS` keys, and a *pair* is a query of the
tile with a key of the block. Along an axis, query `i` meets a key at position `p` at the coordinate `t =
first + step i - slope p` of the bias table, in *knots*: whole numbers are the table's entries.

Cells. A naive kernel gathers four entries of the table for each pair, tests each against the border, and
does this again for the derivatives. Here the table `(M, T_h, T_w)` is first rewritten as cells
(`pack_cells_kernel`). The cell at a knot has the four numbers of the bilinear form right and below of it,

    bias = (value + fy along_y) + fx (along_x + fy along_both),    fy = ty - floor(ty), fx = tx - floor(tx),

side by side. A pair needs one load and three multiply-adds, and the bias' derivatives by the key's position
are parts of the same form: `along_y + fx along_both` and `along_x + fy along_both`. Cells hold `bias /
scale`, so that a product of queries and keys that starts from them gives all of a logit but its factor
`scale`.

Margins. Nothing is tested or clamped for a pair. Keys further away than the table reaches are moved to
where no query meets the table (`pack_points_kernel`), and the cells have margins of zeros for all that
queries can meet then: half a table on each side. Keys that do not exist, which fill up the last block, meet
rows of `-inf` below; keys whose position is not a number meet columns of these rows that are no numbers.

Two heads at once. Under half precision, cells are half precision too, and those of two heads of a group,
which share their keys' positions, make words of 32 bits: a cell of 16 bytes, one load and three packed
multiply-adds serve two logits. Coordinates are in float32, and fractions are rounded last. A bias then has
the relative error of half precision, as all weights have under autocast.

Axes. The tensors of pairs have the axes `(4, 8, WARPS, 2, m, n, 2)` until they are done (`pair_axis`). The
compiler lays the first axes along the lanes and warps, because nothing else distinguishes them, and so each
thread computes the very pairs that it holds of a product `(rows, columns)` on tensor cores: nothing passes
from thread to thread. The lanes of a warp are neighbouring queries of neighbouring keys, which read few
cells. Were a compiler to lay the axes otherwise, results would be the same, and slower.

The gradient of the table is the adjoint: see `tents`.
"""

import os

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(os.environ.get('TRITON_INTERPRET') == '1')
# 1.5 * 2^23. For whole `n`, the bits of the float32 number `_LARGE + n` are the number `_BITS_OF_LARGE + n`:
# one becomes the other without a slow conversion.
_LARGE = tl.constexpr(12582912.0)
_BITS_OF_LARGE = tl.constexpr(0x4B400000)
LARGEST_BLOCK = tl.constexpr(128)  # of keys, in any tile


def cells_size(table_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the cells of a table of `(T_h, T_w)` knots.

    Along each axis they begin `T // 2 + 2` knots before the table, and end as many after it. `T // 2 + 3`
    rows more are for keys without position.
    """
    table_h, table_w = table_size
    return table_h + 3 * (table_h // 2) + 8, table_w + 2 * (table_w // 2) + 5


@triton.jit(do_not_specialize=['factor', 'table_h', 'table_w', 'cells_h', 'cells_w'])
def pack_cells_kernel(
    table_ptr, cells_ptr, factor, table_h, table_w, cells_h, cells_w, HEADS: tl.constexpr, BLOCK: tl.constexpr
):
    """Cells `(M / HEADS, cells_h, cells_w, 4)` of a table, times `factor`: float32, or words of two heads.

    One program: `BLOCK` numbers of the heads `program_id(1)`.
    """
    count = cells_h * cells_w * 4
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    table_ptr += tl.program_id(1) * HEADS * (table_h * table_w)
    numbers = _number_of_cell(table_ptr, number, factor, table_h, table_w, cells_w)
    if HEADS == 2:
        second = _number_of_cell(table_ptr + table_h * table_w, number, factor, table_h, table_w, cells_w)
        numbers = _word(_half(numbers), _half(second))
    tl.store(cells_ptr + tl.program_id(1).to(tl.int64) * count + number, numbers, mask=number < count)


@triton.jit
def _number_of_cell(table_ptr, number, factor, table_h, table_w, cells_w):
    """`value`, `along_y`, `along_x`, `along_both`, by the last axis of cells."""
    y = number // 4 // cells_w - (table_h // 2 + 2)
    x = number // 4 % cells_w - (table_w // 2 + 2)
    here = _entry(table_ptr, y, x, table_h, table_w)
    along_y = _entry(table_ptr, y + 1, x, table_h, table_w) - here
    along_x = _entry(table_ptr, y, x + 1, table_h, table_w) - here
    along_both = _entry(table_ptr, y + 1, x + 1, table_h, table_w) - here - along_y - along_x
    of_y = tl.where(number % 2 == 0, here, along_y)
    of_x = tl.where(number % 2 == 0, along_x, along_both)
    numbers = tl.where(number % 4 < 2, of_y, of_x) * factor
    nowhere = tl.where(number // 4 % cells_w < cells_w // 2, float('-inf'), float('nan'))
    return tl.where((number % 4 == 0) & (y > table_h + table_h // 2 + 2), nowhere, numbers)


@triton.jit
def _half(x):
    """Numbers beyond the range of float16 become its largest."""
    finite = tl.clamp(x, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(x == float('-inf'), x, finite).to(tl.float16)


@triton.jit
def _entry(table_ptr, y, x, table_h, table_w):
    inside = (y >= 0) & (y < table_h) & (x >= 0) & (x < table_w)
    return tl.load(table_ptr + y * table_w + x, mask=inside, other=0.0)


@triton.jit(do_not_specialize='num_keys num_points table_h table_w cells_h cells_w'.split())
def pack_points_kernel(
    locations_ptr,
    points_ptr,
    y_first,
    y_slope,
    x_first,
    x_slope,
    num_keys,
    num_points,
    table_h,
    table_w,
    cells_h,
    cells_w,
    BLOCK: tl.constexpr,
):
    """Where query (0, 0) meets each key, in knots from the middle of the table: `(B, G, num_points, 2)`.

    From the middle, because float32 has more digits of small numbers. `num_points` counts keys and those that
    fill up the last block. One program: `BLOCK` of them of a group of an image.
    """
    blocks = tl.cdiv(num_points, BLOCK)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    key = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    exists = key < num_keys
    locations_ptr += group * num_keys * 2 + key * 2
    half_h = table_h // 2
    half_w = table_w // 2
    y = (y_first - half_h) - y_slope * tl.load(locations_ptr, mask=exists, other=0.0)
    x = (x_first - half_w) - x_slope * tl.load(locations_ptr + 1, mask=exists, other=0.0)
    is_nan = (y != y) | (x != x)
    y = tl.clamp(y, (-2 - 2 * half_h).to(tl.float32), (table_h - half_h).to(tl.float32))
    x = tl.clamp(x, (-2 - 2 * half_w).to(tl.float32), (table_w - half_w).to(tl.float32))
    nowhere = (cells_h - (half_h + 3)) - (2 * half_h + 2)
    first = -(2 * half_w + 2)  # of the columns
    y = tl.where(is_nan | (key >= num_keys), nowhere.to(tl.float32), y)
    x = tl.where(key >= num_keys, first.to(tl.float32), x)
    x = tl.where(is_nan, (first + cells_w // 2).to(tl.float32), x)
    points_ptr += group * num_points * 2 + key * 2
    tl.store(points_ptr, y, mask=key < num_points)
    tl.store(points_ptr + 1, x, mask=key < num_points)


@triton.jit
def middle_cell(cells_ptr, number, table_h, table_w, cells_h, cells_w):
    """Address of the cell in the middle of the table of the heads `number`."""
    middle = (table_h // 2 * 2 + 2) * cells_w + (table_w // 2 * 2 + 2)
    return cells_ptr + (number * (cells_h * cells_w) + middle) * 4


@triton.jit
def pair_axis(AXIS: tl.constexpr, SIZE: tl.constexpr):
    """`0, 1, ... SIZE - 1` along one of the axes of pairs.

    The axes of a product `(rows, columns)` are numbered so that

        row = ((axis_4 WARPS + axis_2) 2 + axis_3) 8 + axis_1,    column = (axis_5 4 + axis_0) 2 + axis_6,

    which is how tensor cores want rows and columns to lie in the lanes (axes 0 and 1), warps (axis 2) and
    registers (the rest) of an accumulator.
    """
    return tl.reshape(
        tl.arange(0, SIZE),
        (
            SIZE if AXIS == 0 else 1,
            SIZE if AXIS == 1 else 1,
            SIZE if AXIS == 2 else 1,
            SIZE if AXIS == 3 else 1,
            SIZE if AXIS == 4 else 1,
            SIZE if AXIS == 5 else 1,
            SIZE if AXIS == 6 else 1,
        ),
    )


@triton.jit
def keys_as_rows(KEYS: tl.constexpr, WARPS: tl.constexpr):
    """Numbers of a block's keys where they are the rows of a product."""
    sixteen = pair_axis(4, KEYS // (16 * WARPS)) * WARPS + pair_axis(2, WARPS)
    return sixteen * 16 + pair_axis(3, 2) * 8 + pair_axis(1, 8)


@triton.jit
def keys_as_columns(KEYS: tl.constexpr):
    return pair_axis(5, KEYS // 8) * 8 + pair_axis(0, 4) * 2 + pair_axis(6, 2)


@triton.jit
def queries_as_rows(ROWS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr):
    """Rows and columns of a tile's queries where these are the rows of a product.

    Kept apart, so that what depends on one of them is computed once for it.
    """
    sixteen = pair_axis(4, ROWS * COLUMNS // (16 * WARPS)) * WARPS + pair_axis(2, WARPS)
    if COLUMNS == 8:
        return sixteen * 2 + pair_axis(3, 2), pair_axis(1, 8)
    else:
        tl.static_assert(COLUMNS == 16)
        return sixteen, pair_axis(3, 2) * 8 + pair_axis(1, 8)


@triton.jit
def queries_as_columns(ROWS: tl.constexpr, COLUMNS: tl.constexpr, WARPS: tl.constexpr = 1):
    eight = pair_axis(5, ROWS * COLUMNS // (8 * WARPS)) * WARPS + pair_axis(2, WARPS)
    return (
        eight // (COLUMNS // 8),
        eight % (COLUMNS // 8) * 8 + pair_axis(0, 4) * 2 + pair_axis(6, 2),
    )


@triton.jit
def load_points(points_ptr, keys, WARPS: tl.constexpr):
    """Where query (0, 0) meets keys, see `pack_points_kernel`, with the axes of pairs.

    Each lane loads its own: loads of fewer numbers than there are threads are repeated by the compiler for
    each use, and with them all that follows from them.
    """
    at = tl.expand_dims(points_ptr + keys * 2, 7)
    shape: tl.constexpr = (4, 8, WARPS, at.shape[3], at.shape[4], at.shape[5], at.shape[6], 2)
    return tl.split(tl.load(tl.broadcast_to(at, shape) + tl.arange(0, 2)))


@triton.jit
def _floor_plus_large(t):
    """The largest whole number that is not above `t`, plus `_LARGE`, which is one addition."""
    if INTERPRETED:
        return tl.floor(t) + _LARGE
    return libdevice.add_rd(t, _LARGE)


@triton.jit
def cells_of_pairs(cells_ptr, ty, tx, cells_w):
    """`value, along_y, along_x, along_both, fy, fx` of the cells at coordinates from the middle."""
    y = _floor_plus_large(ty) - _LARGE
    large_x = _floor_plus_large(tx)
    # 64 bits let one multiply-add form the address of a pair from that of its row.
    row = (y * cells_w.to(tl.float32) + _LARGE).to(tl.int32, bitcast=True).to(tl.int64)
    column = large_x.to(tl.int32, bitcast=True).to(tl.int64)
    cell = (cells_ptr - 2 * _BITS_OF_LARGE * 4) + row * 4 + column * 4
    numbers = tl.load(tl.expand_dims(cell, 7) + tl.arange(0, 4))
    S: tl.constexpr = cell.shape
    even, odd = tl.split(tl.reshape(numbers, (S[0], S[1], S[2], S[3], S[4], S[5], S[6], 2, 2)))
    value, along_x = tl.split(even)
    along_y, along_both = tl.split(odd)
    fy = ty - y
    fx = tx - (large_x - _LARGE)
    if cells_ptr.dtype.element_ty == tl.int32:
        fy = _twice(fy)
        fx = _twice(fx)
    return value, along_y, along_x, along_both, fy, fx


@triton.jit
def bias_of_pairs(cells_ptr, ty, tx, cells_w, WARPS_IN_COLUMNS: tl.constexpr = False):
    """Bias over `scale` at coordinates from the middle: `(rows, columns)` for each head."""
    value, along_y, along_x, along_both, fy, fx = cells_of_pairs(cells_ptr, ty, tx, cells_w)
    bias = fma(fx, fma(fy, along_both, along_x), fma(fy, along_y, value))
    return by_head(bias, WARPS_IN_COLUMNS)


@triton.jit
def by_head(x, WARPS_IN_COLUMNS: tl.constexpr = False):
    """From the axes of pairs to a tuple with `(rows, columns)` in float32 for each head."""
    rows: tl.constexpr = x.shape[1] * x.shape[3] * x.shape[4]
    columns: tl.constexpr = x.shape[0] * x.shape[5] * x.shape[6]
    if WARPS_IN_COLUMNS:
        x = tl.reshape(tl.permute(x, (4, 3, 1, 5, 2, 0, 6)), (rows, columns * x.shape[2]))
    else:
        x = tl.reshape(tl.permute(x, (4, 2, 3, 1, 5, 0, 6)), (rows * x.shape[2], columns))
    if x.dtype == tl.float32:
        return (x,)
    else:
        first, second = _halves(x)
        return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def fma(a, b, c):
    """`a b + c`, of float32 or of words."""
    if a.dtype == tl.float32:
        return a * b + c
    elif INTERPRETED:
        a_first, a_second = _halves(a)
        b_first, b_second = _halves(b)
        c_first, c_second = _halves(c)
        return _word(a_first * b_first + c_first, a_second * b_second + c_second)
    else:
        return tl.inline_asm_elementwise(
            'fma.rn.f16x2 $0, $1, $2, $3;', '=r,r,r,r', [a, b, c], tl.int32, True, 1
        )


@triton.jit
def _twice(x):
    """A word with twice the same number."""
    if INTERPRETED:
        return _word(x.to(tl.float16), x.to(tl.float16))
    return tl.inline_asm_elementwise('cvt.rn.f16x2.f32 $0, $1, $1;', '=r,f', [x], tl.int32, True, 1)


@triton.jit
def _word(first, second):
    first = first.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return first | (second.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _halves(word):
    first = word.to(tl.int16).to(tl.float16, bitcast=True)
    return first, (word >> 16).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def keys_by_warp(KEYS: tl.constexpr, WARPS: tl.constexpr):
    """Numbers of a block's keys, with the axes of `tents`."""
    return pair_axis(4, KEYS // WARPS) * WARPS + pair_axis(2, WARPS)


@triton.jit
def rows_or_columns(LENGTH: tl.constexpr):
    """Numbers of a tile's rows or columns, with the axes of `tents`."""
    return pair_axis(5, LENGTH // 8) * 8 + pair_axis(0, 4) * 2 + pair_axis(3, 2)


@triton.jit
def tents(t, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """Weights `max(0, 1 - |t - knot|)` of the knots `0 ... COUNT - 1`, for the table's gradient.

    Bilinear interpolation is separable, so the bias of a key with a tile is `tents_y . table .
    tents_x^T`, and the gradient of the table is a sum over keys of `tents_y^T . grad_bias . tents_x`:
    products of matrices for tensor cores, instead of four atomic additions a pair. See `portable.py`.

    The axes are `(4, 8, WARPS, 2, KEYS / WARPS, LENGTH / 8, COUNT / 8)`: a key is `axis_4 WARPS +
    axis_2`, a row or column `(axis_5 4 + axis_0) 2 + axis_3`, a knot `axis_6 8 + axis_1`. Each thread so
    computes what it holds of an operand of a product, as in `pair_axis`.
    """
    knot = (pair_axis(6, COUNT // 8) * 8 + pair_axis(1, 8)).to(tl.float32)
    # five instructions for two weights; the compiler makes nine of the formula
    TWO_TENTS: tl.constexpr = (
        '{ .reg .f32 a, b; sub.f32 a, $1, $3; sub.f32 b, $2, $4; abs.f32 a, a; abs.f32 b, b; '
        'sub.sat.f32 a, 0f3F800000, a; sub.sat.f32 b, 0f3F800000, b; '
    )
    if INTERPRETED or DTYPE == tl.float32:  # noqa: SIM300
        return tl.clamp(1.0 - tl.abs(t - knot), 0.0, 1.0).to(DTYPE)
    elif DTYPE == tl.float16:  # noqa: SIM300
        ROUNDED: tl.constexpr = TWO_TENTS + 'cvt.rn.f16x2.f32 $0, b, a; }'
        return tl.inline_asm_elementwise(ROUNDED, '=r,f,f,f,f', [t, knot], tl.float16, True, 2)
    else:
        ROUNDED: tl.constexpr = TWO_TENTS + 'cvt.rn.bf16x2.f32 $0, b, a; }'
        return tl.inline_asm_elementwise(ROUNDED, '=r,f,f,f,f', [t, knot], tl.bfloat16, True, 2)


@triton.jit
def tents_by_key(weights):
    """`(KEYS, COUNT, LENGTH)`."""
    keys: tl.constexpr = weights.shape[4] * weights.shape[2]
    count: tl.constexpr = weights.shape[6] * 8
    return tl.reshape(tl.permute(weights, (4, 2, 6, 1, 5, 0, 3)), (keys, count, weights.shape[5] * 8))


@triton.jit
def tents_by_warp(weights):
    """`(WARPS, KEYS LENGTH / WARPS, COUNT)`: the keys that each warp holds, one below another."""
    length: tl.constexpr = weights.shape[4] * weights.shape[5] * 8
    shape: tl.constexpr = (weights.shape[2], length, weights.shape[6] * 8)
    return tl.reshape(tl.permute(weights, (2, 4, 5, 0, 3, 6, 1)), shape)
