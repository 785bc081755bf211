"""The bias of deformable attention, `phi(B; R)` of Equation (9), as the kernels compute it for tiles of
pairs.

A *tile* is `ROWS x COLUMNS` neighbouring queries of a head, a *block* is `KEYS` of its keys, and a *pair* is
a query of the tile with a key of the block. Along an axis, query `i` meets a key at position `p` at the
coordinate `t = first + step i - slope p` of the bias table, in *knots*: whole numbers are the table's
entries.

Cells. A naive kernel gathers four entries of the table for each pair, tests each against the border, and does
this again for the derivatives. Here the table `(M, T_h, T_w)` is first rewritten as cells
`(M, T_h + 4, T_w + 4, 4)` (`pack_cells_kernel`). The cell at a knot has the four numbers of the bilinear form
right and below of it,

    bias = (value + fy along_y) + fx (along_x + fy along_both),    fy = ty - floor(ty), fx = tx - floor(tx),

in 16 bytes side by side. A pair needs one load and three multiply-adds, and the bias' derivatives by the
key's position are parts of the same form: `along_y + fx along_both` and `along_x + fy along_both`. The table
ends in two knots of zeros on each side, and coordinates are clamped to these, so nothing is tested. A last
row of cells is `-inf`: it is where the keys look that fill up the last block. Cells hold `bias / scale`, so
that a product of queries and keys that starts from them gives all of a logit but its factor `scale`.

Order. Floors and fractions depend on key and row, or on key and column, and are computed once for these. The
tensors of pairs have an order of axes that lays the lanes of a warp along neighbouring columns of
neighbouring keys. These read the same few cells, so that a gather costs about as much as a load of contiguous
numbers. One transposition brings the result to where tensor cores want it.

Runs. Where the map is wide, neighbouring queries are less than a knot apart: `RUN` of them in a row span two
cells at most. With `u` the distance from the run's first knot, the bias in a run is a sum of two ramps,

    level + first min(u, 1) + second max(u - 1, 0),

whose three numbers the run shares: one load of 24 bytes for `RUN` pairs.

The gradient of the table is the adjoint: see `tents`.
"""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get('TRITON_INTERPRET') == '1')


@triton.jit(do_not_specialize=['factor'])
def pack_cells_kernel(
    table_ptr, cells_ptr, factor, TABLE_H: tl.constexpr, TABLE_W: tl.constexpr, BLOCK: tl.constexpr
):
    """Cells of a table, times `factor`. One program: `BLOCK` cells of the head `program_id(1)`."""
    ROW: tl.constexpr = TABLE_W + 4
    COUNT: tl.constexpr = (TABLE_H + 4) * ROW
    head = tl.program_id(1)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = cell // ROW - 2
    x = cell % ROW - 2
    table_ptr += head * (TABLE_H * TABLE_W)
    here = _entry(table_ptr, y, x, TABLE_H, TABLE_W) * factor
    right = _entry(table_ptr, y, x + 1, TABLE_H, TABLE_W) * factor
    below = _entry(table_ptr, y + 1, x, TABLE_H, TABLE_W) * factor
    across = _entry(table_ptr, y + 1, x + 1, TABLE_H, TABLE_W) * factor
    value = tl.where(y > TABLE_H, float('-inf'), here)  # the last row
    out = cells_ptr + (head * COUNT + cell) * 4
    tl.store(out, value, mask=cell < COUNT)
    tl.store(out + 1, below - here, mask=cell < COUNT)
    tl.store(out + 2, right - here, mask=cell < COUNT)
    tl.store(out + 3, (across - below) - (right - here), mask=cell < COUNT)


@triton.jit
def _entry(table_ptr, y, x, TABLE_H: tl.constexpr, TABLE_W: tl.constexpr):
    inside = (y >= 0) & (y < TABLE_H) & (x >= 0) & (x < TABLE_W)
    return tl.load(table_ptr + y * TABLE_W + x, mask=inside, other=0.0)


@triton.jit
def coordinates(
    locations_ptr, keys, num_keys, rows, columns, y_first, y_step, y_slope, x_first, x_step, x_slope
):
    """Coordinates of keys with the rows, and with the columns, of a tile; all three broadcast."""
    exists = keys < num_keys
    y = tl.load(locations_ptr + keys * 2, mask=exists, other=0.0)
    x = tl.load(locations_ptr + keys * 2 + 1, mask=exists, other=0.0)
    return (y_first - y_slope * y) + y_step * rows, (x_first - x_slope * x) + x_step * columns


