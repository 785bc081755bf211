// Deformable attention on CPUs, Equation (9) of the paper, in float32. See `Arguments` for shapes.
//
// Keys are broadcast, queries are the lanes of vectors: a piece of a vector holds neighbouring queries of one row of
// the map, a vector is one piece, or two where that leaves fewer lanes empty, and a tile is up to kTile vectors. The
// forward pass walks over blocks of kBlock keys with an online softmax; the backward pass computes the weights of a
// block again from the stored denominators. Logits never leave the cache. In both, a thread takes a contiguous part
// of the work, ordered by head: it lays out the bias table once for each of its heads, and lets a few of them take
// turns on an image. The parts depend on the sizes and the number of threads only, and so do the results.
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
constexpr int64_t kHeldFloats = 1 << 17;  // of tables that a thread lays out at a time, to stay in its cache
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
    Rows grad_k, grad_v;            // (B, M, N_k, d), the first of `splits`
    int64_t split_stride;           // floats from there to the next one
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

// Where a part begins of `count` things that are cut into equal parts.
int64_t part_of(int64_t count, int64_t part, int64_t parts) { return count * part / parts; }

// How queries fill vectors. Pieces are counted row by row: a row of the map has `per_row` of them, the last not full.
template <int kPieces>
struct Layout {
    static constexpr int kPiece = kLanes / kPieces;  // lanes
    int height, width, per_row;
    explicit Layout(const Arguments& args)
        : height(args.height), width(args.width), per_row((args.width + kPiece - 1) / kPiece) {}
    int vectors() const { return (height * per_row + kPieces - 1) / kPieces; }
    int tiles() const { return (vectors() + kTile - 1) / kTile; }
    int first_vector(int tile) const { return part_of(vectors(), tile, tiles()); }
    int first_query(int tile) const {
        const int piece = first_vector(tile) * kPieces;
        return row(piece) * width + column(piece);
    }
    int row(int piece) const { return piece / per_row; }
    int column(int piece) const { return piece % per_row * kPiece; }
};

// Whether two pieces need a tenth fewer vectors than one (where all rows are short, half as many), because they take
// more loads and stores.
bool use_two_pieces(const Arguments& args) { return Layout<1>(args).vectors() > 1.1 * Layout<2>(args).vectors(); }

// Where the keys of all images and groups lie. Behind the last one of a group it is repeated, for a block.
struct Keys {
    int stride;
    std::vector<BiasLattice::Column> columns;
    std::vector<float> y;

    Keys(const Arguments& args, const BiasLattice& lattice)
        : stride(args.keys + kBlock),
          columns(static_cast<int64_t>(args.batch) * args.groups * stride),
          y(columns.size()) {
#pragma omp parallel for num_threads(args.threads)
        for (int group = 0; group < args.batch * args.groups; ++group) {
            for (int n = 0; n < stride; ++n) {
                const int64_t to = static_cast<int64_t>(group) * stride + n;
                if (n < args.keys) {
                    const float* location = args.locations + 2 * (static_cast<int64_t>(group) * args.keys + n);
                    y[to] = location[0];
                    columns[to] = lattice.column(location[1]);
                } else {
                    y[to] = y[to - 1];
                    columns[to] = columns[to - 1];
                }
            }
        }
    }
};

// Copies d numbers, times a factor.
inline void copy_channels(const float* from, int dims, float factor, float* to) {
    int c = 0;
    for (; c + kLanes <= dims; c += kLanes) store(to + c, load(from + c) * factor);
    for (; c < dims; ++c) to[c] = from[c] * factor;
}

// What a thread keeps of the head and the image that it works on, and the tables of the heads that take turns.
struct Head {
    const Arguments& args;
    const BiasLattice& lattice;
    const Keys& keys;
    const int dims;  // d, padded by zeros to whole vectors
    std::vector<int> held;  // the head in each slot, -1 for none
    Buffer tables;          // (slots, values of the lattice)
    Buffer k, v;            // (N_k padded by zeros, dims), contiguous; the keys have the factor of the logits
    const float* bias = nullptr;                   // values of the lattice
    const BiasLattice::Column* columns = nullptr;  // of each key
    const float* y = nullptr;                      // alike
    int m = -1, b = -1;

