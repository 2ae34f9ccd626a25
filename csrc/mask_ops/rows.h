// SPDX-License-Identifier: Apache-2.0
// Access to the words of one mask in a tensor.
#pragma once

#include <cstdint>

#include "sohes/tensor_view.h"

namespace sohes::mask_ops {

inline int64_t num_words(int64_t num_pixels) { return (num_pixels + 63) / 64; }

// Words of mask n of a contiguous [N, V] tensor.
inline uint64_t* row(const TensorView& words, int64_t n) { return words.as<uint64_t>() + n * words.shape[1]; }

// The words that a mask's box reaches, half-open: all others are zero.
struct Span {
  int64_t begin, end;
};

inline Span span_of(const int64_t* box, int64_t height) {
  if (box[0] >= box[2]) return {0, 0};
  return {(box[0] * height) >> 6, (box[2] * height + 63) >> 6};
}

// That of mask n, or all words where boxes are empty.
inline Span span_of(const TensorView& boxes, int64_t n, int64_t height, int64_t num) {
  return boxes.numel() == 0 ? Span{0, num} : span_of(boxes.as<int64_t>() + 4 * n, height);
}

// Checks an argument: contiguous int64 words [N, V] on the CPU, of masks with this many pixels.
inline void require_words(const TensorView& words, int64_t num_pixels) {
  require(words.device == kCpu && words.dtype == DType::kInt64 && words.ndim == 2 && words.is_contiguous() &&
              words.shape[1] == num_words(num_pixels),
          "expected contiguous int64 words [N, ceil(H * W / 64)] on the CPU");
}

}  // namespace sohes::mask_ops
