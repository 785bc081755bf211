// Attention inside small windows on CPUs, in float32, with a bias for each head and kind of window.
//
// A task is one head of one window. Its logits stay in the first cache; here the keys are in the lanes of vectors:
//
//                       k0 ....... k15 | k16 ...... k31 | .. | k48 - - - - - -     kLanes = 16, a window of 7 x 7
//      query 0        |   vector 0     |   vector 1     |    |   vector 3      |
//       ..            |                |                |    |                 |    area rows of `stride` floats,
//      query 48       |                |                |    |                 |    of which `area` are keys
//
// Memory behind the last key has the weight 0. All products are of one form, see `multiply`. Logits are computed in
// base 2.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "simd.h"

using simd::broadcast;
using simd::kLanes;
using simd::kTile;
using simd::load;
using simd::store;
using simd::Vec;

// Mirrored by `_Arguments` in `mmdat/ops/native/window_kernel.py`.
struct Arguments {
    int32_t windows, heads, area;  // of a window, in positions
    int32_t stride;                // floats of a row of `biases`: `area`, rounded up to whole vectors
    int32_t threads;               // at most
    const float* qkv;              // (windows, area, 3, heads, 32)
    const float* biases;           // (kinds, heads, area, stride), times log2(e), very negative behind `area`
    const int64_t* kinds;          // (windows,)
    float* out;                    // (windows, area, heads, 32)
    const float* grad_out;         // like out
    float* grad_qkv;               // like qkv
    float* grad_bias;              // (threads, heads, area, stride), added to
};

namespace {

constexpr int kDims = 32;
constexpr int kAccumulators = 4 * kTile;  // registers
constexpr float kNegligible = -80;        // logits below the largest: masked ones would be subnormal, which is slow
constexpr float kLog2E = 1.4426950408889634f;

// `rows` rows of c = x y, where x[i, k] lies at x[i * row + k * column]: numbers of x are broadcast, rows of y
// and c are `vectors` vectors.
template <int rows, int vectors>
inline void multiply_tile(const float* x, int row, int column, const float* y, int y_row, float* c, int c_row,
                          int depth) {
    Vec sums[rows][vectors] = {};
    for (int k = 0; k < depth; ++k) {
        Vec y_k[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) y_k[v] = load(y + k * y_row + v * kLanes);
#pragma GCC unroll 32
        for (int i = 0; i < rows; ++i) {
            const Vec x_ik = broadcast(x[i * row + k * column]);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) sums[i][v] += x_ik * y_k[v];
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) store(c + i * c_row + v * kLanes, sums[i][v]);
    }
}

template <int vectors>
void multiply_columns(const float* x, int row, int column, const float* y, int y_row, float* c, int c_row, int height,
                      int depth) {
    constexpr int kRows = kAccumulators / vectors;
    int i = 0;
    for (; i + kRows <= height; i += kRows) {
        multiply_tile<kRows, vectors>(x + i * row, row, column, y, y_row, c + i * c_row, c_row, depth);
    }
    for (; i < height; ++i) multiply_tile<1, vectors>(x + i * row, row, column, y, y_row, c + i * c_row, c_row, depth);
}

// c = x y, of `height` rows and `width` columns (whole vectors); rows of y and c are contiguous, x is as above.
void multiply(const float* x, int row, int column, const float* y, int y_row, float* c, int c_row, int height,
              int width, int depth) {
    for (int left = width / kLanes; left > 0;) {
        const int vectors = std::min(left, 4);
        if (vectors == 4) multiply_columns<4>(x, row, column, y, y_row, c, c_row, height, depth);
        if (vectors == 3) multiply_columns<3>(x, row, column, y, y_row, c, c_row, height, depth);
        if (vectors == 2) multiply_columns<2>(x, row, column, y, y_row, c, c_row, height, depth);
        if (vectors == 1) multiply_columns<1>(x, row, column, y, y_row, c, c_row, height, depth);
        left -= vectors;
        y += vectors * kLanes;
        c += vectors * kLanes;
    }
}

// Computes heads of windows, one after the other, and keeps what it needs in between.
class WindowHead {
   public:
    explicit WindowHead(const Arguments& args)
        : args_(args),
          row_(3 * args.heads * kDims),
          out_row_(args.heads * kDims),
          transposed_(int64_t{kDims} * args.stride),
          weights_(int64_t{args.area} * args.stride),
          grad_logits_(int64_t{args.area} * args.stride) {}

    void forward(int window, int head) {
        attend(window, head);
        float* out = args_.out + static_cast<int64_t>(window) * args_.area * out_row_ + head * kDims;
        multiply(weights_.data(), args_.stride, 1, v_, row_, out, out_row_, args_.area, kDims, args_.area);
    }

