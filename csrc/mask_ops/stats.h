// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace sohes::mask_ops {

// Set bits, and the box x0, y0, x1, y1 (half-open, zeros for an empty mask), of one mask's words.
void stats_of(const uint64_t* words, int64_t height, int64_t width, int64_t* area, int64_t* box);

}  // namespace sohes::mask_ops
