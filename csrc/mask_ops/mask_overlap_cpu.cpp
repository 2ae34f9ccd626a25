// SPDX-License-Identifier: Apache-2.0
// Intersections of every pair: 16 bytes read and 8 words' worth of bits counted per vector step. Blocked so
// that a tile of masks stays in the second-level cache while the others stream past it.
#include <algorithm>

#include "parallel.h"
#include "rows.h"
#include "simd.h"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

constexpr int64_t kTile = 32;     // masks of a
constexpr int64_t kStrip = 4096;  // words: 32 tiles of 32 KB make 1 MB

// The words of the columns between a mask's first and last, and its rows.
struct Extent {
  int64_t begin, end, y0, y1;
};

Extent extent_of(const int64_t* box, int64_t height) {
  if (box[0] >= box[2]) return {0, 0, 0, 0};
  const int64_t first = box[0] * height + box[1];
  const int64_t last = (box[2] - 1) * height + box[3] - 1;
  return {first >> 6, (last >> 6) + 1, box[1], box[3]};
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_overlap(const TensorView& words_a, const TensorView& boxes_a, const TensorView& words_b,
                  const TensorView& boxes_b, int64_t height, const TensorView& out, int num_threads) {
  const int64_t num_a = words_a.shape[0], num_b = words_b.shape[0];
  require(words_a.is_contiguous() && words_b.is_contiguous() && boxes_a.is_contiguous() &&
              boxes_b.is_contiguous() && out.is_contiguous() && words_a.shape[1] == words_b.shape[1],
          "mask_overlap: expected contiguous words of one size");
  const bool same = words_a.data == words_b.data && num_a == num_b;
  int64_t* const counts = out.as<int64_t>();
  parallel_for(num_a, kTile, num_threads, [&](int, int64_t begin, int64_t end) {
    Extent tile[kTile];
    Extent all = {words_a.shape[1], 0, height, 0};  // of the whole tile
    for (int64_t i = begin; i < end; ++i) {
      const Extent one = tile[i - begin] = extent_of(boxes_a.as<int64_t>() + 4 * i, height);
      if (one.begin == one.end) continue;
      all = {std::min(all.begin, one.begin), std::max(all.end, one.end), std::min(all.y0, one.y0),
             std::max(all.y1, one.y1)};
    }
    std::fill(counts + begin * num_b, counts + end * num_b, 0);
    for (int64_t strip = all.begin; strip < all.end; strip += kStrip) {
      const int64_t strip_end = std::min(strip + kStrip, all.end);
      for (int64_t j = same ? begin : 0; j < num_b; ++j) {
        const Extent b = extent_of(boxes_b.as<int64_t>() + 4 * j, height);
        if (b.begin >= strip_end || b.end <= strip || b.y0 >= all.y1 || b.y1 <= all.y0) continue;
        for (int64_t i = begin; i < end && !(same && i > j); ++i) {
          const Extent& a = tile[i - begin];
          const int64_t from = std::max({a.begin, b.begin, strip});
          const int64_t to = std::min({a.end, b.end, strip_end});
          if (from >= to || a.y0 >= b.y1 || b.y0 >= a.y1) continue;
          counts[i * num_b + j] +=
              simd().and_popcount(row(words_a, i) + from, row(words_b, j) + from, to - from);
        }
      }
    }
  });
  if (!same) return;
  for (int64_t i = 0; i < num_a; ++i) {
    for (int64_t j = 0; j < i; ++j) counts[i * num_b + j] = counts[j * num_b + i];
  }
}

}  // namespace sohes
