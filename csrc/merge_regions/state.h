// SPDX-License-Identifier: Apache-2.0
// The state of greedy merging of one image: regions in slots, their neighbours, a heap of their best pairs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bounds.h"
#include "carver.h"

namespace sohes::merging {

// The best pair of region `high`: its similarity, or (other < 0) an upper bound of it, then `low` is an id
// that no pair which reaches the bound falls below.
struct Entry {
  float bound;
  int32_t low, high;
  int32_t other;  // the slot of region `low`
};

constexpr Entry kNoEntry = {kNever, INT32_MAX, INT32_MAX, -1};

// The order of merging: similarity descending, then lower id ascending, then higher id ascending.
inline bool comes_before(const Entry& a, const Entry& b) {
  if (a.bound != b.bound) return a.bound > b.bound;
  return a.low != b.low ? a.low < b.low : a.high < b.high;
}

// One array per field, as most passes read one field of many neighbours.
struct Lists {
  int32_t* other;  // the neighbour's slot
  float* key;    // least angle to it + turned of the region; kForeign where the pair belongs to the neighbour
  float* value;  // the similarity, where stamp is the region's id
  int32_t* stamp;

  Lists(Carver& carver, int64_t count)
      : other(carver.take<int32_t>(count)),
        key(carver.take<float>(count)),
        value(carver.take<float>(count)),
        stamp(carver.take<int32_t>(count)) {}
};

constexpr float kForeign = std::numeric_limits<float>::infinity();

// A region lives in a slot; c = a + b takes over the slot of the one with more neighbours.
struct State {
  Carver carver;
  float** row;   // [N] where the slot's feature is
  double* norm;  // [N] its squared length
  double*
      turned;   // [N] the sum of the angles that the region has turned by since the slot's keys were written
  int32_t* id;  // [N] node id of the slot's region
  int32_t* slot;      // [2N] slot of a node id, -1 after it was merged
  int32_t* first;     // [N] the slot's neighbours are first .. first + degree of the lists,
  int32_t* degree;    // [N]
  int32_t* capacity;  // [N] with room for this many
  Entry* heap;        // [N]
  int32_t* chosen;    // [N] scratch: places in a list
  Lists lists;  // [4E] one region's neighbours after the other's; when full, the live ones move to `spare`
  Lists spare;  // [4E]
  float** free_rows;  // [N/2] rows to reuse
  float* rows;        // [N/2, C]
  size_t bytes;

  State(void* scratch, int64_t n, int64_t e, int64_t channels, bool may_overwrite)
      : carver(scratch),
        row(carver.take<float*>(n)),
        norm(carver.take<double>(n)),
        turned(carver.take<double>(n)),
        id(carver.take<int32_t>(n)),
        slot(carver.take<int32_t>(2 * n)),
        first(carver.take<int32_t>(n)),
        degree(carver.take<int32_t>(n)),
        capacity(carver.take<int32_t>(n)),
        heap(carver.take<Entry>(n)),
        chosen(carver.take<int32_t>(n)),
        lists(carver, 4 * e),
        spare(carver, 4 * e),
        free_rows(carver.take<float*>(may_overwrite ? 0 : n / 2)),
        rows(carver.take<float>(may_overwrite ? 0 : n / 2 * channels)),
        bytes(carver.used()) {}
};

}  // namespace sohes::merging
