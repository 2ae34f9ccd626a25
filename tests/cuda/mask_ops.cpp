// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of the mask operators on the emulated device of cuda_runtime.h, against the CPU kernels.
#include "sohes/mask_ops.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "../sanitizers/tensors.h"

using sohes::TensorView;

namespace {

// Empty masks, full masks, noise, and rectangles of all sizes.
Bytes random_masks(int64_t num, int64_t height, int64_t width) {
  Bytes dense({num, height, width});
  for (int64_t n = 0; n < num && height * width > 0; ++n) {
    const int64_t y0 = below(height), x0 = below(width), y1 = y0 + 1 + below(height - y0),
                  x1 = x0 + 1 + below(width - x0);
    for (int64_t i = 0; i < height * width; ++i) {
      const int64_t y = i / width, x = i % width;
      const bool rectangle = y >= y0 && y < y1 && x >= x0 && x < x1;
      dense.data[n * height * width + i] = n % 8 == 0   ? 0
                                           : n % 8 == 1 ? 1
                                           : n % 8 == 2 ? below(2)
                                                        : rectangle;
    }
  }
  return dense;
}

// A set of masks for both; the results must be equal.
struct Set {
  int64_t num, height, width;
  Ints words, areas, boxes, order;

  Set(int64_t n, int64_t h, int64_t w)
      : num(n), height(h), width(w), words({n, words_of(h, w)}), areas({n}), boxes({n, 4}), order({n}) {
    Bytes dense = random_masks(n, h, w), back({n, h, w});
    Ints none({0});
    sohes::mask_pack(dense.view(), none.view(), words.view(), areas.view(), boxes.view(), 1);
    Ints other({n, words_of(h, w)}), other_areas({n}), other_boxes({n, 4});
    sohes::mask_pack_cuda(dense.view(), other.view(), other_areas.view(), other_boxes.view(), 0);
    expect(words.data == other.data && areas.data == other_areas.data && boxes.data == other_boxes.data,
           "pack", h, w);
    sohes::mask_unpack_cuda(words.view(), back.view(), 0);
    expect(back.data == dense.data, "unpack", h, w);
    std::fill(other_areas.data.begin(), other_areas.data.end(), 0);
    std::fill(other_boxes.data.begin(), other_boxes.data.end(), 0);
    sohes::mask_stats_cuda(words.view(), h, w, other_areas.view(), other_boxes.view(), 0);
    expect(areas.data == other_areas.data && boxes.data == other_boxes.data, "stats", h, w);
    std::iota(order.data.begin(), order.data.end(), 0);
    std::shuffle(order.data.begin(), order.data.end(), rng);
  }
};

void check_overlap(Set& a, Set& b, bool same) {
  Ints out({a.num, b.num}), expected({a.num, b.num});
  Ints scratch({sohes::mask_overlap_scratch(a.words.view(), a.boxes.view(), b.words.view(), b.boxes.view(),
                                            a.height)});
  sohes::mask_overlap(a.words.view(), a.boxes.view(), b.words.view(), b.boxes.view(), a.height,
                      scratch.view(), expected.view(), 1);
  sohes::mask_overlap_cuda(a.words.view(), a.boxes.view(), a.order.view(), b.words.view(), b.boxes.view(),
                           b.order.view(), a.height, out.view(), 0);
  expect(out.data == expected.data, same ? "overlap with itself" : "overlap", a.height, a.width);
}

void check_selection(Set& set, double threshold) {
  const int64_t num = set.num, num_words = (num + 63) / 64;
  std::stable_sort(set.order.data.begin(), set.order.data.end(),
                   [&](int64_t i, int64_t j) { return set.areas.data[i] < set.areas.data[j]; });
  Ints rank({num}),
      scratch({sohes::mask_overlap_scratch(set.words.view(), set.boxes.view(), set.words.view(),
                                           set.boxes.view(), set.height)}),
      shared({num, num}), kept({num}), duplicates({num, num_words}), dropped({num_words}), parents({num}),
      expected({num});
  Bytes keep({num}), expected_keep({num});
  for (int64_t r = 0; r < num; ++r) rank.data[set.order.data[r]] = r;
  sohes::mask_overlap(set.words.view(), set.boxes.view(), set.words.view(), set.boxes.view(), set.height,
                      scratch.view(), shared.view(), 1);
  for (const int64_t first : {int64_t{0}, num / 3}) {  // in two parts, that overlap
    sohes::mask_duplicates_cuda(shared.view(first), first, set.areas.view(), set.order.view(), rank.view(),
                                threshold, duplicates.view(), 0);
    sohes::mask_parents_cuda(shared.view(first), first, set.areas.view(), set.order.view(), rank.view(),
                             threshold, parents.view(), 0);
  }
  sohes::mask_keep_cuda(duplicates.view(), set.order.view(), dropped.view(), keep.view(), 0);
  sohes::mask_nms(set.words.view(), set.areas.view(), set.boxes.view(), set.order.view(), threshold,
                  set.height, kept.view(), expected_keep.view());
  sohes::mask_parents(set.words.view(), set.areas.view(), set.boxes.view(), set.order.view(), threshold,
                      set.height, expected.view(), 1);
  expect(keep.data == expected_keep.data, "nms", set.height, set.width);
  expect(parents.data == expected.data, "parents", set.height, set.width);
}

void check_rle(Set& set) {
  const int64_t num = set.num, num_pixels = set.height * set.width;
  Ints num_runs({num}), expected_runs({num}), first({num + 1}), offsets({num + 1}), lengths({num});
  sohes::mask_num_runs(set.words.view(), num_pixels, set.boxes.view(), set.height, expected_runs.view(), 1);
  sohes::mask_num_runs_cuda(set.words.view(), num_pixels, num_runs.view(), 0);
  expect(num_runs.data == expected_runs.data, "number of runs", set.height, set.width);
  for (int64_t n = 0; n < num; ++n) {
    first.data[n + 1] = first.data[n] + num_runs.data[n];
    offsets.data[n + 1] = offsets.data[n] + 8 * num_runs.data[n] + sohes::kRleSlack;
  }
  Bytes slots({offsets.data[num]});
  sohes::rle_encode(set.words.view(), num_pixels, set.boxes.view(), set.height, offsets.view(), slots.view(),
                    lengths.view(), 1);
  Ints stops({first.data[num]}), of_run({first.data[num]});
  sohes::rle_stops_cuda(set.words.view(), num_pixels, first.view(), stops.view(), 0);
  sohes::rle_lengths_cuda(stops.view(), first.view(), of_run.view(), 0);
  std::partial_sum(of_run.data.begin(), of_run.data.end(), of_run.data.begin());
  Bytes text({of_run.data.empty() ? 0 : of_run.data.back()});
  sohes::rle_text_cuda(stops.view(), first.view(), of_run.view(), text.view(), 0);
  std::vector<uint8_t> expected;
  for (int64_t n = 0; n < num; ++n) {
    const auto slot = slots.data.begin() + offsets.data[n];
    expected.insert(expected.end(), slot, slot + lengths.data[n]);
  }
  expect(text.data == expected, "RLE", set.height, set.width);
}

// The runs of the columns that are inside, or outside, with the labels of their components.
struct Labelled {
  Ints first, starts, stops, labels;

