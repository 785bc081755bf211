// Deformable attention on CPUs, Equation (9) of the paper, in float32. See `Arguments` for shapes.
//
// The words used here. For one head of one image, softmax and products go over a matrix of logits:
//
//                    block 0      block 1    ..
//                 k0 ...... k31 k32 ..... k63 ..       block: kBlock keys, the last one not full
//               +--------------+-------------+---
//      vector 0 |              |             |         vector: kLanes queries
//      vector 1 |              |             |
//       ..      |              |             |
//      vector 5 |              |             |         tile: up to kTile vectors
//               +--------------+-------------+---
//      vector 6 |              |             |
//       ..      |              |             |
//
// Each query has a lane. A vector is one piece, which is neighbouring queries of a row of the map, or two pieces of
// half its lanes where that takes fewer vectors. The last piece of a row may have lanes without a query:
//
//                         kLanes = 8, width = 20                              width = 3
//      one piece    row 0   | q0 .... q7 | q8 ... q15 | q16 . q19 - - - - |   | q0 .. q2 - - - - - |
//                   row 1   | q20 .. q27 | q28 .. q35 | q36 . q39 - - - - |   | q3 .. q5 - - - - - |
//
//      two pieces   row 0   | q0.q3 q4.q7 | q8.q11 q12.q15 | q16.q19          | q0 .. q2 -
//                   row 1     q20.q23 | q24.q27 q28.q31 | q32.q35 q36.q39 |     q3 .. q5 - |
//
// Keys are broadcast to all lanes. The forward pass goes through the blocks of a tile with an online softmax; the
// backward pass computes the weights of a block again from the stored denominators. So logits never leave the cache.
//
// In both passes the work is a list of tasks, ordered by head, then image, then tiles; a thread takes a contiguous
// share, and lays out the bias table once for each of its heads. A task of the forward pass is a tile. A task of the
// backward pass is a split, a run of tiles: all tiles of a head if there are more heads than threads. Shares depend
// on the sizes and the number of threads only, and so do the results.
//
// Logits are computed in base 2: the factors of queries and tables hold log2(e).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "bias_table.h"
#include "parallel.h"
#include "simd.h"

using simd::broadcast;
using simd::kLanes;
using simd::kTile;
using simd::load;
using simd::store;
using simd::Vec;

namespace {

constexpr int kBlock = 32;
constexpr int kStep = 4;                      // keys, or channels, that products with queries in lanes take at a time
constexpr int kKeyStep = kTile == 6 ? 8 : 4;  // keys that products over queries take at a time
constexpr int kMostPieces = simd::kHasHalves ? 2 : 1;  // of a vector
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// A tensor (B, M, N, d) whose rows of d numbers are contiguous; strides are in floats.
struct Rows {
    float* data;
    int64_t image_stride, head_stride, row_stride;
    float* row(int image, int head, int n) const {
        return data + image * image_stride + head * head_stride + n * row_stride;
    }
};

}  // namespace

// Mirrored by `_Arguments` in `mmdat/ops/deformable/backends/cpu.py`.
struct Arguments {
    int32_t batch, num_heads, num_groups, height, width, num_keys, head_dims, table_height, table_width;
    int32_t splits;   // of a head of an image, in the backward pass
    int32_t threads;  // at most
    QueryAxis y_axis, x_axis;
    Rows q, k, v, out;       // (B, M, H W, d), (B, M, N_k, d) twice, (B, M, H W, d)
    const float* table;      // (M, T_h, T_w)
    const float* locations;  // (B, G, N_k, 2), (y, x)
    float* lse;              // (B, M, H W), natural logarithm of the softmax's denominator
    Rows grad_out, grad_q;   // (B, M, H W, d)
    Rows grad_k, grad_v;     // (B, M, N_k, d), the first of `splits`
    int64_t split_stride;    // floats from there to the next one
    float* grad_table;       // (threads, M, T_h, T_w), zeros
    float* grad_locations;   // (splits, B, M, N_k, 2)

    int num_queries() const { return height * width; }
    float* lse_of(int image, int head) const {
        return lse + (static_cast<int64_t>(image) * num_heads + head) * num_queries();
    }
};