    Head(const Arguments& args, const BiasLattice& lattice, const Keys& keys, int slots)
        : args(args),
          lattice(lattice),
          keys(keys),
          dims((args.dims + kLanes - 1) / kLanes * kLanes),
          held(slots, -1),
          tables(slots * lattice.size()),
          k(rows_size()),
          v(rows_size()) {
        for (Buffer* rows : {&k, &v}) std::fill_n(static_cast<float*>(*rows), rows_size(), 0.f);
    }

    // Floats of a row for each key and for each of those that fill the last block.
    int64_t rows_size() const { return static_cast<int64_t>(args.keys + kBlock) * dims; }

    int slot(int head) const { return head % static_cast<int>(held.size()); }

    void enter(int head, int image) {
        m = head;
        b = image;
        float* table = tables + slot(m) * lattice.size();
        if (held[slot(m)] != m) {
            const int64_t table_size = static_cast<int64_t>(args.table_height) * args.table_width;
            lattice.spread(args.table + m * table_size, kLog2E, table);
            held[slot(m)] = m;
        }
        bias = table;
        pack(args.k, kLog2E / std::sqrt(static_cast<float>(args.dims)), k);
        pack(args.v, 1, v);
        const int64_t group = static_cast<int64_t>(b) * args.groups + m / (args.heads / args.groups);
        columns = &keys.columns[group * keys.stride];
        y = &keys.y[group * keys.stride];
    }

   private:
    void pack(const Rows& rows, float factor, float* to) const {
        for (int64_t n = 0; n < args.keys; ++n) copy_channels(rows.row(b, m, n), args.dims, factor, to + n * dims);
    }
};

// Where a block of keys sees the pieces of a tile: for each piece and key the offset of the table row above, and the
// weight of the row below.
struct TableRows {
    int32_t offsets[2 * kTile][kBlock];
    float weights[2 * kTile][kBlock];

    void locate(const Head& head, const int* query_rows, int count, int first_key) {
        // copies, for the compiler to see that they stay the same
        const QueryAxis axis = head.args.y_axis;
        const int table_height = head.args.table_height, row_size = head.lattice.phase_size();
        const float* y_of_keys = head.y + first_key;
        const double lowest = -BiasLattice::kMargin, highest = table_height;
        for (int i = 0; i < count; ++i) {
            if (i && query_rows[i] == query_rows[i - 1]) {
                std::memcpy(offsets[i], offsets[i - 1], sizeof(offsets[i]));
                std::memcpy(weights[i], weights[i - 1], sizeof(weights[i]));
                continue;
            }
            const int row = query_rows[i];
#pragma omp simd
            for (int n = 0; n < kBlock; ++n) {
                const double y = axis.at(row, y_of_keys[n], table_height);
                const double above = y > lowest ? y : lowest, inside = above < highest ? above : highest;
                const int whole = static_cast<int>(inside + BiasLattice::kMargin);
                offsets[i][n] = whole * row_size;
                // the zero that is added is not a number if y is not
                weights[i][n] = static_cast<float>(inside + BiasLattice::kMargin - whole + 0 * y);
            }
        }
    }
};

template <int kPieces>
Vec load_pieces(const float* const (&from)[kPieces]) {
    if constexpr (kPieces == 1) return load(from[0]);
    else return simd::load_halves(from[0], from[1]);
}