@triton.jit
def _cell(cells_ptr, ty, tx, exists, TABLE_H: tl.constexpr, TABLE_W: tl.constexpr):
    """Addresses of the cells at coordinates, and the knots at which these begin."""
    y = tl.clamp(tl.floor(ty), -2.0, TABLE_H * 1.0)
    x = tl.clamp(tl.floor(tx), -2.0, TABLE_W * 1.0)
    # in bytes and without sign, which the hardware adds to an address in one instruction
    row = tl.where(exists, y.to(tl.int32) + 2, TABLE_H + 3) * ((TABLE_W + 4) * 16)
    column = (x.to(tl.int32) + 2) * 16
    address = (cells_ptr.to(tl.pointer_type(tl.int8)) + row.to(tl.uint32)) + column.to(tl.uint32)
    return address.to(tl.pointer_type(tl.float32)), y, x


@triton.jit
def bias_of_pairs(
    cells_ptr,
    locations_ptr,
    first_key,
    num_keys,
    first_row,
    first_column,
    y_first,
    y_step,
    y_slope,
    x_first,
    x_step,
    x_slope,
    TABLE_H: tl.constexpr,
    TABLE_W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Bias of all pairs of a tile and a block, over `scale`: `(KEYS, ROWS COLUMNS)`, from one cell a pair.

    The axes inside are `(LANES, 32 / LANES, KEYS LANES / 32, ROWS, COLUMNS / LANES)`: the lanes of a warp are
    `LANES` neighbouring columns of `32 / LANES` neighbouring keys.
    """
    NEAR: tl.constexpr = 32 // LANES
    keys = first_key + tl.arange(0, NEAR)[:, None] + tl.arange(0, KEYS // NEAR)[None, :] * NEAR
    keys = keys[None, :, :, None, None]
    rows = (first_row + tl.arange(0, ROWS)).to(tl.float32)[None, None, None, :, None]
    columns = first_column + tl.arange(0, LANES)[:, None] + tl.arange(0, COLUMNS // LANES)[None, :] * LANES
    columns = columns.to(tl.float32)[:, None, None, None, :]
    ty, tx = coordinates(
        locations_ptr, keys, num_keys, rows, columns, y_first, y_step, y_slope, x_first, x_step, x_slope
    )
    cell, y, x = _cell(cells_ptr, ty, tx, keys < num_keys, TABLE_H, TABLE_W)
    numbers = tl.load(tl.expand_dims(cell, 5) + tl.arange(0, 4)[None, None, None, None, None, :])
    numbers = tl.reshape(numbers, (LANES, NEAR, KEYS // NEAR, ROWS, COLUMNS // LANES, 2, 2))
    without_x, with_x = tl.split(tl.permute(numbers, (0, 1, 2, 3, 4, 6, 5)))
    value, along_y = tl.split(without_x)
    along_x, along_both = tl.split(with_x)
    fy = ty - y
    bias = (value + fy * along_y) + (tx - x) * (along_x + fy * along_both)
    return tl.reshape(tl.permute(bias, (2, 1, 3, 4, 0)), (KEYS, ROWS * COLUMNS))


@triton.jit
def runs(
    cells_ptr,
    locations_ptr,
    first_key,
    num_keys,
    first_row,
    first_column,
    y_first,
    y_step,
    y_slope,
    x_first,
    x_step,
    x_slope,
    TABLE_H: tl.constexpr,
    TABLE_W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    RUN: tl.constexpr,
):
    """What the bias of all pairs of a tile and a block is made of, for runs of `RUN` queries in a row.

    The axes are `(COLUMNS / RUN, NEAR, KEYS / NEAR, ROWS)`, and `RUN` for what differs in a run. The first
    two are the lanes of a warp: runs side by side, and neighbouring keys. `pairs` brings them into the usual
    order.

    Returns:
        level_0, level_1, first_0, first_1, second_0, second_1: The level of each run, and the slopes of its
        two ramps,
            on the row of knots above the query (`..._0`), and their change from there to the next row
            (`..._1`).
        fy: Fractions of the rows' coordinates, so that `level = level_0 + fy level_1`.
        u: Distances from the first knot.
    """
    SIDE_BY_SIDE: tl.constexpr = COLUMNS // RUN
    NEAR: tl.constexpr = 32 // SIDE_BY_SIDE
    keys = first_key + tl.arange(0, NEAR)[:, None] + tl.arange(0, KEYS // NEAR)[None, :] * NEAR
    keys = keys[None, :, :, None]
    rows = (first_row + tl.arange(0, ROWS)).to(tl.float32)[None, None, None, :]
    columns = (first_column + tl.arange(0, SIDE_BY_SIDE) * RUN).to(tl.float32)[:, None, None, None]
    ty, tx = coordinates(
        locations_ptr, keys, num_keys, rows, columns, y_first, y_step, y_slope, x_first, x_step, x_slope
    )
    cell, y, x = _cell(cells_ptr, ty, tx, keys < num_keys, TABLE_H, TABLE_W)
    cell = tl.expand_dims(cell, 4)
    numbers = tl.load(cell + tl.arange(0, 4)[None, None, None, None, :])
    numbers = tl.reshape(numbers, (SIDE_BY_SIDE, NEAR, KEYS // NEAR, ROWS, 2, 2))
    level, first = tl.split(tl.permute(numbers, (0, 1, 2, 3, 5, 4)))
    level_0, level_1 = tl.split(level)
    first_0, first_1 = tl.split(first)
    second_0, second_1 = tl.split(tl.load(cell + 6 + tl.arange(0, 2)[None, None, None, None, :]))
    distances = x_step * tl.arange(0, RUN).to(tl.float32)[None, None, None, None, :]
    u = tl.expand_dims(tx - x, 4) + distances
    return level_0, level_1, first_0, first_1, second_0, second_1, ty - y, u


@triton.jit
def ramps(level, first, second, u):
    """The sum of two ramps in each run."""
    level = tl.expand_dims(level, 4)
    first = tl.expand_dims(first, 4)
    second = tl.expand_dims(second, 4)
    return level + first * tl.minimum(u, 1.0) + second * tl.maximum(u - 1.0, 0.0)


@triton.jit
def slope_along_runs(first, second, u):
    """The derivative of `ramps` by `u`. A knot is the start of a cell, as in `F.grid_sample`."""
    return tl.where(u < 1.0, tl.expand_dims(first, 4), tl.expand_dims(second, 4))


@triton.jit
def pairs(x, KEYS: tl.constexpr, QUERIES: tl.constexpr):
    """From the axes of `runs` to `(KEYS, QUERIES)`."""
    return tl.reshape(tl.permute(x, (2, 1, 3, 0, 4)), (KEYS, QUERIES))


@triton.jit
def tents(t, first, COUNT: tl.constexpr, DTYPE: tl.constexpr):
    """Weights `max(0, 1 - |t - knot|)` of `COUNT` knots from `first` on: from coordinates `(n, m)` to `(n, m,
    COUNT)`.

    Bilinear interpolation is separable, so the bias of a key with a tile is `tents_y . table . tents_x^T`,
    and the gradient of the table is a sum over keys of `tents_y^T . grad_bias . tents_x`: products of
    matrices for tensor cores, instead of four atomic additions a pair. See `portable.py`.

    Eight neighbouring knots lie in one thread, which then writes them at once.
    """
    N: tl.constexpr = t.shape[0]
    M: tl.constexpr = t.shape[1]
    knots = (first + tl.arange(0, COUNT // 8) * 8).to(tl.float32)[None, None, :]
    t = t[:, :, None]
    knots_04 = tl.join(_tent(t, knots, DTYPE), _tent(t, knots + 4, DTYPE))
    knots_26 = tl.join(_tent(t, knots + 2, DTYPE), _tent(t, knots + 6, DTYPE))
    knots_15 = tl.join(_tent(t, knots + 1, DTYPE), _tent(t, knots + 5, DTYPE))
    knots_37 = tl.join(_tent(t, knots + 3, DTYPE), _tent(t, knots + 7, DTYPE))
    return tl.reshape(tl.join(tl.join(knots_04, knots_26), tl.join(knots_15, knots_37)), (N, M, COUNT))


@triton.jit
def _tent(t, knots, DTYPE: tl.constexpr):
    if INTERPRETED:
        return tl.clamp(1.0 - tl.abs(t - knots), 0.0, 1.0).to(DTYPE)
    return tl.inline_asm_elementwise(  # two instructions; the compiler makes four of the formula
        '{ .reg .f32 d; sub.f32 d, $1, $2; abs.f32 d, d; sub.sat.f32 $0, 0f3F800000, d; }',
        '=f,f,f',
        [t, knots],
        tl.float32,
        True,
        1,
    ).to(DTYPE)