namespace {

// Floats at a cache line's border, zeros.
class Buffer {
   public:
    explicit Buffer(int64_t size)
        : data_(static_cast<float*>(::operator new[](size * sizeof(float), kAlign))), size_(size) {
        clear();
    }
    operator float*() const { return data_.get(); }
    void clear() { std::fill_n(data_.get(), size_, 0.f); }

   private:
    static constexpr std::align_val_t kAlign{64};
    struct Delete {
        void operator()(float* data) const { ::operator delete[](data, kAlign); }
    };
    std::unique_ptr<float[], Delete> data_;
    int64_t size_;
};

// How the queries of a map fill pieces, vectors and tiles.
template <int kPieces>
struct Layout {
    static constexpr int kPiece = kLanes / kPieces;  // lanes
    int height, width;
    int pieces_of_a_row = (width + kPiece - 1) / kPiece;

    int num_vectors() const { return (height * pieces_of_a_row + kPieces - 1) / kPieces; }
    int num_tiles() const { return (num_vectors() + kTile - 1) / kTile; }
    int first_vector(int tile) const { return part_of(num_vectors(), tile, num_tiles()); }
    int row(int piece) const { return piece / pieces_of_a_row; }
    int column(int piece) const { return piece % pieces_of_a_row * kPiece; }
};

// Pieces of a vector: two where one takes over a tenth more vectors. Below that, two lose more by their further loads
// and stores.
int best_pieces(const Arguments& args) {
    const int with_one = Layout<1>{args.height, args.width}.num_vectors();
    const int with_two = Layout<2>{args.height, args.width}.num_vectors();
    return 10 * with_one > 11 * with_two ? 2 : 1;
}

// Where the keys of all images and groups lie. Behind the last key of a group it is repeated, to fill a block.
struct KeyPlaces {
    int stride;  // from a group to the next
    std::vector<BiasLattice::Column> columns;
    std::vector<float> y;

    KeyPlaces(const Arguments& args, const BiasLattice& lattice)
        : stride(args.num_keys + kBlock),
          columns(static_cast<int64_t>(args.batch) * args.num_groups * stride),
          y(columns.size()) {
#pragma omp parallel for num_threads(args.threads)
        for (int group = 0; group < args.batch * args.num_groups; ++group) {
            for (int n = 0; n < stride; ++n) {
                const int64_t key = static_cast<int64_t>(group) * args.num_keys + std::min(n, args.num_keys - 1);
                const int64_t to = static_cast<int64_t>(group) * stride + n;
                y[to] = args.locations[2 * key];
                columns[to] = lattice.column(args.locations[2 * key + 1]);
            }
        }
    }
};

// Copies d numbers, times a factor.
inline void copy_channels(const float* from, int head_dims, float factor, float* to) {
    int c = 0;
    for (; c + kLanes <= head_dims; c += kLanes) store(to + c, load(from + c) * factor);
    for (; c < head_dims; ++c) to[c] = from[c] * factor;
}

// The head and the image that a thread works on.
struct Head {
    const Arguments& args;
    const BiasLattice& lattice;
    const KeyPlaces& places;
    const int dims;  // d, padded by zeros to whole vectors
    int index = -1, image = -1;
    Buffer biases;                                 // values of the lattice
    Buffer k, v;                                   // (N_k and a block of zeros, dims); k has the factor of the logits
    const BiasLattice::Column* columns = nullptr;  // of each key
    const float* y = nullptr;                      // alike

    Head(const Arguments& args, const BiasLattice& lattice, const KeyPlaces& places)
        : args(args),
          lattice(lattice),
          places(places),
          dims((args.head_dims + kLanes - 1) / kLanes * kLanes),
          biases(lattice.size()),
          k(size_of_keys()),
          v(size_of_keys()) {}

    // Floats of `dims` channels, for each key and those that fill the last block.
    int64_t size_of_keys() const { return static_cast<int64_t>(args.num_keys + kBlock) * dims; }

    void enter(int new_head, int new_image) {
        if (index == new_head && image == new_image) return;
        if (index != new_head) {
            const int64_t table_size = static_cast<int64_t>(args.table_height) * args.table_width;
            lattice.spread(args.table + new_head * table_size, kLog2E, biases);
        }
        index = new_head;
        image = new_image;
        pack(args.k, kLog2E / std::sqrt(static_cast<float>(args.head_dims)), k);
        pack(args.v, 1, v);
        const int group = image * args.num_groups + index / (args.num_heads / args.num_groups);
        const int64_t first = static_cast<int64_t>(group) * places.stride;
        columns = &places.columns[first];
        y = &places.y[first];
    }

