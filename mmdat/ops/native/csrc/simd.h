// Vectors of floats, as wide as the machine that this is compiled for.
#pragma once

#include <cmath>
#include <utility>

namespace simd {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;  // NEON, SSE
#endif

// The registers that matrix products accumulate in, four keys by this many vectors of queries, leave some of the
// 32 (AVX-512, NEON) or 16 (AVX2, SSE) for operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTile = 6;
#else
constexpr int kTile = 3;
#endif

// Whether the compiler has `load_halves` and `add_half`. Whole vectors in their place would cost more than they gain.
#if defined(__clang__) || __GNUC__ >= 12
constexpr bool kHasHalves = true;
#else
constexpr bool kHasHalves = false;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int Ints __attribute__((vector_size(4 * kLanes)));
typedef float UnalignedVec __attribute__((vector_size(4 * kLanes), aligned(4)));
typedef float UnalignedHalf __attribute__((vector_size(2 * kLanes), aligned(4)));

inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
inline void store(float* to, Vec x) { *reinterpret_cast<UnalignedVec*>(to) = x; }
inline Vec broadcast(float x) { return x - Vec{}; }  // 0 + x would turn -0 into 0, and cost an addition
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

// 2 to the power of x, for x up to 126; below -126 as for -126. The polynomial has the terms ln(2)^k / k! and is
// used for |x| <= 1/2, where it is exact to 1.2e-7.
inline Vec exp2(Vec x) {
    x = x < -126.f ? broadcast(-126.f) : x;
    const float rounder = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const Vec rounded = x + rounder;
    const Ints exponent = (Ints)rounded - 0x4B400000;
    const Vec f = x - (rounded - rounder);
    Vec p = f * 1.5403530e-4f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.f;
    const Ints scaled = (Ints)p + (exponent << 23);
    return (Vec)scaled;
}

// Logarithm to base 2 of positive, normal numbers, to 1e-7: of the mantissa m, brought into [0.7, 1.4], it is
// 2 atanh(s) / ln(2) with s = (m - 1) / (m + 1), by the series of atanh.
inline Vec log2(Vec x) {
    const Ints exponent = ((Ints)x - 0x3F330000) >> 23;  // 0x3F330000 is just below 0.7
    const Vec m = (Vec)((Ints)x - (exponent << 23));
    const Vec s = (m - 1.f) / (m + 1.f), s2 = s * s;
    Vec p = s2 * (1 / 9.f) + 1 / 7.f;
    p = p * s2 + 1 / 5.f;
    p = p * s2 + 1 / 3.f;
    p = p * s2 + 1.f;
    return __builtin_convertvector(exponent, Vec) + p * s * 2.885390082f;
}

constexpr auto kLaneSequence = std::make_integer_sequence<int, kLanes>();
constexpr auto kHalfSequence = std::make_integer_sequence<int, kLanes / 2>();

template <int... lane>
inline Vec shuffle(Vec a, Vec b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, lane...);
#else
    return __builtin_shuffle(a, b, Ints{lane...});
#endif
}

template <int by, int... lane>
inline Vec rotate(Vec x, std::integer_sequence<int, lane...>) {
    return shuffle<(lane + by) % kLanes...>(x, x);
}

template <int half = kLanes / 2>
inline float sum(Vec x) {
    if constexpr (half == 0)
        return x[0];
    else
        return sum<half / 2>(x + rotate<half>(x, kLaneSequence));
}

template <int half = kLanes / 2>
inline float max(Vec x) {
    if constexpr (half == 0)
        return x[0];
    else
        return max<half / 2>(max(x, rotate<half>(x, kLaneSequence)));
}

// The first halves of two vectors lane by lane (offset 0), or the second halves (offset kLanes / 2).
template <int offset, int... lane>
inline Vec interleave(Vec a, Vec b, std::integer_sequence<int, lane...>) {
    return shuffle<(offset + lane / 2 + lane % 2 * kLanes)...>(a, b);
}

// The first halves of two vectors, together.
template <int... lane>
inline Vec join(Vec a, Vec b, std::integer_sequence<int, lane...>) {
    return shuffle<(lane < kLanes / 2 ? lane : lane + kLanes / 2)...>(a, b);
}

// Half a vector from each of two places.
template <int... lane>
inline Vec load_halves(const float* first, const float* second, std::integer_sequence<int, lane...>) {
    const UnalignedHalf a = *reinterpret_cast<const UnalignedHalf*>(first);
    const UnalignedHalf b = *reinterpret_cast<const UnalignedHalf*>(second);
    return __builtin_shufflevector(a, b, lane...);
}

// Adds the lanes from `offset` on, half of all, to the numbers in a place.
template <int offset, int... lane>
inline void add_half(float* to, Vec x, std::integer_sequence<int, lane...>) {
    UnalignedHalf& at = *reinterpret_cast<UnalignedHalf*>(to);
    at = at + __builtin_shufflevector(x, x, (offset + lane)...);
}

// Transposes a square matrix of which x holds the rows: a perfect shuffle of all elements, log2(kLanes) times.
inline void transpose(Vec (&x)[kLanes]) {
#pragma GCC unroll 4
    for (int width = 1; width < kLanes; width *= 2) {
        Vec shuffled[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) {
            shuffled[2 * i] = interleave<0>(x[i], x[i + kLanes / 2], kLaneSequence);
            shuffled[2 * i + 1] = interleave<kLanes / 2>(x[i], x[i + kLanes / 2], kLaneSequence);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) x[i] = shuffled[i];
    }
}

}  // namespace simd
