// SPDX-License-Identifier: Apache-2.0
// Shared by the loops for AVX2 and AVX-512. Each function is compiled for its own instruction set and called
// only if the processor has it.
#pragma once

#include "simd.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define SOHES_X86 1

#if !defined(__clang__)
// GCC 12 takes the deliberately undefined registers in its own header for mistakes.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

// Results must not depend on whether the processor can fuse a product and a sum.
#include "sohes/no_fma.h"

namespace sohes::mask_ops {

extern const Simd kAvx2;

// Arrays larger than the caches are read once, from end to end: asking the second-level cache for what comes
// so many bytes later brings one thread close to the rate of the memory, also while it turns what it has.
constexpr int64_t kAhead = 8192;

inline void fetch_ahead(const uint8_t* bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(bytes) + kAhead), 0, 1);
}

// How many words of `count` lie before the first one at a multiple of `bytes`, a power of two.
inline int64_t words_until_aligned(const uint64_t* at, uintptr_t bytes, int64_t count) {
  const auto words = static_cast<int64_t>((-reinterpret_cast<uintptr_t>(at) & (bytes - 1)) / 8);
  return words < count ? words : count;
}

}  // namespace sohes::mask_ops

#endif
