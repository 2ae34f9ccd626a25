// SPDX-License-Identifier: Apache-2.0
// Masks as the runs of their RLE: read in one pass with areas and boxes, and intersected run by run.
#include <algorithm>
#include <utility>

#include "sohes/evaluation.h"

namespace sohes {
namespace evaluation {
namespace {

// The bounding box of runs in ascending order; columns have `height` pixels.
class BoxOfRuns {
 public:
  explicit BoxOfRuns(int64_t height) : height_(height), low_(height) {}

  void add(int64_t start, int64_t stop) {
    // The next run usually starts in this column or the next, which saves the division.
    if (start - column_start_ >= height_) {
      if (start - column_start_ < 4 * height_) {
        do {
          column_start_ += height_;
          ++column_;
        } while (start - column_start_ >= height_);
      } else {
        column_ = start / height_;
        column_start_ = column_ * height_;
      }
    }
    if (left_ < 0) left_ = column_;
    const int64_t top = start - column_start_, bottom = stop - column_start_;
    if (bottom <= height_) {
      low_ = std::min(low_, top);
      high_ = std::max(high_, bottom);
      right_ = column_;
    } else {  // continues in the next column, so it touches the bottom of one and the top of the other
      low_ = 0;
      high_ = height_;
      right_ = (stop - 1) / height_;
    }
  }

  void write(int64_t* box) const {
    const bool any = left_ >= 0;
    box[0] = any ? left_ : 0;
    box[1] = any ? low_ : 0;
    box[2] = any ? right_ + 1 : 0;
    box[3] = any ? high_ : 0;
  }

 private:
  int64_t height_, column_ = 0, column_start_ = 0;
  int64_t left_ = -1, right_ = 0, low_, high_ = 0;
};

struct Row {
  int64_t* starts;
  int64_t* stops;
  int64_t count;
};

// Reads one number: groups of five bits, least significant first; 32 marks that another group follows, the
// last one is signed.
inline bool read_number(const uint8_t*& at, const uint8_t* end, bool escaped, int64_t& number) {
  const uint8_t only = static_cast<uint8_t>(*at - 48);
  if (only < 32) {  // the most frequent case
    ++at;
    number = static_cast<int64_t>(only ^ 16) - 16;
    return true;
  }
  uint64_t bits = 0;
  int shift = 0;
  uint8_t group;
  do {
    if (at == end || shift == 60) return false;
    group = static_cast<uint8_t>(*at++ - 48);
    if (group > 63) return false;
    if (escaped && group == '\\' - 48) {
      if (at == end || *at++ != '\\') return false;
    }
    bits |= static_cast<uint64_t>(group & 31) << shift;
    shift += 5;
  } while (group & 32);
  if (group & 16) bits |= ~uint64_t{0} << shift;
  number = static_cast<int64_t>(bits);
  return true;
}

// Appends the runs of one mask. False if the text is not RLE of num_pixels pixels.
bool read_one(const uint8_t* at, const uint8_t* end, bool escaped, int64_t num_pixels, Row& row,
              int64_t& area, BoxOfRuns& box) {
  int64_t filled = 0;
  int64_t outside = 0, inside = 0;  // the next runs are stored as differences to these
  int64_t run;
  area = 0;
  for (bool is_first = true; at < end; is_first = false) {
    if (!read_number(at, end, escaped, run)) return false;
    run += outside;
    if (run < 0 || run > num_pixels - filled) return false;
    filled += run;
    outside = is_first ? 0 : run;  // the second is written in full as well
    if (at == end) break;
    if (!read_number(at, end, escaped, run)) return false;
    run += inside;
    if (run < 0 || run > num_pixels - filled) return false;
    if (run > 0) {
      row.starts[row.count] = filled;
      row.stops[row.count] = filled + run;
      ++row.count;
      area += run;
      box.add(filled, filled + run);
    }
    filled += run;
    inside = run;
  }
  return filled == num_pixels;
}

struct Runs {
  const int64_t* starts;
  const int64_t* stops;
  int64_t count;
};

Runs runs_of(const RunMasksView& masks, int64_t n) {
  const int64_t* bounds = masks.bounds.as<int64_t>() + 2 * n;
  return {masks.starts.as<int64_t>() + bounds[0], masks.stops.as<int64_t>() + bounds[0],
          bounds[1] - bounds[0]};
}

void require_masks(const RunMasksView& masks) {
  for (const TensorView* view : {&masks.starts, &masks.stops, &masks.bounds, &masks.areas, &masks.boxes}) {
    require(view->is_contiguous(), "expected contiguous tensors");
  }
}

// Number of common pixels from `from` on.
int64_t shared_pixels(const Runs& a, const Runs& b, int64_t from) {
  int64_t i = std::upper_bound(a.stops, a.stops + a.count, from) - a.stops;
  int64_t j = std::upper_bound(b.stops, b.stops + b.count, from) - b.stops;
  int64_t shared = 0;
  // Without a branch, because which run ends first is not predictable.
  while (i < a.count && j < b.count) {
    const int64_t a_stop = a.stops[i], b_stop = b.stops[j];
    const int64_t both = std::min(a_stop, b_stop) - std::max(a.starts[i], b.starts[j]);
    shared += std::max<int64_t>(both, 0);
    i += a_stop <= b_stop;
    j += b_stop <= a_stop;
  }
  return shared;
}

// Collects the pairs of each prediction with all ground-truth masks.
class PairWriter {
 public:
  PairWriter(const RunMasksView& gt, const TensorView& crowd, int64_t height, double min_iou,
             int64_t num_pred, const TensorView& out_pred, const TensorView& out_gt, const TensorView& iou)
      : gt_(gt),
        crowd_(crowd.as<bool>()),
        height_(height),
        min_iou_(min_iou),
        out_pred_(out_pred.as<int64_t>()),
        out_gt_(out_gt.as<int64_t>()),
        iou_(iou.as<double>()) {
    require_masks(gt);
    const int64_t num_gt = gt.areas.shape[0];
    require(out_pred.shape[0] >= num_pred * num_gt && out_gt.shape[0] == out_pred.shape[0] &&
                iou.shape[0] == out_pred.shape[0] && crowd.shape[0] == num_gt && crowd.is_contiguous(),
            "expected room for every pair");
  }

