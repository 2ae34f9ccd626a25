// SPDX-License-Identifier: Apache-2.0
// NEON, part of every 64-bit Arm processor, for the loops that compilers do not turn into vectors well by
// themselves; and the answer of all processors without vector versions.
#include "simd.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#include <bit>

namespace sohes::mask_ops {
namespace {

int64_t and_popcount_neon(const uint64_t* a, int64_t stride_a, const uint64_t* b, int64_t stride_b,
                          int64_t count, int64_t rows) {
  uint64x2_t sums = vdupq_n_u64(0);
  int64_t sum = 0;
  for (; rows > 0; --rows, a += stride_a, b += stride_b) {
    int64_t k = 0;
    for (; k + 2 <= count; k += 2) {
      const uint8x16_t v = vreinterpretq_u8_u64(vandq_u64(vld1q_u64(a + k), vld1q_u64(b + k)));
      sums = vpadalq_u32(sums, vpaddlq_u16(vpaddlq_u8(vcntq_u8(v))));
    }
    for (; k < count; ++k) sum += std::popcount(a[k] & b[k]);
  }
  return sum + static_cast<int64_t>(vaddvq_u64(sums));
}

inline uint64_t nonzero64_neon(const uint8_t* bytes) {
  const uint8x16_t place = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201ull));
  uint8x16_t v[4];
  for (int part = 0; part < 4; ++part) {
    const uint8x16_t loaded = vld1q_u8(bytes + 16 * part);
    v[part] = vandq_u8(vtstq_u8(loaded, loaded), place);
  }
  // Three rounds of pairwise sums leave one byte for each eight.
  const uint8x16_t pairs = vpaddq_u8(vpaddq_u8(v[0], v[1]), vpaddq_u8(v[2], v[3]));
  return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(pairs, pairs)), 0);
}

void bytes_to_bits_neon(const uint8_t* bytes, int64_t row_stride, int64_t rows, int64_t count, uint64_t* out,
                        int64_t stride, uint64_t* any) {
  const int64_t blocks = count / 64;
  for (int64_t y = 0; y < rows; ++y, bytes += row_stride) {
    for (int64_t k = 0; k < blocks; ++k) {
      const uint64_t word = nonzero64_neon(bytes + 64 * k);
      out[y + k * stride] = word;
      if (any) any[k] |= word;
    }
    kPlain.bytes_to_bits(bytes + 64 * blocks, 0, 1, count - 64 * blocks, out + y + blocks * stride, stride,
                         any ? any + blocks : nullptr);
  }
}

}  // namespace

const Simd* vector_version(int level) {
  static const Simd neon = {
      "neon",           and_popcount_neon, kPlain.count_changes, bytes_to_bits_neon, kPlain.bits_to_bytes,
      kPlain.transpose, kPlain.move_words, kPlain.above,         kPlain.blend};
  return level == 0 ? &neon : nullptr;
}

}  // namespace sohes::mask_ops

#elif !defined(__x86_64__) || !(defined(__GNUC__) || defined(__clang__))

namespace sohes::mask_ops {
const Simd* vector_version(int) { return nullptr; }
}  // namespace sohes::mask_ops

#endif
