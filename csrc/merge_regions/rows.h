// SPDX-License-Identifier: Apache-2.0
// Memory for the sums of merged regions. A region has a row of its own only when it holds two leaves or more,
// so at most half as many rows as there are regions exist at a time; none where the features may be
// overwritten.
#pragma once

#include <functional>

#include "greedy.h"

namespace sohes::merging {

class Rows {
 public:
  // `free_rows` has room for half as many pointers as there are regions, `pool` for as many rows.
  Rows(const Graph& graph, float** free_rows, float* pool) : graph_(graph), free_(free_rows), next_(pool) {}

  // The row of c = a + b; those of a and b are not to be used any more.
  float* add(float* a, float* b, const ChannelLoops& loops, SumDots& dots) {
    const bool owns_a = owns(a), owns_b = owns(b);
    float* sum = owns_a ? a : owns_b ? b : take();
    dots = loops.add(a, b, sum, graph_.channels);
    if (owns_a && owns_b && !graph_.may_overwrite) free_[num_free_++] = b;
    return sum;
  }

 private:
  // Whether the row may be overwritten; rows of leaves are part of the input.
  bool owns(const float* row) const {
    const float* end = graph_.features + graph_.num_regions * graph_.channels;
    return graph_.may_overwrite || std::less<>()(row, graph_.features) || !std::less<>()(row, end);
  }

  float* take() {
    if (num_free_ > 0) return free_[--num_free_];
    float* row = next_;
    next_ += graph_.channels;
    return row;
  }

  const Graph& graph_;
  float** free_;
  int32_t num_free_ = 0;
  float* next_;
};

}  // namespace sohes::merging
