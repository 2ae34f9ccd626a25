// SPDX-License-Identifier: Apache-2.0
// Interpolated precision of every lane, in one pass over predictions by descending score.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "sohes/evaluation.h"

namespace sohes {

void count_precision(const TensorView& rows, int64_t max_dets, const TensorView& needed,
                     const TensorView& inside, const TensorView& hits, const TensorView& change,
                     const TensorView& point, const TensorView& best) {
  for (const TensorView* view : {&rows, &needed, &inside, &hits, &change, &point, &best}) {
    require(view->is_contiguous(), "count_precision: expected contiguous tensors");
  }
  const int64_t num_ranges = inside.shape[0], num_lanes = hits.shape[0], num_points = needed.shape[1];
  const int64_t row_bytes = rows.shape[1], lane_bytes = (num_lanes + 7) / 8;
  const int64_t outside_at = sizeof(double) + sizeof(int32_t), hit_at = outside_at + 1;
  require(num_ranges > 0 && num_ranges <= 8 && num_lanes <= 64 && row_bytes == hit_at + 2 * lane_bytes,
          "count_precision: expected rows of at most 8 ranges and 64 lanes");
  const int64_t num_thresholds = num_lanes / num_ranges;
  const double eps = std::numeric_limits<double>::epsilon();
  int64_t *total = inside.as<int64_t>(), *found = hits.as<int64_t>(), *beyond = change.as<int64_t>();
  int64_t* reached = point.as<int64_t>();
  for (int64_t n = 0; n < rows.shape[0]; ++n) {
    const uint8_t* row = rows.as<uint8_t>() + n * row_bytes;
    int32_t rank;
    std::memcpy(&rank, row + sizeof(double), sizeof rank);
    if (rank >= max_dets) continue;
    const uint32_t outside = row[outside_at];
    for (int64_t a = 0; a < num_ranges; ++a) total[a] += ~outside >> a & 1;
    uint64_t hit = 0, ignored = 0;
    for (int64_t b = 0; b < lane_bytes; ++b) {
      hit |= static_cast<uint64_t>(row[hit_at + b]) << (8 * b);
      ignored |= static_cast<uint64_t>(row[hit_at + lane_bytes + b]) << (8 * b);
    }
    for (; ignored != 0; ignored &= ignored - 1) {
      const int64_t lane = std::countr_zero(ignored);
      beyond[lane] -= ~outside >> (lane / num_thresholds) & 1;
    }
    for (; hit != 0; hit &= hit - 1) {
      const int64_t lane = std::countr_zero(hit), a = lane / num_thresholds;
      beyond[lane] += outside >> a & 1;
      const int64_t count = ++found[lane];
      const int64_t* goals = needed.as<int64_t>() + a * num_points;
      while (reached[lane] + 1 < num_points && goals[reached[lane] + 1] <= count) ++reached[lane];
      double& value = best.as<double>()[lane * num_points + reached[lane]];
      value =
          std::max(value, static_cast<double>(count) / (static_cast<double>(total[a] + beyond[lane]) + eps));
    }
  }
}

}  // namespace sohes
