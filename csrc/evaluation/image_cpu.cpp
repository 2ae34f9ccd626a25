// SPDX-License-Identifier: Apache-2.0
// Evaluation of one image, from the JSON of its annotations to its counts, by calls of the other kernels.
#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "sohes/evaluation.h"

namespace sohes {
namespace evaluation {
namespace {

TensorView view_of(void* data, DType dtype, std::initializer_list<int64_t> shape) {
  TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.ndim = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), view.shape);
  int64_t stride = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    view.stride[i] = stride;
    stride *= view.shape[i];
  }
  return view;
}

// Allocates from the scratch; without memory it only counts bytes.
class Arena {
 public:
  explicit Arena(uint8_t* begin) : begin_(begin) {}

  TensorView ints(std::initializer_list<int64_t> shape) {
    return take(DType::kInt64, sizeof(int64_t), shape);
  }
  TensorView doubles(std::initializer_list<int64_t> shape) {
    return take(DType::kFloat64, sizeof(double), shape);
  }
  TensorView bytes(DType dtype, std::initializer_list<int64_t> shape) { return take(dtype, 1, shape); }
  int64_t used() const { return used_; }

 private:
  TensorView take(DType dtype, int64_t size, std::initializer_list<int64_t> shape) {
    const TensorView view = view_of(begin_ == nullptr ? nullptr : begin_ + used_, dtype, shape);
    used_ += (view.numel() * size + 7) / 8 * 8;
    return view;
  }

  uint8_t* begin_;
  int64_t used_ = 0;
};

struct Side {
  Side(Arena& arena, int64_t count)
      : columns(arena.ints({count, kCocoColumns})),
        numbers(arena.doubles({count, kCocoNumbers})),
        order(arena.ints({count})),
        places(arena.ints({count, 2})),
        areas(arena.ints({count})),
        boxes(arena.ints({count, 4})) {}

  int64_t column(int64_t n, int which) const { return columns.as<int64_t>()[n * kCocoColumns + which]; }
  double number(int64_t n, int which) const { return numbers.as<double>()[n * kCocoNumbers + which]; }
  int64_t count() const { return columns.shape[0]; }

  // Whether all `needed` fields exist, no `unwanted` field exists, and every mask has this size.
  bool read(const TensorView& text, int64_t height, int64_t width, int needed, int unwanted) {
    if (!coco_records(text, columns, numbers)) return false;
    int64_t every = kHasCategory;
    for (int64_t n = 0; n < count(); ++n) {
      const int64_t has = column(n, kHas);
      if ((has & needed) != needed || (has & unwanted) != 0) return false;
      if (column(n, kHeight) != height || column(n, kWidth) != width) return false;
      every &= has;
    }
    has_categories = every != 0;
    return true;
  }

  // Sorted by descending score if requested, then by category if all have one, then in the order of the file.
  void rank(bool by_score) {
    int64_t* begin = order.as<int64_t>();
    std::iota(begin, begin + count(), 0);
    std::sort(begin, begin + count(), [&](int64_t a, int64_t b) {
      const double first = by_score ? number(a, kScore) : 0, second = by_score ? number(b, kScore) : 0;
      if (first != second) return first > second;
      const int64_t ahead = has_categories ? column(a, kCategory) : 0;
      const int64_t behind = has_categories ? column(b, kCategory) : 0;
      return ahead != behind ? ahead < behind : a < b;
    });
    for (int64_t n = 0; n < count(); ++n) {
      places.as<int64_t>()[2 * n] = column(begin[n], kCounts);
      places.as<int64_t>()[2 * n + 1] = column(begin[n], kCountsEnd);
    }
  }

  TensorView columns, numbers, order, places, areas, boxes;
  bool has_categories = false;
};

struct Scratch {
  Scratch(Arena& arena, int64_t gt_bytes, int64_t pred_bytes, int64_t num_gt, int64_t num_pred,
          int64_t num_ranges)
      : gt(arena, num_gt),
        pred(arena, num_pred),
        starts(arena.ints({gt_bytes / 2})),
        stops(arena.ints({gt_bytes / 2})),
        bounds(arena.ints({num_gt, 2})),
        crowd(arena.bytes(DType::kBool, {num_gt})),
        ignored(arena.bytes(DType::kBool, {num_ranges, num_gt})),
        runs(arena.ints({2, pred_bytes / 2})),
        pair_pred(arena.ints({num_pred * num_gt})),
        pair_gt(arena.ints({num_pred * num_gt})),
        pair_iou(arena.doubles({num_pred * num_gt})),
        match(arena.ints({3, num_gt})),
        matched(arena.ints({num_pred})),
        hit(arena.bytes(DType::kUInt8, {num_pred, 8})),
        spare(arena.bytes(DType::kUInt8, {num_pred, 8})) {}

  Side gt, pred;
  TensorView starts, stops, bounds, crowd, ignored, runs, pair_pred, pair_gt, pair_iou, match, matched, hit,
      spare;
};

uint64_t word_at(const uint8_t* bytes) {
  uint64_t word = 0;
  for (int b = 0; b < 8; ++b) word |= static_cast<uint64_t>(bytes[b]) << (8 * b);
  return word;
}

}  // namespace
}  // namespace evaluation

using namespace evaluation;

int64_t coco_image_scratch(int64_t gt_bytes, int64_t pred_bytes, int64_t num_gt, int64_t num_pred,
                           int64_t num_ranges) {
  Arena arena(nullptr);
  Scratch(arena, gt_bytes, pred_bytes, num_gt, num_pred, num_ranges);
  return arena.used();
}

