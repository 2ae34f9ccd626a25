// SPDX-License-Identifier: Apache-2.0
// Nodes of merge trees drawn as packed masks. The runs of the columns of every leaf are listed once. A node
// copies the nodes inside it that are drawn already and sets the runs of its other leaves; one thread makes
// all words of a node, and both ways give the same pixels.
#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#include "bits.h"
#include "huge_pages.h"
#include "parallel.h"
#include "regions.h"
#include "rows.h"
#include "simd.h"
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

// The nodes inside each node that are not inside another one of it, as a linked list from first[n] by next,
// in the order of their starts; -1 ends it.
struct Inner {
  std::vector<int64_t> first, next;

  explicit Inner(const TensorView& nodes, const std::vector<int64_t>& by_start)
      : first(by_start.size(), -1), next(by_start.size(), -1) {
    std::vector<int64_t> around, last(by_start.size(), -1);  // around: nodes, each inside the one before
    for (const int64_t n : by_start) {
      const int64_t* node = nodes.as<int64_t>() + 3 * n;
      const auto contains = [&](int64_t outer) {
        const int64_t* other = nodes.as<int64_t>() + 3 * outer;
        return other[0] == node[0] && node[1] < other[2] && node[2] <= other[2];
      };
      while (!around.empty() && !contains(around.back())) around.pop_back();
      if (!around.empty()) {
        const int64_t outer = around.back();
        (last[outer] < 0 ? first[outer] : next[last[outer]]) = n;
        last[outer] = n;
      }
      around.push_back(n);
    }
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
  const int64_t num = nodes.shape[0];
  const auto node_of = [&](int64_t n) { return nodes.as<int64_t>() + 3 * n; };
  std::vector<int64_t> order(num);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    const int64_t *a = node_of(i), *b = node_of(j);
    return std::tuple(a[0], a[1], -a[2], i) < std::tuple(b[0], b[1], -b[2], j);
  });
  const Inner inner(nodes, order);
  std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    return std::pair(node_of(i)[2] - node_of(i)[1], i) < std::pair(node_of(j)[2] - node_of(j)[1], j);
  });
  const std::unique_ptr<std::atomic<bool>[]> is_drawn(new std::atomic<bool>[num]());
  parallel_for(num, 1, num_threads, [&](int thread, int64_t k, int64_t) {
    const int64_t n = order[k], *leaf = orders.as<int64_t>() + node_of(n)[0] * num_leaves;
    int64_t* box = boxes.as<int64_t>() + 4 * n;
    uint64_t* mask = row(words, n);
    Box found = kNoBox;
    const auto draw_leaves = [&](int64_t start, int64_t stop) {
      for (int64_t at = start; at < stop; ++at) {
        join(found, parts.boxes[leaf[at]]);
        for (int64_t r = parts.first[leaf[at]]; r < parts.first[leaf[at] + 1]; ++r)
          fill_bits(mask, parts.runs[r].start, parts.runs[r].stop);
      }
    };
    // Smaller nodes come first, so the inner ones are drawn, or another thread is about to: then leaf by
    // leaf.
    int64_t at = node_of(n)[1];
    for (int64_t i = inner.first[n]; i >= 0; i = inner.next[i]) {
      if (!is_drawn[i].load(std::memory_order_acquire) || areas.as<int64_t>()[i] == 0) continue;
      draw_leaves(at, node_of(i)[1]);
      at = std::max(at, node_of(i)[2]);
      const int64_t* part = boxes.as<int64_t>() + 4 * i;
      const Span span = span_of(part, height);
      const uint64_t* from = row(words, i);
      for (int64_t word = span.begin; word < span.end; ++word) mask[word] |= from[word];
      join(found, {part[0], part[1], part[2], part[3]});
    }
    draw_leaves(at, node_of(n)[2]);
    const bool is_empty = found[0] >= found[2];
    std::copy_n((is_empty ? Box{} : found).begin(), 4, box);
    // An inner node may have its holes filled: they are holes or pixels of this node too.
    if (fill && !is_empty)
      fill_holes(mask, height, box[0], box[2], holes.as<int64_t>() + thread * holes.shape[1],
                 holes.shape[1] / 4);
    const Span span = span_of(box, height);
    areas.as<int64_t>()[n] =
        simd().and_popcount(mask + span.begin, 0, mask + span.begin, 0, span.end - span.begin, 1);
    is_drawn[n].store(true, std::memory_order_release);
  });
}

}  // namespace sohes
