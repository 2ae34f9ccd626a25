// SPDX-License-Identifier: Apache-2.0
// One mask's words out of a tensor of many.
#pragma once

#include <cstdint>

#include "sohes/tensor_view.h"

namespace sohes::mask_ops {

inline int64_t num_words(int64_t num_pixels) { return (num_pixels + 63) / 64; }

// Words of mask n of a contiguous [N, V] tensor.
inline uint64_t* row(const TensorView& words, int64_t n) { return words.as<uint64_t>() + n * words.shape[1]; }

// Guards a raw entry: contiguous int64 words [N, V] on the CPU of masks with this many pixels.
inline void require_words(const TensorView& words, int64_t num_pixels) {
  require(words.device == kCpu && words.dtype == DType::kInt64 && words.ndim == 2 && words.is_contiguous() &&
              words.shape[1] == num_words(num_pixels),
          "expected contiguous int64 words [N, ceil(H * W / 64)] on the CPU");
}

}  // namespace sohes::mask_ops
