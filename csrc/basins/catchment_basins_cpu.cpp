// SPDX-License-Identifier: Apache-2.0
// target(p) = the lowest of p and its 4 neighbours; of equal ones the one of smallest flat index
//
// The output first has the target of every pixel; a pixel that is its own target is a minimum. Minima become
// ~number in raster order, which is negative, and all pixels on the way to one take its number.
#include <algorithm>
#include <limits>

#include "sohes/basins.h"

namespace sohes {
namespace {

constexpr float kOutside = std::numeric_limits<float>::infinity();

// The step from a pixel to its target. In the order of flat indices with strict comparisons, so that the
// first of equal heights stays.
inline int32_t steepest(float up, float left, float own, float right, float down, int32_t width) {
  float lowest = up;
  int32_t step = -width;
  step = left < lowest ? -1 : step;
  lowest = left < lowest ? left : lowest;
  step = own < lowest ? 0 : step;
  lowest = own < lowest ? own : lowest;
  step = right < lowest ? 1 : step;
  lowest = right < lowest ? right : lowest;
  return down < lowest ? width : step;
}

constexpr int64_t kBlock = 512;  // pixels whose steps, of the size of a float, are found in one vector loop

void find_targets(const float* height, int64_t rows, int64_t columns, int64_t* target) {
  const int32_t width = static_cast<int32_t>(columns);
  for (int64_t y = 0; y < rows; ++y) {
    const int64_t first = y * columns;
    const auto at_edge = [&](int64_t x) {
      const int64_t pixel = first + x;
      const float* here = height + pixel;
      target[pixel] = pixel + steepest(y > 0 ? here[-columns] : kOutside, x > 0 ? here[-1] : kOutside, *here,
                                       x + 1 < columns ? here[1] : kOutside,
                                       y + 1 < rows ? here[columns] : kOutside, width);
    };
    if (y == 0 || y + 1 == rows) {
      for (int64_t x = 0; x < columns; ++x) at_edge(x);
      continue;
    }
    at_edge(0);
    const float *own = height + first, *up = own - columns, *down = own + columns;
    for (int64_t begin = 1; begin + 1 < columns; begin += kBlock) {
      const int64_t count = std::min(kBlock, columns - 1 - begin);
      const float *a = up + begin, *b = own + begin, *c = down + begin;
      int32_t step[kBlock];
      for (int64_t i = 0; i < count; ++i) step[i] = steepest(a[i], b[i - 1], b[i], b[i + 1], c[i], width);
      for (int64_t i = 0; i < count; ++i) target[first + begin + i] = first + begin + i + step[i];
    }
    if (columns > 1) at_edge(columns - 1);
  }
}

}  // namespace

void catchment_basins_cpu(const TensorView& height, const TensorView& labels) {
  require(height.ndim == 2 && height.is_contiguous() && height.dtype == DType::kFloat32,
          "catchment_basins: height is not float32 [H, W]");
  require(labels.is_contiguous() && labels.dtype == DType::kInt64 && labels.numel() == height.numel(),
          "catchment_basins: labels are not int64 of the right size");
  require(height.shape[1] <= std::numeric_limits<int32_t>::max(), "catchment_basins: rows are too long");
  const int64_t count = height.numel();
  if (count == 0) return;
  int64_t* const label = labels.as<int64_t>();
  find_targets(height.as<float>(), height.shape[0], height.shape[1], label);
  int64_t num_basins = 0;
  for (int64_t pixel = 0; pixel < count; ++pixel)
    if (label[pixel] == pixel) label[pixel] = ~num_basins++;
  for (int64_t pixel = 0; pixel < count; ++pixel) {
    int64_t end = pixel;
    while (label[end] >= 0) end = label[end];
    const int64_t number = label[end];
    for (int64_t on_way = pixel; label[on_way] >= 0;) {
      const int64_t next = label[on_way];
      label[on_way] = number;
      on_way = next;
    }
  }
  for (int64_t pixel = 0; pixel < count; ++pixel) label[pixel] = ~label[pixel];
}

}  // namespace sohes