  void add(int64_t pred, const Runs& runs, int64_t area, const int64_t* box) {
    const int64_t num_gt = gt_.areas.shape[0];
    for (int64_t g = 0; g < num_gt; ++g) {
      const int64_t gt_area = gt_.areas.as<int64_t>()[g];
      const int64_t* gt_box = gt_.boxes.as<int64_t>() + 4 * g;
      const int64_t left = std::max(box[0], gt_box[0]);
      const int64_t across = std::min(box[2], gt_box[2]) - left;
      const int64_t down = std::min(box[3], gt_box[3]) - std::max(box[1], gt_box[1]);
      if (across <= 0 || down <= 0) continue;
      // One division of exact integers, so the quotient equals that of pycocotools bit by bit.
      const auto ratio = [&](int64_t shared) {
        const int64_t all = crowd_[g] ? area : area + gt_area - shared;
        return static_cast<double>(shared) / static_cast<double>(all);
      };
      if (ratio(std::min({across * down, area, gt_area})) < min_iou_) continue;
      const double value = ratio(shared_pixels(runs, runs_of(gt_, g), left * height_));
      if (value < min_iou_) continue;
      out_pred_[count_] = pred;
      out_gt_[count_] = g;
      iou_[count_] = value;
      ++count_;
    }
  }

  int64_t count() const { return count_; }

