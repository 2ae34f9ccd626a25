// SPDX-License-Identifier: Apache-2.0
// The loops over channels that merge_regions is made of, for the processor at hand.
//
// Products of two float32 are exact in double, so a fused multiply-add rounds as a multiplication and an
// addition do; and the lanes are added in one fixed order. Every variant therefore returns the same bits: a
// tree does not depend on the processor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sohes/tensor_view.h"

namespace sohes::merging {

constexpr int kMaxRows = 4;

struct SumDots {
  double cc, ac, bc;
};

struct ChannelLoops {
  const char* name;
  // out[i] = <x, rows[i]> for i < count <= kMaxRows; each is the same whatever the count. Reads each row
  // once.
  void (*dots)(const float* x, const float* const* rows, int count, int64_t channels, double* out);
  // c = a + b (c may be a or b); returns the dot products of the sum with itself and with both parts.
  SumDots (*add)(const float* a, const float* b, float* c, int64_t channels);
  // float16 or bfloat16 to float32.
  void (*widen)(const void* from, DType dtype, int64_t count, float* to);
};

// What this processor can run, fastest first; the last one runs anywhere.
const std::vector<ChannelLoops>& channel_loops();

}  // namespace sohes::merging
