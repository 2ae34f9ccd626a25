// SPDX-License-Identifier: Apache-2.0
// Dense masks to packed ones and back. A mask is 8 times larger dense than packed, so reading (or writing)
// the dense side once, row after row, is the floor; the bits are turned from rows to columns in 64 x 64
// blocks in registers.
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

constexpr int64_t kBlocks = 16;  // 64-column blocks of one strip: 8 KB of bits on the stack

// The rows that hold a pixel, half-open; empty at first.
struct Rows {
  int64_t begin = INT64_MAX, end = 0;
};

// Rows with columns side by side: strips of 64 rows are read in the order of memory.
Rows pack_rows(const uint8_t* dense, int64_t row_stride, int64_t height, int64_t width, uint64_t* words) {
  Rows found;
  uint64_t bits[kBlocks * 64];  // bits[block * 64 + y]: 64 columns of row y
  for (int64_t x0 = 0; x0 < width; x0 += kBlocks * 64) {
    const int64_t columns = std::min(kBlocks * 64, width - x0);
    for (int64_t y0 = 0; y0 < height; y0 += 64) {
      const int64_t rows = std::min<int64_t>(64, height - y0);
      for (int64_t y = 0; y < rows; ++y) {
        simd().bytes_to_bits(dense + (y0 + y) * row_stride + x0, columns, bits + y, 64);
      }
      for (int64_t block = 0; 64 * block < columns; ++block) {
        uint64_t* square = bits + 64 * block;
        std::fill(square + rows, square + 64, 0);
        uint64_t any = 0;
        for (int64_t y = 0; y < 64; ++y) any |= square[y];
        if (any == 0) continue;
        transpose64(square);
        uint64_t used = 0;  // bit y: row y0 + y holds a pixel
        const int64_t first = x0 + 64 * block;
        const int64_t inside = std::min<int64_t>(64, width - first);
        for (int64_t x = 0; x < inside; ++x) {
          used |= square[x];
          if (square[x]) or_bits(words, (first + x) * height + y0, square[x]);
        }
        found.begin = std::min<int64_t>(found.begin, y0 + std::countr_zero(used));
        found.end = std::max<int64_t>(found.end, y0 + 64 - std::countl_zero(used));
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
        if (any != 0) transpose64(square);
      }
      for (int64_t y = 0; y < rows; ++y) {
        simd().bits_to_bytes(bits + y, 64, columns, dense + (y0 + y) * width + x0);
      }
    }
  }
}

// Pixels, and the columns of the box.
void columns_of(const uint64_t* words, int64_t height, int64_t width, int64_t* area, int64_t* box) {
  const int64_t num_pixels = height * width;
  *area = simd().and_popcount(words, 0, words, 0, num_words(num_pixels), 1);
  box[0] = *area ? find_bit(words, 0, num_pixels, true) / height : 0;
  box[2] = *area ? find_last_set(words, 0, num_pixels) / height + 1 : 0;
}

void set_rows(const Rows& rows, int64_t area, int64_t* box) {
  box[1] = area ? rows.begin : 0;
  box[3] = area ? rows.end : 0;
}

void stats_of(const uint64_t* words, int64_t height, int64_t width, int64_t* area, int64_t* box) {
  Rows rows = {height, 0};
  columns_of(words, height, width, area, box);
  // Each column is searched only above the highest and below the lowest row found so far.
  for (int64_t x = box[0]; x < box[2] && (rows.begin > 0 || rows.end < height); ++x) {
    const int64_t top = x * height;
    rows.begin = find_bit(words, top, top + rows.begin, true) - top;
    rows.end = find_last_set(words, top + rows.end, top + height) - top + 1;
  }
  set_rows(rows, *area, box);
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_pack(const TensorView& dense, const TensorView& words, const TensorView& areas,
               const TensorView& boxes, int num_threads) {
  const int64_t height = dense.shape[1], width = dense.shape[2];
  require(dense.ndim == 3 && (dense.dtype == DType::kBool || dense.dtype == DType::kUInt8),
          "mask_pack: expected bool or uint8 [N, H, W]");
  require_words(words, height * width);
  const bool columns_first = dense.stride[1] == 1 && (dense.stride[2] == height || width == 1);
  require(columns_first || dense.stride[2] == 1 || width <= 1 || height == 0,
          "mask_pack: expected pixels side by side in memory");
  prefer_huge_pages(words);
  parallel_for(dense.shape[0], 1, num_threads, [&](int, int64_t n, int64_t) {
    const uint8_t* one = dense.as<uint8_t>() + n * dense.stride[0];
    uint64_t* out = row(words, n);
    int64_t* area = areas.as<int64_t>() + n;
    int64_t* box = boxes.as<int64_t>() + 4 * n;
    if (columns_first) {
      simd().bytes_to_bits(one, height * width, out, 1);  // as packed masks are
      stats_of(out, height, width, area, box);
    } else {
      std::fill_n(out, words.shape[1], 0);
      const Rows rows = pack_rows(one, dense.stride[1], height, width, out);
      columns_of(out, height, width, area, box);
      set_rows(rows, *area, box);
    }
  });
}

void mask_from_index(const TensorView& index, const TensorView& words) {
  const int64_t num_pixels = index.shape[0] * index.shape[1];
  require_words(words, num_pixels);
  require(index.is_contiguous() && index.dtype == DType::kInt64,
          "mask_from_index: expected contiguous int64 [W, H]");
  prefer_huge_pages(words);
  std::fill_n(words.as<uint64_t>(), words.numel(), 0);
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
