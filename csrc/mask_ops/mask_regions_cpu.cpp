// SPDX-License-Identifier: Apache-2.0
// Components, boundaries and resizing of packed masks, from the runs of their columns: the time depends on
// the number of runs, not on the number of pixels.
#include <algorithm>

#include "bits.h"
#include "huge_pages.h"
#include "parallel.h"
#include "rows.h"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

// The runs of one mask's columns as a union-find forest. A root is the first run of its component.
class Regions {
 public:
  // Runs of bits equal to `value`; `reach` is 1 if runs that touch at a corner are connected, else 0.
  Regions(const uint64_t* words, int64_t height, int64_t width, bool value, int64_t reach, int64_t* scratch,
          int64_t capacity)
      : start_(scratch), stop_(start_ + capacity), parent_(stop_ + capacity), size_(parent_ + capacity) {
    int64_t before = 0, before_end = 0;  // the runs of the column before
    for (int64_t x = 0; x < width; ++x) {
      const int64_t begin = count_;
      for_each_run(words, x * height, (x + 1) * height, value, [&](int64_t start, int64_t stop) {
        const int64_t run = count_++;
        start_[run] = start;
        stop_[run] = stop;
        parent_[run] = run;
        size_[run] = stop - start;
        // Both columns are in order: runs that end above this one end above all that follow.
        while (before < before_end && stop_[before] + height + reach <= start) ++before;
        for (int64_t k = before; k < before_end && start_[k] + height < stop + reach; ++k) unite(k, run);
      });
      before = begin;
      before_end = count_;
    }
  }

  int64_t count() const { return count_; }
  int64_t start(int64_t run) const { return start_[run]; }
  int64_t stop(int64_t run) const { return stop_[run]; }
  int64_t size(int64_t root) const { return size_[root]; }
  int64_t& slot(int64_t root) {
    return size_[root];
  }  // a number for each root, once its size is no longer needed

  int64_t root(int64_t run) {
    while (parent_[run] != run) run = parent_[run] = parent_[parent_[run]];
    return run;
  }

 private:
  void unite(int64_t a, int64_t b) {
    a = root(a);
    b = root(b);
    if (a == b) return;
    if (b < a) std::swap(a, b);
    parent_[b] = a;
    size_[a] += size_[b];
  }

  int64_t *start_, *stop_, *parent_, *size_;
  int64_t count_ = 0;
};

constexpr int64_t kCorners = 1;  // reach of the foreground: 8 neighbours
constexpr int64_t kSides = 0;    // reach of the background: 4 neighbours