bool coco_image(const TensorView& gt_text, const TensorView& pred_text, int64_t num_gt, int64_t num_pred,
                int64_t height, int64_t width, double min_iou, const TensorView& limits,
                const TensorView& thresholds, const TensorView& steps, const TensorView& scratch,
                const TensorView& out_num_gt, const TensorView& found, const TensorView& rows) {
  const int64_t num_ranges = limits.shape[1], num_thresholds = thresholds.shape[0];
  const int64_t num_lanes = num_ranges * num_thresholds, lane_bytes = (num_lanes + 7) / 8;
  const int64_t num_rows = rows.shape[0], row_bytes = rows.shape[1];
  const int64_t outside_at = sizeof(double) + sizeof(int32_t), hit_at = outside_at + 1;
  for (const TensorView* view :
       {&gt_text, &pred_text, &limits, &thresholds, &steps, &scratch, &out_num_gt, &found, &rows}) {
    require(view->is_contiguous(), "coco_image: expected contiguous tensors");
  }
  const int64_t need = coco_image_scratch(gt_text.shape[0], pred_text.shape[0], num_gt, num_pred, num_ranges);
  require(num_ranges > 0 && num_ranges <= 8 && num_lanes <= 64 && num_rows <= num_pred &&
              scratch.shape[0] >= need && row_bytes == hit_at + 2 * lane_bytes &&
              found.numel() == steps.shape[0] * num_lanes,
          "coco_image: expected scratch, rows and counts of the right sizes");
  Arena arena(scratch.as<uint8_t>());
  Scratch s(arena, gt_text.shape[0], pred_text.shape[0], num_gt, num_pred, num_ranges);

  if (!s.gt.read(gt_text, height, width, kHasRle, kHasParentKey | kHasAnnotator)) return false;
  if (!s.pred.read(pred_text, height, width, kHasRle | kHasScore, 0)) return false;
  s.gt.rank(false);
  s.pred.rank(true);
  if (rle_runs(gt_text, s.gt.places, true, height, width, s.starts, s.stops, s.bounds, s.gt.areas,
               s.gt.boxes) >= 0) {
    return false;
  }
  const double *low = limits.as<double>(), *high = low + num_ranges;
  const auto is_outside = [&](double area, int64_t a) { return area < low[a] || area > high[a]; };
  std::fill_n(out_num_gt.as<int64_t>(), num_ranges, 0);
  for (int64_t m = 0; m < num_gt; ++m) {
    const int64_t index = s.gt.order.as<int64_t>()[m];
    const double area = s.gt.column(index, kHas) & kHasArea
                            ? s.gt.number(index, kArea)
                            : static_cast<double>(s.gt.areas.as<int64_t>()[m]);
    const bool is_crowd = s.gt.column(index, kCrowd) != 0;
    s.crowd.as<bool>()[m] = is_crowd;
    for (int64_t a = 0; a < num_ranges; ++a) {
      const bool is_ignored = is_crowd || is_outside(area, a);
      s.ignored.as<bool>()[a * num_gt + m] = is_ignored;
      out_num_gt.as<int64_t>()[a] += !is_ignored;
    }
  }

  // Predictions are read in the order of their scores, so pairs are in the order of matching.
  const RunMasksView gt{s.starts, s.stops, s.bounds, s.gt.areas, s.gt.boxes};
  const auto [broken, all_pairs] =
      rle_pairs(pred_text, s.pred.places, true, height, width, gt, s.crowd, min_iou, s.runs, s.pred.areas,
                s.pred.boxes, s.pair_pred, s.pair_gt, s.pair_iou);
  if (broken >= 0) return false;
  const int64_t* ranks = s.pair_pred.as<int64_t>();
  const int64_t num_pairs = std::lower_bound(ranks, ranks + all_pairs, num_rows) - ranks;
  s.pair_pred.shape[0] = s.pair_gt.shape[0] = s.pair_iou.shape[0] = num_pairs;
  const int64_t num_matched = match_lanes(s.pair_pred, s.pair_gt, s.pair_iou, s.ignored, s.crowd, thresholds,
                                          s.match, s.matched, s.hit, s.spare);

  uint8_t* row = rows.as<uint8_t>();
  for (int32_t n = 0; n < num_rows; ++n, row += row_bytes) {
    const double score = s.pred.number(s.pred.order.as<int64_t>()[n], kScore);
    const double area = static_cast<double>(s.pred.areas.as<int64_t>()[n]);
    std::memset(row, 0, static_cast<size_t>(row_bytes));
    std::memcpy(row, &score, sizeof score);
    std::memcpy(row + sizeof score, &n, sizeof n);
    for (int64_t a = 0; a < num_ranges; ++a)
      row[outside_at] |= static_cast<uint8_t>(is_outside(area, a) << a);
  }
  std::fill_n(found.as<int32_t>(), found.numel(), 0);
  for (int64_t r = 0; r < num_matched; ++r) {
    const int64_t rank = s.matched.as<int64_t>()[r];
    const uint8_t *hit = s.hit.as<uint8_t>() + 8 * r, *spare = s.spare.as<uint8_t>() + 8 * r;
    uint8_t* lanes = rows.as<uint8_t>() + rank * row_bytes + hit_at;
    std::copy_n(hit, lane_bytes, lanes);
    std::copy_n(spare, lane_bytes, lanes + lane_bytes);
    const int64_t* step = std::upper_bound(steps.as<int64_t>(), steps.as<int64_t>() + steps.shape[0], rank);
    for (; step < steps.as<int64_t>() + steps.shape[0]; ++step) {
      int32_t* counts = found.as<int32_t>() + (step - steps.as<int64_t>()) * num_lanes;
      for (uint64_t word = word_at(hit); word != 0; word &= word - 1) ++counts[std::countr_zero(word)];
    }
  }
  return true;
}

}  // namespace sohes