   private:
    void pack(const Rows& rows, float factor, float* to) const {
        for (int64_t n = 0; n < args.num_keys; ++n) {
            copy_channels(rows.row(image, index, n), args.head_dims, factor, to + n * dims);
        }
    }
};

// Where a block of keys sees the pieces of a tile on the y axis of the bias table: for each piece and key the
// offset of the row above in the lattice's values, and the weight of the row below.
struct TableRows {
    int32_t offsets[2 * kTile][kBlock];
    float weights[2 * kTile][kBlock];

    void locate(const Head& head, const int* map_rows, int count, int first_key) {
        // copies, for the compiler to see that they stay the same
        const QueryAxis axis = head.args.y_axis;
        const int table_height = head.args.table_height, row_size = head.lattice.row_size();
        const float* key_y = head.y + first_key;
        const double lowest = -BiasLattice::kMargin, highest = table_height;
        for (int i = 0; i < count; ++i) {
            const int map_row = map_rows[i];
            if (i && map_row == map_rows[i - 1]) {  // often, where vectors have two pieces
                std::copy_n(offsets[i - 1], kBlock, offsets[i]);
                std::copy_n(weights[i - 1], kBlock, weights[i]);
                continue;
            }
#pragma omp simd
            for (int n = 0; n < kBlock; ++n) {
                const double y = axis.at(map_row, key_y[n], table_height);
                const double above = y > lowest ? y : lowest, inside = above < highest ? above : highest;
                const int whole = static_cast<int>(inside + BiasLattice::kMargin);
                offsets[i][n] = whole * row_size;
                // the zero that is added is not a number if y is not
                weights[i][n] = static_cast<float>(inside + BiasLattice::kMargin - whole + 0 * y);
            }
        }
    }
};

// The four corners between which the biases of a vector of queries to a key lie, and their weights. Corners are offsets
// in the lattice's values; those of a second piece lie `second` behind them.
template <int kPieces>
struct Corners {
    int32_t top_left, top_right, bottom_left, bottom_right, second;
    float left, right;
    Vec top, bottom;

    // Of key n of the block that starts at first_key, and of a vector of a tile whose pieces start in these columns.
    Corners(const Head& head, const TableRows& rows, int vector, const int* map_columns, int first_key, int n) {
        const BiasLattice::Column& column = head.columns[first_key + n];
        const int first = vector * kPieces, last = first + kPieces - 1;
        const int32_t row = rows.offsets[first][n] + map_columns[first];
        second = rows.offsets[last][n] + map_columns[last] - row;
        top_left = row + column.left;
        top_right = row + column.right;
        bottom_left = top_left + head.lattice.row_size();
        bottom_right = top_right + head.lattice.row_size();
        right = column.weight;
        left = 1 - right;
        bottom = broadcast(rows.weights[first][n]);
        if constexpr (kPieces == 2) bottom = simd::join(bottom, broadcast(rows.weights[last][n]), simd::kLaneSequence);
        top = 1 - bottom;
    }

    Vec bias(const float* values) const {
        const Vec above = left * load_from(values, top_left) + right * load_from(values, top_right);
        const Vec below = left * load_from(values, bottom_left) + right * load_from(values, bottom_right);
        return top * above + bottom * below;
    }

    Vec load_from(const float* values, int32_t corner) const {
        const float* from = values + corner;
        if constexpr (kPieces == 2) return simd::load_halves(from, from + second, simd::kLaneSequence);
        return load(from);
    }

    // One corner, and one piece, after the other, for they overlap.
    void add_to(float* values, int32_t corner, Vec x) const {
        float* to = values + corner;
        if constexpr (kPieces == 2) {
            simd::add_half<0>(to, x, simd::kHalfSequence);
            simd::add_half<kLanes / 2>(to + second, x, simd::kHalfSequence);
        } else {
            store(to, load(to) + x);
        }
    }
};

// Some vectors of queries. What is kept of them, their matrices, lie at `[channel][vector of the tile][lane]`.
// kDims is d where it is a multiple of kLanes that is known to the compiler, or else 0.
template <int kVectors, int kDims, int kPieces>
struct Tile {
    static constexpr int kStride = kVectors * kLanes;  // from a channel to the next
    const Head& head;
    const int dims = kDims ? kDims : head.dims;
    int map_rows[kVectors * kPieces], map_columns[kVectors * kPieces];  // where the pieces start on the map
    int queries[kStride];                                               // in the lanes, -1 for none

