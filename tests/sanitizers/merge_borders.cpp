// SPDX-License-Identifier: Apache-2.0
// Runs merge_borders on small random graphs in buffers of exactly their size, and checks that the result is a
// tree of every connected piece. Built by tests/test_sanitizers.py with the address and undefined-behaviour
// sanitizers.
#include "sohes/merge_borders.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "tensors.h"

namespace {

using Int32s = Tensor<int32_t, sohes::DType::kInt32>;

struct Graph {
  std::vector<int32_t> edges;
  int64_t pieces;
};

// A random forest and some more edges; `hub` of 10 edges of the forest end in region 0.
Graph random_graph(int64_t num_regions, int64_t hub) {
  std::set<std::pair<int32_t, int32_t>> pairs;
  int64_t pieces = 1;
  for (int64_t i = 1; i < num_regions; ++i) {
    if (below(20) == 0) {
      ++pieces;
      continue;
    }
    const int64_t other = below(10) < hub ? 0 : below(i);
    pairs.insert({static_cast<int32_t>(other), static_cast<int32_t>(i)});
    // Within the piece of `other`: a neighbour of it.
    for (const auto& [low, high] : pairs) {
      if (high == other && below(2)) {
        pairs.insert({low, static_cast<int32_t>(i)});
        break;
      }
    }
  }
  std::vector<std::pair<int32_t, int32_t>> shuffled(pairs.begin(), pairs.end());
  std::shuffle(shuffled.begin(), shuffled.end(), rng);
  Graph graph{{}, pieces};
  for (auto [a, b] : shuffled) {
    if (below(2)) std::swap(a, b);
    graph.edges.insert(graph.edges.end(), {a, b});
  }
  return graph;
}

void check(int64_t num_regions, int64_t channels, int64_t hub) {
  const Graph graph = random_graph(num_regions, hub);
  const int64_t num_edges = static_cast<int64_t>(graph.edges.size()) / 2;
  Floats means({num_regions, channels}), borders({num_edges, 2}), cost({num_regions}, 7);
  Floats shared({num_regions, 2}, 7);
  Ints sizes({num_regions});
  Int32s edges({num_edges, 2}), merges({num_regions, 2}, 7), num_merges({1}, 7);
  std::copy(graph.edges.begin(), graph.edges.end(), edges.data.begin());
  for (float& value : means.data) value = static_cast<float>(below(5));
  for (int64_t& size : sizes.data) size = 1 + below(4);
  for (float& value : borders.data) value = static_cast<float>(1 + below(3));
  if (below(4) == 0) means.data[below(num_regions * channels)] = std::numeric_limits<float>::quiet_NaN();
  const double exponent = 0.25 * static_cast<double>(below(3));
  sohes::merge_borders_cpu(means.view(), sizes.view(), edges.view(), borders.view(), 1.5, exponent,
                           merges.view(), cost.view(), shared.view(), num_merges.view());

  const int32_t count = num_merges.data[0];
  expect(count == num_regions - graph.pieces, "the number of merges", num_regions, channels);
  std::vector<int> uses(2 * num_regions, 0);
  double length = 0;
  for (int32_t k = 0; k < count; ++k) {
    const int32_t low = merges.data[2 * k], high = merges.data[2 * k + 1];
    expect(0 <= low && low < high && high < num_regions + k, "the order of a merge", num_regions, channels);
    expect(uses[low]++ == 0 && uses[high]++ == 0, "the number of times a node is merged", num_regions,
           channels);
    length += shared.data[2 * k];
  }
  double expected = 0;
  for (int64_t e = 0; e < num_edges; ++e) expected += borders.data[2 * e];
  expect(length == expected, "the length of all borders", num_regions, channels);
  for (int64_t k = count; k < num_regions; ++k) {
    expect(merges.data[2 * k] == -1 && cost.data[k] == 0 && shared.data[2 * k + 1] == 0,
           "what follows the merges", num_regions, channels);
  }
}

}  // namespace

int main() {
  for (int64_t round = 0; round < 300; ++round) check(1 + below(70), 1 + below(20), below(11));
  return finish();
}
