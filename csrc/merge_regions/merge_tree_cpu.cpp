// SPDX-License-Identifier: Apache-2.0
// Depth-first layout of a merge tree: one pass up for counts and boxes, one pass down for positions.
#include <algorithm>
#include <vector>

#include "sohes/merge_regions.h"

namespace sohes {

void merge_tree_layout(const TensorView& merges, int64_t width, const TensorView& counts,
                       const TensorView& starts, const TensorView& parents, const TensorView& order,
                       const TensorView& boxes) {
  const int64_t num_merges = merges.shape[0], num_leaves = order.shape[0],
                num_nodes = num_leaves + num_merges;
  require(counts.numel() == num_nodes && starts.numel() == num_nodes && parents.numel() == num_nodes &&
              boxes.numel() == 4 * num_nodes,
          "merge_tree_layout: an output has the wrong size");
  require(merges.is_contiguous() && merges.dtype == DType::kInt32,
          "merge_tree_layout: merges are not int32 [M, 2]");
  const int32_t* pair = merges.as<int32_t>();
  int64_t* count = counts.as<int64_t>();
  int32_t* start = starts.as<int32_t>();
  int32_t* parent = parents.as<int32_t>();
  int32_t* box = boxes.as<int32_t>();

  for (int64_t i = 0; i < num_leaves; ++i) {
    const int32_t x = static_cast<int32_t>(i % width), y = static_cast<int32_t>(i / width);
    const int32_t patch[4] = {x, y, x + 1, y + 1};
    std::copy_n(patch, 4, box + 4 * i);
    count[i] = 1;
  }
  std::fill_n(parent, num_nodes, -1);
  for (int64_t k = 0; k < num_merges; ++k) {
    const int64_t left = pair[2 * k], right = pair[2 * k + 1], node = num_leaves + k;
    require(0 <= left && left < node && 0 <= right && right < node,
            "merge_tree_layout: a merge names a later node");
    count[node] = count[left] + count[right];
    for (int side = 0; side < 4; ++side) {
      const int32_t a = box[4 * left + side], b = box[4 * right + side];
      box[4 * node + side] = side < 2 ? std::min(a, b) : std::max(a, b);
    }
    parent[left] = parent[right] = static_cast<int32_t>(node);
  }
  int32_t position = 0;
  for (int64_t node = 0; node < num_nodes; ++node) {
    if (parent[node] >= 0) continue;
    start[node] = position;
    position += static_cast<int32_t>(count[node]);
  }
  for (int64_t k = num_merges - 1; k >= 0; --k) {
    const int64_t left = pair[2 * k], right = pair[2 * k + 1];
    start[left] = start[num_leaves + k];
    start[right] = start[left] + static_cast<int32_t>(count[left]);
  }
  int32_t* leaf = order.as<int32_t>();
  for (int64_t i = 0; i < num_leaves; ++i) leaf[start[i]] = static_cast<int32_t>(i);
}

void merge_tree_cuts(const TensorView& similarity, const TensorView& counts, const TensorView& starts,
                     const TensorView& parents, const TensorView& order, const std::vector<float>& thresholds,
                     const TensorView& labels) {
  const int64_t* count = counts.as<int64_t>();
  const int32_t *start = starts.as<int32_t>(), *parent = parents.as<int32_t>();
  const int32_t* leaf = order.as<int32_t>();
  const int64_t num_leaves = order.numel(), num_merges = similarity.numel();
  require(similarity.is_contiguous() && parents.numel() == num_leaves + num_merges,
          "merge_tree_cuts: similarity is not contiguous [M]");
  require(labels.numel() == static_cast<int64_t>(thresholds.size()) * num_leaves,
          "merge_tree_cuts: labels are not [n, N]");
  struct Cut {
    int64_t end;  // the nodes with ids below it have been made
    int32_t* label;
  };
  std::vector<Cut> cuts;
  for (const float threshold : thresholds) {
    const float* values = similarity.as<float>();
    int64_t first_below = 0;
    while (first_below < num_merges && values[first_below] >= threshold) ++first_below;
    cuts.push_back({num_leaves + first_below, labels.as<int32_t>() + cuts.size() * num_leaves});
  }
  std::sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.end < b.end; });
  // A node is alive in the cuts that end after it and not after its parent; nodes come in the order of the
  // ends.
  auto next = cuts.begin();
  for (int64_t node = 0; next != cuts.end(); ++node) {
    while (next != cuts.end() && next->end <= node) ++next;
    for (auto cut = next; cut != cuts.end() && (parent[node] < 0 || parent[node] >= cut->end); ++cut) {
      for (int64_t i = start[node]; i < start[node] + count[node]; ++i) {
        cut->label[leaf[i]] = static_cast<int32_t>(node);
      }
    }
  }
}

int64_t merge_tree_distinct(const TensorView& merges, const TensorView& parents, const TensorView& areas,
                            const TensorView& ids, double iou, int64_t limit, const TensorView& dropped,
                            const TensorView& kept) {
  const int64_t num_nodes = parents.numel(), num_leaves = num_nodes - merges.shape[0];
  require(merges.is_contiguous() && merges.dtype == DType::kInt32 && parents.is_contiguous() &&
              parents.dtype == DType::kInt32 && areas.is_contiguous() && areas.numel() == num_nodes,
          "merge_tree_distinct: expected int32 merges and parents, int64 areas");
  require(dropped.numel() == num_nodes && kept.numel() >= std::min(limit, ids.numel()),
          "merge_tree_distinct: an output has the wrong size");
  const int32_t *pair = merges.as<int32_t>(), *parent = parents.as<int32_t>();
  const int64_t *area = areas.as<int64_t>(), *id = ids.as<int64_t>();
  bool* is_dropped = dropped.as<bool>();
  int64_t* out = kept.as<int64_t>();
  const auto is_similar = [&](int64_t inner, int64_t outer) {
    return static_cast<double>(area[inner]) > iou * static_cast<double>(area[outer]);
  };
  std::vector<int64_t> stack;
  int64_t count = 0;
  for (int64_t i = 0; i < ids.numel() && count < limit; ++i) {
    const int64_t node = id[i];
    if (is_dropped[node]) continue;
    out[count++] = node;
    for (int64_t above = parent[node]; above >= 0 && is_similar(node, above); above = parent[above]) {
      is_dropped[above] = true;
    }
    stack.assign(1, node);
    while (!stack.empty()) {
      const int64_t below = stack.back() - num_leaves;
      stack.pop_back();
      for (int side = 0; side < 2 && below >= 0; ++side) {
        const int64_t child = pair[2 * below + side];
        if (!is_similar(child, node)) continue;
        is_dropped[child] = true;
        stack.push_back(child);
      }
    }
  }
  return count;
}

}  // namespace sohes
