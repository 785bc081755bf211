// Deformable attention on CPUs, Equation (9) of the paper, in float32. See `Arguments` for shapes.
//
// Keys are broadcast, queries are the lanes of vectors: a vector holds neighbouring queries of one row of the map, a
// tile is up to kTile vectors. The forward pass walks over blocks of kBlock keys with an online softmax; the
// backward pass computes the probabilities of a block again from the stored denominators. Logits never leave the
// cache. In both, a thread takes a contiguous part of the work, ordered by head: it lays out the bias table once
// for each of its heads. The parts depend on nothing but the sizes and the number of threads, so results do not either.
//
// Logits are computed in base 2: queries' and tables' factors hold log2(e).

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "bias_table.h"
#include "simd.h"

using simd::broadcast;
using simd::kLanes;
using simd::kTile;
using simd::load;
using simd::store;
using simd::Vec;

namespace {

constexpr int kBlock = 32;  // keys
constexpr int kKeys = 4;    // that products of keys and queries take at a time
constexpr int kKeyRows = kTile == 6 ? 8 : 4;  // that products over queries take at a time
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// A tensor (B, M, N, d) whose rows of d numbers are contiguous; strides are in floats.
struct Rows {
    float* data;
    int64_t batch_stride, head_stride, row_stride;
    float* row(int b, int m, int n) const { return data + b * batch_stride + m * head_stride + n * row_stride; }
};

}  // namespace

// Mirrored by `_Arguments` in cpu.py.
struct Arguments {
    int32_t batch, heads, groups, height, width, keys, dims, table_height, table_width;
    int32_t splits;   // parts that the queries of a head are cut into in the backward pass
    int32_t threads;  // at most
    QueryAxis y_axis, x_axis;
    Rows q, k, v, out;              // (B, M, H W, d), (B, M, N_k, d) twice, (B, M, H W, d)
    const float* table;             // (M, T_h, T_w)
    const float* locations;         // (B, G, N_k, 2), (y, x)
    float* lse;                     // (B, M, H W), natural logarithm of the softmax's denominator
    Rows grad_out, grad_q;          // (B, M, H W, d)
    float *grad_k, *grad_v;         // (splits, B, M, N_k, d)
    float* grad_table;              // (threads, M, T_h, T_w), zeros
    float* grad_locations;          // (splits, B, M, N_k, 2)
};

namespace {

// Uninitialised floats at a cache line's border.
class Buffer {
   public:
    explicit Buffer(int64_t size) : data_(static_cast<float*>(::operator new[](size * sizeof(float), kAlign))) {}
    operator float*() const { return data_.get(); }

   private:
    static constexpr std::align_val_t kAlign{64};
    struct Delete {
        void operator()(float* data) const { ::operator delete[](data, kAlign); }
    };
    std::unique_ptr<float[], Delete> data_;
};

// Vectors of queries, counted row by row: a row of the map has `per_row` of them, the last one not full.
struct QueryVectors {
    int height, width, per_row;
    explicit QueryVectors(const Arguments& args)
        : height(args.height), width(args.width), per_row((args.width + kLanes - 1) / kLanes) {}
    int count() const { return height * per_row; }
    int row(int vector) const { return vector / per_row; }
    int column(int vector) const { return vector % per_row * kLanes; }
    int query(int vector) const { return row(vector) * width + column(vector); }
    int filled(int vector) const { return std::min(kLanes, width - column(vector)); }
};

int padded_dims(const Arguments& args) { return (args.dims + kLanes - 1) / kLanes * kLanes; }
int num_tiles(int vectors) { return (vectors + kTile - 1) / kTile; }
int first_of_part(int64_t count, int part, int parts) { return static_cast<int>(count * part / parts); }

// What a thread keeps of the head and the image that it works on.
struct Head {
    const Arguments& args;
    const BiasLattice& lattice;
    Buffer bias;     // values of the lattice
    const int dims;  // d, padded by zeros to whole vectors
    Buffer k, v;     // (N_k padded, dims), contiguous; the keys have the factor of the logits
    std::vector<BiasLattice::Column> columns;  // of each key; behind the last one it is repeated
    std::vector<float> y;                      // of each key, alike
    int m = -1, b = -1;

