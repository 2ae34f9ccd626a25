// SPDX-License-Identifier: Apache-2.0
// The loops over the channels of feature rows. Vectors of four are as fast as wider ones here: the time goes
// into fetching the rows, which lie anywhere.
#pragma once

#include <cstdint>
#include <cstring>

namespace sohes::borders {

// SSE2 and NEON have vectors of four, and a compiler can split them anywhere else.
typedef float Vector __attribute__((vector_size(16)));

constexpr int kMaxRows = 4;

// Asks the caches for a row that is read soon.
inline void fetch_row(const float* row, int64_t channels) {
  for (int64_t c = 0; c < channels; c += 16) __builtin_prefetch(row + c, 0, 2);
}

template <int kRows>
void squared_distances_of(const float* x, const float* const* rows, int64_t channels, double* out) {
  Vector sums[kRows][2] = {};
  int64_t c = 0;
  for (; c + 8 <= channels; c += 8) {
    for (int half = 0; half < 2; ++half) {
      Vector left, right;
      std::memcpy(&left, x + c + 4 * half, sizeof(left));
      for (int i = 0; i < kRows; ++i) {
        std::memcpy(&right, rows[i] + c + 4 * half, sizeof(right));
        const Vector difference = left - right;
        sums[i][half] += difference * difference;
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    double sum = 0;
    for (int lane = 0; lane < 8; ++lane) sum += sums[i][lane / 4][lane % 4];
    for (int64_t rest = c; rest < channels; ++rest) {
      const float difference = x[rest] - rows[i][rest];
      sum += static_cast<double>(difference) * difference;
    }
    out[i] = sum;
  }
}

// out[i] = |x - rows[i]|^2 for i < count <= kMaxRows. Eight running float32 sums, lane l taking channels l,
// l + 8, ..., are added in order in double, then the channels left over.
inline void squared_distances(const float* x, const float* const* rows, int count, int64_t channels,
                              double* out) {
  if (count == 4) return squared_distances_of<4>(x, rows, channels, out);
  if (count == 3) return squared_distances_of<3>(x, rows, channels, out);
  if (count == 2) return squared_distances_of<2>(x, rows, channels, out);
  if (count == 1) return squared_distances_of<1>(x, rows, channels, out);
}

// to = share_a * a + share_b * b; `to` may be a or b.
inline void weighted_sum(const float* a, float share_a, const float* b, float share_b, int64_t channels,
                         float* to) {
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) {
    Vector left, right;
    std::memcpy(&left, a + c, sizeof(left));
    std::memcpy(&right, b + c, sizeof(right));
    const Vector sum = share_a * left + share_b * right;
    std::memcpy(to + c, &sum, sizeof(sum));
  }
  for (; c < channels; ++c) to[c] = share_a * a[c] + share_b * b[c];
}

}  // namespace sohes::borders