// Adds to the gradients of the numbers that `load_pieces` loads, which are `to_grad` floats away. One piece after
// the other, for they may overlap.
template <int kPieces>
void add_pieces(const float* const (&at)[kPieces], ptrdiff_t to_grad, Vec x) {
    auto grad = [&](int piece) { return const_cast<float*>(at[piece]) + to_grad; };
    if constexpr (kPieces == 1) {
        store(grad(0), load(grad(0)) + x);
    } else {
        simd::add_half<0>(grad(0), x);
        simd::add_half<kLanes / 2>(grad(1), x);
    }
}

template <int kPieces>
Vec broadcast_pieces(const float (&x)[kPieces]) {
    if constexpr (kPieces == 1) return broadcast(x[0]);
    else return simd::join(broadcast(x[0]), broadcast(x[1]));
}

// The four corners between which the biases of a vector of queries to a key lie, and their weights.
template <int kPieces>
struct Corners {
    const float *top_left[kPieces], *top_right[kPieces], *bottom_left[kPieces], *bottom_right[kPieces];
    float left, right;
    Vec top, bottom;

    // Key n of the block that starts at first_key, and a vector of a tile whose pieces are in these columns.
    // Inlined, or it is a twentieth of the time of small maps.
    __attribute__((always_inline)) Corners(const Head& head, const TableRows& rows, int vector, const int* columns,
                                           int first_key, int n) {
        const BiasLattice::Column& column = head.columns[first_key + n];
        right = column.weight;
        left = 1 - right;
        float weights[kPieces];
        for (int piece = 0; piece < kPieces; ++piece) {
            const int i = vector * kPieces + piece;
            const float* row = head.bias + rows.offsets[i][n] + columns[i];
            top_left[piece] = row + column.left;
            top_right[piece] = row + column.right;
            bottom_left[piece] = top_left[piece] + head.lattice.phase_size();
            bottom_right[piece] = top_right[piece] + head.lattice.phase_size();
            weights[piece] = rows.weights[i][n];
        }
        bottom = broadcast_pieces(weights);
        top = 1 - bottom;
    }

    Vec bias() const {
        const Vec above = left * load_pieces(top_left) + right * load_pieces(top_right);
        const Vec below = left * load_pieces(bottom_left) + right * load_pieces(bottom_right);
        return top * above + bottom * below;
    }
};

// Some vectors of queries: what is kept of them is at `[channel][vector of the tile][lane]`.
template <int kVectors, int kDims, int kPieces>
struct Tile {
    static constexpr int kStride = kVectors * kLanes;  // from a channel to the next
    const Head& head;
    const int dims = kDims ? kDims : head.dims;
    int queries[kStride];  // in the lanes, -1 for none
    int rows[kVectors * kPieces], columns[kVectors * kPieces];  // where the pieces start on the map

    Tile(const Head& head, const Layout<kPieces>& layout, int first_vector) : head(head) {
        for (int i = 0; i < kVectors * kPieces; ++i) {
            const int row = layout.row(first_vector * kPieces + i), column = layout.column(first_vector * kPieces + i);
            for (int lane = 0; lane < layout.kPiece; ++lane) {
                const bool filled = row < layout.height && column + lane < layout.width;
                queries[i * layout.kPiece + lane] = filled ? row * layout.width + column + lane : -1;
            }
            rows[i] = std::min(row, layout.height - 1);
            columns[i] = column;
        }
    }

    // Lanes without a query, and channels beyond d, become 0. `copy`, if there is one, gets (query, dims).
    void load_transposed(const Rows& from, float* to, float* copy = nullptr) const {
        for (int i = 0; i < kStride; i += kLanes) {
            for (int c = 0; c < dims; c += kLanes) {
                Vec x[kLanes];
                for (int lane = 0; lane < kLanes; ++lane) {
                    const int query = queries[i + lane];
                    x[lane] = query < 0 ? Vec{} : load_channels(from.row(head.b, head.m, query), c);
                    if (copy) store(copy + (i + lane) * dims + c, x[lane]);
                }
                simd::transpose(x);
                for (int j = 0; j < kLanes; ++j) store(to + (c + j) * kStride + i, x[j]);
            }
        }
    }