    Head(const Arguments& args, const BiasLattice& lattice)
        : args(args),
          lattice(lattice),
          bias(lattice.size()),
          dims(padded_dims(args)),
          k(static_cast<int64_t>(args.keys + kBlock) * dims),
          v(static_cast<int64_t>(args.keys + kBlock) * dims),
          columns(args.keys + kBlock),
          y(args.keys + kBlock) {}

    // Returns whether the head is another one than before.
    bool enter(int head, int image) {
        const bool other_head = head != m;
        if (other_head) {
            lattice.spread(args.table + static_cast<int64_t>(head) * args.table_height * args.table_width, kLog2E, bias);
        }
        if (other_head || image != b) {
            pack(args.k, head, image, kLog2E / std::sqrt(static_cast<float>(args.dims)), k);
            pack(args.v, head, image, 1, v);
            const int group = head / (args.heads / args.groups);
            const float* location = args.locations + (static_cast<int64_t>(image) * args.groups + group) * args.keys * 2;
            for (int n = 0; n < args.keys + kBlock; ++n) {  // behind the last key it is repeated
                const float* at = location + 2 * std::min(n, args.keys - 1);
                y[n] = at[0];
                columns[n] = lattice.column(at[1]);
            }
        }
        m = head;
        b = image;
        return other_head;
    }

   private:
    void pack(const Rows& rows, int head, int image, float factor, float* to) const {
        for (int n = 0; n < args.keys; ++n) {
            const float* row = rows.row(image, head, n);
            for (int c = 0; c < dims; ++c) to[c] = c < args.dims ? row[c] * factor : 0.f;
            to += dims;
        }
        std::fill_n(to, static_cast<int64_t>(kBlock) * dims, 0.f);
    }
};

// Where a block of keys sees the rows of queries of a tile: for each row and key the offset of the table row above,
// and the weight of the row below.
struct TableRows {
    int32_t offsets[kTile][kBlock];
    float weights[kTile][kBlock];

    void locate(const Head& head, const int* query_rows, int count, int first_key) {
        const Arguments& args = head.args;
        const double lowest = -BiasLattice::kMargin, highest = args.table_height;
        for (int i = 0; i < count; ++i) {
            if (i && query_rows[i] == query_rows[i - 1]) {
                std::memcpy(offsets[i], offsets[i - 1], sizeof(offsets[i]));
                std::memcpy(weights[i], weights[i - 1], sizeof(weights[i]));
                continue;
            }
            for (int n = 0; n < kBlock; ++n) {
                const double y = args.y_axis.at(query_rows[i], head.y[first_key + n], args.table_height);
                const double inside = y > lowest ? std::min(y, highest) : lowest;
                const int whole = static_cast<int>(inside + BiasLattice::kMargin);
                offsets[i][n] = whole * head.lattice.phase_size();
                // the zero that is added is not a number if y is not
                weights[i][n] = static_cast<float>(inside + BiasLattice::kMargin - whole + (y - y));
            }
        }
    }
};

// The four corners between which the bias of a vector of queries lies, and their weights.
struct Corners {
    const float *top_left, *top_right;
    int to_bottom;
    float left, right, top, bottom;

    // Key `n` of the block that starts at first_key, seen by the queries of a vector of the tile.
    Corners(const Head& head, const TableRows& rows, int vector, int query_column, int first_key, int n)
        : to_bottom(head.lattice.phase_size()) {
        const BiasLattice::Column& column = head.columns[first_key + n];
        const float* row = head.bias + rows.offsets[vector][n] + query_column;
        top_left = row + column.left;
        top_right = row + column.right;
        right = column.weight;
        left = 1 - right;
        bottom = rows.weights[vector][n];
        top = 1 - bottom;
    }

    Vec bias() const {
        const Vec above = left * load(top_left) + right * load(top_right);
        const Vec below = left * load(top_left + to_bottom) + right * load(top_right + to_bottom);
        return top * above + bottom * below;
    }
};

// Queries, or their gradients, of a tile: vectors are at `[channel][vector of the tile][lane]`.
template <int kVectors, int kDims>
struct Tile {
    static constexpr int kStride = kVectors * kLanes;  // from a channel to the next
    const Head& head;
    const QueryVectors& vectors;
    const int first;  // vector
    const int dims = kDims ? kDims : head.dims;
    int query_rows[kVectors], columns[kVectors];

