// SPDX-License-Identifier: Apache-2.0
// COCO's greedy matching for all area ranges and IoU thresholds at once; a set of lanes is one 64-bit word.
#include <algorithm>
#include <cstring>

#include "sohes/evaluation.h"

namespace sohes {

int64_t match_lanes(const TensorView& pred, const TensorView& gt, const TensorView& iou,
                    const TensorView& ignored, const TensorView& crowd, const TensorView& thresholds,
                    const TensorView& scratch, const TensorView& out_pred, const TensorView& hit,
                    const TensorView& spare) {
  const int64_t num_ranges = ignored.shape[0], num_masks = ignored.shape[1],
                num_thresholds = thresholds.shape[0];
  const int64_t num_pairs = pred.shape[0];
  for (const TensorView* view : {&pred, &gt, &iou, &ignored, &crowd, &thresholds, &out_pred, &hit, &spare}) {
    require(view->is_contiguous(), "match_lanes: expected contiguous tensors");
  }
  require(num_ranges * num_thresholds <= 64 && scratch.numel() >= 3 * num_masks,
          "match_lanes: expected at most 64 lanes, and scratch [3, M]");
  uint64_t* counts_free = scratch.as<uint64_t>();    // per mask: lanes in which it counts and is not taken
  uint64_t* ignored_free = counts_free + num_masks;  // lanes in which it is ignored and not taken
  int64_t* best = scratch.as<int64_t>() + 2 * num_masks;  // the pairs of one prediction, best first
  const uint64_t lanes_of_range = num_thresholds == 64 ? ~uint64_t{0} : (uint64_t{1} << num_thresholds) - 1;
  uint64_t first_lanes = 0;  // the first lane of each range
  for (int64_t a = 0; a < num_ranges; ++a) first_lanes |= uint64_t{1} << (a * num_thresholds);
  const uint64_t every = first_lanes * lanes_of_range;
  for (int64_t m = 0; m < num_masks; ++m) {
    ignored_free[m] = 0;
    for (int64_t a = 0; a < num_ranges; ++a) {
      if (ignored.as<bool>()[a * num_masks + m]) ignored_free[m] |= lanes_of_range << (a * num_thresholds);
    }
    counts_free[m] = every ^ ignored_free[m];
  }

  const int64_t *preds = pred.as<int64_t>(), *masks = gt.as<int64_t>();
  const double *values = iou.as<double>(), *limits = thresholds.as<double>();
  // The lanes whose threshold an IoU reaches: the first `met` thresholds of every range.
  const auto reached = [&](double value) {
    const int64_t met = std::upper_bound(limits, limits + num_thresholds, value) - limits;
    return met == 0 ? 0 : first_lanes * (lanes_of_range >> (num_thresholds - met));
  };
  int64_t count = 0;
  for (int64_t start = 0, stop; start < num_pairs; start = stop) {
    for (stop = start; stop < num_pairs && preds[stop] == preds[start]; ++stop) best[stop - start] = stop;
    // Of equal IoUs the later mask is first, because COCO takes the last of the best.
    std::sort(best, best + (stop - start), [&](int64_t a, int64_t b) {
      return values[a] != values[b] ? values[a] > values[b] : masks[a] > masks[b];
    });
    uint64_t want = every;  // lanes in which this prediction is not matched yet
    for (int64_t k = 0; k < stop - start; ++k) {
      uint64_t& free = counts_free[masks[best[k]]];
      const uint64_t taken = want & reached(values[best[k]]) & free;
      free ^= taken;
      want ^= taken;
    }
    const uint64_t hits = every ^ want;
    uint64_t spares = 0;
    for (int64_t k = 0; k < stop - start; ++k) {
      const int64_t m = masks[best[k]];
      const uint64_t taken = want & reached(values[best[k]]) & ignored_free[m];
      if (!crowd.as<bool>()[m]) ignored_free[m] ^= taken;  // a crowd can be matched repeatedly
      want ^= taken;
      spares |= taken;
    }
    if ((hits | spares) == 0) continue;
    out_pred.as<int64_t>()[count] = preds[start];
    for (int b = 0; b < 8; ++b) {
      hit.as<uint8_t>()[8 * count + b] = static_cast<uint8_t>(hits >> (8 * b));
      spare.as<uint8_t>()[8 * count + b] = static_cast<uint8_t>(spares >> (8 * b));
    }
    ++count;
  }
  return count;
}

}  // namespace sohes
