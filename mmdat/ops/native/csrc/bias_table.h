// The bias table of a head, laid out so that neighbouring queries read neighbouring numbers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "simd.h"

// Where the queries of an axis lie: query i at `first + i * step`, in normalised coordinates. A key at p sees it at
// row (or column) ((first + i * step - p) / 2 + 1) * (size - 1) / 2 of a table with `size` of them.
struct QueryAxis {
    double first, step;
    double at(int query, double key, int size) const {
        return ((first + query * step - key) * 0.5 + 1) * 0.5 * (size - 1);
    }
};

// The hard trick of the kernel, in one place: bilinear interpolation of the bias without a gather.
//
// Queries are a regular grid, so from one query of a row to the next, a key's column in the table moves by the
// same rational a / b, whatever the key. Interpolate the columns once at all multiples of 1 / b: because linear
// interpolation is exact between its knots, and the knots are among these points, interpolating between
// neighbouring points u and u + 1 of this finer lattice gives the same bias. In units of the lattice the queries of
// a row are at u, u + a, u + 2 a and so on. Stored by phase, which is the remainder of the lattice's index by a,
// these are neighbours in memory: a vector of queries is four loads, two lattice columns of two table rows,
// whose weights are the same in all lanes. The gradient of the table goes the same way back, without a scatter.
//
// For example a = 2 and b = 3, that is, three lattice points a column, and queries at every second of them:
//
//      columns of the table    0           1           2
//      lattice index           0   1   2   3   4   5   6   7
//      queries of a row            q0      q1      q2      q3       for a key that sees the first one at u = 1.2,
//                                                                   between the points 1 and 2
//      stored                  | 0   2   4   6 | 1   3   5   7 |
//                                phase 0         phase 1
//
// Left of the queries lie the points 1, 3, 5, 7, and right of them 2, 4, 6, 8: each are neighbours.
//
// Numbers are float:
//   values[row + kMargin][phase][r] is the bias at table row `row` and lattice index first_index + r * a + phase,
// 0 beyond the table. kMargin rows on each side are 0, so a clamped row has a bias and a derivative of 0.
class BiasLattice {
   public:
    static constexpr int kMargin = 2;

    // A key's place on the lattice, for the first query of a row: offsets of the columns left and right of it,
    // and the weight of the right one.
    struct Column {
        int32_t left, right;
        float weight;
    };

    // For queries' maps of this width. `key_x` are the x coordinates of all keys, every second number.
    BiasLattice(int table_height, int table_width, int width, QueryAxis axis, const float* key_x, int64_t num_keys)
        : table_height_(table_height), table_width_(table_width), axis_(axis) {
        // The step in columns is axis.step / 2 * (table_width - 1) / 2, where axis.step = 2 / n for a whole n.
        const int intervals = axis.step > 0 ? static_cast<int>(std::lround(2 / axis.step)) : 1;
        const int divisor = std::gcd(std::max(table_width - 1, 1), 2 * intervals);
        a_ = std::max(table_width - 1, 1) / divisor;
        b_ = 2 * intervals / divisor;
        // beyond these no query of a row reaches the table
        lowest_ = -b_ - 1.0 - static_cast<double>(a_) * (width - 1);
        highest_ = static_cast<double>(b_) * table_width;
        double low = highest_, high = lowest_;
        for (int64_t n = 0; n < num_keys; ++n) {
            const double u = index(key_x[2 * n]);
            low = std::min(low, u);
            high = std::max(high, u);
        }
        first_index_ = floor_div(static_cast<int>(std::floor(low)), a_) * a_;
        const int reach = width + 2 * simd::kLanes;  // vectors begin inside a row, and end behind it
        columns_ = (static_cast<int>(std::floor(high)) + 1 - first_index_) / a_ + reach;
        source_.resize(row_size());
        fraction_.resize(row_size());
        for (int i = 0; i < row_size(); ++i) {
            const int lattice = first_index_ + i % columns_ * a_ + i / columns_;
            const int column = floor_div(lattice, b_);
            if (table_width == 1) {  // stretched over the whole map and beyond
                source_[i] = 2;
                fraction_[i] = 0;
                continue;
            }
            source_[i] = std::clamp(column, -2, table_width_) + 2;
            fraction_[i] = static_cast<float>(lattice - column * b_) / b_;
        }
    }

    // Floats of the values of one head.
    int64_t size() const { return static_cast<int64_t>(table_height_ + 2 * kMargin) * row_size(); }
    // Floats from a table row to the next.
    int row_size() const { return a_ * columns_; }

    // Fills `values` from the table of a head.
    void spread(const float* table, float factor, float* values) const {
        std::vector<float> padded(table_width_ + 4, 0.f);  // two columns of zeros on each side
        std::fill_n(values, kMargin * row_size(), 0.f);
        values += kMargin * row_size();
        for (int y = 0; y < table_height_; ++y) {
            for (int x = 0; x < table_width_; ++x) padded[x + 2] = table[y * table_width_ + x] * factor;
            for (int i = 0; i < row_size(); ++i) {
                const float left = padded[source_[i]], right = padded[source_[i] + 1];
                values[i] = left + fraction_[i] * (right - left);
            }
            values += row_size();
        }
        std::fill_n(values, kMargin * row_size(), 0.f);
    }

    // The transpose of `spread`: adds the gradient of the values to that of the table.
    void collect(const float* grad_values, float* grad_table) const {
        std::vector<float> padded(table_width_ + 4);
        for (int y = 0; y < table_height_; ++y) {
            grad_values_row(grad_values + static_cast<int64_t>(y + kMargin) * row_size(), padded.data());
            for (int x = 0; x < table_width_; ++x) grad_table[y * table_width_ + x] += padded[x + 2];
        }
    }

    Column column(float key_x) const {
        const double u = index(key_x);
        const double whole = std::floor(u);
        const int left = static_cast<int>(whole) - first_index_;
        return {offset(left), offset(left + 1), std::isnan(key_x) ? key_x : static_cast<float>(u - whole)};
    }

    // Derivative of a lattice index by a key's x.
    double slope() const { return -0.25 * (table_width_ - 1) * b_; }

   private:
    static int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

    int32_t offset(int index) const { return index % a_ * columns_ + index / a_; }

    double index(float key_x) const {
        const double u = axis_.at(0, key_x, table_width_) * b_;
        return u > lowest_ ? std::min(u, highest_) : lowest_;  // not a number: lowest
    }

    void grad_values_row(const float* grads, float* padded) const {
        std::fill_n(padded, table_width_ + 4, 0.f);
        for (int i = 0; i < row_size(); ++i) {
            padded[source_[i]] += (1 - fraction_[i]) * grads[i];
            padded[source_[i] + 1] += fraction_[i] * grads[i];
        }
    }

    int table_height_, table_width_, a_, b_, first_index_, columns_;
    double lowest_, highest_;
    QueryAxis axis_;
    std::vector<int32_t> source_;  // of each value of a table row: the padded table's column left of it
    std::vector<float> fraction_;  // and how far right of that it is
};
