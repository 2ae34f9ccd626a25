// SPDX-License-Identifier: Apache-2.0
// Intersections of every pair. Each mask's box is first copied into bands: band k holds, for every column
// side by side, the 64 pixels from row 64 * k on in one word. Two masks then share one rectangle of words,
// and the work for a pair follows the area that their boxes share: 16 bytes read for every 64 of those
// pixels. Tiles of masks stay in the second-level cache while the others stream past them.
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

constexpr int64_t kTile = 32;     // masks of a
constexpr int64_t kStrip = 4096;  // words of each at a time: 32 KB, so that a tile takes 1 MB

// Half-open columns and bands of a mask's box, and where its words begin. Columns are widened to whole
// vectors of 8 words, so that two crops are always read in step with cache lines.
struct Crop {
  int64_t x0, x1, band0, band1;
  const uint64_t* words;

  int64_t width() const { return x1 - x0; }
  int64_t size() const { return width() * (band1 - band0); }
};

// Low images: so many columns are taken for one that a band is filled.
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

// Scratch for the crops of a set, in whole cache lines.
int64_t ints_of(const TensorView& boxes, int64_t height) {
  return crop_words(boxes, height) + (kCropInts * boxes.shape[0] + 7) / 8 * 8;
}

void copy_crop(const Crop& crop, const uint64_t* words, int64_t num_words, int64_t height, uint64_t* out) {
  const int64_t column = height * columns_joined(height);
  for (int64_t band = crop.band0; band < crop.band1; ++band) {
    for (int64_t x = crop.x0; x < crop.x1; ++x) {
      const int64_t at = x * column + 64 * band;
      *out++ = read_bits(words, at, std::min({int64_t{64}, column - 64 * band, 64 * num_words - at}));
    }
  }
}

// Crops of all masks; the memory takes their words, from a cache line on, and then kCropInts numbers for
// each.
const Crop* make_crops(const TensorView& words, const TensorView& boxes, int64_t height, int64_t* memory,
                       int num_threads) {
  const int64_t num = words.shape[0];
  auto* at = reinterpret_cast<uint64_t*>(memory);
  Crop* crops = reinterpret_cast<Crop*>(memory + crop_words(boxes, height));
  for (int64_t n = 0; n < num; ++n) {
    crops[n] = crop_of(boxes.as<int64_t>() + 4 * n, height);
    crops[n].words = at;
    at += crops[n].size();
  }
  parallel_for(num, 8, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      copy_crop(crops[n], row(words, n), words.shape[1], height, const_cast<uint64_t*>(crops[n].words));
    }
  });
  return crops;
}

bool meet(const Crop& a, const Crop& b) {
  return (a.x0 < b.x1) & (b.x0 < a.x1) & (a.band0 < b.band1) & (b.band0 < a.band1);
}

// Pixels that two crops which meet share within bands [first, last).
int64_t shared(const Crop& a, const Crop& b, int64_t first, int64_t last) {
  const int64_t from = std::max(a.x0, b.x0), to = std::min(a.x1, b.x1);
  const int64_t band = std::max({a.band0, b.band0, first}), end = std::min({a.band1, b.band1, last});
  if (band >= end) return 0;
  return simd().and_popcount(a.words + (band - a.band0) * a.width() + from - a.x0, a.width(),
                             b.words + (band - b.band0) * b.width() + from - b.x0, b.width(), to - from,
                             end - band);
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

int64_t mask_overlap_scratch(const TensorView& boxes_a, const TensorView& boxes_b, int64_t height) {
  return ints_of(boxes_a, height) + (boxes_a.data == boxes_b.data ? 0 : ints_of(boxes_b, height));
}

void mask_overlap(const TensorView& words_a, const TensorView& boxes_a, const TensorView& words_b,
                  const TensorView& boxes_b, int64_t height, const TensorView& scratch, const TensorView& out,
                  int num_threads) {
  const int64_t num_a = words_a.shape[0], num_b = words_b.shape[0];
  require(words_a.is_contiguous() && words_b.is_contiguous() && boxes_a.is_contiguous() &&
              boxes_b.is_contiguous() && out.is_contiguous() && words_a.shape[1] == words_b.shape[1],
          "mask_overlap: expected contiguous words of one size");
  const bool same = words_a.data == words_b.data && boxes_a.data == boxes_b.data && num_a == num_b;
  require(scratch.numel() >= mask_overlap_scratch(boxes_a, boxes_b, height),
          "mask_overlap: scratch is too small");
  prefer_huge_pages(scratch);
  int64_t* const memory = scratch.as<int64_t>();
  const Crop* crops_a = make_crops(words_a, boxes_a, height, memory, num_threads);
  const Crop* crops_b = crops_a;
  if (!same) {
    int64_t* rest = memory + ints_of(boxes_a, height);
    crops_b = make_crops(words_b, boxes_b, height, rest, num_threads);
  }
  int64_t* const counts = out.as<int64_t>();
  std::fill_n(counts, num_a * num_b, 0);
  parallel_for(num_a, kTile, num_threads, [&](int, int64_t begin, int64_t end) {
    Crop tile = {INT64_MAX, 0, INT64_MAX, 0, nullptr};  // around all of its masks
    int64_t widest = 1;
    for (int64_t i = begin; i < end; ++i) {
      if (crops_a[i].size() == 0) continue;
      tile.x0 = std::min(tile.x0, crops_a[i].x0);
      tile.x1 = std::max(tile.x1, crops_a[i].x1);
      tile.band0 = std::min(tile.band0, crops_a[i].band0);
      tile.band1 = std::max(tile.band1, crops_a[i].band1);
      widest = std::max(widest, crops_a[i].width());
    }
    const int64_t bands = std::max<int64_t>(1, kStrip / widest);
    for (int64_t first = tile.band0; first < tile.band1; first += bands) {
      for (int64_t j = same ? begin : 0; j < num_b; ++j) {
        if (!meet(tile, crops_b[j])) continue;
        // Those that meet are listed first: which they are is too hard to guess for a branch around the work.
        int64_t near[kTile];
        int64_t num_near = 0;
        const int64_t stop = same ? std::min(end, j + 1) : end;
        for (int64_t i = begin; i < stop; ++i) {
          near[num_near] = i;
          num_near += meet(crops_a[i], crops_b[j]);
        }
        for (int64_t k = 0; k < num_near; ++k) {
          const int64_t i = near[k];
          const int64_t count = shared(crops_a[i], crops_b[j], first, first + bands);
          counts[i * num_b + j] += count;
          if (same && i != j) counts[j * num_b + i] += count;
        }
      }
    }
  });
}

}  // namespace sohes
