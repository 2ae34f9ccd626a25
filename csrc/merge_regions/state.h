// SPDX-License-Identifier: Apache-2.0
// What greedy merging keeps of one image: regions in slots, edges among them, a heap of the regions' best
// edges.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bounds.h"
#include "carver.h"

namespace sohes::merging {

struct Edge {
  int32_t u, v;  // slots of the two regions; u < 0: the edge is gone
  float bound;   // the similarity, or an upper bound of it
  bool is_exact;
};

struct Entry {
  float bound;
  int32_t low, high;  // ids of the edge's regions; the entry is that of region `high`
  int32_t edge;
};

constexpr Entry kNoEntry = {kNever, INT32_MAX, INT32_MAX, -1};

// The order of merging: similarity down, then lower id up, then higher id up.
inline bool comes_before(const Entry& a, const Entry& b) {
  if (a.bound != b.bound) return a.bound > b.bound;
  return a.low != b.low ? a.low < b.low : a.high < b.high;
}

// A region lives in a slot; c = a + b takes over the slot of one of them.
struct State {
  float** row;        // [N] where the slot's feature is
  double* norm;       // [N] its squared length
  int32_t* id;        // [N] node id of the slot's region
  int32_t* slot;      // [2N] slot of a node id, -1 when it was swallowed
  int32_t* first;     // [N] the slot's edges are list[first .. first + degree)
  int32_t* degree;    // [N]
  int32_t* mark;      // [N] scratch of merge_lists: an edge to this slot, or -1
  Edge* edges;        // [E]
  Entry* heap;        // [N]
  int32_t* list;      // [4E] edge lists one after the other; when it is full, the live ones move to `spare`
  int32_t* spare;     // [4E]
  float** free_rows;  // [N/2] rows that merged regions gave back
  float* rows;        // [N/2, C]
  size_t bytes;

  State(void* scratch, int64_t n, int64_t e, int64_t channels, bool may_overwrite) {
    Carver carver(scratch);
    const int64_t num_rows = may_overwrite ? 0 : n / 2;
    row = carver.take<float*>(n);
    norm = carver.take<double>(n);
    id = carver.take<int32_t>(n);
    slot = carver.take<int32_t>(2 * n);
    first = carver.take<int32_t>(n);
    degree = carver.take<int32_t>(n);
    mark = carver.take<int32_t>(n);
    edges = carver.take<Edge>(e);
    heap = carver.take<Entry>(n);
    list = carver.take<int32_t>(4 * e);
    spare = carver.take<int32_t>(4 * e);
    free_rows = carver.take<float*>(num_rows);
    rows = carver.take<float>(num_rows * channels);
    bytes = carver.used();
  }
};

}  // namespace sohes::merging