    Tile(const Head& head, const Layout<kPieces>& layout, int first_vector) : head(head) {
        for (int i = 0; i < kVectors * kPieces; ++i) {
            const int row = layout.row(first_vector * kPieces + i), column = layout.column(first_vector * kPieces + i);
            for (int lane = 0; lane < layout.kPiece; ++lane) {
                const bool filled = row < layout.height && column + lane < layout.width;
                queries[i * layout.kPiece + lane] = filled ? row * layout.width + column + lane : -1;
            }
            map_rows[i] = std::min(row, layout.height - 1);  // a last piece may lie behind the map
            map_columns[i] = column;
        }
    }

    // Lanes without a query, and channels beyond d, become 0. `copy`, if there is one, gets (query, dims).
    void load_transposed(const Rows& from, float* to, float* copy = nullptr) const {
        for (int i = 0; i < kVectors; ++i) {
            for (int c = 0; c < dims; c += kLanes) {
                Vec x[kLanes];
                for (int lane = 0; lane < kLanes; ++lane) {
                    const int query = queries[i * kLanes + lane];
                    x[lane] = query < 0 ? Vec{} : load_channels(row(from, query), c);
                    if (copy) store(copy + (i * kLanes + lane) * dims + c, x[lane]);
                }
                simd::transpose(x);
                for (int j = 0; j < kLanes; ++j) store(to + (c + j) * kStride + i * kLanes, x[j]);
            }
        }
    }

    // The other way round, each query times its factor.
    void store_transposed(const float* from, const Vec* factors, const Rows& to) const {
        for (int i = 0; i < kVectors; ++i) {
            for (int c = 0; c < dims; c += kLanes) {
                Vec x[kLanes];
                for (int j = 0; j < kLanes; ++j) x[j] = load(from + (c + j) * kStride + i * kLanes) * factors[i];
                simd::transpose(x);
                for (int lane = 0; lane < kLanes; ++lane) {
                    const int query = queries[i * kLanes + lane];
                    if (query >= 0) store_channels(row(to, query), c, x[lane]);
                }
            }
        }
    }

    // to[key][vector] += rows[key][channel] * matrix[channel][vector], over the channels, for kStep keys.
    void add_products(const float* rows, const float* matrix, Vec (&to)[kStep][kVectors]) const {
        Vec sums[kStep][kVectors];  // a copy, for the compiler to keep it in registers
        std::memcpy(sums, to, sizeof(sums));
        for (int c = 0; c < dims; ++c) {
            Vec key[kStep];
            for (int n = 0; n < kStep; ++n) key[n] = broadcast(rows[n * dims + c]);
#pragma GCC unroll 8
            for (int i = 0; i < kVectors; ++i) {
                const Vec query = load(matrix + c * kStride + i * kLanes);
                for (int n = 0; n < kStep; ++n) sums[n][i] += key[n] * query;
            }
        }
        std::memcpy(to, sums, sizeof(sums));
    }

    // matrix[channel][vector] = matrix[channel][vector] * scales[vector] + weights[key][vector] * rows[key][channel],
    // summed over `count` keys. Keys are summed before they are added: that keeps more digits than one long sum.
    void add_weighted(const float* rows, const float* weights, int count, const Vec* scales, float* matrix) const {
        for (int c = 0; c < dims; c += kStep) {
            Vec sums[kStep][kVectors]{};
            for (int n = 0; n < count; ++n) {
                Vec key[kStep];
                for (int j = 0; j < kStep; ++j) key[j] = broadcast(rows[n * dims + c + j]);
#pragma GCC unroll 8
                for (int i = 0; i < kVectors; ++i) {
                    const Vec weight = load(weights + n * kStride + i * kLanes);
                    for (int j = 0; j < kStep; ++j) sums[j][i] += key[j] * weight;
                }
            }
            for (int j = 0; j < kStep; ++j) {
                for (int i = 0; i < kVectors; ++i) {
                    float* at = matrix + (c + j) * kStride + i * kLanes;
                    store(at, load(at) * scales[i] + sums[j][i]);
                }
            }
        }
    }

