// SPDX-License-Identifier: Apache-2.0
// Nodes of merge trees drawn as packed masks. The runs of the columns of every leaf are listed once; a node
// then sets the runs of its leaves, so the time depends on the number of runs and not on the number of
// pixels.
#include <algorithm>
#include <array>

#include "bits.h"
#include "huge_pages.h"
#include "parallel.h"
#include "regions.h"
#include "rows.h"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

struct Run {
  int64_t start, stop;  // flat bits, half-open, in one column
};

// f(leaf, run, x, y) for each maximal run of one leaf in a column, in order.
template <typename F>
void for_each_leaf_run(const int64_t* leaves, int64_t height, int64_t width, F&& f) {
  for (int64_t x = 0; x < width; ++x) {
    const int64_t end = (x + 1) * height;
    for (int64_t start = x * height; start < end;) {
      int64_t stop = start + 1;
      while (stop < end && leaves[stop] == leaves[start]) ++stop;
      f(leaves[start], Run{start, stop}, x, start - x * height);
      start = stop;
    }
  }
}

// Boxes x0, y0, x1, y1, half-open; an empty one has no effect when joined.
using Box = std::array<int64_t, 4>;
constexpr Box kNoBox = {INT64_MAX, INT64_MAX, 0, 0};

inline void join(Box& box, const Box& other) {
  for (int side = 0; side < 2; ++side) {
    box[side] = std::min(box[side], other[side]);
    box[side + 2] = std::max(box[side + 2], other[side + 2]);
  }
}

// The runs of leaf i are runs[first[i]] .. runs[first[i + 1] - 1].
struct Leaves {
  Run* runs;
  int64_t* first;
  Box* boxes;

  Leaves(const int64_t* labels, int64_t height, int64_t width, int64_t count, int64_t* scratch)
      : runs(reinterpret_cast<Run*>(scratch)),
        first(scratch + 2 * height * width),
        boxes(reinterpret_cast<Box*>(first + count + 1)) {
    std::fill_n(first, count + 1, 0);
    std::fill_n(boxes, count, kNoBox);
    for_each_leaf_run(labels, height, width, [&](int64_t leaf, const Run& run, int64_t x, int64_t y) {
      ++first[leaf];
      join(boxes[leaf], {x, y, x + 1, y + run.stop - run.start});
    });
    // first[i] := the end of the runs of leaf i, which moves to their begin as they are written from the
    // last.
    for (int64_t i = 0; i < count; ++i) first[i + 1] += first[i];
    for_each_leaf_run(labels, height, width,
                      [&](int64_t leaf, const Run& run, int64_t, int64_t) { runs[--first[leaf]] = run; });
  }
};

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_from_nodes(const TensorView& leaves, const TensorView& orders, const TensorView& nodes, bool fill,
                     const TensorView& runs, const TensorView& holes, const TensorView& words,
                     const TensorView& areas, const TensorView& boxes, int num_threads) {
  const int64_t width = leaves.shape[0], height = leaves.shape[1], num_leaves = orders.shape[1];
  require_words(words, height * width);
  require(leaves.is_contiguous() && leaves.dtype == DType::kInt64 && orders.is_contiguous() &&
              orders.dtype == DType::kInt64 && nodes.is_contiguous() && nodes.dtype == DType::kInt64,
          "mask_from_nodes: expected contiguous int64 leaves, orders and nodes");
  require(nodes.shape[1] == 3 && nodes.shape[0] == words.shape[0],
          "mask_from_nodes: expected nodes [N, 3] and as many masks");
  require(runs.numel() >= 2 * height * width + 5 * num_leaves + 1,
          "mask_from_nodes: scratch for runs is too small");
  require(!fill || (holes.shape[0] >= num_threads && holes.shape[1] >= 2 * width * (height + 1)),
          "mask_from_nodes: scratch for holes is too small");
  choose_pages(words);
  const Leaves parts(leaves.as<int64_t>(), height, width, num_leaves, runs.as<int64_t>());
  parallel_for(nodes.shape[0], 4, num_threads, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t* node = nodes.as<int64_t>() + 3 * n;
      const int64_t* order = orders.as<int64_t>() + node[0] * num_leaves;
      uint64_t* mask = row(words, n);
      int64_t area = 0;
      Box box = kNoBox;
      for (const int64_t* leaf = order + node[1]; leaf != order + node[2]; ++leaf) {
        join(box, parts.boxes[*leaf]);
        for (int64_t k = parts.first[*leaf]; k < parts.first[*leaf + 1]; ++k) {
          fill_bits(mask, parts.runs[k].start, parts.runs[k].stop);
          area += parts.runs[k].stop - parts.runs[k].start;
        }
      }
      if (fill && area > 0) {
        const int64_t capacity = holes.shape[1] / 4;
        area +=
            fill_holes(mask, height, box[0], box[2], holes.as<int64_t>() + thread * holes.shape[1], capacity);
      }
      areas.as<int64_t>()[n] = area;
      std::copy_n((area > 0 ? box : Box{}).begin(), 4, boxes.as<int64_t>() + 4 * n);
    }
  });
}

}  // namespace sohes