    Tile(const Head& head, const QueryVectors& vectors, int first) : head(head), vectors(vectors), first(first) {
        for (int i = 0; i < kVectors; ++i) {
            query_rows[i] = vectors.row(first + i);
            columns[i] = vectors.column(first + i);
        }
    }

    // Lanes beyond the end of a map's row, and channels beyond d, become 0.
    void load_transposed(const Rows& rows, float* to) const {
        for (int i = 0; i < kVectors; ++i) {
            const int query = vectors.query(first + i), filled = vectors.filled(first + i);
            for (int c = 0; c < dims; c += kLanes) {
                Vec x[kLanes];
                for (int lane = 0; lane < kLanes; ++lane) {
                    x[lane] = lane < filled ? load_channels(rows.row(head.b, head.m, query + lane), c) : Vec{};
                }
                simd::transpose(x);
                for (int j = 0; j < kLanes; ++j) store(to + (c + j) * kStride + i * kLanes, x[j]);
            }
        }
    }

    // Asks for the rows of the tile behind this one.
    void prefetch_next(const Rows& rows) const {
        const int begin = vectors.query(first + kVectors - 1) + kLanes, end = begin + kVectors * kLanes;
        for (int n = begin; n < std::min(end, vectors.height * vectors.width); ++n) {
            const char* row = reinterpret_cast<const char*>(rows.row(head.b, head.m, n));
            for (size_t byte = 0; byte < dims * sizeof(float); byte += 64) __builtin_prefetch(row + byte);
        }
    }

    // The other way round, each query times its factor.
    void store_transposed(const float* from, const Vec* factors, const Rows& rows) const {
        for (int i = 0; i < kVectors; ++i) {
            const int query = vectors.query(first + i), filled = vectors.filled(first + i);
            for (int c = 0; c < dims; c += kLanes) {
                Vec x[kLanes];
                for (int j = 0; j < kLanes; ++j) x[j] = load(from + (c + j) * kStride + i * kLanes) * factors[i];
                simd::transpose(x);
                for (int lane = 0; lane < filled; ++lane) {
                    store_channels(rows.row(head.b, head.m, query + lane), c, x[lane]);
                }
            }
        }
    }

    // sums[key][vector] += keys . queries, over the channels, for kKeys rows of keys.
    void add_products(const float* keys, const float* queries, Vec (&sums)[kKeys][kVectors]) const {
        for (int c = 0; c < dims; ++c) {
            Vec key[kKeys];
            for (int n = 0; n < kKeys; ++n) key[n] = broadcast(keys[n * dims + c]);
#pragma GCC unroll 8
            for (int i = 0; i < kVectors; ++i) {
                const Vec query = load(queries + c * kStride + i * kLanes);
                for (int n = 0; n < kKeys; ++n) sums[n][i] += key[n] * query;
            }
        }
    }

    // to[channel][vector] = to[channel][vector] * scales[vector] + weights[key][vector] * keys[key][channel], summed over
    // `count` keys. The keys are summed before they are added, which keeps more digits than one long sum.
    void add_weighted(const float* keys, const float* weights, int count, const Vec* scales, float* to) const {
        for (int c = 0; c < dims; c += kKeys) {
            Vec sums[kKeys][kVectors]{};
            for (int n = 0; n < count; ++n) {
                Vec key[kKeys];
                for (int j = 0; j < kKeys; ++j) key[j] = broadcast(keys[n * dims + c + j]);
#pragma GCC unroll 8
                for (int i = 0; i < kVectors; ++i) {
                    const Vec weight = load(weights + n * kStride + i * kLanes);
                    for (int j = 0; j < kKeys; ++j) sums[j][i] += key[j] * weight;
                }
            }
            for (int j = 0; j < kKeys; ++j) {
                for (int i = 0; i < kVectors; ++i) {
                    float* at = to + (c + j) * kStride + i * kLanes;
                    store(at, load(at) * scales[i] + sums[j][i]);
                }
            }
        }
    }

