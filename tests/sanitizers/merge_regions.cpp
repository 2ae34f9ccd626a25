// SPDX-License-Identifier: Apache-2.0
// Runs every kernel of csrc/merge_regions/ on small random maps and graphs in buffers of exactly their size,
// and checks that the result is a tree. Built by tests/test_sanitizers.py with the address and
// undefined-behaviour sanitizers.
#include "sohes/merge_regions.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "dense_view.h"

using sohes::DType;
using sohes::TensorView;

namespace {

int failures = 0;

void expect(bool condition, const char* what, int64_t seed) {
  if (condition) return;
  std::printf("%s is wrong for seed %lld\n", what, static_cast<long long>(seed));
  ++failures;
}

template <typename T>
TensorView view(std::vector<T>& data, const std::vector<int64_t>& shape, DType dtype) {
  return dense_view(data.data(), shape, dtype);
}

struct Outputs {
  std::vector<int32_t> merges, num_merges;
  std::vector<float> similarity, heights;
  int64_t total;

  Outputs(int64_t total, int64_t images)
      : merges(2 * total, 7), num_merges(images, 7), similarity(total, 7), heights(total, 7), total(total) {}
  TensorView merges_view() { return view(merges, {total, 2}, DType::kInt32); }
  TensorView similarity_view() { return view(similarity, {total}, DType::kFloat32); }
  std::optional<TensorView> heights_view(bool in_rounds) {
    if (!in_rounds) return std::nullopt;
    return view(heights, {total}, DType::kFloat32);
  }
  TensorView num_merges_view() {
    return view(num_merges, {static_cast<int64_t>(num_merges.size())}, DType::kInt32);
  }
};

// Every node is merged at most once, and only into a later one; the layout numbers every leaf once.
void check_tree(Outputs& out, int64_t start, int64_t num_leaves, int32_t num_merges, int64_t width,
                int64_t seed) {
  std::vector<int> uses(num_leaves + num_merges, 0);
  for (int32_t k = 0; k < num_merges; ++k) {
    const int32_t left = out.merges[2 * (start + k)], right = out.merges[2 * (start + k) + 1];
    expect(0 <= left && left < right && right < num_leaves + k, "the order of a merge", seed);
    expect(uses[left]++ == 0 && uses[right]++ == 0, "the number of times a node is merged", seed);
  }
  for (int64_t k = num_merges; k < num_leaves; ++k)
    expect(out.merges[2 * (start + k)] == -1, "the padding", seed);

  const int64_t num_nodes = num_leaves + num_merges;
  std::vector<int32_t> merges(out.merges.begin() + 2 * start, out.merges.begin() + 2 * (start + num_merges));
  std::vector<int64_t> counts(num_nodes);
  std::vector<int32_t> starts(num_nodes), parents(num_nodes), order(num_leaves, -1);
  std::vector<int32_t> boxes(4 * num_nodes), labels(num_leaves, -1);
  const auto vector = [](std::vector<int32_t>& data) {
    return view(data, {static_cast<int64_t>(data.size())}, DType::kInt32);
  };
  sohes::merge_tree_layout(view(merges, {num_merges, 2}, DType::kInt32), width,
                           view(counts, {num_nodes}, DType::kInt64), vector(starts), vector(parents),
                           vector(order), view(boxes, {num_nodes, 4}, DType::kInt32));
  std::vector<int32_t> both(2 * num_leaves, -1);
  std::vector<float> values(out.similarity.begin() + start, out.similarity.begin() + start + num_merges);
  const float infinity = std::numeric_limits<float>::infinity();
  sohes::merge_tree_cuts(view(values, {num_merges}, DType::kFloat32),
                         view(counts, {num_nodes}, DType::kInt64), vector(starts), vector(parents),
                         vector(order), {-infinity, infinity}, vector(both));
  std::copy_n(both.begin(), num_leaves, labels.begin());
  for (int64_t i = 0; i < num_leaves; ++i)
    expect(both[num_leaves + i] == i, "the cut before any merge", seed);
  for (int64_t i = 0; i < num_leaves; ++i) expect(labels[i] >= 0 && parents[labels[i]] < 0, "a label", seed);
  for (int64_t i = 0; i < num_leaves; ++i) expect(order[starts[i]] == i, "the order of the leaves", seed);

  // Of all nodes, the first one is kept, and with an IoU of 1 as the limit every one.
  std::vector<int64_t> ids(num_nodes), kept(num_nodes);
  for (int64_t i = 0; i < num_nodes; ++i) ids[i] = num_nodes - 1 - i;
  for (const double iou : {0.0, 0.6, 1.0}) {
    std::vector<uint8_t> dropped(num_nodes, 0);
    const int64_t found = sohes::merge_tree_distinct(
        view(merges, {num_merges, 2}, DType::kInt32), vector(parents),
        view(counts, {num_nodes}, DType::kInt64), view(ids, {num_nodes}, DType::kInt64), iou, num_nodes,
        view(dropped, {num_nodes}, DType::kBool), view(kept, {num_nodes}, DType::kInt64));
    expect(kept[0] == ids[0] && (iou < 1 || found == num_nodes), "the distinct nodes", seed);
  }
}

std::vector<float> random_features(std::mt19937& random, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> features(count);
  for (float& x : features) x = random() % 4 ? normal(random) : static_cast<float>(random() % 3);
  features[random() % count] = random() % 2 ? NAN : INFINITY;
  return features;
}

void run_grids(int64_t seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (int image = 0; image < 3; ++image) {
    sizes.insert(sizes.end(),
                 {1 + static_cast<int64_t>(random() % 9), 1 + static_cast<int64_t>(random() % 9)});
    total += sizes[2 * image] * sizes[2 * image + 1];
  }
  const int64_t channels = 1 + random() % 40;
  std::vector<float> features = random_features(random, total * channels);
  std::vector<uint16_t> halves(total * channels);
  for (uint16_t& x : halves) x = static_cast<uint16_t>(random());
  std::vector<unsigned char> mask_data(total);
  for (unsigned char& x : mask_data) x = random() % 5 > 0;
  std::optional<TensorView> mask;
  if (seed % 2) mask = view(mask_data, {total}, DType::kBool);
  const float stop = seed % 3 ? -std::numeric_limits<float>::infinity() : 0.25f;

  const DType dtypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  for (const DType dtype : dtypes) {
    const bool is_half = dtype != DType::kFloat32;
    const TensorView rows =
        is_half ? view(halves, {total, channels}, dtype) : view(features, {total, channels}, dtype);
    std::vector<std::vector<int32_t>> found;
    for (const std::string& loops : sohes::merge_regions_loops()) {
      for (const int threads : {1, 2}) {
        const bool in_rounds = seed % 5 < 2;
        Outputs out(total, 3);
        std::vector<char> scratch(
            sohes::merge_regions_scratch(sizes, -1, channels, is_half, threads, in_rounds));
        sohes::merge_regions_cpu(rows, mask, sizes, stop, threads, loops,
                                 view(scratch, {static_cast<int64_t>(scratch.size())}, DType::kUInt8),
                                 out.merges_view(), out.similarity_view(), out.num_merges_view(),
                                 out.heights_view(in_rounds));
        int64_t start = 0;
        for (int image = 0; image < 3; ++image) {
          const int64_t num_leaves = sizes[2 * image] * sizes[2 * image + 1];
          check_tree(out, start, num_leaves, out.num_merges[image], sizes[2 * image + 1], seed);
          start += num_leaves;
        }
        found.push_back(out.merges);
      }
    }
    for (const auto& merges : found) expect(merges == found[0], "a set of loops or number of threads", seed);
  }
}

void run_graph(int64_t seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  const int64_t num_regions = 1 + random() % 60, channels = 1 + random() % 20;
  std::vector<int32_t> edges;
  for (int64_t k = 0; k < 3 * num_regions; ++k) {
    const int32_t u = random() % num_regions, v = random() % num_regions;
    if (u != v) edges.insert(edges.end(), {u, v});
  }
  const int64_t num_edges = static_cast<int64_t>(edges.size()) / 2;
  std::vector<float> features = random_features(random, num_regions * channels);
  Outputs out(num_regions, 1);
  std::vector<char> scratch(
      sohes::merge_regions_scratch({num_regions, 1}, num_edges, channels, false, 1, seed % 2));
  sohes::merge_regions_graph_cpu(
      view(features, {num_regions, channels}, DType::kFloat32), view(edges, {num_edges, 2}, DType::kInt32),
      -std::numeric_limits<float>::infinity(), "",
      view(scratch, {static_cast<int64_t>(scratch.size())}, DType::kUInt8), out.merges_view(),
      out.similarity_view(), out.num_merges_view(), out.heights_view(seed % 2));
  check_tree(out, 0, num_regions, out.num_merges[0], 1, seed);
}

}  // namespace

int main() {
  for (int64_t seed = 0; seed < 60; ++seed) {
    run_grids(seed);
    run_graph(seed);
  }
  if (failures == 0) std::printf("clean\n");
  return failures != 0;
}
