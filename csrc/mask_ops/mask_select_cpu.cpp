// SPDX-License-Identifier: Apache-2.0
// Non-maximum suppression and parents, without the matrix of all pairs: areas and boxes bound the
// intersection of two masks, so that it is computed only where it can matter.
#include <algorithm>

#include "boxed_masks.h"
#include "parallel.h"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

// IoU over the threshold. All bounds err on the side of counting: rounding keeps their order.
bool duplicates(const BoxedMasks& masks, int64_t i, int64_t j, double threshold) {
  const int64_t total = masks.areas[i] + masks.areas[j];
  const auto over = [&](int64_t shared) {
    return static_cast<double>(shared) > threshold * static_cast<double>(total - shared);
  };
  // Areas first: they alone rule out most pairs.
  const int64_t smaller = std::min(masks.areas[i], masks.areas[j]);
  if (!over(smaller)) return false;
  const int64_t most = std::min(masks.shared_box(i, j), smaller);
  if (!over(most)) return false;
  return over(most > 0 ? masks.shared(i, j) : 0);
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_nms(const TensorView& words, const TensorView& areas, const TensorView& boxes,
              const TensorView& order, double threshold, int64_t height, const TensorView& kept,
              const TensorView& keep) {
  require(words.is_contiguous() && boxes.is_contiguous(), "mask_nms: expected contiguous words and boxes");
  const BoxedMasks masks = {words, areas.as<int64_t>(), boxes.as<int64_t>(), height};
  int64_t* const best = kept.as<int64_t>();
  int64_t count = 0;
  std::fill_n(keep.as<bool>(), words.shape[0], false);
  for (int64_t k = 0; k < order.numel(); ++k) {
    const int64_t i = order.as<int64_t>()[k];
    const bool alive =
        std::none_of(best, best + count, [&](int64_t j) { return duplicates(masks, i, j, threshold); });
    keep.as<bool>()[i] = alive;
    if (alive) best[count++] = i;
  }
}

void mask_parents(const TensorView& words, const TensorView& areas, const TensorView& boxes,
                  const TensorView& order, double theta, int64_t height, const TensorView& parents,
                  int num_threads) {
  require(words.is_contiguous() && boxes.is_contiguous(),
          "mask_parents: expected contiguous words and boxes");
  const BoxedMasks masks = {words, areas.as<int64_t>(), boxes.as<int64_t>(), height};
  const int64_t num = words.shape[0];
  parallel_for(num, 16, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t i = order.as<int64_t>()[k];
      const double needed = theta * static_cast<double>(masks.areas[i]);
      int64_t parent = -1;
      // By size, so the first that covers is the smallest; one of equal size never covers without being
      // covered.
      for (int64_t next = k + 1; next < num && parent < 0 && masks.areas[i] > 0; ++next) {
        const int64_t j = order.as<int64_t>()[next];
        if (static_cast<double>(masks.shared_box(i, j)) < needed) continue;
        const auto shared = static_cast<double>(masks.shared(i, j));
        if (shared >= needed && shared < theta * static_cast<double>(masks.areas[j])) parent = j;
      }
      parents.as<int64_t>()[i] = parent;
    }
  });
}

}  // namespace sohes
