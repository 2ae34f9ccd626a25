// SPDX-License-Identifier: Apache-2.0
// Merging of one graph of regions in rounds, in scratch memory that the caller owns: see
// sohes/ops/reference/merge_rounds.py.
#pragma once

#include "greedy.h"

namespace sohes::merging {

size_t rounds_scratch_bytes(int64_t num_regions, int64_t num_edges, int64_t channels, bool may_overwrite);

// Merges all mutually best pairs, again and again until no pair is left. Merges are written round after
// round; heights[k] is the lowest similarity among merge k and those below it. Returns the number of merges.
int32_t merge_in_rounds(const Graph& graph, const ChannelLoops& loops, void* scratch, const Merges& out,
                        float* heights);

}  // namespace sohes::merging