    // The other way round, each query times its factor.
    void store_transposed(const float* from, const Vec* factors, const Rows& to) const {
        for (int i = 0; i < kStride; i += kLanes) {
            for (int c = 0; c < dims; c += kLanes) {
                Vec x[kLanes];
                for (int j = 0; j < kLanes; ++j) x[j] = load(from + (c + j) * kStride + i) * factors[i / kLanes];
                simd::transpose(x);
                for (int lane = 0; lane < kLanes; ++lane) {
                    const int query = queries[i + lane];
                    if (query >= 0) store_channels(to.row(head.b, head.m, query), c, x[lane]);
                }
            }
        }
    }

    // to[key][vector] += keys . queries, over the channels, for kKeys rows of keys.
    void add_products(const float* keys, const float* tile, Vec (&to)[kKeys][kVectors]) const {
        Vec sums[kKeys][kVectors];  // a copy, for the compiler to keep it in registers
        std::memcpy(sums, to, sizeof(sums));
        for (int c = 0; c < dims; ++c) {
            Vec key[kKeys];
            for (int n = 0; n < kKeys; ++n) key[n] = broadcast(keys[n * dims + c]);
#pragma GCC unroll 8
            for (int i = 0; i < kVectors; ++i) {
                const Vec query = load(tile + c * kStride + i * kLanes);
                for (int n = 0; n < kKeys; ++n) sums[n][i] += key[n] * query;
            }
        }
        std::memcpy(to, sums, sizeof(sums));
    }