    // to[key][channel] += weights[key][query] * copies[query][channel], over the queries of the tile, for `count` keys.
    void add_over_queries(const float* weights, const float* copies, int count, float* to) const {
        for (int n = 0; n < count; n += kKeyStep) {
            for (int c = 0; c < dims; c += 2 * kLanes) {
                const bool two = c + kLanes < dims;
                Vec sums[kKeyStep][2]{};
                for (int query = 0; query < kStride; ++query) {
                    const Vec x = load(copies + query * dims + c);
                    const Vec next = two ? load(copies + query * dims + c + kLanes) : Vec{};
#pragma GCC unroll 8
                    for (int k = 0; k < kKeyStep; ++k) {
                        const Vec weight = broadcast(weights[(n + k) * kStride + query]);
                        sums[k][0] += weight * x;
                        sums[k][1] += weight * next;
                    }
                }
                for (int k = 0; k < kKeyStep; ++k) {
                    float* at = to + (n + k) * dims + c;
                    store(at, load(at) + sums[k][0]);
                    if (two) store(at + kLanes, load(at + kLanes) + sums[k][1]);
                }
            }
        }
    }

    // Biases of kStep keys, from `n` of the block on.
    void load_biases(const TableRows& table_rows, int first_key, int n, Vec (&to)[kStep][kVectors]) const {
        for (int k = 0; k < kStep; ++k) {
            for (int i = 0; i < kVectors; ++i) {
                to[k][i] = Corners<kPieces>(head, table_rows, i, map_columns, first_key, n + k).bias(head.biases);
            }
        }
    }

   private:
    float* row(const Rows& rows, int query) const { return rows.row(head.image, head.index, query); }

    Vec load_channels(const float* row, int c) const {
        if (kDims) return load(row + c);
        Vec x{};
        for (int j = 0; j < kLanes && c + j < head.args.head_dims; ++j) x[j] = row[c + j];
        return x;
    }
    void store_channels(float* row, int c, Vec x) const {
        if (kDims) return store(row + c, x);
        for (int j = 0; j < kLanes && c + j < head.args.head_dims; ++j) row[c + j] = x[j];
    }
};

struct ForwardScratch {
    Buffer q, out;   // of a tile
    Buffer weights;  // (key of the block, query of the tile)
    explicit ForwardScratch(const Head& head)
        : q(head.dims * kTile * kLanes), out(head.dims * kTile * kLanes), weights(kBlock * kTile * kLanes) {}
};

template <int kVectors, int kDims, int kPieces>
void forward_tile(const Head& head, const Layout<kPieces>& layout, int first_vector, ForwardScratch& scratch) {
    const Arguments& args = head.args;
    const Tile<kVectors, kDims, kPieces> tile(head, layout, first_vector);
    constexpr int kStride = tile.kStride;
    tile.load_transposed(args.q, scratch.q);
    scratch.out.clear();
    Vec highest[kVectors], total[kVectors];
    for (int i = 0; i < kVectors; ++i) {
        highest[i] = broadcast(-std::numeric_limits<float>::infinity());
        total[i] = Vec{};
    }

    TableRows table_rows;
    for (int first_key = 0; first_key < args.num_keys; first_key += kBlock) {
        const int count = std::min(kBlock, args.num_keys - first_key);
        table_rows.locate(head, tile.map_rows, kVectors * kPieces, first_key);
        Vec highest_here[kVectors];
        std::copy_n(highest, kVectors, highest_here);
        for (int n = 0; n < count; n += kStep) {
            Vec logits[kStep][kVectors];
            tile.load_biases(table_rows, first_key, n, logits);
            tile.add_products(head.k + static_cast<int64_t>(first_key + n) * tile.dims, scratch.q, logits);
            for (int k = 0; k < kStep; ++k) {
                for (int i = 0; i < kVectors; ++i) {
                    if (n + k < count) highest_here[i] = simd::max(highest_here[i], logits[k][i]);
                    store(scratch.weights + (n + k) * kStride + i * kLanes, logits[k][i]);
                }
            }
        }
        Vec scales[kVectors];
        for (int i = 0; i < kVectors; ++i) {
            scales[i] = simd::exp2(highest[i] - highest_here[i]);
            highest[i] = highest_here[i];
            Vec total_here{};
            for (int n = 0; n < count; ++n) {
                float* weight = scratch.weights + n * kStride + i * kLanes;
                const Vec exponential = simd::exp2(load(weight) - highest[i]);
                store(weight, exponential);
                total_here += exponential;
            }
            total[i] = total[i] * scales[i] + total_here;
        }
        const float* v = head.v + static_cast<int64_t>(first_key) * tile.dims;
        tile.add_weighted(v, scratch.weights, count, scales, scratch.out);
    }

    float* lse = args.lse_of(head.image, head.index);
    for (int i = 0; i < kVectors; ++i) {
        const Vec log_total = kLn2 * (highest[i] + simd::log2(total[i]));
        for (int lane = 0; lane < kLanes; ++lane) {
            if (const int query = tile.queries[i * kLanes + lane]; query >= 0) lse[query] = log_total[lane];
        }
        total[i] = 1.f / total[i];
    }
    tile.store_transposed(scratch.out, total, args.out);
}

struct BackwardScratch {
    Buffer q, grad_out, grad_q;    // of a tile
    Buffer q_rows, grad_out_rows;  // (query of the tile, dims)
    Buffer weights, grad_logits;   // (key of the block, query of the tile)
    Buffer grad_biases;            // like the biases of a head
    Buffer grad_k, grad_v;         // (N_k and a block, dims)
    Buffer grad_locations;         // (N_k, 2)
    explicit BackwardScratch(const Head& head)
        : q(head.dims * kTile * kLanes),
          grad_out(head.dims * kTile * kLanes),
          grad_q(head.dims * kTile * kLanes),
          q_rows(head.dims * kTile * kLanes),
          grad_out_rows(head.dims * kTile * kLanes),
          weights(kBlock * kTile * kLanes),
          grad_logits(kBlock * kTile * kLanes),
          grad_biases(head.lattice.size()),
          grad_k(head.size_of_keys()),
          grad_v(head.size_of_keys()),
          grad_locations(2 * int64_t{head.args.num_keys}) {}

