// SPDX-License-Identifier: Apache-2.0
// The plain version of each loop, which the others agree with, and the choice among them.
#include "simd.h"

#include <algorithm>
#include <bit>

#include "bits.h"

// Results must not depend on whether the processor can fuse a product and a sum.
#include "sohes/no_fma.h"

namespace sohes::mask_ops {
namespace {

int64_t and_popcount_plain(const uint64_t* a, int64_t stride_a, const uint64_t* b, int64_t stride_b,
                           int64_t count, int64_t rows) {
  int64_t sum = 0;
  for (; rows > 0; --rows, a += stride_a, b += stride_b) {
    for (int64_t k = 0; k < count; ++k) sum += std::popcount(a[k] & b[k]);
  }
  return sum;
}

int64_t count_changes_plain(const uint64_t* words, int64_t count) {
  int64_t sum = 0;
  uint64_t before = 0;
  for (int64_t k = 0; k < count; ++k) {
    sum += std::popcount(words[k] ^ (words[k] << 1 | before));
    before = words[k] >> 63;
  }
  return sum;
}

void bytes_to_bits_plain(const uint8_t* bytes, int64_t row_stride, int64_t rows, int64_t count, uint64_t* out,
                         int64_t stride, uint64_t* any) {
  for (int64_t y = 0; y < rows; ++y, bytes += row_stride) {
    for (int64_t start = 0; start < count; start += 64) {
      const int64_t n = count - start < 64 ? count - start : 64;
      uint64_t word = 0;
      for (int64_t i = 0; i < n; ++i) word |= uint64_t{bytes[start + i] != 0} << i;
      out[y + (start >> 6) * stride] = word;
      if (any) any[start >> 6] |= word;
    }
  }
}

void bits_to_bytes_plain(const uint64_t* bits, int64_t stride, int64_t count, uint8_t* bytes) {
  for (int64_t i = 0; i < count; ++i) bytes[i] = (bits[(i >> 6) * stride] >> (i & 63)) & 1;
}

void move_words_plain(uint64_t* from, int64_t count, uint64_t* to) {
  if (from) {
    std::copy_n(from, count, to);
    std::fill_n(from, count, 0);
  } else {
    std::fill_n(to, count, 0);
  }
}

void above_plain(const float* a, float threshold, int64_t count, uint64_t* bits) {
  for (int64_t start = 0; start < count; start += 64) {
    const int64_t n = count - start < 64 ? count - start : 64;
    uint64_t word = 0;
    for (int64_t i = 0; i < n; ++i) word |= uint64_t{a[start + i] - threshold >= kNear} << i;
    bits[start >> 6] = word;
  }
}

void blend_plain(const float* a, float weight_a, const float* b, float weight_b, int64_t count, float* out,
                 uint64_t* signs) {
  for (int64_t start = 0; start < count; start += 64) {
    const int64_t n = count - start < 64 ? count - start : 64;
    uint64_t word = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float left = a[start + i] * weight_a;
      const float right = b[start + i] * weight_b;
      const float value = left + right;
      out[start + i] = value;
      word |= uint64_t{value > 0.0f} << i;
    }
    signs[start >> 6] = word;
  }
}

}  // namespace

const Simd kPlain = {
    "plain",     and_popcount_plain, count_changes_plain, bytes_to_bits_plain, bits_to_bytes_plain,
    transpose64, move_words_plain,   above_plain,         blend_plain};

const Simd* const* simd_versions() {
  static const Simd* const list[] = {&kPlain, vector_version(0), vector_version(1), nullptr};
  return list;
}

const Simd& simd() {
  static const Simd& best = vector_version(1)   ? *vector_version(1)
                            : vector_version(0) ? *vector_version(0)
                                                : kPlain;
  return best;
}

}  // namespace sohes::mask_ops
