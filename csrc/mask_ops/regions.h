// SPDX-License-Identifier: Apache-2.0
// Connected regions of one packed mask, and its holes.
#pragma once

#include <cstdint>
#include <utility>

#include "bits.h"

namespace sohes::mask_ops {

// The runs of one mask's columns as a union-find forest. A root is the first run of its component.
class Regions {
 public:
  // Runs of bits equal to `value`; `reach` is 1 if runs that touch at a corner are connected, else 0.
  // Only columns first .. last - 1 are read.
  Regions(const uint64_t* words, int64_t height, int64_t first, int64_t last, bool value, int64_t reach,
          int64_t* scratch, int64_t capacity)
      : start_(scratch), stop_(start_ + capacity), parent_(stop_ + capacity), size_(parent_ + capacity) {
    int64_t before = 0, before_end = 0;  // the runs of the column before
    for (int64_t x = first; x < last; ++x) {
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

// Fills the holes of a mask that lies in columns [x0, x1), not empty, and returns the pixels added. Scratch
// as of Regions. The background beside these columns touches the border of the image, so it is not read:
// background in the first or last column, or at the end of a column, is no hole.
inline int64_t fill_holes(uint64_t* mask, int64_t height, int64_t x0, int64_t x1, int64_t* scratch,
                          int64_t capacity) {
  Regions regions(mask, height, x0, x1, false, kSides, scratch, capacity);
  for (int64_t run = 0; run < regions.count(); ++run) regions.slot(run) = 1;  // 1: not seen at the border
  int64_t top = x0 * height;                                                  // of the column of a run
  for (int64_t run = 0; run < regions.count(); ++run) {
    const int64_t start = regions.start(run), stop = regions.stop(run);
    while (start >= top + height) top += height;
    const bool at_side = top == x0 * height || top == (x1 - 1) * height;
    if (at_side || start == top || stop == top + height) regions.slot(regions.root(run)) = 0;
  }
  int64_t added = 0;
  for (int64_t run = 0; run < regions.count(); ++run) {
    if (regions.slot(regions.root(run)) == 0) continue;
    fill_bits(mask, regions.start(run), regions.stop(run));
    added += regions.stop(run) - regions.start(run);
  }
  return added;
}

}  // namespace sohes::mask_ops
