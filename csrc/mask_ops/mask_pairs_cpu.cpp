// SPDX-License-Identifier: Apache-2.0
// Pairs of masks with a large IoU, without the matrix of all pairs. Masks are visited by area, so that those
// too small or too large for a mask are never looked at. Of the others three upper bounds of the intersection
// are tried, cheapest first: the smaller area, the intersection of the boxes, and the pixels of both masks in
// each cell of the image, sum_c min(a_c, b_c). Bits are counted only for what is left.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>

#include "boxed_masks.h"
#include "parallel.h"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

// Cells are sets of words: strips of columns, and in each strip the words that begin in one band of rows.
constexpr int64_t kStrips = 16, kBands = 4, kCells = kStrips * kBands;
constexpr int64_t kMostInCell = 255;

struct Cells {
  uint8_t pixels[kCells];  // of the mask, in units, rounded up
};

// What the pairs of one mask need again and again, by rank of area.
struct Ranked {
  int64_t index, area, units;  // units: sum of the cells
};

int64_t cell_of(int64_t word, int64_t num_words, int64_t height) {
  const int64_t strip = word * kStrips / num_words, y = 64 * word % height;
  return strip * kBands + y * kBands / height;
}

// Upper bound of the intersection in units: sum min(a, b) = (sum a + sum b - sum |a - b|) / 2.
int64_t shared_units(const Cells& a, const Cells& b, int64_t total) {
  int32_t apart = 0;
  for (int64_t c = 0; c < kCells; ++c) apart += std::abs(int32_t{a.pixels[c]} - int32_t{b.pixels[c]});
  return (total - apart) / 2;
}

// In the scratch of mask_find_pairs, by rank: all Ranked, then all Cells.
constexpr int64_t kIntsOfMask = (sizeof(Ranked) + sizeof(Cells)) / sizeof(int64_t);

// Pixels in a unit, so that a full cell counts at most kMostInCell.
int64_t unit_of(int64_t num_words, int64_t height) {
  int64_t words[kCells] = {}, most = 1;
  for (int64_t k = 0; k < num_words; ++k) most = std::max(most, ++words[cell_of(k, num_words, height)]);
  return (64 * most + kMostInCell - 1) / kMostInCell;
}

int64_t fill_cells(const uint64_t* words, Span span, int64_t num_words, int64_t height, int64_t unit,
                   Cells& cells) {
  int64_t pixels[kCells] = {}, units = 0;
  for (int64_t k = span.begin; k < std::min(span.end, num_words); ++k) {
    if (words[k] != 0) pixels[cell_of(k, num_words, height)] += std::popcount(words[k]);
  }
  for (int64_t c = 0; c < kCells; ++c) {
    const int64_t rounded_up = (pixels[c] + unit - 1) / unit;
    cells.pixels[c] = static_cast<uint8_t>(rounded_up);
    units += rounded_up;
  }
  return units;
}

// Whether masks of this many pixels together, which share at most `shared`, may have an IoU of min_iou.
// Monotone in `shared`, also when rounded, so that it can be asked of upper bounds.
bool reaches(int64_t shared, int64_t total, double min_iou) {
  return shared > 0 && static_cast<double>(shared) >= min_iou * static_cast<double>(total - shared);
}

struct Pair {
  int64_t other, shared;
};

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

int64_t mask_pairs_scratch(int64_t num_masks) { return num_masks * kIntsOfMask; }

int64_t mask_find_pairs(const TensorView& words, const TensorView& areas, const TensorView& boxes,
                        const TensorView& order, double min_iou, int64_t height, const TensorView& scratch,
                        const TensorView& found, int num_threads) {
  require(words.is_contiguous() && boxes.is_contiguous() && found.is_contiguous(),
          "mask_pairs: expected contiguous words, boxes and pairs");
  const int64_t num = words.shape[0], num_words = words.shape[1], capacity = found.shape[0];
  require(scratch.numel() >= mask_pairs_scratch(num), "mask_pairs: scratch is too small");
  const BoxedMasks masks = {words, areas.as<int64_t>(), boxes.as<int64_t>(), height};
  Ranked* const ranked = reinterpret_cast<Ranked*>(scratch.as<int64_t>());
  Cells* const cells = reinterpret_cast<Cells*>(ranked + num);
  const int64_t unit = unit_of(num_words, height);
  parallel_for(num, 16, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const int64_t i = order.as<int64_t>()[k];
      const Span span = span_of(masks.boxes + 4 * i, height);
      ranked[k] = {i, masks.areas[i], fill_cells(row(words, i), span, num_words, height, unit, cells[k])};
    }
  });
  std::atomic<int64_t> count{0};
  parallel_for(num, 16, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Ranked& a = ranked[k];
      for (int64_t next = k + 1; next < num; ++next) {
        const Ranked& b = ranked[next];
        const int64_t total = a.area + b.area;
        if (!reaches(a.area, total, min_iou)) break;  // nor do those that are larger still
        if (!reaches(std::min(a.area, masks.shared_box(a.index, b.index)), total, min_iou)) continue;
        const int64_t most = unit * shared_units(cells[k], cells[next], a.units + b.units);
        if (!reaches(std::min(a.area, most), total, min_iou)) continue;
        const int64_t shared = masks.shared(a.index, b.index);
        if (!reaches(shared, total, min_iou)) continue;
        const int64_t place = count.fetch_add(1, std::memory_order_relaxed);
        if (place >= capacity) continue;
        int64_t* const out = found.as<int64_t>() + 3 * place;
        out[0] = std::min(a.index, b.index);
        out[1] = std::max(a.index, b.index);
        out[2] = shared;
      }
    }
  });
  return count;
}

void mask_sort_pairs(const TensorView& found, const TensorView& areas, const TensorView& starts,
                     const TensorView& pairs, const TensorView& iou, int num_threads) {
  const int64_t num = areas.shape[0], count = pairs.shape[0];
  const int64_t *const from = found.as<int64_t>(), *const area = areas.as<int64_t>();
  int64_t* const start = starts.as<int64_t>();  // of the pairs of each mask; while they are placed, the next
  std::fill(start, start + num + 1, 0);
  for (int64_t e = 0; e < count; ++e) ++start[from[3 * e]];
  for (int64_t i = 0, sum = 0; i <= num; ++i) {
    const int64_t own = start[i];
    start[i] = sum;
    sum += own;
  }
  Pair* const placed = reinterpret_cast<Pair*>(pairs.as<int64_t>());
  for (int64_t e = 0; e < count; ++e) placed[start[from[3 * e]]++] = {from[3 * e + 1], from[3 * e + 2]};
  parallel_for(num, 64, num_threads, [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i > 0 ? start[i - 1] : 0, last = start[i];
      std::sort(placed + first, placed + last,
                [](const Pair& a, const Pair& b) { return a.other < b.other; });
      for (int64_t e = first; e < last; ++e) {
        const auto [other, shared] = placed[e];
        const auto both = static_cast<double>(area[i] + area[other] - shared);
        iou.as<float>()[e] = static_cast<float>(static_cast<double>(shared) / both);
        placed[e] = {i, other};  // as a row of `pairs`
      }
    }
  });
}

}  // namespace sohes
