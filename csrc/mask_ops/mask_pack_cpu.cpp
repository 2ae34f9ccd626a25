// SPDX-License-Identifier: Apache-2.0
// Dense masks to packed masks and back. A dense mask is 8 times larger than a packed one, so the time is
// bounded by one pass over the dense mask, row by row; the bits are transposed in blocks of 64 x 64 in
// registers.
#include <algorithm>
#include <bit>

#include "bits.h"
#include "huge_pages.h"
#include "parallel.h"
#include "rows.h"
#include "simd.h"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

constexpr int64_t kBlocks =
    64;  // 64-column blocks of one strip: 32 KB of bits on the stack, whole rows of most images

// The box of the pixels so far, half-open; initially empty.
struct Found {
  int64_t x0 = INT64_MAX, y0 = INT64_MAX, x1 = 0, y1 = 0;
};

// Rows with columns side by side: strips of 64 rows are read in the order of memory. The words are zero
// before.
Found pack_rows(const uint8_t* dense, int64_t row_stride, int64_t height, int64_t width, uint64_t* words) {
  Found found;
  uint64_t bits[kBlocks * 64];  // bits[block * 64 + y]: 64 columns of row y
  for (int64_t x0 = 0; x0 < width; x0 += kBlocks * 64) {
    const int64_t columns = std::min(kBlocks * 64, width - x0);
    for (int64_t y0 = 0; y0 < height; y0 += 64) {
      const int64_t rows = std::min<int64_t>(64, height - y0);
      uint64_t any[kBlocks] = {};
      simd().bytes_to_bits(dense + y0 * row_stride + x0, row_stride, rows, columns, bits, 64, any);
      for (int64_t block = 0; 64 * block < columns; ++block) {
        if (any[block] == 0) continue;
        uint64_t* square = bits + 64 * block;
        std::fill(square + rows, square + 64, 0);
        simd().transpose(square);
        uint64_t used = 0;  // bit y: row y0 + y holds a pixel
        const int64_t first = x0 + 64 * block;
        for (uint64_t rest = any[block]; rest != 0; rest &= rest - 1) {
          const int64_t x = std::countr_zero(rest);
          used |= square[x];
          or_bits(words, (first + x) * height + y0, square[x]);
        }
        found.x0 = std::min<int64_t>(found.x0, first + std::countr_zero(any[block]));
        found.x1 = std::max<int64_t>(found.x1, first + 64 - std::countl_zero(any[block]));
        found.y0 = std::min<int64_t>(found.y0, y0 + std::countr_zero(used));
        found.y1 = std::max<int64_t>(found.y1, y0 + 64 - std::countl_zero(used));
      }
    }
  }
  return found;
}

void unpack_rows(const uint64_t* words, int64_t height, int64_t width, uint8_t* dense) {
  uint64_t bits[kBlocks * 64];  // bits[block * 64 + y]: 64 columns of row y
  for (int64_t x0 = 0; x0 < width; x0 += kBlocks * 64) {
    const int64_t columns = std::min(kBlocks * 64, width - x0);
    for (int64_t y0 = 0; y0 < height; y0 += 64) {
      const int64_t rows = std::min<int64_t>(64, height - y0);
      for (int64_t block = 0; 64 * block < columns; ++block) {
        uint64_t* square = bits + 64 * block;
        uint64_t any = 0;
        for (int64_t x = 0; x < 64; ++x) {
          const int64_t column = x0 + 64 * block + x;
          square[x] = column < width ? read_bits(words, column * height + y0, rows) : 0;
          any |= square[x];
        }
        if (any != 0) simd().transpose(square);
      }
      for (int64_t y = 0; y < rows; ++y) {
        simd().bits_to_bytes(bits + y, 64, columns, dense + (y0 + y) * width + x0);
      }
    }
  }
}

// Pixels of the columns [x0, x1), all that there are.
int64_t count_pixels(const uint64_t* words, int64_t height, int64_t x0, int64_t x1) {
  const int64_t from = (x0 * height) >> 6, to = (x1 * height + 63) >> 6;
  return simd().and_popcount(words + from, 0, words + from, 0, to - from, 1);
}

void set_stats(const Found& found, int64_t count, int64_t* area, int64_t* box) {
  *area = count;
  const int64_t sides[4] = {found.x0, found.y0, found.x1, found.y1};
  for (int k = 0; k < 4; ++k) box[k] = count ? sides[k] : 0;
}