  Labelled(Set& set, bool value) : first({set.num + 1}), starts({0}), stops({0}), labels({0}) {
    Ints counts({set.num});
    sohes::mask_num_column_runs_cuda(set.words.view(), set.height, set.width, value, counts.view(), 0);
    std::partial_sum(counts.data.begin(), counts.data.end(), first.data.begin() + 1);
    starts = stops = labels = Ints({first.data.back()});
    sohes::mask_label_runs_cuda(set.words.view(), set.height, set.width, value, first.view(), starts.view(),
                                stops.view(), labels.view(), 0);
  }
};

void check_regions(Set& set) {
  const int64_t height = set.height, width = set.width, num = set.num;
  Ints scratch({1, 8 * (height * width + width)}), counts({num}), starts({num});
  sohes::mask_count_components(set.words.view(), height, width, scratch.view(), counts.view(), 1);
  for (int64_t n = 1; n < num; ++n) starts.data[n] = starts.data[n - 1] + counts.data[n - 1];
  const int64_t num_parts = std::accumulate(counts.data.begin(), counts.data.end(), int64_t{0});
  Ints parts({num_parts, set.words.shape[1]}), other(parts.shape);
  sohes::mask_components(set.words.view(), height, width, scratch.view(), starts.view(), parts.view(), 1);
  Labelled inside(set, true);
  Ints target(inside.labels.shape), rank(inside.labels.shape);
  int64_t roots = 0;
  for (int64_t r = 0; r < target.shape[0]; ++r) {
    if (inside.labels.data[r] == r) rank.data[r] = roots++;
    target.data[r] = rank.data[inside.labels.data[r]];
  }
  expect(roots == num_parts, "number of components", height, width);
  if (roots != num_parts) return;
  sohes::mask_paint_runs_cuda(inside.starts.view(), inside.stops.view(), target.view(), other.view(), 0);
  expect(other.data == parts.data, "components", height, width);

  Ints filled(set.words.shape), painted(set.words.shape);
  sohes::mask_fill_holes(set.words.view(), height, width, scratch.view(), filled.view(), 1);
  Labelled outside(set, false);
  target = Ints(outside.labels.shape);
  std::vector<bool> open(target.data.size());
  for (int64_t r = 0; r < target.shape[0]; ++r) {
    const int64_t start = outside.starts.data[r], stop = outside.stops.data[r];
    const bool at_side = start < height || start >= (width - 1) * height;
    if (at_side || start % height == 0 || stop % height == 0) open[outside.labels.data[r]] = true;
  }
  for (int64_t n = 0; n < num; ++n) {
    for (int64_t r = outside.first.data[n]; r < outside.first.data[n + 1]; ++r) {
      target.data[r] = open[outside.labels.data[r]] ? -1 : n;
    }
  }
  painted.data = set.words.data;
  sohes::mask_paint_runs_cuda(outside.starts.view(), outside.stops.view(), target.view(), painted.view(), 0);
  expect(painted.data == filled.data, "filled holes", height, width);

  sohes::mask_boundary(set.words.view(), height, width, filled.view(), 1);
  sohes::mask_boundary_cuda(set.words.view(), height, width, painted.view(), 0);
  expect(painted.data == filled.data, "boundary", height, width);
}

void check_resize(Set& set, int64_t new_height, int64_t new_width) {
  Ints rows({new_height}), columns({new_width}), row_start({set.height + 1});
  for (int64_t y = 0; y < new_height; ++y) rows.data[y] = (2 * y + 1) * set.height / (2 * new_height);
  for (int64_t x = 0; x < new_width; ++x) columns.data[x] = (2 * x + 1) * set.width / (2 * new_width);
  for (int64_t r = 0; r <= set.height; ++r) {
    row_start.data[r] = std::lower_bound(rows.data.begin(), rows.data.end(), r) - rows.data.begin();
  }
  Ints out({set.num, words_of(new_height, new_width)}), other(out.shape);
  sohes::mask_resize(set.words.view(), set.height, row_start.view(), columns.view(), new_height, out.view(),
                     1);
  sohes::mask_resize_cuda(set.words.view(), set.height, rows.view(), columns.view(), other.view(), 0);
  expect(out.data == other.data, "resize", new_height, new_width);
}

// Linear interpolation for pixel `at` of `to` from `from` pixels: lower index, and weight of the next one.
void place(int64_t at, int64_t from, int64_t to, int64_t& index, float& weight) {
  const double position = (at + 0.5) * from / to - 0.5, inside = std::max(position, 0.0);
  index = std::min(static_cast<int64_t>(inside), from - 1);
  weight = static_cast<float>(inside - static_cast<double>(index));
}

void check_logits(int64_t height, int64_t width, int64_t new_height, int64_t new_width) {
  constexpr int64_t kNum = 5;
  Floats logits({kNum, height, width}), row_weight({new_height}), col_weight({new_width});
  for (float& logit : logits.data) logit = static_cast<float>(below(2001) - 1200) / 300;
  Ints row_index({new_height}), row_start({height + 1}), columns({new_width});
  for (int64_t y = 0; y < new_height; ++y) {
    place(y, height, new_height, row_index.data[y], row_weight.data[y]);
  }
  for (int64_t x = 0; x < new_width; ++x) place(x, width, new_width, columns.data[x], col_weight.data[x]);
  for (int64_t j = 0; j <= height; ++j) {
    row_start.data[j] =
        std::lower_bound(row_index.data.begin(), row_index.data.end(), j) - row_index.data.begin();
  }
  Ints words({kNum, words_of(new_height, new_width)}), areas({kNum}), boxes({kNum, 4});
  Ints other({kNum, words_of(new_height, new_width)}), other_areas({kNum}), other_boxes({kNum, 4});
  Ints scratch({1, sohes::mask_pack_logits_scratch(height, width)});
  sohes::mask_pack_logits(logits.view(), 0.1f, row_start.view(), row_weight.view(), columns.view(),
                          col_weight.view(), scratch.view(), words.view(), areas.view(), boxes.view(), 1);
  sohes::mask_pack_logits_cuda(logits.view(), 0.1f, row_index.view(), row_start.view(), row_weight.view(),
                               columns.view(), col_weight.view(), other.view(), other_areas.view(),
                               other_boxes.view(), 0);
  expect(words.data == other.data, "logits", new_height, new_width);
  expect(areas.data == other_areas.data && boxes.data == other_boxes.data, "stats of logits", new_height,
         new_width);
}

void check_index(int64_t height, int64_t width) {
  Ints index({width, height}), words({9, words_of(height, width)}), other({9, words_of(height, width)});
  for (int64_t& mask : index.data) mask = below(10) - 1;
  sohes::mask_from_index(index.view(), words.view());
  sohes::mask_from_index_cuda(index.view(), other.view(), 0);
  expect(words.data == other.data, "label map", height, width);
}

}  // namespace

int main() {
  const int64_t sizes[][2] = {{0, 5},  {5, 0},   {1, 1},   {1, 70},  {70, 1},
                              {13, 5}, {64, 64}, {63, 65}, {130, 90}};
  for (const auto& size : sizes) {
    Set few(9, size[0], size[1]), many(70, size[0], size[1]), none(0, size[0], size[1]);
    check_overlap(few, few, true);
    check_overlap(many, many, true);
    check_overlap(many, few, false);
    check_overlap(few, none, false);
    for (const double threshold : {0.2, 0.7, 1.0}) check_selection(many, threshold);
    check_selection(none, 0.5);
    check_rle(many);
    check_rle(none);
    check_index(size[0], size[1]);
    check_regions(many);
    check_regions(none);
    for (const auto& other : sizes) {
      if (other[0] * other[1] == 0 || size[0] * size[1] == 0) continue;
      check_logits(other[0], other[1], size[0], size[1]);
      check_resize(few, other[0], other[1]);
    }
  }
  return finish();
}
