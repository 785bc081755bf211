"""The forward pass: an online softmax over blocks of keys. Products start from the bias, see `bias.py`."""

import triton
import triton.language as tl

from .bias import bias_of_pairs, keys_as_columns, load_points, middle_cell, queries_as_rows

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Arguments that no kernel may be specialised on: a map of another size must not be compiled for again. As
# numbers of a tuple, which would shorten the lists of parameters, Triton specialises on them all the same.
SIZES = 'num_heads num_groups height width num_keys num_points table_h table_w cells_h cells_w'.split()
Q_STRIDES = 'q_image q_head q_row'.split()
KV_STRIDES = 'k_image k_head k_row v_image v_head v_row'.split()


@triton.jit
def image_and_head(program, num_heads, HEADS: tl.constexpr):
    """The image, and the first of `HEADS` heads, of a program; in int64, because offsets may need it."""
    return (program // (num_heads // HEADS)).to(tl.int64), (program % (num_heads // HEADS) * HEADS).to(
        tl.int64
    )


@triton.jit
def tile_of_queries(tile, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Queries of a tile: numbers in the map, whether they exist, and the tile's first row and column."""
    tiles_x = tl.cdiv(width, COLUMNS)
    first_row = tile // tiles_x * ROWS
    first_column = tile % tiles_x * COLUMNS
    n = tl.arange(0, ROWS * COLUMNS)
    row = first_row + n // COLUMNS
    column = first_column + n % COLUMNS
    return row * width + column, (row < height) & (column < width), first_row, first_column


@triton.jit
def load_rows(ptr, rows, exist, HEAD_DIMS: tl.constexpr, D: tl.constexpr):
    """`(n, D)`: what begins at the numbers `rows`; zero where no row exists and from `HEAD_DIMS` on."""
    d = tl.arange(0, D)[None, :]
    if HEAD_DIMS >= D:
        return tl.load(ptr + rows[:, None] + d, mask=exist[:, None], other=0.0)
    return tl.load(ptr + rows[:, None] + d, mask=exist[:, None] & (d < HEAD_DIMS), other=0.0)


@triton.jit
def load_parts(ptr, rows, exist, HEAD_DIMS: tl.constexpr, D: tl.constexpr):
    """`load_rows` as a tuple: in float32 of parts with 16 channels each, else of one part with all.

    Without tensor cores a thread loads all that a product takes into registers, which are too few for 64
    channels.
    """
    CHANNELS: tl.constexpr = 16 if ptr.dtype.element_ty == tl.float32 else D
    parts = ()
    for first in tl.static_range(0, D, CHANNELS):
        parts = parts + (load_rows(ptr + first, rows, exist, HEAD_DIMS - first, CHANNELS),)
    return parts


@triton.jit
def dot_of_parts(a, b, sums, PRECISION: tl.constexpr):
    """`a b^T + sums` of what `load_parts` returns."""
    for part in tl.static_range(len(a)):
        sums = tl.dot(a[part], tl.trans(b[part]), sums, input_precision=PRECISION)
    return sums


@triton.jit
def store_rows(ptr, rows, values, exist, HEAD_DIMS: tl.constexpr, D: tl.constexpr):
    d = tl.arange(0, D)[None, :]
    if HEAD_DIMS >= D:
        tl.store(ptr + rows[:, None] + d, values, mask=exist[:, None])
    else:
        tl.store(ptr + rows[:, None] + d, values, mask=exist[:, None] & (d < HEAD_DIMS))


@triton.jit
def points_of_tile(first_row, first_column, rows, columns, height, width, y_step, x_step):
    """How far rows and columns of a tile are from query (0, 0), in knots.

    Where a tile overlaps the border, rows and columns beyond it count as the last: the cells end there.
    """
    y = tl.minimum(first_row + rows, height - 1).to(tl.float32) * y_step
    return y, tl.minimum(first_column + columns, width - 1).to(tl.float32) * x_step


@triton.jit
def attend(q, k, v, bias, state, factor, PRECISION: tl.constexpr):
    """Takes a block of keys into the running softmax of a head: largest logit, sum and output."""
    largest, total, out = state
    logits = dot_of_parts(q, k, bias, PRECISION)
    new_largest = tl.maximum(largest, tl.max(logits, 1) * factor)
    shrinkage = tl.exp2(largest - new_largest)
    weights = tl.exp2(logits * factor - new_largest[:, None])
    total = total * shrinkage + tl.sum(weights, 1)
    out = tl.dot(weights.to(v.dtype), v, out * shrinkage[:, None], input_precision=PRECISION)
    return new_largest, total, out


@triton.jit(do_not_specialize=[*SIZES, *Q_STRIDES, *KV_STRIDES])
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cells_ptr,
    points_ptr,
    out_ptr,
    lse_ptr,
    scale,
    y_step,
    x_step,
    q_image,
    q_head,
    q_row,
    k_image,
    k_head,
    k_row,
    v_image,
    v_head,
    v_row,
    num_heads,
    num_groups,
    height,
    width,
    num_keys,
    num_points,
    table_h,
    table_w,
    cells_h,
    cells_w,
    HEAD_DIMS: tl.constexpr,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    WARPS: tl.constexpr,
):
    """`out` `(B, N_q, M, HEAD_DIMS)` and `lse` `(B, M, N_q)`. One program: one tile of queries of `HEADS`
    heads.

    Programs are numbered by image, head and tile. Strides, of images, heads and rows, are in units of `UNIT`
    numbers.
    """
    QUERIES: tl.constexpr = ROWS * COLUMNS
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    b, m = image_and_head(tl.program_id(0) // tiles, num_heads, HEADS)
    n, exists, first_row, first_column = tile_of_queries(
        tl.program_id(0) % tiles, height, width, ROWS, COLUMNS
    )
    q_ptr += (b * q_image + m * q_head) * UNIT
    k_ptr += (b * k_image + m * k_head) * UNIT
    v_ptr += (b * v_image + m * v_head) * UNIT
    cells_ptr = middle_cell(cells_ptr, m // HEADS, table_h, table_w, cells_h, cells_w)
    points_ptr += (b * num_groups + m // (num_heads // num_groups)) * num_points * 2

    rows, columns = queries_as_rows(ROWS, COLUMNS, WARPS)
    y, x = points_of_tile(first_row, first_column, rows, columns, height, width, y_step, x_step)
    factor = scale * LOG2E  # softmax in powers of two
    queries = ()
    states = ()
    for head in tl.static_range(HEADS):
        q = load_parts(q_ptr + head * (q_head * UNIT), n * (q_row * UNIT), exists, HEAD_DIMS, D)
        largest = tl.full((QUERIES,), float('-inf'), tl.float32)
        queries = queries + (q,)
        states = states + ((largest, tl.zeros((QUERIES,), tl.float32), tl.zeros((QUERIES, D), tl.float32)),)
    for first_key in range(0, num_keys, KEYS):
        keys = first_key + tl.arange(0, KEYS)
        exist = keys < num_keys
        key_y, key_x = load_points(points_ptr + first_key * 2, keys_as_columns(KEYS), WARPS)
        biases = bias_of_pairs(cells_ptr, key_y + y, key_x + x, cells_w)
        new_states = ()
        for head in tl.static_range(HEADS):
            k = load_parts(k_ptr + head * (k_head * UNIT), keys * (k_row * UNIT), exist, HEAD_DIMS, D)
            v = load_rows(v_ptr + head * (v_head * UNIT), keys * (v_row * UNIT), exist, HEAD_DIMS, D)
            state = attend(queries[head], k, v, biases[head], states[head], factor, PRECISION)
            new_states = new_states + (state,)
        states = new_states
    out_ptr += (b * height * width * num_heads + m) * HEAD_DIMS
    lse_ptr += (b * num_heads + m) * height * width
    for head in tl.static_range(HEADS):
        largest, total, out = states[head]
        rows_of_out = n * (num_heads * HEAD_DIMS)
        store_rows(out_ptr + head * HEAD_DIMS, rows_of_out, out / total[:, None], exists, HEAD_DIMS, D)
        tl.store(lse_ptr + head * (height * width) + n, largest * LN2 + tl.log(total), mask=exists)
