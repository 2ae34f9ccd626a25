// SPDX-License-Identifier: Apache-2.0
#include "dots.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sohes::merging {
namespace {

constexpr int kLanes = 16;

// The channels after the last full block, in lanes filled up with zeros: adding those changes no sum.
struct Tail {
  alignas(64) float values[kLanes] = {};
  Tail(const float* from, int64_t count) { std::memcpy(values, from, count * sizeof(float)); }
};

namespace baseline {  // vectors of two doubles: SSE2 and NEON have them, and a compiler can split them
                      // anywhere else
#define SOHES_INLINE [[gnu::always_inline]] inline
#define SOHES_TARGET
#define SOHES_ROWS 1
typedef float Narrow __attribute__((vector_size(8)));
typedef double Wide __attribute__((vector_size(16)));
constexpr int kUnit = 2;
SOHES_INLINE Wide load_wide(const float* from) {
  Narrow values;
  std::memcpy(&values, from, sizeof(values));
  return __builtin_convertvector(values, Wide);
}
#include "dots_variant.h"
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
#define SOHES_TARGET [[gnu::target("avx2,fma")]]
#define SOHES_INLINE SOHES_TARGET [[gnu::always_inline]] inline
#define SOHES_ROWS 2
typedef __m256d Wide;
constexpr int kUnit = 4;
SOHES_INLINE Wide load_wide(const float* from) { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }
#include "dots_variant.h"
}  // namespace avx2

namespace avx512 {
#define SOHES_TARGET [[gnu::target("avx512f,avx2,fma")]]
#define SOHES_INLINE SOHES_TARGET [[gnu::always_inline]] inline
#define SOHES_ROWS 4
typedef __m512d Wide;
constexpr int kUnit = 8;
SOHES_INLINE Wide load_wide(const float* from) {
  // The masked form with every lane on: GCC 12 takes the plain one for a use of uninitialised memory.
  return _mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(from));
}
#include "dots_variant.h"
}  // namespace avx512
#endif

std::vector<ChannelLoops> find_loops() {
  std::vector<ChannelLoops> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f")) {
    found.push_back({"avx512", avx512::dots, avx512::add, avx512::widen});
  }
  if (has_avx2) found.push_back({"avx2", avx2::dots, avx2::add, avx2::widen});
#endif
#if defined(__aarch64__)
  const char* plain = "neon";  // always there on 64-bit Arm, and what the compiler makes of the plain vectors
#else
  const char* plain = "baseline";
#endif
  found.push_back({plain, baseline::dots, baseline::add, baseline::widen});
  return found;
}

}  // namespace

const std::vector<ChannelLoops>& channel_loops() {
  static const std::vector<ChannelLoops> loops = find_loops();
  return loops;
}

}  // namespace sohes::merging
