// SPDX-License-Identifier: Apache-2.0
// catchment_basins: the region of every pixel by steepest descent. region_borders: adjacent pairs of regions
// and their borders. Defined by sohes/ops/reference/catchment_basins.py and region_borders.py.
//
// height    float32 [H, W]   finite
// labels    int64 [H, W]     the region of each pixel, 0..N-1
// strength  float32 [H, W]   of an edge at each pixel; NaN spreads as in torch.maximum
// starts    int64 [N + 1]    scratch: where the pixel sides of each region begin
// scratch   int64            of region_borders_scratch() elements
// edges     int64 [S, 2]     pairs (lower, higher), sorted, in the first E rows; S pixel sides are between
//                            regions
// borders   float32 [S, 2]   the number of sides of each pair, and the sum of the larger strength of their
//                            two pixels
//
// Both run on one thread and allocate nothing. Results are bitwise repeatable on any machine.
#pragma once

#include "sohes/tensor_view.h"

namespace sohes {

void catchment_basins_cpu(const TensorView& height, const TensorView& labels);

// Fills `starts` and returns S.
int64_t region_sides_cpu(const TensorView& labels, const TensorView& starts);

int64_t region_borders_scratch(int64_t num_regions, int64_t num_sides);

// Returns E; `starts` comes from region_sides_cpu and is used up.
int64_t region_borders_cpu(const TensorView& labels, const TensorView& strength, const TensorView& starts,
                           const TensorView& scratch, const TensorView& edges, const TensorView& borders);

}  // namespace sohes