    void backward(int window, int head, float* grad_bias) {
        forward(window, head);
        const int area = args_.area, stride = args_.stride;
        const int64_t first = static_cast<int64_t>(window) * area;
        const float* grad_out = args_.grad_out + first * out_row_ + head * kDims;
        float* grad_q = args_.grad_qkv + first * row_ + head * kDims;
        float *grad_k = grad_q + args_.heads * kDims, *grad_v = grad_k + args_.heads * kDims;

        transpose(v_);
        float* grads = grad_logits_.data();
        multiply(grad_out, out_row_, 1, transposed_.data(), stride, grads, stride, area, stride, kDims);
        const float scale = 1 / std::sqrt(static_cast<float>(kDims));
        for (int i = 0; i < area; ++i) {
            const float* weights = &weights_[i * stride];
            Vec sum{};
            for (int j = 0; j < stride; j += kLanes) sum += load(weights + j) * load(grads + i * stride + j);
            const float mean = simd::sum(sum);
            for (int j = 0; j < stride; j += kLanes) {
                const Vec grad = load(weights + j) * (load(grads + i * stride + j) - mean);
                float* to = grad_bias + i * stride + j;
                store(to, load(to) + grad);
                store(grads + i * stride + j, grad * scale);
            }
        }
        multiply(grads, stride, 1, k_, row_, grad_q, row_, area, kDims, area);
        multiply(grads, 1, stride, query_, row_, grad_k, row_, area, kDims, area);
        multiply(weights_.data(), 1, stride, grad_out, out_row_, grad_v, row_, area, kDims, area);
    }

   private:
    // Fills weights_ with the softmax of the logits; those behind `area` are 0.
    void attend(int window, int head) {
        const int area = args_.area, stride = args_.stride;
        query_ = args_.qkv + static_cast<int64_t>(window) * area * row_ + head * kDims;
        k_ = query_ + args_.heads * kDims;
        v_ = k_ + args_.heads * kDims;
        const float* bias = args_.biases + (args_.kinds[window] * args_.heads + head) * area * stride;

        transpose(k_);
        float* logits = weights_.data();
        multiply(query_, row_, 1, transposed_.data(), stride, logits, stride, area, stride, kDims);
        const float scale = kLog2E / std::sqrt(static_cast<float>(kDims));
        for (int i = 0; i < area; ++i, logits += stride, bias += stride) {
            Vec largest = broadcast(-INFINITY), sum{};
            for (int j = 0; j < stride; j += kLanes) {
                const Vec logit = load(logits + j) * scale + load(bias + j);
                store(logits + j, logit);
                largest = simd::max(largest, logit);
            }
            const Vec shift = broadcast(simd::max(largest));
            for (int j = 0; j < stride; j += kLanes) {
                const Vec logit = load(logits + j) - shift;
                const Vec weight = logit < kNegligible ? Vec{} : simd::exp2(logit);
                store(logits + j, weight);
                sum += weight;
            }
            const float factor = 1 / simd::sum(sum);
            for (int j = 0; j < stride; j += kLanes) store(logits + j, load(logits + j) * factor);
        }
    }

    // Lays out keys or values by dimension, `(32, stride)`; behind `area` the last one is repeated.
    void transpose(const float* x) {
        for (int j = 0; j < args_.stride; j += kLanes) {
            for (int c = 0; c < kDims; c += kLanes) {
                Vec block[kLanes];
                for (int n = 0; n < kLanes; ++n) block[n] = load(x + std::min(j + n, args_.area - 1) * row_ + c);
                simd::transpose(block);
                for (int n = 0; n < kLanes; ++n) store(&transposed_[(c + n) * args_.stride + j], block[n]);
            }
        }
    }

    const Arguments& args_;
    const int row_, out_row_;  // floats from a position to the next, in qkv and out
    const float *query_, *k_, *v_;
    std::vector<float> transposed_, weights_, grad_logits_;
};

// Calls function(window, head) for the share of a thread.
template <typename Function>
void for_tasks(const Arguments& args, int thread, int threads, const Function& function) {
    const int64_t all = int64_t{args.windows} * args.heads;
    for (int64_t task = part_of(all, thread, threads); task < part_of(all, thread + 1, threads); ++task) {
        function(task / args.heads, task % args.heads);
    }
}

}  // namespace

extern "C" {

int mmdat_lanes() { return kLanes; }

int64_t mmdat_sizeof_arguments() { return sizeof(Arguments); }

// Both return nullptr, or what went wrong.

const char* mmdat_window_attention(const Arguments* args) {
    return message_of_failure([&] {
        parallel(args->threads, [&](int thread, int threads) {
            WindowHead state(*args);
            for_tasks(*args, thread, threads, [&](int window, int head) { state.forward(window, head); });
        });
    });
}

// Also fills `out`.
const char* mmdat_window_attention_backward(const Arguments* args) {
    return message_of_failure([&] {
        parallel(args->threads, [&](int thread, int threads) {
            WindowHead state(*args);
            const int64_t size = int64_t{args->area} * args->stride;
            float* grad_bias = args->grad_bias + thread * args->heads * size;
            for_tasks(*args, thread, threads,
                      [&](int window, int head) { state.backward(window, head, grad_bias + head * size); });
        });
    });
}
}
