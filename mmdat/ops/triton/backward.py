"""The backward pass, in four kernels, each of which writes its own numbers only: nothing is atomic.

    prepare: queries and gradients in the order of tiles, for the keys' loop over tiles
    keys:    gradients of keys, values and positions, by blocks of keys
    queries: gradients of queries, by tiles of queries
    table:   gradient of the bias table, by tiles of queries

The last two compute the logits each for itself: together, a thread would need more registers than it has.

The weights are computed again from the logarithm of the softmax's denominator, `lse`. The gradient of a logit
is `weight (grad_weight - delta)` with `grad_weight = grad_out . v` and `delta = grad_out . out`.
"""

import triton
import triton.language as tl

from .bias import (
    LARGEST_BLOCK,
    bias_of_pairs,
    by_head,
    cells_of_pairs,
    fma,
    keys_as_columns,
    keys_as_rows,
    keys_by_warp,
    load_points,
    middle_cell,
    queries_as_columns,
    queries_as_rows,
    rows_or_columns,
    tents,
    tents_by_key,
    tents_by_warp,
)
from .forward import (
    KV_STRIDES,
    LOG2E,
    Q_STRIDES,
    SIZES,
    dot_of_parts,
    image_and_head,
    load_parts,
    load_rows,
    points_of_tile,
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
    HEAD_DIMS: tl.constexpr,
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
    b, m = image_and_head(tl.program_id(0) // tiles, num_heads, 1)
    n, exists, _, _ = tile_of_queries(tl.program_id(0) % tiles, height, width, ROWS, COLUMNS)
    q = load_rows(q_ptr + (b * q_image + m * q_head) * UNIT, n * (q_row * UNIT), exists, HEAD_DIMS, D)
    out = load_rows(
        out_ptr + (b * out_image + m * out_head) * UNIT, n * (out_row * UNIT), exists, HEAD_DIMS, D
    )
    grad = load_rows(
        grad_ptr + (b * grad_image + m * grad_head) * UNIT, n * (grad_row * UNIT), exists, HEAD_DIMS, D
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
    points_ptr,
    grad_k_ptr,
    grad_v_ptr,
    grad_locations_ptr,
    scale,
    y_step,
    x_step,
    y_slope,
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
    """Gradients of keys and values `(B, N_k, M, HEAD_DIMS)`, and of positions `(B, M / HEADS, N_k, 2)`.

    One program: one block of keys of `HEADS` heads, with all tiles of queries. Keys are the rows of its
    products.
    """
    QUERIES: tl.constexpr = ROWS * COLUMNS
    blocks = tl.cdiv(num_keys, KEYS)
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    b, m = image_and_head(tl.program_id(0) // blocks, num_heads, HEADS)
    first_key = tl.program_id(0) % blocks * KEYS
    q_tiles_ptr += (b * num_heads + m) * tiles * (QUERIES * D)
    grad_tiles_ptr += (b * num_heads + m) * tiles * (QUERIES * D)
    stats_ptr += (b * num_heads + m) * tiles * (QUERIES * 2)
    k_ptr += (b * k_image + m * k_head) * UNIT
    v_ptr += (b * v_image + m * v_head) * UNIT
    cells_ptr = middle_cell(cells_ptr, m // HEADS, table_h, table_w, cells_h, cells_w)
    points_ptr += (b * num_groups + m // (num_heads // num_groups)) * num_points * 2

    keys = first_key + tl.arange(0, KEYS)
    exist = keys < num_keys
    values = ()
    grads = ()
    for head in tl.static_range(HEADS):
        k = load_rows(k_ptr + head * (k_head * UNIT), keys * (k_row * UNIT), exist, HEAD_DIMS, D)
        v = load_rows(v_ptr + head * (v_head * UNIT), keys * (v_row * UNIT), exist, HEAD_DIMS, D)
        values = values + ((k, v),)
        grads = grads + ((tl.zeros((KEYS, D), tl.float32), tl.zeros((KEYS, D), tl.float32)),)
    grad_y = tl.zeros((KEYS, 4), tl.float32)
    grad_x = tl.zeros((KEYS, 4), tl.float32)
    WARPS_IN_ROWS: tl.constexpr = WARPS if KEYS >= 16 * WARPS else KEYS // 16
    key_y, key_x = load_points(points_ptr + first_key * 2, keys_as_rows(KEYS, WARPS_IN_ROWS), WARPS_IN_ROWS)
    rows, columns = queries_as_columns(ROWS, COLUMNS)
    query = tl.arange(0, QUERIES)
    numbers = query[:, None] * D + tl.arange(0, D)[None, :]
    factor = scale * LOG2E
    first_row = 0
    first_column = 0
    for tile in range(0, tiles):
        y, x = points_of_tile(first_row, first_column, rows, columns, height, width, y_step, x_step)
        first_column += COLUMNS  # of the next tile
        first_row = tl.where(first_column < width, first_row, first_row + ROWS)
        first_column = tl.where(first_column < width, first_column, 0)
        value, along_y, along_x, along_both, fy, fx = cells_of_pairs(cells_ptr, key_y + y, key_x + x, cells_w)
        slope_x = fma(fy, along_both, along_x)
        biases = by_head(fma(fx, slope_x, fma(fy, along_y, value)))
        slopes_y = by_head(fma(fx, along_both, along_y))
        slopes_x = by_head(slope_x)
        new_grads = ()
        for head in tl.static_range(HEADS):
            k, v = values[head]
            grad_k, grad_v = grads[head]
            at = head * tiles + tile
            q = tl.load(q_tiles_ptr + at * (QUERIES * D) + numbers)
            grad_out = tl.load(grad_tiles_ptr + at * (QUERIES * D) + numbers)
            log2_of_sum = tl.load(stats_ptr + at * (QUERIES * 2) + query)
            delta = tl.load(stats_ptr + at * (QUERIES * 2) + QUERIES + query)
            logits = tl.dot(k, tl.trans(q), biases[head], input_precision=PRECISION)
            weights = weights_of_pairs(logits * factor, log2_of_sum[None, :])
            grad_v = tl.dot(weights.to(grad_out.dtype), grad_out, grad_v, input_precision=PRECISION)
            # starts from -delta, which then takes no subtraction of its own
            from_delta = tl.broadcast_to(-delta[None, :], (KEYS, QUERIES))
            grad_logits = weights * tl.dot(v, tl.trans(grad_out), from_delta, input_precision=PRECISION)
            grad_k = tl.dot(grad_logits.to(q.dtype), q, grad_k, input_precision=PRECISION)
            grad_y += _sum_in_lanes(grad_logits * slopes_y[head])
            grad_x += _sum_in_lanes(grad_logits * slopes_x[head])
            new_grads = new_grads + ((grad_k, grad_v),)
        grads = new_grads
    rows_of_keys = keys * (num_heads * HEAD_DIMS)
    rows_of_head = (b * num_keys * num_heads + m) * HEAD_DIMS
    for head in tl.static_range(HEADS):
        grad_k, grad_v = grads[head]
        at = rows_of_head + head * HEAD_DIMS
        store_rows(grad_k_ptr + at, rows_of_keys, grad_k * scale, exist, HEAD_DIMS, D)
        store_rows(grad_v_ptr + at, rows_of_keys, grad_v, exist, HEAD_DIMS, D)
    grad_locations_ptr += (b * num_heads + m) // HEADS * num_keys * 2
    tl.store(grad_locations_ptr + keys * 2, tl.sum(grad_y, 1) * (-scale * y_slope), mask=exist)
    tl.store(grad_locations_ptr + keys * 2 + 1, tl.sum(grad_x, 1) * (-scale * x_slope), mask=exist)


@triton.jit
def _sum_in_lanes(x):
    """Sums over the columns that a lane holds of a product, `(rows, 4)`: lanes meet once, after the loop."""
    x = tl.permute(tl.reshape(x, (x.shape[0], x.shape[1] // 8, 4, 2)), (0, 2, 1, 3))
    return tl.sum(tl.reshape(x, (x.shape[0], 4, x.shape[2] * 2)), 2)


@triton.jit
def grad_of_logits(q, k, v, grad_out, bias, log2_of_sum, delta, factor, PRECISION: tl.constexpr):
    """Of all pairs of a tile and a block, `(QUERIES, KEYS)`."""
    logits = tl.dot(q, tl.trans(k), bias, input_precision=PRECISION)
    weights = weights_of_pairs(logits * factor, log2_of_sum[:, None])
    from_delta = tl.broadcast_to(-delta[:, None], logits.shape)
    return weights * tl.dot(grad_out, tl.trans(v), from_delta, input_precision=PRECISION)


@triton.jit(do_not_specialize=[*SIZES, *Q_STRIDES, *KV_STRIDES, *GRAD_STRIDES])
def queries_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cells_ptr,
    points_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    grad_q_ptr,
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
    grad_image,
    grad_head,
    grad_row,
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
    """Gradients of queries `(B, N_q, M, HEAD_DIMS)`. One program: one tile of queries of `HEADS` heads."""
    QUERIES: tl.constexpr = ROWS * COLUMNS
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    b, m = image_and_head(tl.program_id(0) // tiles, num_heads, HEADS)
    n, exists, first_row, first_column = tile_of_queries(
        tl.program_id(0) % tiles, height, width, ROWS, COLUMNS
    )
    q_ptr += (b * q_image + m * q_head) * UNIT
    k_ptr += (b * k_image + m * k_head) * UNIT
    v_ptr += (b * v_image + m * v_head) * UNIT
    grad_ptr += (b * grad_image + m * grad_head) * UNIT
    lse_ptr += (b * num_heads + m) * height * width
    delta_ptr += (b * num_heads + m) * height * width
    cells_ptr = middle_cell(cells_ptr, m // HEADS, table_h, table_w, cells_h, cells_w)
    points_ptr += (b * num_groups + m // (num_heads // num_groups)) * num_points * 2

    rows, columns = queries_as_rows(ROWS, COLUMNS, WARPS)
    y, x = points_of_tile(first_row, first_column, rows, columns, height, width, y_step, x_step)
    factor = scale * LOG2E
    queries = ()
    grads_q = ()
    for head in tl.static_range(HEADS):
        q = load_rows(q_ptr + head * (q_head * UNIT), n * (q_row * UNIT), exists, HEAD_DIMS, D)
        grad_out = load_rows(
            grad_ptr + head * (grad_head * UNIT), n * (grad_row * UNIT), exists, HEAD_DIMS, D
        )
        at = head * (height * width) + n
        log2_of_sum = tl.load(lse_ptr + at, mask=exists, other=float('inf')) * LOG2E
        delta = tl.load(delta_ptr + at, mask=exists, other=0.0)
        queries = queries + ((q, grad_out, log2_of_sum, delta),)
        grads_q = grads_q + (tl.zeros((QUERIES, D), tl.float32),)
    for first_key in range(0, num_keys, KEYS):
        keys = first_key + tl.arange(0, KEYS)
        exist = keys < num_keys
        key_y, key_x = load_points(points_ptr + first_key * 2, keys_as_columns(KEYS), WARPS)
        biases = bias_of_pairs(cells_ptr, key_y + y, key_x + x, cells_w)
        new_grads_q = ()
        for head in tl.static_range(HEADS):
            q, grad_out, log2_of_sum, delta = queries[head]
            k = load_rows(k_ptr + head * (k_head * UNIT), keys * (k_row * UNIT), exist, HEAD_DIMS, D)
            v = load_rows(v_ptr + head * (v_head * UNIT), keys * (v_row * UNIT), exist, HEAD_DIMS, D)
            grad_logits = grad_of_logits(
                q, k, v, grad_out, biases[head], log2_of_sum, delta, factor, PRECISION
            )
            grad_q = tl.dot(grad_logits.to(k.dtype), k, grads_q[head], input_precision=PRECISION)
            new_grads_q = new_grads_q + (grad_q,)
        grads_q = new_grads_q
    grad_q_ptr += (b * height * width * num_heads + m) * HEAD_DIMS
    rows_of_queries = n * (num_heads * HEAD_DIMS)
    for head in tl.static_range(HEADS):
        at = grad_q_ptr + head * HEAD_DIMS
        store_rows(at, rows_of_queries, grads_q[head] * scale, exists, HEAD_DIMS, D)


@triton.jit
def _any_key_meets(points_ptr, num_keys, first_y, last_y, first_x, last_x, CHUNK: tl.constexpr):
    """Whether a tile of queries between these coordinates meets any key in a chunk of the table."""
    met = tl.zeros((LARGEST_BLOCK,), tl.int1)
    for first_key in range(0, num_keys, LARGEST_BLOCK):
        point = points_ptr + (first_key + tl.arange(0, LARGEST_BLOCK)) * 2
        y = tl.load(point)
        x = tl.load(point + 1)
        met = met | ((y + last_y > -1) & (y + first_y < CHUNK) & (x + last_x > -1) & (x + first_x < CHUNK))
    return tl.max(met.to(tl.int32), 0) > 0


@triton.jit(do_not_specialize=[*SIZES, *Q_STRIDES, *KV_STRIDES, *GRAD_STRIDES])
def table_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    cells_ptr,
    points_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    grad_tables_ptr,
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
    grad_image,
    grad_head,
    grad_row,
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
    TENTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Gradient of the table by tile: `(B, M / HEADS, tiles, HEADS, table_h, table_w)`.

    One program: one tile of queries of `HEADS` heads, with all keys, and one chunk of `CHUNK x CHUNK` knots
    of the table. `TENTS` is the dtype of the table's products.
    """
    QUERIES: tl.constexpr = ROWS * COLUMNS
    KEYS_OF_WARP: tl.constexpr = KEYS // WARPS
    tiles = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    b, m = image_and_head(tl.program_id(0) // tiles, num_heads, HEADS)
    n, exists, first_row, first_column = tile_of_queries(
        tl.program_id(0) % tiles, height, width, ROWS, COLUMNS
    )
    q_ptr += (b * q_image + m * q_head) * UNIT
    k_ptr += (b * k_image + m * k_head) * UNIT
    v_ptr += (b * v_image + m * v_head) * UNIT
    grad_ptr += (b * grad_image + m * grad_head) * UNIT
    lse_ptr += (b * num_heads + m) * height * width
    delta_ptr += (b * num_heads + m) * height * width
    cells_ptr = middle_cell(cells_ptr, m // HEADS, table_h, table_w, cells_h, cells_w)
    points_ptr += (b * num_groups + m // (num_heads // num_groups)) * num_points * 2

    rows, columns = queries_as_columns(ROWS, COLUMNS, WARPS)
    y, x = points_of_tile(first_row, first_column, rows, columns, height, width, y_step, x_step)
    chunks_x = tl.cdiv(table_w, CHUNK)
    first_knot_y = tl.program_id(1) // chunks_x * CHUNK
    first_knot_x = tl.program_id(1) % chunks_x * CHUNK
    rows, columns = rows_or_columns(ROWS), rows_or_columns(COLUMNS)
    from_chunk_y = (table_h // 2 - first_knot_y).to(tl.float32)
    from_chunk_x = (table_w // 2 - first_knot_x).to(tl.float32)
    tile_y = (first_row + rows).to(tl.float32) * y_step + from_chunk_y
    tile_x = (first_column + columns).to(tl.float32) * x_step + from_chunk_x
    if tl.num_programs(1) > 1:  # chunks: a tile meets about half of the table along each axis
        met = _any_key_meets(
            points_ptr,
            num_keys,
            first_row * y_step + from_chunk_y,
            (first_row + (ROWS - 1)) * y_step + from_chunk_y,
            first_column * x_step + from_chunk_x,
            (first_column + (COLUMNS - 1)) * x_step + from_chunk_x,
            CHUNK,
        )
        num_keys = tl.where(met, num_keys, 0)
    factor = scale * LOG2E
    queries = ()
    grads = ()
    for head in tl.static_range(HEADS):
        q = load_parts(q_ptr + head * (q_head * UNIT), n * (q_row * UNIT), exists, HEAD_DIMS, D)
        grad_out = load_parts(
            grad_ptr + head * (grad_head * UNIT), n * (grad_row * UNIT), exists, HEAD_DIMS, D
        )
        at = head * (height * width) + n
        log2_of_sum = tl.load(lse_ptr + at, mask=exists, other=float('inf')) * LOG2E
        delta = tl.load(delta_ptr + at, mask=exists, other=0.0)
        queries = queries + ((q, grad_out, log2_of_sum, delta),)
        grads = grads + (tl.zeros((WARPS, CHUNK, CHUNK), tl.float32),)
    for first_key in range(0, num_keys, KEYS):
        keys = first_key + tl.arange(0, KEYS)
        exist = keys < num_keys
        key_y, key_x = load_points(points_ptr + first_key * 2, keys_as_rows(KEYS, 1), WARPS)
        biases = bias_of_pairs(cells_ptr, key_y + y, key_x + x, cells_w, True)
        new_grads = ()
        for head in tl.static_range(HEADS):
            q, grad_out, log2_of_sum, delta = queries[head]
            k = load_parts(k_ptr + head * (k_head * UNIT), keys * (k_row * UNIT), exist, HEAD_DIMS, D)
            v = load_parts(v_ptr + head * (v_head * UNIT), keys * (v_row * UNIT), exist, HEAD_DIMS, D)
            logits = dot_of_parts(k, q, biases[head], PRECISION)
            weights = weights_of_pairs(logits * factor, log2_of_sum[None, :])
            # starts from -delta, which then takes no subtraction of its own
            from_delta = tl.broadcast_to(-delta[None, :], (KEYS, QUERIES))
            grad_logits = weights * dot_of_parts(v, grad_out, from_delta, PRECISION)
            # The same for all heads, and computed once. Earlier, they would hold shared memory for longer.
            key_y, key_x = load_points(points_ptr + first_key * 2, keys_by_warp(KEYS, WARPS), WARPS)
            tents_x = tents_by_key(tents(key_x + tile_x, CHUNK, TENTS))
            tents_y = tents_by_warp(tents(key_y + tile_y, CHUNK, TENTS))
            grad_bias = tl.permute(tl.reshape(grad_logits.to(TENTS), (KEYS, ROWS, COLUMNS)), (0, 2, 1))
            by_row = tl.dot(tents_x, grad_bias, input_precision=PRECISION).to(TENTS)  # (KEYS, CHUNK, ROWS)
            by_row = tl.permute(tl.reshape(by_row, (KEYS_OF_WARP, WARPS, CHUNK, ROWS)), (1, 2, 0, 3))
            by_row = tl.reshape(by_row, (WARPS, CHUNK, KEYS_OF_WARP * ROWS))
            new_grads = new_grads + (tl.dot(by_row, tents_y, grads[head], input_precision=PRECISION),)
        grads = new_grads
    table_row = (first_knot_y + tl.arange(0, CHUNK))[:, None]
    table_column = (first_knot_x + tl.arange(0, CHUNK))[None, :]
    inside = (table_row < table_h) & (table_column < table_w)
    grad_tables_ptr += tl.program_id(0).to(tl.int64) * (HEADS * table_h * table_w)
    for head in tl.static_range(HEADS):
        at = head * (table_h * table_w) + table_row * table_w + table_column
        tl.store(grad_tables_ptr + at, tl.trans(tl.sum(grads[head], 0)), mask=inside)
