// SPDX-License-Identifier: Apache-2.0
// Ranges of bits in rows of 64-bit words. A range is half-open, [begin, end); no word outside it is read or
// written.
#pragma once

#include <bit>
#include <cstdint>

namespace sohes::mask_ops {

constexpr uint64_t kAll = ~uint64_t{0};

// The low `count` bits, count in 0..64.
inline uint64_t low_bits(int64_t count) { return count >= 64 ? kAll : (uint64_t{1} << count) - 1; }

// First position in [from, end) whose bit equals `value`, else `end`.
inline int64_t find_bit(const uint64_t* words, int64_t from, int64_t end, bool value) {
  if (from >= end) return end;
  const uint64_t flip = value ? 0 : kAll;
  int64_t k = from >> 6;
  const int64_t last = (end - 1) >> 6;
  uint64_t word = (words[k] ^ flip) & (kAll << (from & 63));
  while (word == 0) {
    if (++k > last) return end;
    word = words[k] ^ flip;
  }
  const int64_t at = (k << 6) + std::countr_zero(word);
  return at < end ? at : end;
}

// Last position in [begin, end) whose bit is set, else begin - 1.
inline int64_t find_last_set(const uint64_t* words, int64_t begin, int64_t end) {
  if (begin >= end) return begin - 1;
  int64_t k = (end - 1) >> 6;
  const int64_t first = begin >> 6;
  uint64_t word = words[k] & low_bits(((end - 1) & 63) + 1);
  while (word == 0) {
    if (--k < first) return begin - 1;
    word = words[k];
  }
  const int64_t at = (k << 6) + 63 - std::countl_zero(word);
  return at >= begin ? at : begin - 1;
}

// Sets every bit of [begin, end).
inline void fill_bits(uint64_t* words, int64_t begin, int64_t end) {
  if (begin >= end) return;
  int64_t k = begin >> 6;
  const int64_t last = (end - 1) >> 6;
  const uint64_t head = kAll << (begin & 63);
  const uint64_t tail = low_bits(((end - 1) & 63) + 1);
  if (k == last) {
    words[k] |= head & tail;
    return;
  }
  words[k] |= head;
  while (++k < last) words[k] = kAll;
  words[last] |= tail;
}

inline void clear_bit(uint64_t* words, int64_t at) { words[at >> 6] &= ~(uint64_t{1} << (at & 63)); }

inline bool get_bit(const uint64_t* words, int64_t at) { return (words[at >> 6] >> (at & 63)) & 1; }

// ORs `bits` in at position `at`; set bits must lie inside the row, so the second word is touched only where
// it exists.
inline void or_bits(uint64_t* words, int64_t at, uint64_t bits) {
  const int64_t k = at >> 6;
  const int shift = static_cast<int>(at & 63);
  words[k] |= bits << shift;
  const uint64_t carried = shift ? bits >> (64 - shift) : 0;
  if (carried) words[k + 1] |= carried;
}

// The `count` (0..64) bits from position `at` on, in the low bits of the result.
inline uint64_t read_bits(const uint64_t* words, int64_t at, int64_t count) {
  if (count <= 0) return 0;
  const int64_t k = at >> 6;
  const int shift = static_cast<int>(at & 63);
  uint64_t bits = words[k] >> shift;
  if (shift + count > 64) bits |= words[k + 1] << (64 - shift);
  return bits & low_bits(count);
}

// f(start, stop) for each maximal run of bits equal to `value` in [begin, end), in order.
template <typename F>
inline void for_each_run(const uint64_t* words, int64_t begin, int64_t end, bool value, F&& f) {
  int64_t start = find_bit(words, begin, end, value);
  while (start < end) {
    const int64_t stop = find_bit(words, start, end, !value);
    f(start, stop);
    start = find_bit(words, stop, end, value);
  }
}

// Transposes a 64 x 64 bit matrix in place: bit j of rows[i] becomes bit i of rows[j]. Six rounds of block
// swaps.
inline void transpose64(uint64_t* rows) {
  uint64_t mask = 0x00000000FFFFFFFFull;
  for (int step = 32; step != 0; step >>= 1, mask ^= mask << step) {
    for (int base = 0; base < 64; base += 2 * step) {
      for (int i = base; i < base + step; ++i) {
        const uint64_t swap = ((rows[i] >> step) ^ rows[i + step]) & mask;
        rows[i] ^= swap << step;
        rows[i + step] ^= swap;
      }
    }
  }
}

}  // namespace sohes::mask_ops
