// SPDX-License-Identifier: Apache-2.0
// Intersections of all pairs. First the box of each mask is copied into bands: band k has one word per column
// with the 64 pixels from row 64 * k on. The intersection of two boxes is then a rectangle of words, and a
// pair reads 16 bytes per 64 pixels of it. A tile of kTile x kTile pairs fits the L2 cache; the pairs of a
// row of the tile whose boxes intersect are found at once.
#include <algorithm>

#include "bits.h"
#include "huge_pages.h"
#include "parallel.h"
#include "rows.h"
#include "simd.h"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

constexpr int64_t kTile = 64;     // masks of a, and of b
constexpr int64_t kStrip = 2048;  // words of each mask at a time, on average: 16 KB, so 1 MB per side

// Half-open columns and bands of a mask's box, and where its words begin. Columns are widened to whole
// vectors of 8 words, so that two crops are always read in step with cache lines.
struct Crop {
  int64_t x0, x1, band0, band1;
  const uint64_t* words;

  int64_t width() const { return x1 - x0; }
  int64_t size() const { return width() * (band1 - band0); }
};

// For images of low height: number of columns that are joined to fill a band.
int64_t columns_joined(int64_t height) { return height > 0 && height < 64 ? 64 / height : 1; }

Crop crop_of(const int64_t* box, int64_t height) {
  if (box[0] >= box[2]) return {0, 0, 0, 0, nullptr};
  const int64_t joined = columns_joined(height);
  const int64_t x0 = box[0] / joined / 8 * 8, x1 = ((box[2] - 1) / joined / 8 + 1) * 8;
  if (joined > 1) return {x0, x1, 0, 1, nullptr};
  return {x0, x1, box[1] / 64, (box[3] + 63) / 64, nullptr};
}

int64_t crop_words(const TensorView& boxes, int64_t height) {
  int64_t sum = 0;
  for (int64_t n = 0; n < boxes.shape[0]; ++n) sum += crop_of(boxes.as<int64_t>() + 4 * n, height).size();
  return sum;
}

constexpr int64_t kCropInts = sizeof(Crop) / sizeof(int64_t);

int64_t whole_tiles(int64_t num) { return (num + kTile - 1) / kTile * kTile; }

// Scratch for the crops of a set: their words, the crops and their sides, each in whole cache lines.
int64_t ints_of(const TensorView& boxes, int64_t height) {
  return crop_words(boxes, height) + (kCropInts + 2) * whole_tiles(boxes.shape[0]);
}

// The crops of a set, and their sides once more, side by side; the last tile is filled up with empty ones.
struct Crops {
  Crop* crop;
  int32_t *x0, *x1, *band0, *band1;
};

void copy_crop(const Crop& crop, const uint64_t* words, int64_t num_words, int64_t height, uint64_t* out) {
  const int64_t column = height * columns_joined(height);
  const int64_t whole = std::min(crop.x1, 64 * num_words / std::max<int64_t>(column, 1));
  for (int64_t band = crop.band0; band < crop.band1; ++band) {
    const int64_t count = std::min<int64_t>(64, column - 64 * band);
    int64_t x = crop.x0;
    for (; x < whole; ++x) {  // as read_bits, without a branch
      const int64_t at = x * column + 64 * band, k = at >> 6;
      const int shift = static_cast<int>(at & 63);
      const uint64_t next = words[k + (shift + count > 64)];
      *out++ = (words[k] >> shift | next << (63 - shift) << 1) & low_bits(count);
    }
    for (; x < crop.x1; ++x) {  // the words end within this column, or before it
      const int64_t at = x * column + 64 * band;
      *out++ = read_bits(words, at, std::min(count, 64 * num_words - at));
    }
  }
}

// The memory, from a cache line on, takes ints_of numbers.
Crops make_crops(const TensorView& words, const TensorView& boxes, int64_t height, int64_t* memory,
                 int num_threads) {
  const int64_t num = words.shape[0], padded = whole_tiles(num);
  auto* at = reinterpret_cast<uint64_t*>(memory);
  Crop* const crop = reinterpret_cast<Crop*>(memory + crop_words(boxes, height));
  int32_t* const sides = reinterpret_cast<int32_t*>(crop + padded);
  const Crops crops = {crop, sides, sides + padded, sides + 2 * padded, sides + 3 * padded};
  for (int64_t n = 0; n < padded; ++n) {
    crop[n] = n < num ? crop_of(boxes.as<int64_t>() + 4 * n, height) : Crop{0, 0, 0, 0, nullptr};
    crop[n].words = at;
    at += crop[n].size();
    require(crop[n].x1 <= INT32_MAX && crop[n].band1 <= INT32_MAX,
            "mask_overlap: expected sides below 2^31 pixels");
    crops.x0[n] = static_cast<int32_t>(crop[n].x0);
    crops.x1[n] = static_cast<int32_t>(crop[n].x1);
    crops.band0[n] = static_cast<int32_t>(crop[n].band0);
    crops.band1[n] = static_cast<int32_t>(crop[n].band1);
  }
  parallel_for(num, 8, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      copy_crop(crop[n], row(words, n), words.shape[1], height, const_cast<uint64_t*>(crop[n].words));
    }
  });
  return crops;
}

// Bit k: mask i of a meets mask first + k of b within the bands [band0, band1).
uint64_t find_meeting(const Crop& a, const Crops& b, int64_t first, int64_t band0, int64_t band1) {
  const auto x0 = static_cast<int32_t>(a.x0), x1 = static_cast<int32_t>(a.x1);
  const auto top = static_cast<int32_t>(std::max(a.band0, band0));
  const auto end = static_cast<int32_t>(std::min(a.band1, band1));
  uint8_t meets[kTile];
  for (int64_t k = 0; k < kTile; ++k) {
    const int64_t j = first + k;
    meets[k] = (x0 < b.x1[j]) & (b.x0[j] < x1) & (top < b.band1[j]) & (b.band0[j] < end);
  }
  uint64_t bits;
  simd().bytes_to_bits(meets, kTile, 1, kTile, &bits, 1, nullptr);
  return top < end ? bits : 0;
}

