"""The forward pass: an online softmax over blocks of keys. Products start from the bias, see `bias.py`."""

import triton
import triton.language as tl

from .bias import bias_of_pairs

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# Arguments that no kernel may be specialised on: a map of another size must not be compiled for again.
SIZES = 'num_heads num_groups height width num_keys'.split()
Q_STRIDES = 'q_image q_head q_row'.split()
KV_STRIDES = 'k_image k_head k_row v_image v_head v_row'.split()


@triton.jit
def image_and_head(program, num_heads):
    """Of the number of an image's head, in int64: what is multiplied by it may need more than 31 bits."""
    return (program // num_heads).to(tl.int64), (program % num_heads).to(tl.int64)


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
def load_rows(ptr, rows, exist, HEAD: tl.constexpr, D: tl.constexpr):
    """`(n, D)`: what begins at the numbers `rows`, zero where no row exists and beyond its `HEAD` numbers."""
    d = tl.arange(0, D)[None, :]
    if HEAD == D:
        return tl.load(ptr + rows[:, None] + d, mask=exist[:, None], other=0.0)
    return tl.load(ptr + rows[:, None] + d, mask=exist[:, None] & (d < HEAD), other=0.0)


@triton.jit
def store_rows(ptr, rows, values, exist, HEAD: tl.constexpr, D: tl.constexpr):
    d = tl.arange(0, D)[None, :]
    if HEAD == D:
        tl.store(ptr + rows[:, None] + d, values, mask=exist[:, None])
    else:
        tl.store(ptr + rows[:, None] + d, values, mask=exist[:, None] & (d < HEAD))


@triton.jit(do_not_specialize=[*SIZES, *Q_STRIDES, *KV_STRIDES])
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cells_ptr,
    locations_ptr,
    out_ptr,
    lse_ptr,
    scale,
    y_first,
    y_step,
    y_slope,
    x_first,
    x_step,
    x_slope,
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
    TABLE_H: tl.constexpr,
    TABLE_W: tl.constexpr,
    HEAD: tl.constexpr,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
):
    """`out` `(B, N_q, M, HEAD)` and `lse` `(B, M, N_q)`. One program: one tile of queries of a head.

    Programs are numbered by image, head and tile. Strides, of images, heads and rows, are in units of `UNIT`
    numbers.
    """
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    b, m = image_and_head(tl.program_id(0) // tiles, num_heads)
    n, exists, first_row, first_column = tile_of_queries(
        tl.program_id(0) % tiles, height, width, ROWS, COLUMNS
    )
    q_ptr += (b * q_image + m * q_head) * UNIT
    k_ptr += (b * k_image + m * k_head) * UNIT
    v_ptr += (b * v_image + m * v_head) * UNIT
    cells_ptr += m * ((TABLE_H + 4) * (TABLE_W + 4) * 4)
    locations_ptr += (b * num_groups + m // (num_heads // num_groups)) * num_keys * 2

    q = load_rows(q_ptr, n * (q_row * UNIT), exists, HEAD, D)
    factor = scale * LOG2E  # softmax in powers of two
    largest = tl.full((ROWS * COLUMNS,), float('-inf'), tl.float32)
    total = tl.zeros((ROWS * COLUMNS,), tl.float32)
    out = tl.zeros((ROWS * COLUMNS, D), tl.float32)
    for first_key in range(0, num_keys, KEYS):
        keys = first_key + tl.arange(0, KEYS)
        k = load_rows(k_ptr, keys * (k_row * UNIT), keys < num_keys, HEAD, D)
        bias = bias_of_pairs(
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
            TABLE_H,
            TABLE_W,
            ROWS,
            COLUMNS,
            KEYS,
            LANES,
        )
        logits = tl.dot(q, tl.trans(k), tl.trans(bias), input_precision=PRECISION)
        new_largest = tl.maximum(largest, tl.max(logits, 1) * factor)
        shrinkage = tl.exp2(largest - new_largest)
        weights = tl.exp2(logits * factor - new_largest[:, None])
        total = total * shrinkage + tl.sum(weights, 1)
        largest = new_largest
        v = load_rows(v_ptr, keys * (v_row * UNIT), keys < num_keys, HEAD, D)
        out = tl.dot(weights.to(v.dtype), v, out * shrinkage[:, None], input_precision=PRECISION)
    out_ptr += (b * height * width * num_heads + m) * HEAD
    store_rows(out_ptr, n * (num_heads * HEAD), out / total[:, None], exists, HEAD, D)
    lse_ptr += (b * num_heads + m) * height * width
    tl.store(lse_ptr + n, largest * LN2 + tl.log(total), mask=exists)