// f(n, words of mask n, scratch, capacity) for every mask.
template <typename F>
void for_each_mask(const TensorView& words, int64_t num_pixels, const TensorView& scratch, int num_threads,
                   F&& f) {
  require_words(words, num_pixels);
  require(scratch.shape[0] >= num_threads && scratch.is_contiguous(), "regions: scratch is too small");
  parallel_for(words.shape[0], 1, num_threads, [&](int thread, int64_t n, int64_t) {
    f(n, row(words, n), scratch.as<int64_t>() + thread * scratch.shape[1], scratch.shape[1] / 4);
  });
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_count_components(const TensorView& words, int64_t height, int64_t width, const TensorView& scratch,
                           const TensorView& counts, int num_threads) {
  for_each_mask(words, height * width, scratch, num_threads,
                [&](int64_t n, const uint64_t* mask, int64_t* memory, int64_t capacity) {
                  Regions regions(mask, height, width, true, kCorners, memory, capacity);
                  int64_t roots = 0;
                  for (int64_t run = 0; run < regions.count(); ++run) roots += regions.root(run) == run;
                  counts.as<int64_t>()[n] = roots;
                });
}

void mask_components(const TensorView& words, int64_t height, int64_t width, const TensorView& scratch,
                     const TensorView& first, const TensorView& out, int num_threads) {
  choose_pages(out);
  for_each_mask(words, height * width, scratch, num_threads,
                [&](int64_t n, const uint64_t* mask, int64_t* memory, int64_t capacity) {
                  Regions regions(mask, height, width, true, kCorners, memory, capacity);
                  int64_t next = first.as<int64_t>()[n];
                  for (int64_t run = 0; run < regions.count(); ++run) {
                    const int64_t root = regions.root(run);
                    if (root == run) {
                      regions.slot(root) = next++;
                    }
                    fill_bits(row(out, regions.slot(root)), regions.start(run), regions.stop(run));
                  }
                });
}

void mask_largest_component(const TensorView& words, int64_t height, int64_t width, const TensorView& scratch,
                            const TensorView& out, int num_threads) {
  choose_pages(out);
  for_each_mask(words, height * width, scratch, num_threads,
                [&](int64_t n, const uint64_t* mask, int64_t* memory, int64_t capacity) {
                  Regions regions(mask, height, width, true, kCorners, memory, capacity);
                  uint64_t* kept = row(out, n);
                  int64_t best = -1;
                  for (int64_t run = 0; run < regions.count(); ++run) {
                    if (regions.root(run) == run && (best < 0 || regions.size(run) > regions.size(best)))
                      best = run;
                  }
                  for (int64_t run = 0; run < regions.count(); ++run) {
                    if (regions.root(run) == best) fill_bits(kept, regions.start(run), regions.stop(run));
                  }
                });
}

void mask_fill_holes(const TensorView& words, int64_t height, int64_t width, const TensorView& scratch,
                     const TensorView& out, int num_threads) {
  choose_pages(out);
  for_each_mask(words, height * width, scratch, num_threads,
                [&](int64_t n, const uint64_t* mask, int64_t* memory, int64_t capacity) {
                  Regions regions(mask, height, width, false, kSides, memory, capacity);
                  uint64_t* filled = row(out, n);
                  std::copy(mask, mask + words.shape[1], filled);
                  for (int64_t run = 0; run < regions.count(); ++run)
                    regions.slot(run) = 1;  // 1: not seen at the border
                  for (int64_t run = 0; run < regions.count(); ++run) {
                    const int64_t start = regions.start(run), stop = regions.stop(run);
                    const bool at_side = start < height || start >= (width - 1) * height;
                    if (at_side || start % height == 0 || stop % height == 0)
                      regions.slot(regions.root(run)) = 0;
                  }
                  for (int64_t run = 0; run < regions.count(); ++run) {
                    if (regions.slot(regions.root(run)))
                      fill_bits(filled, regions.start(run), regions.stop(run));
                  }
                });
}

void mask_boundary(const TensorView& words, int64_t height, int64_t width, const TensorView& out,
                   int num_threads) {
  choose_pages(out);
  const int64_t num_pixels = height * width, num = words.shape[1];
  require_words(words, num_pixels);
  if (num_pixels == 0) return;
  parallel_for(words.shape[0], 1, num_threads, [&](int, int64_t n, int64_t) {
    const uint64_t* mask = row(words, n);
    uint64_t* edge = row(out, n);
    // edge := pixels with all four neighbours inside, then what is left of the mask. Moving by one bit
    // crosses from column to column only at the first and last row, which are edge anyway.
    for (int64_t k = 0; k < num; ++k) {
      edge[k] = 0;
      if (mask[k] == 0) continue;
      const uint64_t up = mask[k] << 1 | (k > 0 ? mask[k - 1] >> 63 : 0);
      const uint64_t down = mask[k] >> 1 | (k + 1 < num ? mask[k + 1] << 63 : 0);
      const int64_t at = 64 * k;
      const uint64_t right = read_bits(mask, at + height, std::min<int64_t>(64, num_pixels - at - height));
      uint64_t left = 0;
      if (at >= height) {
        left = read_bits(mask, at - height, 64);
      } else if (at + 64 > height) {
        left = read_bits(mask, 0, at + 64 - height) << (height - at);
      }
      edge[k] = up & down & left & right;
    }
    for (int64_t x = 0; x < width; ++x) {
      clear_bit(edge, x * height);
      clear_bit(edge, x * height + height - 1);
    }
    for (int64_t k = 0; k < num; ++k) edge[k] = mask[k] & ~edge[k];
  });
}

void mask_resize(const TensorView& words, int64_t height, const TensorView& row_start,
                 const TensorView& col_index, int64_t out_height, const TensorView& out, int num_threads) {
  choose_pages(out);
  const int64_t out_width = col_index.shape[0];
  require_words(out, out_height * out_width);
  require(words.is_contiguous(), "mask_resize: expected contiguous words");
  if (out.numel() == 0) return;
  const int64_t* rows = row_start.as<int64_t>();
  parallel_for(words.shape[0], 1, num_threads, [&](int, int64_t n, int64_t) {
    uint64_t* to = row(out, n);
    for (int64_t x = 0; x < out_width; ++x) {
      const int64_t from = col_index.as<int64_t>()[x] * height, base = x * out_height;
      for_each_run(row(words, n), from, from + height, true, [&](int64_t start, int64_t stop) {
        fill_bits(to, base + rows[start - from], base + rows[stop - from]);
      });
    }
  });
}

}  // namespace sohes
