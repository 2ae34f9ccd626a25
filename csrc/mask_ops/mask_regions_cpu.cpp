// SPDX-License-Identifier: Apache-2.0
// Components, boundaries and resizing of packed masks, from the runs of their columns: the time depends on
// the number of runs, not on the number of pixels.
#include <algorithm>

#include "bits.h"
#include "huge_pages.h"
#include "parallel.h"
#include "regions.h"
#include "rows.h"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

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
                  Regions regions(mask, height, 0, width, true, kCorners, memory, capacity);
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
                  Regions regions(mask, height, 0, width, true, kCorners, memory, capacity);
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
                  Regions regions(mask, height, 0, width, true, kCorners, memory, capacity);
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
                  std::copy(mask, mask + words.shape[1], row(out, n));
                  const int64_t pixels = height * width, first = find_bit(mask, 0, pixels, true);
                  if (first == pixels) return;
                  const int64_t last = find_last_set(mask, first, pixels);
                  fill_holes(row(out, n), height, first / height, last / height + 1, memory, capacity);
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