    // tile[channel][vector] = tile[channel][vector] * scales[vector] + weights[key][vector] * keys[key][channel],
    // summed over `count` keys. Keys are summed before they are added: that keeps more digits than one long sum.
    void add_weighted(const float* keys, const float* weights, int count, const Vec* scales, float* tile) const {
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
                    float* at = tile + (c + j) * kStride + i * kLanes;
                    store(at, load(at) * scales[i] + sums[j][i]);
                }
            }
        }
    }

    // to[key][channel] += weights[key][query] * copies[query][channel], over the queries of the tile, for `count` keys.
    void add_over_queries(const float* weights, const float* copies, int count, float* to) const {
        for (int n = 0; n < count; n += kKeyRows) {
            for (int c = 0; c < dims; c += 2 * kLanes) {
                const bool two = c + kLanes < dims;
                Vec sums[kKeyRows][2]{};
                for (int query = 0; query < kStride; ++query) {
                    const Vec x = load(copies + query * dims + c);
                    const Vec next = two ? load(copies + query * dims + c + kLanes) : Vec{};
#pragma GCC unroll 8
                    for (int k = 0; k < kKeyRows; ++k) {
                        const Vec weight = broadcast(weights[(n + k) * kStride + query]);
                        sums[k][0] += weight * x;
                        sums[k][1] += weight * next;
                    }
                }
                for (int k = 0; k < kKeyRows; ++k) {
                    float* at = to + (n + k) * dims + c;
                    store(at, load(at) + sums[k][0]);
                    if (two) store(at + kLanes, load(at + kLanes) + sums[k][1]);
                }
            }
        }
    }

    // Biases of kKeys keys, from `n` of the block on.
    void load_biases(const TableRows& table_rows, int first_key, int n, Vec (&to)[kKeys][kVectors]) const {
        for (int k = 0; k < kKeys; ++k)
            for (int i = 0; i < kVectors; ++i)
                to[k][i] = Corners<kPieces>(head, table_rows, i, columns, first_key, n + k).bias();
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

// What a thread does at a time: the parts [first, last) of the queries of a head of an image.
struct Visit {
    int m, b, first, last;
};

// A thread's share, when the queries of each head of each image are cut into `parts`. Shares are cut from the order
// heads, images, parts. In a share, as many heads as there are slots take turns on an image: their rows are
// neighbours in memory.
std::vector<Visit> visits_of_thread(const Arguments& args, int parts, int slots) {
    const int64_t all = static_cast<int64_t>(args.heads) * args.batch * parts;
    const int64_t begin = part_of(all, omp_get_thread_num(), omp_get_num_threads());
    const int64_t end = part_of(all, omp_get_thread_num() + 1, omp_get_num_threads());
    std::vector<Visit> visits;
    for (int64_t from = begin / parts / args.batch; from * args.batch * parts < end; from += slots) {
        for (int b = 0; b < args.batch; ++b) {
            for (int64_t m = from; m < std::min<int64_t>(from + slots, args.heads); ++m) {
                const int64_t start = (m * args.batch + b) * parts;
                const int64_t first = std::max(begin - start, int64_t{0}), last = std::min<int64_t>(end - start, parts);
                if (first < last) visits.push_back({int(m), b, int(first), int(last)});
            }
        }
    }
    return visits;
}

// How many heads' tables a thread holds, of `copies` lattices each: those that stay in its cache, and no second one
// where there is no second image to take turns on.
int count_slots(const Arguments& args, const BiasLattice& lattice, int copies) {
    const int64_t fitting = kHeldFloats / (copies * lattice.size());
    return args.batch == 1 ? 1 : std::clamp<int64_t>(fitting, 1, args.heads);
}

// Asks for the rows that a visit writes and that the next one reads, before it is their turn: they lie far apart,
// where the processor does not expect them. A few at a time, for many at once would keep it waiting.
class Prefetcher {
   public:
    struct Matrix {
        const Rows& rows;
        int length;
    };

    // What to ask for during the next `steps`. Nothing where maps are so large that the cache would not keep them.
    void plan(const Arguments& args, int64_t steps, const Visit& visit, std::initializer_list<Matrix> written,
              const Visit* next, std::initializer_list<Matrix> read) {
        num_parts_ = at_ = 0;
        row_bytes_ = args.dims * sizeof(float);
        int64_t rows = 0;
        auto add = [&](const Matrix& matrix, const Visit& visit, bool write) {
            const char* first = reinterpret_cast<const char*>(matrix.rows.row(visit.b, visit.m, 0));
            const int64_t stride = matrix.rows.row_stride * sizeof(float);
            parts_[num_parts_++] = {first, stride, matrix.length, write};
            rows += matrix.length;
        };
        for (const Matrix& matrix : written) add(matrix, visit, true);
        if (next) for (const Matrix& matrix : read) add(matrix, *next, false);
        if (rows * row_bytes_ > kPrefetchedBytes) num_parts_ = 0;
        rows_of_a_step_ = (rows + steps - 1) / steps;
    }

    void advance(int steps) {
        for (int rows = steps * rows_of_a_step_; rows > 0 && at_ < num_parts_; --rows) {
            Part& part = parts_[at_];
            for (int byte = 0; byte < row_bytes_; byte += 64) {
                if (part.write) __builtin_prefetch(part.row + byte, 1);
                else __builtin_prefetch(part.row + byte, 0, 2);  // into the second level
            }
            part.row += part.stride;
            if (--part.left == 0) ++at_;
        }
    }

   private:
    static constexpr int64_t kPrefetchedBytes = 1 << 18;
    struct Part {
        const char* row;
        int64_t stride;
        int left;
        bool write;
    };
    Part parts_[8];  // all matrices of a backward pass
    int num_parts_ = 0, at_ = 0, row_bytes_ = 0, rows_of_a_step_ = 0;
};

struct ForwardScratch {
    Prefetcher prefetcher;
    Buffer q, out, weights;
    explicit ForwardScratch(const Head& head)
        : q(head.dims * kTile * kLanes), out(head.dims * kTile * kLanes), weights(kBlock * kTile * kLanes) {}
};

template <int kVectors, int kDims, int kPieces>
void forward_tile(const Head& head, const Layout<kPieces>& layout, int first_vector, ForwardScratch& scratch) {
    const Arguments& args = head.args;
    const Tile<kVectors, kDims, kPieces> tile(head, layout, first_vector);
    constexpr int kStride = tile.kStride;
    tile.load_transposed(args.q, scratch.q);
    std::fill_n(static_cast<float*>(scratch.out), tile.dims * kStride, 0.f);
    Vec highest[kVectors], total[kVectors];
    for (int i = 0; i < kVectors; ++i) {
        highest[i] = broadcast(-std::numeric_limits<float>::infinity());
        total[i] = Vec{};
    }

    TableRows table_rows;
    for (int first_key = 0; first_key < args.keys; first_key += kBlock) {
        const int count = std::min(kBlock, args.keys - first_key);
        table_rows.locate(head, tile.rows, kVectors * kPieces, first_key);
        Vec highest_here[kVectors];
        std::copy_n(highest, kVectors, highest_here);
        for (int n = 0; n < count; n += kKeys) {
            Vec logits[kKeys][kVectors];
            scratch.prefetcher.advance(kKeys);
            tile.load_biases(table_rows, first_key, n, logits);
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

    float* lse = args.lse + (static_cast<int64_t>(head.b) * args.heads + head.m) * args.height * args.width;
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
    Prefetcher prefetcher;
    Buffer q, grad_out, grad_q;               // tiles
    Buffer q_rows, grad_out_rows;             // (query of the tile, dims)
    Buffer weights, grad_logits;              // (key of the block, query of the tile)
    Buffer grad_bias;                         // like the tables of the heads
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
          grad_bias(head.held.size() * head.lattice.size()),
          grad_k(head.rows_size()),
          grad_v(head.rows_size()),
          grad_locations(2 * head.args.keys) {}

    void clear_keys(const Head& head) {
        for (Buffer* rows : {&grad_k, &grad_v}) std::fill_n(static_cast<float*>(*rows), head.rows_size(), 0.f);
        std::fill(grad_locations.begin(), grad_locations.end(), 0.f);
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
    const float* lse = args.lse + (static_cast<int64_t>(head.b) * args.heads + head.m) * args.height * args.width;
    for (int i = 0; i < kStride; ++i) {
        const float no_weights = 1e30f;
        log_total[i / kLanes][i % kLanes] = tile.queries[i] < 0 ? no_weights : kLog2E * lse[tile.queries[i]];
        ones[i / kLanes] = broadcast(1);
    }

    const ptrdiff_t to_grad = scratch.grad_bias - head.tables;
    TableRows table_rows;
    for (int first_key = 0; first_key < args.keys; first_key += kBlock) {
        const int count = std::min(kBlock, args.keys - first_key);
        const float *k = head.k + first_key * dims, *v = head.v + first_key * dims;
        table_rows.locate(head, tile.rows, kVectors * kPieces, first_key);
        for (int n = 0; n < (count + kKeyRows - 1) / kKeyRows * kKeyRows; n += kKeys) {
            Vec sums[kKeys][kVectors];
            scratch.prefetcher.advance(kKeys);
            tile.load_biases(table_rows, first_key, n, sums);
            tile.add_products(k + n * dims, scratch.q, sums);
            for (int key = 0; key < kKeys; ++key) {
                for (int i = 0; i < kVectors; ++i) {
                    // where logits are huge, rounding may lift them far above the logarithm of their sum
                    const Vec exponent = sums[key][i] - log_total[i];
                    const Vec weight = n + key < count ? simd::exp2(exponent > 0.f ? Vec{} : exponent) : Vec{};
                    store(scratch.weights + (n + key) * kStride + i * kLanes, weight);
                    sums[key][i] = -delta[i];
                }
            }
            tile.add_products(v + n * dims, scratch.grad_out, sums);
            for (int key = 0; key < kKeys; ++key) {
                for (int i = 0; i < kVectors; ++i) {
                    const int at = (n + key) * kStride + i * kLanes;
                    store(scratch.grad_logits + at, sums[key][i] * load(scratch.weights + at));
                }
            }
        }
        tile.add_weighted(k, scratch.grad_logits, count, ones, scratch.grad_q);
        tile.add_over_queries(scratch.grad_logits, scratch.q_rows, count, scratch.grad_k + first_key * dims);
        tile.add_over_queries(scratch.weights, scratch.grad_out_rows, count, scratch.grad_v + first_key * dims);

        for (int n = 0; n < count; ++n) {
            scratch.prefetcher.advance(1);
            Vec grad_x{}, grad_y{};
            for (int i = 0; i < kVectors; ++i) {
                const Corners<kPieces> at(head, table_rows, i, tile.columns, first_key, n);
                const Vec grad = load(scratch.grad_logits + n * kStride + i * kLanes);
                const Vec top_left = load_pieces(at.top_left), top_right = load_pieces(at.top_right);
                const Vec bottom_left = load_pieces(at.bottom_left), bottom_right = load_pieces(at.bottom_right);
                grad_x += grad * (at.top * (top_right - top_left) + at.bottom * (bottom_right - bottom_left));
                grad_y += grad * (at.left * (bottom_left - top_left) + at.right * (bottom_right - top_right));

                const Vec above = at.top * grad, below = at.bottom * grad;
                add_pieces(at.top_left, to_grad, at.left * above);
                add_pieces(at.top_right, to_grad, at.right * above);
                add_pieces(at.bottom_left, to_grad, at.left * below);
                add_pieces(at.bottom_right, to_grad, at.right * below);
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
    const float scale = 1 / std::sqrt(static_cast<float>(args.dims));
    // the bias has the factor log2(e), its gradient does not
    const float slope_y = -0.25 * (args.table_height - 1) * kLn2, slope_x = head.lattice.slope() * kLn2;
    const int64_t head_index = (static_cast<int64_t>(split) * args.batch + head.b) * args.heads + head.m;
    float* grad_location = args.grad_locations + head_index * args.keys * 2;
    for (int64_t n = 0; n < args.keys; ++n) {
        float* grad_k = args.grad_k.row(head.b, head.m, n) + split * args.split_stride;
        float* grad_v = args.grad_v.row(head.b, head.m, n) + split * args.split_stride;
        copy_channels(scratch.grad_k + n * head.dims, args.dims, scale, grad_k);
        copy_channels(scratch.grad_v + n * head.dims, args.dims, 1, grad_v);
        grad_location[2 * n] = scratch.grad_locations[2 * n] * slope_y;
        grad_location[2 * n + 1] = scratch.grad_locations[2 * n + 1] * slope_x;
    }
}

// Calls function<number of vectors, channels, pieces> for a tile.
#define MMDAT_CALL_TILE(function, head, layout, tile, scratch)                                            \
    switch (const int first = layout.first_vector(tile); layout.first_vector(tile + 1) - first) {         \
        case 1: function<1, kDims, kPieces>(head, layout, first, scratch); break;                         \
        case 2: function<2, kDims, kPieces>(head, layout, first, scratch); break;                         \
        case 3: function<3, kDims, kPieces>(head, layout, first, scratch); break;                         \
        case 4: function<std::min(4, kTile), kDims, kPieces>(head, layout, first, scratch); break;        \
        case 5: function<std::min(5, kTile), kDims, kPieces>(head, layout, first, scratch); break;        \
        default: function<kTile, kDims, kPieces>(head, layout, first, scratch);                           \
    }

BiasLattice make_lattice(const Arguments& args) {
    const int64_t num_keys = static_cast<int64_t>(args.batch) * args.groups * args.keys;
    return {args.table_height, args.table_width, args.width, args.x_axis, args.locations + 1, num_keys};
}

template <int kDims, int kPieces>
void forward(const Arguments& args) {
    const BiasLattice lattice = make_lattice(args);
    const Keys keys(args, lattice);
    const Layout<kPieces> layout(args);
    const int queries = args.height * args.width, tiles = layout.tiles(), slots = count_slots(args, lattice, 1);
#pragma omp parallel num_threads(args.threads)
    {
        Head head(args, lattice, keys, slots);
        ForwardScratch scratch(head);
        const std::vector<Visit> visits = visits_of_thread(args, tiles, slots);
        for (size_t i = 0; i < visits.size(); ++i) {
            const Visit &visit = visits[i], *next = i + 1 < visits.size() ? &visits[i + 1] : nullptr;
            scratch.prefetcher.plan(args, int64_t{tiles} * args.keys, visit, {{args.out, queries}}, next,
                                    {{args.k, args.keys}, {args.v, args.keys}, {args.q, queries}});
            head.enter(visit.m, visit.b);
            for (int tile = visit.first; tile < visit.last; ++tile) {
                MMDAT_CALL_TILE(forward_tile, head, layout, tile, scratch);
            }
        }
    }
}

template <int kDims, int kPieces>
void backward(const Arguments& args) {
    const BiasLattice lattice = make_lattice(args);
    const Keys keys(args, lattice);
    const Layout<kPieces> layout(args);
    const int queries = args.height * args.width, slots = count_slots(args, lattice, 2);
    const int64_t table_size = static_cast<int64_t>(args.table_height) * args.table_width;
#pragma omp parallel num_threads(args.threads)
    {
        Head head(args, lattice, keys, slots);
        BackwardScratch scratch(head);
        // makes room for another head's gradient
        auto finish_head = [&](int slot) {
            float* grad_bias = scratch.grad_bias + slot * lattice.size();
            const int64_t index = static_cast<int64_t>(omp_get_thread_num()) * args.heads + head.held[slot];
            if (head.held[slot] >= 0) lattice.collect(grad_bias, args.grad_table + index * table_size);
            std::fill_n(grad_bias, lattice.size(), 0.f);
        };
        auto first_tile = [&](int split) { return part_of(layout.tiles(), split, args.splits); };
        const std::vector<Visit> visits = visits_of_thread(args, args.splits, slots);
        for (size_t i = 0; i < visits.size(); ++i) {
            const Visit &visit = visits[i], *next = i + 1 < visits.size() ? &visits[i + 1] : nullptr;
            scratch.prefetcher.plan(
                args, int64_t{2} * layout.tiles() * args.keys, visit,
                {{args.grad_k, args.keys}, {args.grad_v, args.keys}, {args.grad_q, queries}}, next,
                {{args.k, args.keys}, {args.v, args.keys}, {args.q, queries}, {args.out, queries},
                 {args.grad_out, queries}});
            if (const int slot = head.slot(visit.m); head.held[slot] != visit.m) finish_head(slot);
            head.enter(visit.m, visit.b);
            for (int split = visit.first; split < visit.last; ++split) {
                scratch.clear_keys(head);
                for (int tile = first_tile(split); tile < first_tile(split + 1); ++tile) {
                    MMDAT_CALL_TILE(backward_tile, head, layout, tile, scratch);
                }
                store_keys(head, split, scratch);
            }
        }
        for (int slot = 0; slot < slots; ++slot) finish_head(slot);
    }
}

}  // namespace

extern "C" {

int mmdat_lanes() { return kLanes; }

void mmdat_deformable_attention(const Arguments* args) {
    if (args->dims != 32) forward<0, 1>(*args);
    else if (use_two_pieces(*args)) forward<32, 2>(*args);
    else forward<32, 1>(*args);
}

void mmdat_deformable_attention_backward(const Arguments* args) {
    if (args->dims != 32) backward<0, 1>(*args);
    else if (use_two_pieces(*args)) backward<32, 2>(*args);
    else backward<32, 1>(*args);
}
}