// A tile of counts, into the matrix or onto what is there.
void write_tile(const int64_t* pairs, int64_t rows, int64_t columns, int64_t* out, int64_t stride,
                bool is_sum) {
  for (int64_t i = 0; i < rows; ++i, pairs += kTile, out += stride) {
    for (int64_t k = 0; k < columns; ++k) out[k] = pairs[k] + (is_sum ? out[k] : 0);
  }
}

// The lower half of a tile from the upper one.
void mirror(int64_t* pairs) {
  for (int64_t i = 0; i < kTile; ++i) {
    for (int64_t k = 0; k < i; ++k) pairs[i * kTile + k] = pairs[k * kTile + i];
  }
}

// Rows to columns.
void turn(int64_t* pairs) {
  for (int64_t i = 0; i < kTile; ++i) {
    for (int64_t k = 0; k < i; ++k) std::swap(pairs[i * kTile + k], pairs[k * kTile + i]);
  }
}

// Whether both sides are one set of masks: not if one has only the first masks of the other.
bool is_one_set(const TensorView& words_a, const TensorView& boxes_a, const TensorView& words_b,
                const TensorView& boxes_b) {
  return words_a.data == words_b.data && boxes_a.data == boxes_b.data && words_a.shape[0] == words_b.shape[0];
}

// Pixels that two crops which meet there share within the bands [first, last).
int64_t shared(const Crop& a, const Crop& b, int64_t first, int64_t last) {
  const int64_t from = std::max(a.x0, b.x0), to = std::min(a.x1, b.x1);
  const int64_t band = std::max({a.band0, b.band0, first}), end = std::min({a.band1, b.band1, last});
  return simd().and_popcount(a.words + (band - a.band0) * a.width() + from - a.x0, a.width(),
                             b.words + (band - b.band0) * b.width() + from - b.x0, b.width(), to - from,
                             end - band);
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

int64_t mask_overlap_scratch(const TensorView& words_a, const TensorView& boxes_a, const TensorView& words_b,
                             const TensorView& boxes_b, int64_t height) {
  const bool same = is_one_set(words_a, boxes_a, words_b, boxes_b);
  return ints_of(boxes_a, height) + (same ? 0 : ints_of(boxes_b, height));
}

void mask_overlap(const TensorView& words_a, const TensorView& boxes_a, const TensorView& words_b,
                  const TensorView& boxes_b, int64_t height, const TensorView& scratch, const TensorView& out,
                  int num_threads) {
  const int64_t num_a = words_a.shape[0], num_b = words_b.shape[0];
  require(words_a.is_contiguous() && words_b.is_contiguous() && boxes_a.is_contiguous() &&
              boxes_b.is_contiguous() && out.is_contiguous() && words_a.shape[1] == words_b.shape[1],
          "mask_overlap: expected contiguous words of one size");
  const bool same = is_one_set(words_a, boxes_a, words_b, boxes_b);
  require(scratch.numel() >= mask_overlap_scratch(words_a, boxes_a, words_b, boxes_b, height),
          "mask_overlap: scratch is too small");
  choose_pages(scratch);
  int64_t* const memory = scratch.as<int64_t>();
  const Crops crops_a = make_crops(words_a, boxes_a, height, memory, num_threads);
  Crops crops_b = crops_a;
  if (!same) {
    int64_t* rest = memory + ints_of(boxes_a, height);
    crops_b = make_crops(words_b, boxes_b, height, rest, num_threads);
  }
  int64_t* const counts = out.as<int64_t>();
  choose_pages(out);
  parallel_for(num_a, kTile, num_threads, [&](int, int64_t begin, int64_t end) {
    int64_t top = INT64_MAX, bottom = 0, columns = 1;  // of all masks of the tile
    for (int64_t i = begin; i < end; ++i) {
      const Crop& crop = crops_a.crop[i];
      if (crop.size() == 0) continue;
      top = std::min(top, crop.band0);
      bottom = std::max(bottom, crop.band1);
      columns += crop.width();
    }
    const int64_t bands = std::max<int64_t>(1, (end - begin) * kStrip / columns);
    if (top > bottom) top = bottom;
    int64_t band = top;
    do {  // once where all masks of the tile are empty
      for (int64_t tile = same ? begin : 0; tile < num_b; tile += kTile) {
        int64_t pairs[kTile * kTile] = {};
        for (int64_t i = begin; i < end; ++i) {
          const Crop& crop = crops_a.crop[i];
          uint64_t meeting = find_meeting(crop, crops_b, tile, band, band + bands);
          if (same && i > tile) meeting &= kAll << (i - tile);
          for (; meeting != 0; meeting &= meeting - 1) {
            const int64_t k = std::countr_zero(meeting);
            pairs[(i - begin) * kTile + k] = shared(crop, crops_b.crop[tile + k], band, band + bands);
          }
        }
        const int64_t num = std::min(kTile, num_b - tile);
        if (same && tile == begin) mirror(pairs);
        write_tile(pairs, end - begin, num, counts + begin * num_b + tile, num_b, band > top);
        if (!same || tile == begin) continue;
        turn(pairs);
        write_tile(pairs, num, end - begin, counts + tile * num_b + begin, num_b, band > top);
      }
      band += bands;
    } while (band < bottom);
  });
}

}  // namespace sohes
