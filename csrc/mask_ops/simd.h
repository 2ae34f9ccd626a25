// SPDX-License-Identifier: Apache-2.0
// The vectorized inner loops, in one version per instruction set. The fastest version for the processor is
// selected at run time, so one binary runs on every machine. All versions return equal bits.
#pragma once

#include <cstdint>

namespace sohes::mask_ops {

// Distances of logits from their threshold: what is nearer counts as 0, what is farther is cut.
constexpr float kNear = 1e-30f;
constexpr float kFar = 1e30f;

struct Simd {
  const char* name;

  // sum popcount(a[r * stride_a + k] & b[r * stride_b + k]) over k < count, r < rows.
  int64_t (*and_popcount)(const uint64_t* a, int64_t stride_a, const uint64_t* b, int64_t stride_b,
                          int64_t count, int64_t rows);

  // How many bits differ from the one before, over all bits of the words in order; before the first comes 0.
  int64_t (*count_changes)(const uint64_t* words, int64_t count);

  // Of each row y of `count` bytes at bytes + y * row_stride, y < rows: bit i of the stream out[y],
  // out[y + stride], out[y + 2 * stride], ... is whether byte i is not 0; the last word is padded with zeros.
  // any[k] |= word k of all streams, unless null.
  void (*bytes_to_bits)(const uint8_t* bytes, int64_t row_stride, int64_t rows, int64_t count, uint64_t* out,
                        int64_t stride, uint64_t* any);

  // The inverse: bytes[i] = bit i of one stream from `bits` on, 0 or 1.
  void (*bits_to_bytes)(const uint64_t* bits, int64_t stride, int64_t count, uint8_t* bytes);

  // Transposes a square of 64 x 64 bits in place: bit j of square[i] becomes bit i of square[j].
  void (*transpose)(uint64_t* square);

  // to[k] = from[k], past the caches where that is possible, and from[k] = 0; zeros where `from` is null.
  void (*move_words)(uint64_t* from, int64_t count, uint64_t* to);

  // Bit i of bits: a[i] - threshold >= kNear; false for NaN.
  void (*above)(const float* a, float threshold, int64_t count, uint64_t* bits);

  // out[i] = a[i] * weight_a + b[i] * weight_b, each product rounded (no fused multiply-add); bit i of signs:
  // out[i] > 0.
  void (*blend)(const float* a, float weight_a, const float* b, float weight_b, int64_t count, float* out,
                uint64_t* signs);
};

extern const Simd kPlain;

// The vector versions of this processor, the better one at level 1; nullptr for one that it cannot run.
const Simd* vector_version(int level);

// All versions this processor can run, plainest first; ends with nullptr.
const Simd* const* simd_versions();

// The best of them.
const Simd& simd();

}  // namespace sohes::mask_ops
