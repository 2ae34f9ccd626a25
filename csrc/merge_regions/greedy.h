// SPDX-License-Identifier: Apache-2.0
// Exact greedy merging of one graph of regions, in scratch memory that the caller owns.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dots.h"

namespace sohes::merging {

// One image's regions and the adjacent pairs among them. Pairs may repeat; they never join a region to
// itself.
struct Graph {
  float* features;  // [num_regions, channels]; sums overwrite them where may_overwrite is set, else only read
  bool may_overwrite;
  int32_t num_regions;
  int64_t channels;
  const int32_t* edges;  // [num_edges, 2]
  int32_t num_edges;
};

struct Merges {
  int32_t* pairs;     // [num_regions - 1, 2]: lower id, higher id
  float* similarity;  // [num_regions - 1]
};

// Bytes of scratch for a graph of this size. The sums of merged regions take the most of it: a region has a
// sum of its own only when it holds two leaves or more, so at most half as many rows as there are regions
// exist at a time; none where the features may be overwritten.
size_t greedy_scratch_bytes(int64_t num_regions, int64_t num_edges, int64_t channels, bool may_overwrite);

// Merges until no pair is left or the best one is below min_similarity. Returns the number of merges.
int32_t merge_greedily(const Graph& graph, float min_similarity, const ChannelLoops& loops, void* scratch,
                       const Merges& out);

}  // namespace sohes::merging
