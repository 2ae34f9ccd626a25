// SPDX-License-Identifier: Apache-2.0
// The loops in AVX-512 (Ice Lake, Zen 4 and later), and the choice between both.
#include "simd_x86.h"

#ifdef SOHES_X86

#include <array>

namespace sohes::mask_ops {
namespace {

#define SOHES_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vpopcntdq,gfni,popcnt")))

SOHES_AVX512 inline int64_t sum_lanes(__m512i v) {
  alignas(64) int64_t lanes[8];
  _mm512_store_si512(lanes, v);
  return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

SOHES_AVX512 int64_t and_popcount_avx512(const uint64_t* a, int64_t stride_a, const uint64_t* b,
                                         int64_t stride_b, int64_t count, int64_t rows) {
  const __mmask8 rest = static_cast<__mmask8>((1u << (count & 7)) - 1);
  __m512i sums = _mm512_setzero_si512(), others = sums;
  for (; rows > 0; --rows, a += stride_a, b += stride_b) {
    int64_t k = 0;
    for (; k + 16 <= count; k += 16) {  // two at a time: the loop itself would cost as much as the work
      const __m512i v = _mm512_and_si512(_mm512_loadu_si512(a + k), _mm512_loadu_si512(b + k));
      const __m512i w = _mm512_and_si512(_mm512_loadu_si512(a + k + 8), _mm512_loadu_si512(b + k + 8));
      sums = _mm512_add_epi64(sums, _mm512_popcnt_epi64(v));
      others = _mm512_add_epi64(others, _mm512_popcnt_epi64(w));
    }
    if (k + 8 <= count) {
      const __m512i v = _mm512_and_si512(_mm512_loadu_si512(a + k), _mm512_loadu_si512(b + k));
      sums = _mm512_add_epi64(sums, _mm512_popcnt_epi64(v));
      k += 8;
    }
    if (rest == 0) continue;  // always so for the crops of mask_overlap
    const __m512i va = _mm512_maskz_loadu_epi64(rest, a + k), vb = _mm512_maskz_loadu_epi64(rest, b + k);
    sums = _mm512_add_epi64(sums, _mm512_popcnt_epi64(_mm512_and_si512(va, vb)));
  }
  sums = _mm512_add_epi64(sums, others);
  return sum_lanes(sums);
}

SOHES_AVX512 int64_t count_changes_avx512(const uint64_t* words, int64_t count) {
  if (count == 0) return 0;
  __m512i sums = _mm512_setzero_si512();
  for (int64_t k = 1; k < count; k += 8) {
    const __mmask8 rest = count - k >= 8 ? 0xFF : static_cast<__mmask8>((1u << (count - k)) - 1);
    const __m512i v = _mm512_maskz_loadu_epi64(rest, words + k);
    const __m512i before = _mm512_srli_epi64(_mm512_maskz_loadu_epi64(rest, words + k - 1), 63);
    const __m512i moved = _mm512_or_si512(_mm512_slli_epi64(v, 1), before);
    sums = _mm512_add_epi64(sums, _mm512_popcnt_epi64(_mm512_xor_si512(v, moved)));
  }
  return sum_lanes(sums) + _mm_popcnt_u64(words[0] ^ (words[0] << 1));
}

SOHES_AVX512 void bytes_to_bits_avx512(const uint8_t* bytes, int64_t row_stride, int64_t rows, int64_t count,
                                       uint64_t* out, int64_t stride, uint64_t* any) {
  const int64_t blocks = count / 64;
  const __mmask64 rest = (uint64_t{1} << (count & 63)) - 1;
  for (int64_t y = 0; y < rows; ++y, bytes += row_stride) {
    for (int64_t k = 0; k < blocks; ++k) {
      fetch_ahead(bytes + 64 * k);
      const __m512i v = _mm512_loadu_si512(bytes + 64 * k);
      const uint64_t word = _mm512_test_epi8_mask(v, v);
      out[y + k * stride] = word;
      if (any) any[k] |= word;
    }
    if (rest == 0) continue;
    const __m512i v = _mm512_maskz_loadu_epi8(rest, bytes + 64 * blocks);
    const uint64_t word = _mm512_test_epi8_mask(v, v);
    out[y + blocks * stride] = word;
    if (any) any[blocks] |= word;
  }
}

SOHES_AVX512 void bits_to_bytes_avx512(const uint64_t* bits, int64_t stride, int64_t count, uint8_t* bytes) {
  int64_t start = 0;
  for (; start + 64 <= count; start += 64, bits += stride) {
    _mm512_storeu_si512(bytes + start, _mm512_maskz_set1_epi8(*bits, 1));
  }
  if (start < count) {
    const __mmask64 rest = (uint64_t{1} << (count - start)) - 1;
    _mm512_mask_storeu_epi8(bytes + start, rest, _mm512_maskz_set1_epi8(*bits, 1));
  }
}

// Byte 8 * i + j of the result is byte 8 * j + i, within each half of which j counts up or down.
SOHES_AVX512 inline __m512i turn_bytes(__m512i v, bool is_reversed) {
  alignas(64) static constexpr auto kIndex = [] {
    std::array<std::array<uint8_t, 64>, 2> index = {};
    for (int i = 0; i < 8; ++i) {
      for (int j = 0; j < 8; ++j) {
        index[0][8 * i + j] = static_cast<uint8_t>(8 * j + i);
        index[1][8 * i + 7 - j] = static_cast<uint8_t>(8 * j + i);
      }
    }
    return index;
  }();
  return _mm512_permutexvar_epi8(_mm512_load_si512(kIndex[is_reversed].data()), v);
}

// Bytes of 8 rows side by side, then bits within 8 x 8, then the 8 x 8 of these squares, then bytes again.
SOHES_AVX512 void transpose_avx512(uint64_t* square) {
  const __m512i unit = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201ull));
  __m512i v[8], w[8];
  for (int k = 0; k < 8; ++k) {
    // The product takes the rows of its matrix from the last byte to the first.
    const __m512i rows = turn_bytes(_mm512_loadu_si512(square + 8 * k), true);
    v[k] = _mm512_gf2p8affine_epi64_epi8(unit, rows, 0);
  }
  for (int k = 0; k < 8; k += 2) {
    w[k] = _mm512_unpacklo_epi64(v[k], v[k + 1]);  // columns 0, 2, 4, 6 of two rows
    w[k + 1] = _mm512_unpackhi_epi64(v[k], v[k + 1]);
  }
  for (int odd = 0; odd < 2; ++odd) {
    for (int k = 0; k < 8; k += 4) {  // columns 0, 4 and 2, 6 of four rows
      v[k + odd] = _mm512_shuffle_i64x2(w[k + odd], w[k + 2 + odd], 0x88);
      v[k + 2 + odd] = _mm512_shuffle_i64x2(w[k + odd], w[k + 2 + odd], 0xDD);
    }
  }
  for (int k = 0; k < 4; ++k) {
    w[k] = _mm512_shuffle_i64x2(v[k], v[k + 4], 0x88);
    w[k + 4] = _mm512_shuffle_i64x2(v[k], v[k + 4], 0xDD);
  }
  for (int k = 0; k < 8; ++k) _mm512_storeu_si512(square + 8 * k, turn_bytes(w[k], false));
}

SOHES_AVX512 void move_words_avx512(uint64_t* from, int64_t count, uint64_t* to) {
  const __m512i zero = _mm512_setzero_si512();
  int64_t k = words_until_aligned(to, 64, count);
  kPlain.move_words(from, k, to);
  if (from) {
    for (; k + 8 <= count; k += 8) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to + k), _mm512_loadu_si512(from + k));
      _mm512_storeu_si512(from + k, zero);
    }
  } else {
    for (; k + 8 <= count; k += 8) _mm512_stream_si512(reinterpret_cast<__m512i*>(to + k), zero);
  }
  _mm_sfence();
  kPlain.move_words(from ? from + k : nullptr, count - k, to + k);
}

