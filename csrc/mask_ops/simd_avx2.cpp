// SPDX-License-Identifier: Apache-2.0
// The loops in AVX2.
#include "simd_x86.h"

#ifdef SOHES_X86

#include <cstring>

#include "bits.h"

namespace sohes::mask_ops {
namespace {

#define SOHES_AVX2 __attribute__((target("avx2,popcnt")))

// Bit counts of 32 bytes by two table look-ups of 4 bits each, summed over each 8 bytes.
SOHES_AVX2 inline __m256i popcount_avx2(__m256i v) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2,
                                         3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i counts =
      _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
                      _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
  return _mm256_sad_epu8(counts, _mm256_setzero_si256());
}

SOHES_AVX2 int64_t and_popcount_avx2(const uint64_t* a, int64_t stride_a, const uint64_t* b, int64_t stride_b,
                                     int64_t count, int64_t rows) {
  __m256i sums = _mm256_setzero_si256();
  int64_t sum = 0;
  for (; rows > 0; --rows, a += stride_a, b += stride_b) {
    int64_t k = 0;
    for (; k + 4 <= count; k += 4) {
      const __m256i va = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + k));
      const __m256i vb = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + k));
      sums = _mm256_add_epi64(sums, popcount_avx2(_mm256_and_si256(va, vb)));
    }
    for (; k < count; ++k) sum += _mm_popcnt_u64(a[k] & b[k]);
  }
  alignas(32) int64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
  return sum + lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

SOHES_AVX2 int64_t count_changes_avx2(const uint64_t* words, int64_t count) {
  if (count == 0) return 0;
  int64_t sum = _mm_popcnt_u64(words[0] ^ (words[0] << 1));
  for (int64_t k = 1; k < count; ++k) sum += _mm_popcnt_u64(words[k] ^ (words[k] << 1 | words[k - 1] >> 63));
  return sum;
}

SOHES_AVX2 inline uint32_t nonzero32_avx2(const uint8_t* bytes) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  return ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_setzero_si256())));
}

SOHES_AVX2 inline uint64_t nonzero64_avx2(const uint8_t* bytes) {
  return nonzero32_avx2(bytes) | uint64_t{nonzero32_avx2(bytes + 32)} << 32;
}

SOHES_AVX2 void bytes_to_bits_avx2(const uint8_t* bytes, int64_t row_stride, int64_t rows, int64_t count,
                                   uint64_t* out, int64_t stride, uint64_t* any) {
  const int64_t blocks = count / 64;
  for (int64_t y = 0; y < rows; ++y, bytes += row_stride) {
    for (int64_t k = 0; k < blocks; ++k) {
      fetch_ahead(bytes + 64 * k);
      const uint64_t word = nonzero64_avx2(bytes + 64 * k);
      out[y + k * stride] = word;
      if (any) any[k] |= word;
    }
    if (64 * blocks == count) continue;
    uint8_t rest[64] = {};
    std::memcpy(rest, bytes + 64 * blocks, static_cast<size_t>(count - 64 * blocks));
    const uint64_t word = nonzero64_avx2(rest);
    out[y + blocks * stride] = word;
    if (any) any[blocks] |= word;
  }
}

SOHES_AVX2 void bits_to_bytes_avx2(const uint64_t* bits, int64_t stride, int64_t count, uint8_t* bytes) {
  // Byte i of a half takes the octet i / 8, then keeps its bit i % 8.
  const __m256i octet =
      _mm256_setr_epi64x(0x0000000000000000, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
  int64_t start = 0;
  for (; start + 64 <= count; start += 64, bits += stride) {
    for (int half = 0; half < 2; ++half) {
      const __m256i v = _mm256_set1_epi32(static_cast<int>(*bits >> (32 * half)));
      const __m256i kept = _mm256_and_si256(_mm256_shuffle_epi8(v, octet), bit);
      const __m256i value = _mm256_and_si256(_mm256_cmpeq_epi8(kept, bit), _mm256_set1_epi8(1));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + start + 32 * half), value);
    }
  }
  kPlain.bits_to_bytes(bits, stride, count - start, bytes + start);
}

SOHES_AVX2 void transpose_avx2(uint64_t* square) { transpose64(square); }

SOHES_AVX2 void move_words_avx2(uint64_t* from, int64_t count, uint64_t* to) {
  const __m256i zero = _mm256_setzero_si256();
  int64_t k = words_until_aligned(to, 32, count);
  kPlain.move_words(from, k, to);
  for (; k + 4 <= count; k += 4) {
    __m256i v = zero;
    if (from) {
      v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + k));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(from + k), zero);
    }
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + k), v);
  }
  _mm_sfence();
  kPlain.move_words(from ? from + k : nullptr, count - k, to + k);
}

SOHES_AVX2 void above_avx2(const float* a, float threshold, int64_t count, uint64_t* bits) {
  const __m256 zero = _mm256_set1_ps(threshold);
  int64_t start = 0;
  for (; start + 64 <= count; start += 64) {
    uint64_t word = 0;
    for (int part = 0; part < 8; ++part) {
      const __m256 value = _mm256_sub_ps(_mm256_loadu_ps(a + start + 8 * part), zero);
      const __m256 inside = _mm256_cmp_ps(value, _mm256_set1_ps(kNear), _CMP_GE_OQ);
      word |= static_cast<uint64_t>(_mm256_movemask_ps(inside)) << (8 * part);
    }
    bits[start >> 6] = word;
  }
  if (start < count) kPlain.above(a + start, threshold, count - start, bits + (start >> 6));
}

SOHES_AVX2 void blend_avx2(const float* a, float weight_a, const float* b, float weight_b, int64_t count,
                           float* out, uint64_t* signs) {
  const __m256 wa = _mm256_set1_ps(weight_a);
  const __m256 wb = _mm256_set1_ps(weight_b);
  int64_t start = 0;
  for (; start + 64 <= count; start += 64) {
    uint64_t word = 0;
    for (int part = 0; part < 8; ++part) {
      const int64_t i = start + 8 * part;
      const __m256 left = _mm256_mul_ps(_mm256_loadu_ps(a + i), wa);
      const __m256 right = _mm256_mul_ps(_mm256_loadu_ps(b + i), wb);
      const __m256 value = _mm256_add_ps(left, right);
      _mm256_storeu_ps(out + i, value);
      const __m256 positive = _mm256_cmp_ps(value, _mm256_setzero_ps(), _CMP_GT_OQ);
      word |= static_cast<uint64_t>(_mm256_movemask_ps(positive)) << (8 * part);
    }
    signs[start >> 6] = word;
  }
  if (start < count) {
    kPlain.blend(a + start, weight_a, b + start, weight_b, count - start, out + start, signs + (start >> 6));
  }
}

}  // namespace

const Simd kAvx2 = {
    "avx2",         and_popcount_avx2, count_changes_avx2, bytes_to_bits_avx2, bits_to_bytes_avx2,
    transpose_avx2, move_words_avx2,   above_avx2,         blend_avx2};

}  // namespace sohes::mask_ops

#endif