    // Biases of kKeys keys, from `n` of the block on, less `minus` of each query.
    void load_biases(const TableRows& table_rows, int first_key, int n, const Vec* minus, Vec (&to)[kKeys][kVectors]) const {
        for (int k = 0; k < kKeys; ++k) {
            for (int i = 0; i < kVectors; ++i) {
                const Corners corners(head, table_rows, i, columns[i], first_key, n + k);
                to[k][i] = minus ? corners.bias() - minus[i] : corners.bias();
            }
        }
    }

   private:
    Vec load_channels(const float* row, int c) const {
        if (kDims) return load(row + c);
        Vec x{};
        for (int j = 0; j < kLanes && c + j < head.args.dims; ++j) x[j] = row[c + j];
        return x;
    }
    void store_channels(float* row, int c, Vec x) const {
        if (kDims) return store(row + c, x);
        for (int j = 0; j < kLanes && c + j < head.args.dims; ++j) row[c + j] = x[j];
    }
};

struct ForwardScratch {
    Buffer q, out, weights;
    explicit ForwardScratch(int dims)
        : q(dims * kTile * kLanes), out(dims * kTile * kLanes), weights(kBlock * kTile * kLanes) {}
};

template <int kVectors, int kDims>
void forward_tile(const Head& head, const QueryVectors& vectors, int first, ForwardScratch& scratch) {
    const Arguments& args = head.args;
    const Tile<kVectors, kDims> tile(head, vectors, first);
    constexpr int kStride = tile.kStride;
    tile.load_transposed(args.q, scratch.q);
    tile.prefetch_next(args.q);
    std::fill_n(static_cast<float*>(scratch.out), tile.dims * kStride, 0.f);
    Vec highest[kVectors], total[kVectors];
    for (int i = 0; i < kVectors; ++i) {
        highest[i] = broadcast(-std::numeric_limits<float>::infinity());
        total[i] = Vec{};
    }

    TableRows table_rows;
    for (int first_key = 0; first_key < args.keys; first_key += kBlock) {
        const int count = std::min(kBlock, args.keys - first_key);
        table_rows.locate(head, tile.query_rows, kVectors, first_key);
        Vec highest_here[kVectors];
        std::copy_n(highest, kVectors, highest_here);
        for (int n = 0; n < count; n += kKeys) {
            Vec logits[kKeys][kVectors];
            tile.load_biases(table_rows, first_key, n, nullptr, logits);
            tile.add_products(head.k + (first_key + n) * tile.dims, scratch.q, logits);
            for (int k = 0; k < kKeys; ++k) {
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
        tile.add_weighted(head.v + first_key * tile.dims, scratch.weights, count, scales, scratch.out);
    }

    for (int i = 0; i < kVectors; ++i) {
        float* lse = args.lse + (static_cast<int64_t>(head.b) * args.heads + head.m) * args.height * args.width;
        for (int lane = 0; lane < vectors.filled(first + i); ++lane) {
            lse[vectors.query(first + i) + lane] = kLn2 * (highest[i][lane] + std::log2(total[i][lane]));
        }
        total[i] = 1.f / total[i];
    }
    tile.store_transposed(scratch.out, total, args.out);
}

struct BackwardScratch {
    Buffer q, grad_out, grad_q;               // tiles
    Buffer q_rows, grad_out_rows;             // (query of the tile, dims)
    Buffer weights, grad_logits;              // (key of the block, query of the tile)
    Buffer grad_bias;                         // like the values of the lattice
    Buffer grad_k, grad_v;                    // (N_k padded, dims)
    std::vector<float> grad_locations;        // (N_k, 2)
    explicit BackwardScratch(const Head& head)
        : q(head.dims * kTile * kLanes),
          grad_out(head.dims * kTile * kLanes),
          grad_q(head.dims * kTile * kLanes),
          q_rows(head.dims * kTile * kLanes),
          grad_out_rows(head.dims * kTile * kLanes),
          weights(kBlock * kTile * kLanes),
          grad_logits(kBlock * kTile * kLanes),
          grad_bias(head.lattice.size()),
          grad_k(static_cast<int64_t>(head.args.keys + kBlock) * head.dims),
          grad_v(static_cast<int64_t>(head.args.keys + kBlock) * head.dims),
          grad_locations(2 * head.args.keys) {}

    void clear_keys(const Head& head) {
        const int64_t size = static_cast<int64_t>(head.args.keys + kBlock) * head.dims;
        std::fill_n(static_cast<float*>(grad_k), size, 0.f);
        std::fill_n(static_cast<float*>(grad_v), size, 0.f);
        std::fill(grad_locations.begin(), grad_locations.end(), 0.f);
    }
};

// to[key][channel] += weights[key][query] * rows[query][channel], for a block of keys and the queries of a tile.
template <int kDims>
void add_transposed_products(const float* weights, const float* rows, int count, int queries, int all_dims, float* to) {
    const int dims = kDims ? kDims : all_dims;
    constexpr int kWidth = 2;  // vectors of channels at a time
    for (int n = 0; n < count; n += kKeyRows) {
        for (int c = 0; c < dims; c += kWidth * kLanes) {
            const int width = std::min(kWidth, (dims - c) / kLanes);
            if (width == kWidth) {
                Vec sums[kKeyRows][kWidth]{};
                for (int j = 0; j < queries; ++j) {
                    const Vec x0 = load(rows + j * dims + c), x1 = load(rows + j * dims + c + kLanes);
#pragma GCC unroll 8
                    for (int k = 0; k < kKeyRows; ++k) {
                        const Vec weight = broadcast(weights[(n + k) * queries + j]);
                        sums[k][0] += weight * x0;
                        sums[k][1] += weight * x1;
                    }
                }
                for (int k = 0; k < kKeyRows; ++k) {
                    for (int w = 0; w < kWidth; ++w) {
                        float* at = to + (n + k) * dims + c + w * kLanes;
                        store(at, load(at) + sums[k][w]);
                    }
                }
            } else {
                for (int k = 0; k < kKeyRows; ++k) {
                    Vec total{};
                    for (int j = 0; j < queries; ++j) total += weights[(n + k) * queries + j] * load(rows + j * dims + c);
                    store(to + (n + k) * dims + c, load(to + (n + k) * dims + c) + total);
                }
            }
        }
    }
}

template <int kVectors, int kDims>
void backward_tile(const Head& head, const QueryVectors& vectors, int first, BackwardScratch& scratch) {
    const Arguments& args = head.args;
    const Tile<kVectors, kDims> tile(head, vectors, first);
    constexpr int kStride = tile.kStride;
    const int dims = tile.dims;
    tile.load_transposed(args.q, scratch.q);
    tile.load_transposed(args.grad_out, scratch.grad_out);
    for (const Rows& rows : {args.q, args.out, args.grad_out}) tile.prefetch_next(rows);
    std::fill_n(static_cast<float*>(scratch.grad_q), dims * kStride, 0.f);

    // Where no query is, the denominator is infinite and the weights are 0.
    Vec log_total[kVectors], delta[kVectors], ones[kVectors];  // delta: rows of out . grad_out
    for (int i = 0; i < kVectors; ++i) {
        ones[i] = broadcast(1);
        const int query = vectors.query(first + i), filled = vectors.filled(first + i);
        const float* lse = args.lse + (static_cast<int64_t>(head.b) * args.heads + head.m) * args.height * args.width;
        log_total[i] = broadcast(1e30f);
        delta[i] = Vec{};
        for (int lane = 0; lane < kLanes; ++lane) {
            float* q_row = scratch.q_rows + (i * kLanes + lane) * dims;
            float* grad_out_row = scratch.grad_out_rows + (i * kLanes + lane) * dims;
            std::fill_n(q_row, dims, 0.f);
            std::fill_n(grad_out_row, dims, 0.f);
            if (lane >= filled) continue;
            const float* out = args.out.row(head.b, head.m, query + lane);
            std::copy_n(args.q.row(head.b, head.m, query + lane), args.dims, q_row);
            std::copy_n(args.grad_out.row(head.b, head.m, query + lane), args.dims, grad_out_row);
            float product = 0;
            for (int c = 0; c < args.dims; ++c) product += out[c] * grad_out_row[c];
            delta[i][lane] = product;
            log_total[i][lane] = kLog2E * lse[query + lane];
        }
    }

    TableRows table_rows;
    for (int first_key = 0; first_key < args.keys; first_key += kBlock) {
        const int count = std::min(kBlock, args.keys - first_key);
        const float *k = head.k + first_key * dims, *v = head.v + first_key * dims;
        table_rows.locate(head, tile.query_rows, kVectors, first_key);
        for (int n = 0; n < (count + kKeyRows - 1) / kKeyRows * kKeyRows; n += kKeys) {
            Vec sums[kKeys][kVectors];
            tile.load_biases(table_rows, first_key, n, log_total, sums);
            tile.add_products(k + n * dims, scratch.q, sums);
            for (int key = 0; key < kKeys; ++key) {
                for (int i = 0; i < kVectors; ++i) {
                    const Vec weight = n + key < count ? simd::exp2(sums[key][i]) : Vec{};
                    store(scratch.weights + (n + key) * kStride + i * kLanes, weight);
                    sums[key][i] = -delta[i];
                }
            }
            tile.add_products(v + n * dims, scratch.grad_out, sums);
            for (int key = 0; key < kKeys; ++key) {
                for (int i = 0; i < kVectors; ++i) {
                    const int64_t at = (n + key) * kStride + i * kLanes;
                    store(scratch.grad_logits + at, sums[key][i] * load(scratch.weights + at));
                }
            }
        }
        tile.add_weighted(k, scratch.grad_logits, count, ones, scratch.grad_q);
        add_transposed_products<kDims>(
            scratch.grad_logits, scratch.q_rows, count, kStride, dims, scratch.grad_k + first_key * dims);
        add_transposed_products<kDims>(
            scratch.weights, scratch.grad_out_rows, count, kStride, dims, scratch.grad_v + first_key * dims);

        for (int n = 0; n < count; ++n) {
            Vec grad_x{}, grad_y{};
            for (int i = 0; i < kVectors; ++i) {
                const Corners corners(head, table_rows, i, tile.columns[i], first_key, n);
                const Vec grad = load(scratch.grad_logits + n * kStride + i * kLanes);
                const Vec top_left = load(corners.top_left), bottom_left = load(corners.top_left + corners.to_bottom);
                const Vec top_right = load(corners.top_right), bottom_right = load(corners.top_right + corners.to_bottom);
                grad_x += grad * (corners.top * (top_right - top_left) + corners.bottom * (bottom_right - bottom_left));
                grad_y += grad * (corners.left * (bottom_left - top_left) + corners.right * (bottom_right - top_right));

                float* to_left = scratch.grad_bias + (corners.top_left - head.bias);
                float* to_right = scratch.grad_bias + (corners.top_right - head.bias);
                const Vec above = corners.top * grad, below = corners.bottom * grad;
                store(to_left, load(to_left) + corners.left * above);
                store(to_right, load(to_right) + corners.right * above);
                store(to_left + corners.to_bottom, load(to_left + corners.to_bottom) + corners.left * below);
                store(to_right + corners.to_bottom, load(to_right + corners.to_bottom) + corners.right * below);
            }
            scratch.grad_locations[2 * (first_key + n)] += simd::sum(grad_y);
            scratch.grad_locations[2 * (first_key + n) + 1] += simd::sum(grad_x);
        }
    }
    Vec factors[kVectors];
    for (int i = 0; i < kVectors; ++i) factors[i] = broadcast(kLn2);  // the keys hold log2(e) and the scale
    tile.store_transposed(scratch.grad_q, factors, args.grad_q);
}

// What one part of the queries adds to the gradients of a head's keys.
void store_keys(const Head& head, int split, const BackwardScratch& scratch) {
    const Arguments& args = head.args;
    const int64_t row = ((static_cast<int64_t>(split) * args.batch + head.b) * args.heads + head.m) * args.keys;
    const float scale = 1 / std::sqrt(static_cast<float>(args.dims));
    // the bias has the factor log2(e), its gradient does not
    const float slope_y = -0.25 * (args.table_height - 1) * kLn2, slope_x = head.lattice.slope() * kLn2;
    for (int n = 0; n < args.keys; ++n) {
        for (int c = 0; c < args.dims; ++c) {
            args.grad_k[(row + n) * args.dims + c] = scratch.grad_k[static_cast<int64_t>(n) * head.dims + c] * scale;
            args.grad_v[(row + n) * args.dims + c] = scratch.grad_v[static_cast<int64_t>(n) * head.dims + c];
        }
        args.grad_locations[(row + n) * 2] = scratch.grad_locations[2 * n] * slope_y;
        args.grad_locations[(row + n) * 2 + 1] = scratch.grad_locations[2 * n + 1] * slope_x;
    }
}

// Calls function<number of vectors, channels> for the tile that starts at vector `first` and ends before `last`.
#define MMDAT_CALL_TILE(function, head, vectors, first, last, scratch)                             \
    switch ((last) - (first)) {                                                                    \
        case 1: function<1, kDims>(head, vectors, first, scratch); break;                          \
        case 2: function<2, kDims>(head, vectors, first, scratch); break;                          \
        case 3: function<3, kDims>(head, vectors, first, scratch); break;                          \
        case 4: function<std::min(4, kTile), kDims>(head, vectors, first, scratch); break;         \
        case 5: function<std::min(5, kTile), kDims>(head, vectors, first, scratch); break;         \
        default: function<kTile, kDims>(head, vectors, first, scratch);                            \
    }

BiasLattice make_lattice(const Arguments& args) {
    const int64_t num_keys = static_cast<int64_t>(args.batch) * args.groups * args.keys;
    return {args.table_height, args.table_width, args.width, args.x_axis, args.locations + 1, num_keys};
}

template <int kDims>
void forward(const Arguments& args) {
    const BiasLattice lattice = make_lattice(args);
    const QueryVectors vectors(args);
    const int tiles = num_tiles(vectors.count());
    const int64_t work = static_cast<int64_t>(args.heads) * args.batch * tiles;
#pragma omp parallel num_threads(args.threads)
    {
        Head head(args, lattice);
        ForwardScratch scratch(head.dims);
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        for (int64_t i = work * thread / threads; i < work * (thread + 1) / threads; ++i) {
            const int tile = i % tiles;
            head.enter(i / tiles / args.batch, i / tiles % args.batch);
            const int first = first_of_part(vectors.count(), tile, tiles);
            const int last = first_of_part(vectors.count(), tile + 1, tiles);
            MMDAT_CALL_TILE(forward_tile, head, vectors, first, last, scratch);
        }
    }
}

template <int kDims>
void backward(const Arguments& args) {
    const BiasLattice lattice = make_lattice(args);
    const QueryVectors vectors(args);
    const int tiles = num_tiles(vectors.count());
    const int64_t work = static_cast<int64_t>(args.heads) * args.batch * args.splits;
    const int64_t table_size = static_cast<int64_t>(args.table_height) * args.table_width;
#pragma omp parallel num_threads(args.threads)
    {
        Head head(args, lattice);
        BackwardScratch scratch(head);
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        auto finish_head = [&] {
            if (head.m >= 0) lattice.collect(scratch.grad_bias, args.grad_table + (thread * args.heads + head.m) * table_size);
        };
        for (int64_t i = work * thread / threads; i < work * (thread + 1) / threads; ++i) {
            const int m = i / args.splits / args.batch, b = i / args.splits % args.batch, split = i % args.splits;
            if (m != head.m) {
                finish_head();
                std::fill_n(static_cast<float*>(scratch.grad_bias), lattice.size(), 0.f);
            }
            head.enter(m, b);
            scratch.clear_keys(head);
            for (int tile = first_of_part(tiles, split, args.splits); tile < first_of_part(tiles, split + 1, args.splits); ++tile) {
                const int first = first_of_part(vectors.count(), tile, tiles);
                const int last = first_of_part(vectors.count(), tile + 1, tiles);
                MMDAT_CALL_TILE(backward_tile, head, vectors, first, last, scratch);
            }
            store_keys(head, split, scratch);
        }
        finish_head();
    }
}

}  // namespace

extern "C" {

int mmdat_lanes() { return kLanes; }

void mmdat_deformable_attention(const Arguments* args) { args->dims == 32 ? forward<32>(*args) : forward<0>(*args); }

void mmdat_deformable_attention_backward(const Arguments* args) {
    args->dims == 32 ? backward<32>(*args) : backward<0>(*args);
}
}
