// SPDX-License-Identifier: Apache-2.0
// merge_borders: greedy merging of adjacent regions by their features and the edge strength along their
// common border. Defined by sohes/ops/reference/merge_borders.py.
//
// means         float32 [N, C]   the mean feature of each starting region
// sizes         int64 [N]        the pixels of each region, at least 1
// edges         int32 [E, 2]     adjacent pairs of different regions, each pair once
// borders       float32 [E, 2]   per pair: length of the common border, sum of edge strength along it
// merges        int32 [N, 2]     (lower id, higher id) of merge k, which makes region N + k; then -1
// cost          float32 [N]      of each merge; then 0
// shared        float32 [N, 2]   borders of the pair when it was merged; then 0
// num_merges    int32 [1]
//
// Runs on one thread. A cost that is not a number comes after all others. Results are bitwise repeatable on
// one build; builds for other instruction sets may round sums of products differently. Unlike the other
// kernels it allocates memory, because the length of the lists of neighbours depends on the data.
#pragma once

#include "sohes/tensor_view.h"

namespace sohes {

void merge_borders_cpu(const TensorView& means, const TensorView& sizes, const TensorView& edges,
                       const TensorView& borders, double border_weight, double size_exponent,
                       const TensorView& merges, const TensorView& cost, const TensorView& shared,
                       const TensorView& num_merges);

}  // namespace sohes