    void clear_keys() {
        for (Buffer* buffer : {&grad_k, &grad_v, &grad_locations}) buffer->clear();
    }
};

template <int kVectors, int kDims, int kPieces>
void backward_tile(const Head& head, const Layout<kPieces>& layout, int first_vector, BackwardScratch& scratch) {
    const Arguments& args = head.args;
    const Tile<kVectors, kDims, kPieces> tile(head, layout, first_vector);
    constexpr int kStride = tile.kStride;
    const int dims = tile.dims;
    tile.load_transposed(args.q, scratch.q, scratch.q_rows);
    tile.load_transposed(args.grad_out, scratch.grad_out, scratch.grad_out_rows);
    tile.load_transposed(args.out, scratch.grad_q);

    Vec ones[kVectors], log_total[kVectors], delta[kVectors]{};  // delta: out . grad_out
    for (int c = 0; c < dims; ++c) {
        for (int i = 0; i < kVectors; ++i) {
            float* out = scratch.grad_q + c * kStride + i * kLanes;
            delta[i] += load(out) * load(scratch.grad_out + c * kStride + i * kLanes);
            store(out, Vec{});
        }
    }
    const float* lse = args.lse_of(head.image, head.index);
    for (int i = 0; i < kVectors; ++i) {
        log_total[i] = broadcast(1e30f);  // so lanes without a query have no weights
        for (int lane = 0; lane < kLanes; ++lane) {
            if (const int query = tile.queries[i * kLanes + lane]; query >= 0) log_total[i][lane] = kLog2E * lse[query];
        }
        ones[i] = broadcast(1);
    }

    TableRows table_rows;
    for (int first_key = 0; first_key < args.num_keys; first_key += kBlock) {
        const int count = std::min(kBlock, args.num_keys - first_key);
        const int64_t first = static_cast<int64_t>(first_key) * dims;
        const float *k = head.k + first, *v = head.v + first;
        table_rows.locate(head, tile.map_rows, kVectors * kPieces, first_key);
        for (int n = 0; n < (count + kKeyStep - 1) / kKeyStep * kKeyStep; n += kStep) {
            Vec sums[kStep][kVectors];
            tile.load_biases(table_rows, first_key, n, sums);
            tile.add_products(k + n * dims, scratch.q, sums);
            for (int key = 0; key < kStep; ++key) {
                for (int i = 0; i < kVectors; ++i) {
                    // where logits are huge, rounding may lift them far above the logarithm of their sum
                    const Vec exponent = sums[key][i] - log_total[i];
                    const Vec weight = n + key < count ? simd::exp2(exponent > 0.f ? Vec{} : exponent) : Vec{};
                    store(scratch.weights + (n + key) * kStride + i * kLanes, weight);
                    sums[key][i] = -delta[i];
                }
            }
            tile.add_products(v + n * dims, scratch.grad_out, sums);
            for (int key = 0; key < kStep; ++key) {
                for (int i = 0; i < kVectors; ++i) {
                    const int at = (n + key) * kStride + i * kLanes;
                    store(scratch.grad_logits + at, sums[key][i] * load(scratch.weights + at));
                }
            }
        }
        tile.add_weighted(k, scratch.grad_logits, count, ones, scratch.grad_q);
        tile.add_over_queries(scratch.grad_logits, scratch.q_rows, count, scratch.grad_k + first);
        tile.add_over_queries(scratch.weights, scratch.grad_out_rows, count, scratch.grad_v + first);

        const float* biases = head.biases;
        float* grad_biases = scratch.grad_biases;
        for (int n = 0; n < count; ++n) {
            Vec grad_x{}, grad_y{};
            for (int i = 0; i < kVectors; ++i) {
                const Corners<kPieces> at(head, table_rows, i, tile.map_columns, first_key, n);
                const Vec grad = load(scratch.grad_logits + n * kStride + i * kLanes);
                const Vec top_left = at.load_from(biases, at.top_left), top_right = at.load_from(biases, at.top_right);
                const Vec bottom_left = at.load_from(biases, at.bottom_left);
                const Vec bottom_right = at.load_from(biases, at.bottom_right);
                grad_x += grad * (at.top * (top_right - top_left) + at.bottom * (bottom_right - bottom_left));
                grad_y += grad * (at.left * (bottom_left - top_left) + at.right * (bottom_right - top_right));

                const Vec above = at.top * grad, below = at.bottom * grad;
                at.add_to(grad_biases, at.top_left, at.left * above);
                at.add_to(grad_biases, at.top_right, at.right * above);
                at.add_to(grad_biases, at.bottom_left, at.left * below);
                at.add_to(grad_biases, at.bottom_right, at.right * below);
            }
            scratch.grad_locations[2 * (first_key + n)] += simd::sum(grad_y);
            scratch.grad_locations[2 * (first_key + n) + 1] += simd::sum(grad_x);
        }
    }
    Vec factors[kVectors];
    for (int i = 0; i < kVectors; ++i) factors[i] = broadcast(kLn2);  // the keys hold log2(e) and the scale
    tile.store_transposed(scratch.grad_q, factors, args.grad_q);
}

// What one split of the queries adds to the gradients of a head's keys.
void store_keys(const Head& head, int split, const BackwardScratch& scratch) {
    const Arguments& args = head.args;
    const float scale = 1 / std::sqrt(static_cast<float>(args.head_dims));
    // the bias has the factor log2(e), its gradient does not
    const float slope_y = -0.25 * (args.table_height - 1) * kLn2, slope_x = head.lattice.slope() * kLn2;
    const int64_t index = (static_cast<int64_t>(split) * args.batch + head.image) * args.num_heads + head.index;
    float* grad_location = args.grad_locations + index * args.num_keys * 2;
    for (int64_t n = 0; n < args.num_keys; ++n) {
        float* grad_k = args.grad_k.row(head.image, head.index, n) + split * args.split_stride;
        float* grad_v = args.grad_v.row(head.image, head.index, n) + split * args.split_stride;
        copy_channels(scratch.grad_k + n * head.dims, args.head_dims, scale, grad_k);
        copy_channels(scratch.grad_v + n * head.dims, args.head_dims, 1, grad_v);
        grad_location[2 * n] = scratch.grad_locations[2 * n] * slope_y;
        grad_location[2 * n + 1] = scratch.grad_locations[2 * n + 1] * slope_x;
    }
}

// Calls function(count as a constant of the compiler), for a count from 1 to kMost.
template <int kMost = kTile, typename Function>
void call_with_constant(int count, const Function& function) {
    if constexpr (kMost > 1) {
        if (count < kMost) return call_with_constant<kMost - 1>(count, function);
    }
    function(std::integral_constant<int, kMost>());
}

BiasLattice make_lattice(const Arguments& args) {
    const int64_t num_keys = static_cast<int64_t>(args.batch) * args.num_groups * args.num_keys;
    return {args.table_height, args.table_width, args.width, args.x_axis, args.locations + 1, num_keys};
}

// Calls function(head, image, part) for the share of a thread, when each head of each image is cut into `parts`.
template <typename Function>
void for_tasks(const Arguments& args, int parts, int thread, int threads, const Function& function) {
    const int64_t all = static_cast<int64_t>(args.num_heads) * args.batch * parts;
    for (int64_t task = part_of(all, thread, threads); task < part_of(all, thread + 1, threads); ++task) {
        function(task / parts / args.batch, task / parts % args.batch, task % parts);
    }
}

template <int kDims, int kPieces>
void forward(const Arguments& args) {
    const BiasLattice lattice = make_lattice(args);
    const KeyPlaces places(args, lattice);
    const Layout<kPieces> layout{args.height, args.width};
    parallel(args.threads, [&](int thread, int threads) {
        Head head(args, lattice, places);
        ForwardScratch scratch(head);
        for_tasks(args, layout.num_tiles(), thread, threads, [&](int new_head, int image, int tile) {
            head.enter(new_head, image);
            const int first = layout.first_vector(tile);
            call_with_constant(layout.first_vector(tile + 1) - first, [&](auto vectors) {
                forward_tile<vectors, kDims, kPieces>(head, layout, first, scratch);
            });
        });
    });
}

template <int kDims, int kPieces>
void backward(const Arguments& args) {
    const BiasLattice lattice = make_lattice(args);
    const KeyPlaces places(args, lattice);
    const Layout<kPieces> layout{args.height, args.width};
    const int64_t table_size = static_cast<int64_t>(args.table_height) * args.table_width;
    parallel(args.threads, [&](int thread, int threads) {
        Head head(args, lattice, places);
        BackwardScratch scratch(head);
        auto collect_biases = [&] {
            if (head.index < 0) return;
            const int64_t index = static_cast<int64_t>(thread) * args.num_heads + head.index;
            lattice.collect(scratch.grad_biases, args.grad_table + index * table_size);
            scratch.grad_biases.clear();
        };
        auto first_tile = [&](int split) { return part_of(layout.num_tiles(), split, args.splits); };
        for_tasks(args, args.splits, thread, threads, [&](int new_head, int image, int split) {
            if (new_head != head.index) collect_biases();
            head.enter(new_head, image);
            scratch.clear_keys();
            for (int tile = first_tile(split); tile < first_tile(split + 1); ++tile) {
                const int first = layout.first_vector(tile);
                call_with_constant(layout.first_vector(tile + 1) - first, [&](auto vectors) {
                    backward_tile<vectors, kDims, kPieces>(head, layout, first, scratch);
                });
            }
            store_keys(head, split, scratch);
        });
        collect_biases();
    });
}

}  // namespace

extern "C" {

int mmdat_lanes() { return kLanes; }

int64_t mmdat_sizeof_arguments() { return sizeof(Arguments); }

// Both return nullptr, or what went wrong.

const char* mmdat_deformable_attention(const Arguments* args) {
    return message_of_failure([&] {
        if (args->head_dims != 32) return forward<0, 1>(*args);
        call_with_constant<kMostPieces>(best_pieces(*args), [&](auto pieces) { forward<32, pieces>(*args); });
    });
}

const char* mmdat_deformable_attention_backward(const Arguments* args) {
    return message_of_failure([&] {
        if (args->head_dims != 32) return backward<0, 1>(*args);
        call_with_constant<kMostPieces>(best_pieces(*args), [&](auto pieces) { backward<32, pieces>(*args); });
    });
}
}
