// SPDX-License-Identifier: Apache-2.0
// The loops of dots.h for one instruction set. Included by dots.cpp once per set, inside a namespace of its
// own, with
//   SOHES_TARGET      the function attribute that allows the instructions; SOHES_INLINE: also always inline
//   SOHES_ROWS        rows that share one pass over x (as many as the registers hold)
//   Wide, kUnit       a vector of doubles and its length; load_wide(p) reads kUnit floats into one
// (No include guard: being included again is its purpose.)

#include "../ms_deform_attn/convert.h"

// One dot product is kLanes running sums, lane l taking channels l, l + kLanes, ..., whatever the width of a
// register.
constexpr int kUnits = kLanes / kUnit;

SOHES_INLINE double sum_lanes(const Wide (&sums)[kUnits]) {
  double lanes[kLanes];
  std::memcpy(lanes, sums, sizeof(lanes));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

template <int kRows>
SOHES_INLINE void add_products(Wide (&sums)[kRows][kUnits], const float* x, const float* const (&rows)[kRows],
                               int64_t c) {
#pragma GCC unroll 8
  for (int u = 0; u < kUnits; ++u) {
    const Wide left = load_wide(x + c + u * kUnit);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) sums[i][u] += left * load_wide(rows[i] + c + u * kUnit);
  }
}

template <int kRows>
SOHES_INLINE void dots_of(const float* x, const float* const* from, int64_t channels, double* out) {
  Wide sums[kRows][kUnits] = {};
  const float* rows[kRows];
  for (int i = 0; i < kRows; ++i) rows[i] = from[i];
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) add_products<kRows>(sums, x, rows, c);
  if (c < channels) {
    const Tail tail_x(x + c, channels - c);
    for (int i = 0; i < kRows; ++i) {
      const Tail tail(rows[i] + c, channels - c);
      for (int u = 0; u < kUnits; ++u) {
        sums[i][u] += load_wide(tail_x.values + u * kUnit) * load_wide(tail.values + u * kUnit);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) out[i] = sum_lanes(sums[i]);
}

SOHES_TARGET void dots(const float* x, const float* const* rows, int count, int64_t channels, double* out) {
  for (; count >= SOHES_ROWS; count -= SOHES_ROWS, rows += SOHES_ROWS, out += SOHES_ROWS) {
    dots_of<SOHES_ROWS>(x, rows, channels, out);
  }
#if SOHES_ROWS > 2
  if (count == 3) return dots_of<3>(x, rows, channels, out);
  if (count == 2) return dots_of<2>(x, rows, channels, out);
#endif
#if SOHES_ROWS > 1
  if (count == 1) return dots_of<1>(x, rows, channels, out);
#endif
}

SOHES_INLINE void add_block(Wide (&cc)[kUnits], Wide (&ac)[kUnits], Wide (&bc)[kUnits], const float* a,
                            const float* b, float* c) {
  alignas(64) float sum[kLanes];
  for (int i = 0; i < kLanes; ++i) sum[i] = a[i] + b[i];
#pragma GCC unroll 8
  for (int u = 0; u < kUnits; ++u) {
    const Wide wide = load_wide(sum + u * kUnit);
    cc[u] += wide * wide;
    ac[u] += load_wide(a + u * kUnit) * wide;
    bc[u] += load_wide(b + u * kUnit) * wide;
  }
  std::memcpy(c, sum, sizeof(sum));
}

SOHES_TARGET SumDots add(const float* a, const float* b, float* c, int64_t channels) {
  Wide cc[kUnits] = {}, ac[kUnits] = {}, bc[kUnits] = {};
  int64_t i = 0;
  for (; i + kLanes <= channels; i += kLanes) add_block(cc, ac, bc, a + i, b + i, c + i);
  if (i < channels) {
    const Tail tail_a(a + i, channels - i), tail_b(b + i, channels - i);
    float sum[kLanes];
    add_block(cc, ac, bc, tail_a.values, tail_b.values, sum);
    std::memcpy(c + i, sum, (channels - i) * sizeof(float));
  }
  return {sum_lanes(cc), sum_lanes(ac), sum_lanes(bc)};
}

SOHES_TARGET void widen(const void* from, DType dtype, int64_t count, float* to) {
  load_row(from, dtype, 0, count, to);
}

#undef SOHES_INLINE
#undef SOHES_TARGET
#undef SOHES_ROWS
