// SPDX-License-Identifier: Apache-2.0
// Packed masks with their areas and boxes, which bound the intersection of two masks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rows.h"
#include "simd.h"
#include "sohes/tensor_view.h"

namespace sohes::mask_ops {

struct BoxedMasks {
  const TensorView& words;
  const int64_t* areas;
  const int64_t* boxes;
  int64_t height;

  // Upper bound of the intersection of two masks: that of their boxes.
  int64_t shared_box(int64_t i, int64_t j) const {
    const int64_t *a = boxes + 4 * i, *b = boxes + 4 * j;
    const int64_t w = std::min(a[2], b[2]) - std::max(a[0], b[0]);
    const int64_t h = std::min(a[3], b[3]) - std::max(a[1], b[1]);
    return w > 0 && h > 0 ? w * h : 0;
  }

  // The intersection of two masks that are not empty and whose boxes intersect, over their common columns.
  int64_t shared(int64_t i, int64_t j) const {
    const int64_t *a = boxes + 4 * i, *b = boxes + 4 * j;
    const int64_t x0 = std::max(a[0], b[0]), x1 = std::min(a[2], b[2]);
    const int64_t y0 = std::max(a[1], b[1]), y1 = std::min(a[3], b[3]);
    const int64_t from = (x0 * height + y0) >> 6, to = (((x1 - 1) * height + y1 - 1) >> 6) + 1;
    return simd().and_popcount(row(words, i) + from, 0, row(words, j) + from, 0, to - from, 1);
  }
};

}  // namespace sohes::mask_ops