 private:
  const RunMasksView& gt_;
  const bool* crowd_;
  int64_t height_;
  double min_iou_;
  int64_t* out_pred_;
  int64_t* out_gt_;
  double* iou_;
  int64_t count_ = 0;
};

std::pair<int64_t, int64_t> place_of(const TensorView& text, const TensorView& places, int64_t n) {
  const int64_t* place = places.as<int64_t>() + n * places.stride[0];
  const std::pair<int64_t, int64_t> bounds(place[0], place[places.stride[1]]);
  require(0 <= bounds.first && bounds.first <= bounds.second && bounds.second <= text.shape[0],
          "expected places within the text");
  return bounds;
}

}  // namespace
}  // namespace evaluation

using namespace evaluation;

int64_t rle_runs(const TensorView& text, const TensorView& places, bool escaped, int64_t height,
                 int64_t width, const TensorView& starts, const TensorView& stops, const TensorView& bounds,
                 const TensorView& areas, const TensorView& boxes) {
  require(text.is_contiguous() && starts.is_contiguous() && stops.is_contiguous() && bounds.is_contiguous() &&
              areas.is_contiguous() && boxes.is_contiguous(),
          "rle_runs: expected contiguous tensors");
  const uint8_t* base = text.as<uint8_t>();
  Row row{starts.as<int64_t>(), stops.as<int64_t>(), 0};
  for (int64_t n = 0; n < places.shape[0]; ++n) {
    const auto [begin, end] = place_of(text, places, n);
    require(row.count + (end - begin) / 2 <= starts.shape[0] && starts.shape[0] == stops.shape[0],
            "rle_runs: expected room for the runs of all masks");
    BoxOfRuns box(height);
    bounds.as<int64_t>()[2 * n] = row.count;
    if (!read_one(base + begin, base + end, escaped, height * width, row, areas.as<int64_t>()[n], box))
      return n;
    bounds.as<int64_t>()[2 * n + 1] = row.count;
    box.write(boxes.as<int64_t>() + 4 * n);
  }
  return -1;
}

int64_t run_pairs(const RunMasksView& pred, const RunMasksView& gt, const TensorView& crowd, int64_t height,
                  double min_iou, const TensorView& out_pred, const TensorView& out_gt,
                  const TensorView& iou) {
  require_masks(pred);
  const int64_t num_pred = pred.areas.shape[0];
  PairWriter pairs(gt, crowd, height, min_iou, num_pred, out_pred, out_gt, iou);
  for (int64_t p = 0; p < num_pred; ++p) {
    pairs.add(p, runs_of(pred, p), pred.areas.as<int64_t>()[p], pred.boxes.as<int64_t>() + 4 * p);
  }
  return pairs.count();
}

std::array<int64_t, 2> rle_pairs(const TensorView& text, const TensorView& places, bool escaped,
                                 int64_t height, int64_t width, const RunMasksView& gt,
                                 const TensorView& crowd, double min_iou, const TensorView& scratch,
                                 const TensorView& areas, const TensorView& boxes, const TensorView& out_pred,
                                 const TensorView& out_gt, const TensorView& iou) {
  require(text.is_contiguous() && scratch.is_contiguous() && areas.is_contiguous() && boxes.is_contiguous(),
          "rle_pairs: expected contiguous tensors");
  const int64_t num_pred = places.shape[0], room = scratch.shape[1];
  PairWriter pairs(gt, crowd, height, min_iou, num_pred, out_pred, out_gt, iou);
  const uint8_t* base = text.as<uint8_t>();
  for (int64_t p = 0; p < num_pred; ++p) {
    const auto [begin, end] = place_of(text, places, p);
    require((end - begin) / 2 <= room, "rle_pairs: expected scratch for the runs of the longest mask");
    Row row{scratch.as<int64_t>(), scratch.as<int64_t>() + room, 0};
    BoxOfRuns box(height);
    int64_t& area = areas.as<int64_t>()[p];
    if (!read_one(base + begin, base + end, escaped, height * width, row, area, box)) return {p, 0};
    box.write(boxes.as<int64_t>() + 4 * p);
    pairs.add(p, {row.starts, row.stops, row.count}, area, boxes.as<int64_t>() + 4 * p);
  }
  return {-1, pairs.count()};
}

}  // namespace sohes