SOHES_AVX512 void above_avx512(const float* a, float threshold, int64_t count, uint64_t* bits) {
  const __m512 zero = _mm512_set1_ps(threshold);
  const __m512 least = _mm512_set1_ps(kNear);
  for (int64_t start = 0; start < count; start += 64) {
    uint64_t word = 0;
    for (int64_t i = start; i < start + 64 && i < count; i += 16) {
      const __mmask16 lanes = count - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (count - i)) - 1);
      const __m512 value = _mm512_sub_ps(_mm512_maskz_loadu_ps(lanes, a + i), zero);
      word |= uint64_t{_mm512_mask_cmp_ps_mask(lanes, value, least, _CMP_GE_OQ)} << (i - start);
    }
    bits[start >> 6] = word;
  }
}

SOHES_AVX512 void blend_avx512(const float* a, float weight_a, const float* b, float weight_b, int64_t count,
                               float* out, uint64_t* signs) {
  const __m512 wa = _mm512_set1_ps(weight_a);
  const __m512 wb = _mm512_set1_ps(weight_b);
  for (int64_t start = 0; start < count; start += 64) {
    uint64_t word = 0;
    for (int64_t i = start; i < start + 64 && i < count; i += 16) {
      const __mmask16 lanes = count - i >= 16 ? 0xFFFF : static_cast<__mmask16>((1u << (count - i)) - 1);
      const __m512 left = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, a + i), wa);
      const __m512 right = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, b + i), wb);
      const __m512 value = _mm512_add_ps(left, right);
      _mm512_mask_storeu_ps(out + i, lanes, value);
      word |= uint64_t{_mm512_mask_cmp_ps_mask(lanes, value, _mm512_setzero_ps(), _CMP_GT_OQ)} << (i - start);
    }
    signs[start >> 6] = word;
  }
}

constexpr Simd kAvx512 = {
    "avx512",         and_popcount_avx512, count_changes_avx512, bytes_to_bits_avx512, bits_to_bytes_avx512,
    transpose_avx512, move_words_avx512,   above_avx512,         blend_avx512};

}  // namespace

const Simd* vector_version(int level) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
  if (level == 0) return avx2 ? &kAvx2 : nullptr;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
                      __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("gfni");
  return avx2 && avx512 ? &kAvx512 : nullptr;
}

}  // namespace sohes::mask_ops

#endif
