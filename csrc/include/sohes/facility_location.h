// SPDX-License-Identifier: Apache-2.0
// facility_location: greedy maximization of the facility-location function of a sparse similarity. Defined by
// sohes/ops/reference/facility_location.py.
//
// pairs        int64 [E, 2]    (i, j), i < j < N, sorted, each once
// similarity   float32 [E]     of each pair, in [0, 1]
// weights      float32 [N]     the value of each item, >= 0
// factors      float32 [N]     by which the gain of choosing an item counts, > 0
// scratch      int64 [facility_location_scratch(N, E)]
// order        int64 [K]       the items chosen, K <= N
// gains        float32 [K]     factors[j] times the gain of each when it was chosen
//
// Runs on one thread, allocates nothing, and is bitwise equal on every machine.
#pragma once

#include "sohes/tensor_view.h"

namespace sohes {

int64_t facility_location_scratch(int64_t num_items, int64_t num_pairs);
void facility_location_cpu(const TensorView& pairs, const TensorView& similarity, const TensorView& weights,
                           const TensorView& factors, const TensorView& scratch, const TensorView& order,
                           const TensorView& gains);

}  // namespace sohes
