"""The backward pass, in three kernels, each of which writes its own numbers only: nothing is atomic.

    prepare: queries and gradients in the order of tiles, for the keys' loop over tiles
    keys:    gradients of keys, values and positions, by blocks of keys
    queries: gradients of queries and of the bias table, by tiles of queries

The weights are computed again from the logarithm of the softmax's denominator, `lse`. The gradient of a logit
is `weight (grad_weight - delta)` with `grad_weight = grad_out . v` and `delta = grad_out . out`.
"""

import triton
import triton.language as tl

from .bias import bias_of_pairs, coordinates, pairs, ramps, runs, slope_along_runs, tents
from .forward import (
    KV_STRIDES,
    LOG2E,
    Q_STRIDES,
    SIZES,
    image_and_head,
    load_rows,
    store_rows,
    tile_of_queries,
)

OUT_STRIDES = 'out_image out_head out_row'.split()
GRAD_STRIDES = 'grad_image grad_head grad_row'.split()


@triton.jit
def weights_of_pairs(logits, log2_of_sum):
    """From logits and the logarithm of their sum, both in base 2. Where logits are huge, rounding may lift
    them above
    it; what is not a number stays so."""
    return tl.exp2(tl.minimum(logits - log2_of_sum, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit(do_not_specialize=[*SIZES, *Q_STRIDES, *OUT_STRIDES, *GRAD_STRIDES])
def prepare_kernel(
    q_ptr,
    out_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    q_tiles_ptr,
    grad_tiles_ptr,
    stats_ptr,
    q_image,
    q_head,
    q_row,
    out_image,
    out_head,
    out_row,
    grad_image,
    grad_head,
    grad_row,
    num_heads,
    height,
    width,
    HEAD: tl.constexpr,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """`delta` `(B, M, N_q)`, and what the loop of `keys_kernel` reads without any mask or address of its own:

    queries and gradients `(B, M, tiles, ROWS COLUMNS, D)`, and their `lse` in base 2 (infinite for queries
    that do not exist, whose weights then are 0) and `delta`: `(B, M, tiles, 2, ROWS COLUMNS)`. One program:
    one tile of a head.
    """
    QUERIES: tl.constexpr = ROWS * COLUMNS
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    b, m = image_and_head(tl.program_id(0) // tiles, num_heads)
    n, exists, _, _ = tile_of_queries(tl.program_id(0) % tiles, height, width, ROWS, COLUMNS)
    q = load_rows(q_ptr + (b * q_image + m * q_head) * UNIT, n * (q_row * UNIT), exists, HEAD, D)
    out = load_rows(out_ptr + (b * out_image + m * out_head) * UNIT, n * (out_row * UNIT), exists, HEAD, D)
    grad = load_rows(
        grad_ptr + (b * grad_image + m * grad_head) * UNIT, n * (grad_row * UNIT), exists, HEAD, D
    )
    head = (b * num_heads + m) * height * width
    lse = tl.load(lse_ptr + head + n, mask=exists, other=float('inf'))
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(delta_ptr + head + n, delta, mask=exists)

    first = tl.program_id(0).to(tl.int64) * QUERIES
    query = tl.arange(0, QUERIES)
    numbers = query[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(q_tiles_ptr + first * D + numbers, q)
    tl.store(grad_tiles_ptr + first * D + numbers, grad)
    tl.store(stats_ptr + first * 2 + query, lse * LOG2E)
    tl.store(stats_ptr + first * 2 + QUERIES + query, delta)


@triton.jit(do_not_specialize=[*SIZES, *KV_STRIDES])
def keys_kernel(
    q_tiles_ptr,
    grad_tiles_ptr,
    stats_ptr,
    k_ptr,
    v_ptr,
    cells_ptr,
    locations_ptr,
    grad_k_ptr,
    grad_v_ptr,
    grad_locations_ptr,
    scale,
    y_first,
    y_step,
    y_slope,
    x_first,
    x_step,
    x_slope,
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
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Gradients of keys and values `(B, N_k, M, HEAD)`, and of positions, by head: `(B, M, N_k, 2)`.

    One program: one block of keys of a head, with all tiles of queries.
    """
    QUERIES: tl.constexpr = ROWS * COLUMNS
    blocks = tl.cdiv(num_keys, KEYS)
    tiles_x = tl.cdiv(width, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * tiles_x
    b, m = image_and_head(tl.program_id(0) // blocks, num_heads)
    first_key = tl.program_id(0) % blocks * KEYS
    head = b * num_heads + m
    q_tiles_ptr += head * tiles * (QUERIES * D)
    grad_tiles_ptr += head * tiles * (QUERIES * D)
    stats_ptr += head * tiles * (QUERIES * 2)
    cells_ptr += m * ((TABLE_H + 4) * (TABLE_W + 4) * 4)
    locations_ptr += (b * num_groups + m // (num_heads // num_groups)) * num_keys * 2

    keys = first_key + tl.arange(0, KEYS)
    exist = keys < num_keys
    k = load_rows(k_ptr + (b * k_image + m * k_head) * UNIT, keys * (k_row * UNIT), exist, HEAD, D)
    v = load_rows(v_ptr + (b * v_image + m * v_head) * UNIT, keys * (v_row * UNIT), exist, HEAD, D)
    query = tl.arange(0, QUERIES)
    numbers = query[:, None] * D + tl.arange(0, D)[None, :]
    factor = scale * LOG2E
    grad_k = tl.zeros((KEYS, D), tl.float32)
    grad_v = tl.zeros((KEYS, D), tl.float32)
    grad_y = tl.zeros((KEYS,), tl.float32)
    grad_x = tl.zeros((KEYS,), tl.float32)
    for tile in range(0, tiles):
        level_0, level_1, first_0, first_1, second_0, second_1, fy, u = runs(
            cells_ptr,
            locations_ptr,
            first_key,
            num_keys,
            tile // tiles_x * ROWS,
            tile % tiles_x * COLUMNS,
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
            RUN,
        )
        first = first_0 + fy * first_1
        second = second_0 + fy * second_1
        bias = ramps(level_0 + fy * level_1, first, second, u)
        slope_y = ramps(level_1, first_1, second_1, u)
        slope_x = slope_along_runs(first, second, u)
        q = tl.load(q_tiles_ptr + tile * (QUERIES * D) + numbers)
        grad_out = tl.load(grad_tiles_ptr + tile * (QUERIES * D) + numbers)
        log2_of_sum = tl.load(stats_ptr + tile * (QUERIES * 2) + query)
        delta = tl.load(stats_ptr + tile * (QUERIES * 2) + QUERIES + query)
        logits = tl.dot(k, tl.trans(q), pairs(bias, KEYS, QUERIES), input_precision=PRECISION)
        weights = weights_of_pairs(logits * factor, log2_of_sum[None, :])
        grad_v = tl.dot(weights.to(grad_out.dtype), grad_out, grad_v, input_precision=PRECISION)
        grad_weights = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
        grad_logits = weights * (grad_weights - delta[None, :])
        grad_k = tl.dot(grad_logits.to(q.dtype), q, grad_k, input_precision=PRECISION)
        grad_y += tl.sum(grad_logits * pairs(slope_y, KEYS, QUERIES), 1)
        grad_x += tl.sum(grad_logits * pairs(slope_x, KEYS, QUERIES), 1)
    rows = keys * (num_heads * HEAD)
    rows_of_head = (b * num_keys * num_heads + m) * HEAD
    store_rows(grad_k_ptr + rows_of_head, rows, grad_k * scale, exist, HEAD, D)
    store_rows(grad_v_ptr + rows_of_head, rows, grad_v, exist, HEAD, D)
    grad_locations_ptr += head * num_keys * 2
    tl.store(grad_locations_ptr + keys * 2, grad_y * (-scale * y_slope), mask=exist)
    tl.store(grad_locations_ptr + keys * 2 + 1, grad_x * (-scale * x_slope), mask=exist)


@triton.jit(do_not_specialize=[*SIZES, *Q_STRIDES, *KV_STRIDES, *GRAD_STRIDES])
def queries_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cells_ptr,
    locations_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    grad_q_ptr,
    grad_tables_ptr,
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
    grad_image,
    grad_head,
    grad_row,
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
    TENTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    LANES: tl.constexpr,
    CHUNK_H: tl.constexpr,
    CHUNK_W: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Gradients of queries `(B, N_q, M, HEAD)`, and of the table, by tile: `(B, M, tiles, TABLE_H, TABLE_W)`.

    One program: one tile of queries of a head, with all keys, and one chunk of `CHUNK_H x CHUNK_W` knots of
    the table; the programs of the first chunk also write the queries' gradients. `TENTS` is the dtype of the
    table's products, and `SPLIT` the number of groups of keys that add up their own part of the table, so
    that warps share nothing.
    """
    QUERIES: tl.constexpr = ROWS * COLUMNS
    CHUNKS_X: tl.constexpr = (TABLE_W + CHUNK_W - 1) // CHUNK_W
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    b, m = image_and_head(tl.program_id(0) // tiles, num_heads)
    n, exists, first_row, first_column = tile_of_queries(
        tl.program_id(0) % tiles, height, width, ROWS, COLUMNS
    )
    chunk = tl.program_id(1)
    chunk_row = chunk // CHUNKS_X * CHUNK_H
    chunk_column = chunk % CHUNKS_X * CHUNK_W
    head = b * num_heads + m
    k_ptr += (b * k_image + m * k_head) * UNIT
    v_ptr += (b * v_image + m * v_head) * UNIT
    cells_ptr += m * ((TABLE_H + 4) * (TABLE_W + 4) * 4)
    locations_ptr += (b * num_groups + m // (num_heads // num_groups)) * num_keys * 2

    q = load_rows(q_ptr + (b * q_image + m * q_head) * UNIT, n * (q_row * UNIT), exists, HEAD, D)
    grad_out = load_rows(
        grad_ptr + (b * grad_image + m * grad_head) * UNIT, n * (grad_row * UNIT), exists, HEAD, D
    )
    log2_of_sum = tl.load(lse_ptr + head * height * width + n, mask=exists, other=float('inf')) * LOG2E
    delta = tl.load(delta_ptr + head * height * width + n, mask=exists, other=0.0)
    rows = (first_row + tl.arange(0, ROWS)).to(tl.float32)[None, :]
    columns = (first_column + tl.arange(0, COLUMNS)).to(tl.float32)[None, :]
    factor = scale * LOG2E
    grad_q = tl.zeros((QUERIES, D), tl.float32)
    grad_table = tl.zeros((SPLIT, CHUNK_W, CHUNK_H), tl.float32)
    for first_key in range(0, num_keys, KEYS):
        keys = first_key + tl.arange(0, KEYS)
        k = load_rows(k_ptr, keys * (k_row * UNIT), keys < num_keys, HEAD, D)
        v = load_rows(v_ptr, keys * (v_row * UNIT), keys < num_keys, HEAD, D)
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
        weights = weights_of_pairs(logits * factor, log2_of_sum[:, None])
        grad_weights = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
        grad_logits = weights * (grad_weights - delta[:, None])
        grad_q = tl.dot(grad_logits.to(k.dtype), k, grad_q, input_precision=PRECISION)

        ty, tx = coordinates(
            locations_ptr,
            keys[:, None],
            num_keys,
            rows,
            columns,
            y_first,
            y_step,
            y_slope,
            x_first,
            x_step,
            x_slope,
        )
        grad_bias = tl.reshape(tl.trans(grad_logits.to(TENTS)), (KEYS, ROWS, COLUMNS))
        tents_x = tl.permute(tents(tx, chunk_column, CHUNK_W, TENTS), (0, 2, 1))  # (KEYS, CHUNK_W, COLUMNS)
        by_row = tl.dot(tents_x, tl.permute(grad_bias, (0, 2, 1)), input_precision=PRECISION).to(TENTS)
        tents_y = tents(ty, chunk_row, CHUNK_H, TENTS)  # (KEYS, ROWS, CHUNK_H)
        by_row = tl.reshape(by_row, (KEYS // SPLIT, SPLIT, CHUNK_W, ROWS))
        by_row = tl.reshape(tl.permute(by_row, (1, 2, 0, 3)), (SPLIT, CHUNK_W, KEYS // SPLIT * ROWS))
        tents_y = tl.reshape(tents_y, (KEYS // SPLIT, SPLIT, ROWS, CHUNK_H))
        tents_y = tl.reshape(tl.permute(tents_y, (1, 0, 2, 3)), (SPLIT, KEYS // SPLIT * ROWS, CHUNK_H))
        grad_table = tl.dot(by_row, tents_y, grad_table, input_precision=PRECISION)
    if chunk == 0:
        grad_q_ptr += (b * height * width * num_heads + m) * HEAD
        store_rows(grad_q_ptr, n * (num_heads * HEAD), grad_q * scale, exists, HEAD, D)
    table_rows = (chunk_row + tl.arange(0, CHUNK_H))[:, None]
    table_columns = (chunk_column + tl.arange(0, CHUNK_W))[None, :]
    grad_tables_ptr += tl.program_id(0).to(tl.int64) * (TABLE_H * TABLE_W)
    tl.store(
        grad_tables_ptr + table_rows * TABLE_W + table_columns,
        tl.trans(tl.sum(grad_table, 0)),
        mask=(table_rows < TABLE_H) & (table_columns < TABLE_W),
    )
