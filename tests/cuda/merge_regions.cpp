// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of merging on the emulated device of cuda_runtime.h, against the C++ kernels: equal merges
// and similarities on grids with and without a mask and on graphs, in both orders of threads, with the state
// in shared memory and in the scratch.
#include "sohes/merge_regions.h"

#include <cuda_runtime.h>

#include <cstdio>
#include <limits>
#include <optional>
#include <random>
#include <vector>

#include "../sanitizers/dense_view.h"

using sohes::DType;
using sohes::TensorView;

namespace {

constexpr float kAll = -std::numeric_limits<float>::infinity();

template <typename T>
TensorView view(std::vector<T>& data, const std::vector<int64_t>& shape, DType dtype) {
  return dense_view(data.data(), shape, dtype);
}

struct Case {
  std::vector<int64_t> sizes;  // h, w of each image
  int64_t channels, total = 0;
  std::vector<float> features;
  std::vector<int32_t> edges;       // of a graph, or none
  std::vector<unsigned char> mask;  // or none

  explicit Case(unsigned seed) {
    std::mt19937 random(seed);
    const bool is_graph = seed % 4 == 3;
    const int num_images = is_graph ? 1 : 2;
    for (int i = 0; i < num_images; ++i) {
      sizes.insert(sizes.end(),
                   {1 + static_cast<int64_t>(random() % 6), 1 + static_cast<int64_t>(random() % 6)});
      total += sizes[2 * i] * sizes[2 * i + 1];
    }
    channels = 1 + random() % 12;
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < total * channels; ++i) {
      features.push_back(seed % 2 ? normal(random) : static_cast<float>(static_cast<int>(random() % 5) - 2));
    }
    if (seed % 5 == 0) features[random() % features.size()] = std::numeric_limits<float>::quiet_NaN();
    if (seed % 4 == 1) {
      for (int64_t i = 0; i < total; ++i) mask.push_back(random() % 4 > 0);
    }
    for (int64_t k = 0; is_graph && k < 2 * total; ++k) {
      const int32_t u = random() % total, v = random() % total;
      if (u != v) edges.insert(edges.end(), {u, v});
    }
    if (is_graph) sizes = {total, 1};
  }
};

struct Result {
  std::vector<int32_t> merges, num_merges;
  std::vector<float> similarity, heights;

  Result(const Case& c)
      : merges(2 * c.total, 7),
        num_merges(c.sizes.size() / 2, 7),
        similarity(c.total, 7),
        heights(c.total, 7) {}
  bool operator==(const Result&) const = default;
};

Result run(Case& c, bool in_rounds, bool on_device, float stop) {
  Result out(c);
  const int64_t num_edges = c.edges.empty() ? -1 : static_cast<int64_t>(c.edges.size()) / 2;
  const TensorView merges = view(out.merges, {c.total, 2}, DType::kInt32);
  const TensorView similarity = view(out.similarity, {c.total}, DType::kFloat32);
  const TensorView num_merges =
      view(out.num_merges, {static_cast<int64_t>(out.num_merges.size())}, DType::kInt32);
  std::optional<TensorView> heights, mask, edges;
  if (in_rounds) heights = view(out.heights, {c.total}, DType::kFloat32);
  if (!c.mask.empty()) mask = view(c.mask, {c.total}, DType::kBool);
  if (num_edges >= 0) edges = view(c.edges, {num_edges, 2}, DType::kInt32);
  std::vector<float> sums = c.features;
  const TensorView rows = view(sums, {c.total, c.channels}, DType::kFloat32);
  if (on_device) {
    std::vector<int64_t> table = sohes::merge_regions_cuda_table(c.sizes, num_edges, in_rounds);
    std::vector<char> scratch(table.back());
    const TensorView block = view(scratch, {table.back()}, DType::kUInt8);
    table.pop_back();
    const TensorView spans = view(table, {static_cast<int64_t>(table.size()) / 4, 4}, DType::kInt64);
    if (in_rounds) {
      sohes::merge_rounds_cuda(rows, edges, mask, c.sizes, spans, block, merges, similarity, num_merges,
                               *heights, 0);
    } else {
      sohes::merge_regions_cuda(rows, edges, mask, c.sizes, spans, stop, block, merges, similarity,
                                num_merges, 0);
    }
  } else {
    std::vector<char> scratch(
        sohes::merge_regions_scratch(c.sizes, num_edges, c.channels, false, 1, in_rounds));
    const TensorView block = view(scratch, {static_cast<int64_t>(scratch.size())}, DType::kUInt8);
    if (edges) {
      sohes::merge_regions_graph_cpu(rows, *edges, stop, "", block, merges, similarity, num_merges, heights);
    } else {
      sohes::merge_regions_cpu(rows, mask, c.sizes, stop, 1, "", block, merges, similarity, num_merges,
                               heights);
    }
  }
  return out;
}

}  // namespace

int main() {
  for (unsigned seed = 0; seed < 24; ++seed) {
    Case c(seed);
    const float stop = seed % 3 ? kAll : 0.2f;
    emulation::is_reversed = seed % 8 > 3;
    emulation::shared_bytes = seed % 6 < 2 ? 2048 : 1 << 16;
    for (const bool in_rounds : {false, true}) {
      if (run(c, in_rounds, true, stop) == run(c, in_rounds, false, stop)) continue;
      std::printf("%s differ for seed %u\n", in_rounds ? "rounds" : "exact merges", seed);
      return 1;
    }
  }
  std::printf("clean\n");
}
