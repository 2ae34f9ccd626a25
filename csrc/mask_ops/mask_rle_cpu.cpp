// SPDX-License-Identifier: Apache-2.0
// COCO run-length encoding, compressed form. A run begins where a bit differs from the previous bit, so a
// word and the word shifted by one give all runs that begin in it. A number is written as 8 characters in one
// store, and the unused ones are overwritten.
#include <algorithm>
#include <bit>
#include <cstring>

#include "bits.h"
#include "huge_pages.h"
#include "parallel.h"
#include "rows.h"
#include "simd.h"
#include "sohes/mask_ops.h"

static_assert(std::endian::native == std::endian::little, "characters are written as one little-endian word");

namespace sohes {
namespace mask_ops {
namespace {

constexpr int64_t kGrain = 8;

// Bit p: pixel 64 * k + p differs from the one before it; the one before the first is outside.
inline uint64_t changes(const uint64_t* words, int64_t k, int64_t num_pixels) {
  const uint64_t before = k > 0 ? words[k - 1] >> 63 : 0;
  return (words[k] ^ (words[k] << 1 | before)) & low_bits(num_pixels - 64 * k);
}

// Writes `number`, |number| < 2^39, as groups of 5 bits, least first; returns how many. 8 bytes are touched.
inline int64_t put_number(int64_t number, char* text) {
  const uint64_t magnitude =
      static_cast<uint64_t>(number ^ (number >> 63));                 // bits that differ from the sign
  const int64_t groups = (64 - std::countl_zero(magnitude)) / 5 + 1;  // with room for the sign
  const uint64_t bits = static_cast<uint64_t>(number);
  uint64_t spread = (bits & 31) | (bits & 31 << 5) << 3 | (bits & 31 << 10) << 6 | (bits & 31 << 15) << 9;
  for (int g = 4; g < groups; ++g) spread |= ((bits >> (5 * g)) & 31) << (8 * g);
  const uint64_t more = 0x2020202020202020ull & low_bits(8 * (groups - 1));  // every group but the last
  spread = (spread | more) + 0x3030303030303030ull;
  std::memcpy(text, &spread, 8);
  return groups;
}

int64_t encode_one(const uint64_t* words, int64_t num_pixels, Span span, char* text) {
  char* at = text;
  int64_t start = 0;           // of the run now open
  int64_t before[2] = {0, 0};  // the last two runs
  int64_t index = 0;
  const auto put = [&](int64_t run) {
    at += put_number(index > 2 ? run - before[0] : run, at);
    before[0] = before[1];
    before[1] = run;
    ++index;
  };
  // The last run of the span may end with it, which shows in the word after.
  for (int64_t k = span.begin; k < std::min(span.end + 1, num_words(num_pixels)); ++k) {
    for (uint64_t rest = changes(words, k, num_pixels); rest != 0; rest &= rest - 1) {
      const int64_t stop = 64 * k + std::countr_zero(rest);
      put(stop - start);
      start = stop;
    }
  }
  put(num_pixels - start);
  return at - text;
}

// False if the text is truncated, has other characters, or does not sum to num_pixels.
bool decode_one(const uint8_t* text, int64_t length, int64_t num_pixels, uint64_t* words) {
  int64_t filled = 0;
  int64_t before[2] = {0, 0};
  int64_t index = 0;
  for (int64_t at = 0; at < length; ++index) {
    uint64_t bits = 0;
    int shift = 0;
    uint8_t group;
    do {
      if (at == length || shift == 60) return false;
      group = static_cast<uint8_t>(text[at++] - 48);
      if (group > 63) return false;
      bits |= static_cast<uint64_t>(group & 31) << shift;
      shift += 5;
    } while (group & 32);
    if (group & 16) bits |= kAll << shift;
    const int64_t run = static_cast<int64_t>(bits) + (index > 2 ? before[0] : 0);
    if (run < 0 || run > num_pixels - filled) return false;
    if (index & 1) fill_bits(words, filled, filled + run);
    filled += run;
    before[0] = before[1];
    before[1] = run;
  }
  return filled == num_pixels;
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_num_runs(const TensorView& words, int64_t num_pixels, const TensorView& boxes, int64_t height,
                   const TensorView& num_runs, int num_threads) {
  require_words(words, num_pixels);
  const int64_t num = words.shape[1];
  parallel_for(words.shape[0], kGrain, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const Span span = span_of(boxes, n, height, num);
      const uint64_t* mask = row(words, n);
      const int64_t changes = simd().count_changes(mask + span.begin, span.end - span.begin);
      const bool is_last_set = span.end > span.begin && mask[span.end - 1] >> 63;
      const bool ends_after = span.end < num && is_last_set;
      // A last pixel inside differs from the padding after it, where no run begins.
      const bool padded = span.end == num && num_pixels % 64 != 0 && get_bit(mask, num_pixels - 1);
      num_runs.as<int64_t>()[n] = changes + ends_after - padded + 1;
    }
  });
}

void rle_encode(const TensorView& words, int64_t num_pixels, const TensorView& boxes, int64_t height,
                const TensorView& offsets, const TensorView& text, const TensorView& lengths,
                int num_threads) {
  require_words(words, num_pixels);
  require(num_pixels < int64_t{1} << 38, "rle_encode: expected fewer than 2^38 pixels");
  parallel_for(words.shape[0], kGrain, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      char* slot = text.as<char>() + offsets.as<int64_t>()[n];
      const Span span = span_of(boxes, n, height, words.shape[1]);
      lengths.as<int64_t>()[n] = encode_one(row(words, n), num_pixels, span, slot);
    }
  });
}

void rle_decode(const TensorView& text, const TensorView& offsets, int64_t num_pixels,
                const TensorView& words, const TensorView& ok, int num_threads) {
  require_words(words, num_pixels);
  choose_pages(words);
  parallel_for(words.shape[0], kGrain, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t* at = offsets.as<int64_t>() + n;
      uint64_t* out = row(words, n);
      ok.as<bool>()[n] = decode_one(text.as<uint8_t>() + at[0], at[1] - at[0], num_pixels, out);
    }
  });
}

}  // namespace sohes