void stats_of(const uint64_t* words, int64_t height, int64_t width, int64_t* area, int64_t* box) {
  const int64_t num_pixels = height * width, first = find_bit(words, 0, num_pixels, true);
  if (first == num_pixels) return set_stats({}, 0, area, box);
  Found found = {first / height, height, find_last_set(words, first, num_pixels) / height + 1, 0};
  // Each column is searched only above the highest and below the lowest row found so far.
  for (int64_t x = found.x0; x < found.x1 && (found.y0 > 0 || found.y1 < height); ++x) {
    const int64_t top = x * height;
    found.y0 = find_bit(words, top, top + found.y0, true) - top;
    found.y1 = find_last_set(words, top + found.y1, top + height) - top + 1;
  }
  set_stats(found, count_pixels(words, height, found.x0, found.x1), area, box);
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_pack(const TensorView& dense, const TensorView& scratch, const TensorView& words,
               const TensorView& areas, const TensorView& boxes, int num_threads) {
  const int64_t height = dense.shape[1], width = dense.shape[2], num = words.shape[1];
  require(dense.ndim == 3 && (dense.dtype == DType::kBool || dense.dtype == DType::kUInt8),
          "mask_pack: expected bool or uint8 [N, H, W]");
  require_words(words, height * width);
  const bool columns_first = dense.stride[1] == 1 && (dense.stride[2] == height || width == 1);
  require(columns_first || dense.stride[2] == 1 || width <= 1 || height == 0,
          "mask_pack: expected pixels side by side in memory");
  const bool is_zeroed = scratch.numel() == 0;
  require(is_zeroed || (scratch.shape[0] >= num_threads && scratch.shape[1] >= num),
          "mask_pack: scratch is too small");
  choose_pages(words);
  parallel_for(dense.shape[0], 1, num_threads, [&](int thread, int64_t n, int64_t) {
    const uint8_t* one = dense.as<uint8_t>() + n * dense.stride[0];
    uint64_t* out = row(words, n);
    int64_t* area = areas.as<int64_t>() + n;
    int64_t* box = boxes.as<int64_t>() + 4 * n;
    if (columns_first) {
      simd().bytes_to_bits(one, 0, 1, height * width, out, 1, nullptr);  // as packed masks are
      stats_of(out, height, width, area, box);
      return;
    }
    uint64_t* const made = is_zeroed ? out : row(scratch, thread);
    const Found found = pack_rows(one, dense.stride[1], height, width, made);
    set_stats(found, found.x1 ? count_pixels(made, height, found.x0, found.x1) : 0, area, box);
    if (is_zeroed) return;
    const int64_t from = found.x1 ? (found.x0 * height) >> 6 : 0, to = (found.x1 * height + 63) >> 6;
    simd().move_words(nullptr, from, out);
    simd().move_words(made + from, to - from, out + from);
    simd().move_words(nullptr, num - to, out + to);
  });
}

void mask_from_index(const TensorView& index, const TensorView& words) {
  const int64_t num_pixels = index.shape[0] * index.shape[1];
  require_words(words, num_pixels);
  require(index.is_contiguous() && index.dtype == DType::kInt64,
          "mask_from_index: expected contiguous int64 [W, H]");
  choose_pages(words);
  const int64_t* at = index.as<int64_t>();
  for (int64_t start = 0; start < num_pixels;) {
    int64_t stop = start + 1;
    while (stop < num_pixels && at[stop] == at[start]) ++stop;
    if (at[start] >= 0) fill_bits(row(words, at[start]), start, stop);
    start = stop;
  }
}

void mask_unpack(const TensorView& words, const TensorView& dense, int num_threads) {
  const int64_t height = dense.shape[1], width = dense.shape[2];
  require_words(words, height * width);
  require(dense.is_contiguous() && dense.dtype == DType::kBool,
          "mask_unpack: expected contiguous bool [N, H, W]");
  prefer_huge_pages(dense.data, dense.numel());
  parallel_for(words.shape[0], 1, num_threads, [&](int, int64_t n, int64_t) {
    unpack_rows(row(words, n), height, width, dense.as<uint8_t>() + n * height * width);
  });
}

void mask_take(const TensorView& words, const TensorView& boxes, int64_t height, const TensorView& index,
               const TensorView& out, int num_threads) {
  require(words.is_contiguous() && out.is_contiguous() && words.shape[1] == out.shape[1],
          "mask_take: expected contiguous words of one size");
  choose_pages(out);
  parallel_for(index.shape[0], 4, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t n = index.as<int64_t>()[k];
      const Span span = span_of(boxes.as<int64_t>() + 4 * n, height);
      std::copy(row(words, n) + span.begin, row(words, n) + span.end, row(out, k) + span.begin);
    }
  });
}

void mask_stats(const TensorView& words, int64_t height, int64_t width, const TensorView& areas,
                const TensorView& boxes, int num_threads) {
  require_words(words, height * width);
  parallel_for(words.shape[0], 4, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      stats_of(row(words, n), height, width, areas.as<int64_t>() + n, boxes.as<int64_t>() + 4 * n);
    }
  });
}

}  // namespace sohes
