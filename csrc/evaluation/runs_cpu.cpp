// SPDX-License-Identifier: Apache-2.0
// Masks as the runs of their RLE: read in one pass with areas and boxes, and intersected run by run.
#include <algorithm>

#include "sohes/evaluation.h"

namespace sohes {
namespace evaluation {
namespace {

// The bounding box of runs that come in rising order, column after column of `height` pixels.
class BoxOfRuns {
 public:
  explicit BoxOfRuns(int64_t height) : height_(height), low_(height) {}

  void add(int64_t start, int64_t stop) {
    // The next run mostly starts in this column or the next, which spares the division.
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
    } else {  // goes on into the next column, so it touches the bottom of one and the top of the other
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

// Appends the runs of one mask. False where the text is no RLE of num_pixels pixels.
bool read_one(const uint8_t* at, const uint8_t* end, bool escaped, int64_t num_pixels, Row& row,
              int64_t& area, BoxOfRuns& box) {
  int64_t filled = 0;
  int64_t before[2] = {0, 0};  // the last two runs
  area = 0;
  for (int64_t index = 0; at < end; ++index) {
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
    const int64_t run = static_cast<int64_t>(bits) + (index > 2 ? before[0] : 0);
    if (run < 0 || run > num_pixels - filled) return false;
    if ((index & 1) != 0 && run > 0) {
      row.starts[row.count] = filled;
      row.stops[row.count] = filled + run;
      ++row.count;
      area += run;
      box.add(filled, filled + run);
    }
    filled += run;
    before[0] = before[1];
    before[1] = run;
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

// Pixels from `from` on that both hold.
int64_t shared_pixels(const Runs& a, const Runs& b, int64_t from) {
  int64_t i = std::upper_bound(a.stops, a.stops + a.count, from) - a.stops;
  int64_t j = std::upper_bound(b.stops, b.stops + b.count, from) - b.stops;
  int64_t shared = 0;
  // Which run ends first is a coin toss, so no branch is taken on it.
  while (i < a.count && j < b.count) {
    const int64_t a_stop = a.stops[i], b_stop = b.stops[j];
    const int64_t both = std::min(a_stop, b_stop) - std::max(a.starts[i], b.starts[j]);
    shared += std::max<int64_t>(both, 0);
    i += a_stop <= b_stop;
    j += b_stop <= a_stop;
  }
  return shared;
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
    const int64_t* place = places.as<int64_t>() + n * places.stride[0];
    const int64_t begin = place[0], end = place[places.stride[1]];
    require(0 <= begin && begin <= end && end <= text.shape[0] &&
                row.count + (end - begin) / 2 <= starts.shape[0] && starts.shape[0] == stops.shape[0],
            "rle_runs: expected places within the text, and room for their runs");
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
  for (const RunMasksView* masks : {&pred, &gt}) {
    require(masks->starts.is_contiguous() && masks->stops.is_contiguous() && masks->bounds.is_contiguous() &&
                masks->areas.is_contiguous() && masks->boxes.is_contiguous() && crowd.is_contiguous(),
            "run_pairs: expected contiguous tensors");
  }
  const int64_t num_pred = pred.areas.shape[0], num_gt = gt.areas.shape[0];
  require(out_pred.shape[0] >= num_pred * num_gt && out_gt.shape[0] == out_pred.shape[0] &&
              iou.shape[0] == out_pred.shape[0] && crowd.shape[0] == num_gt,
          "run_pairs: expected room for every pair");
  int64_t count = 0;
  for (int64_t p = 0; p < num_pred; ++p) {
    const int64_t p_area = pred.areas.as<int64_t>()[p];
    const int64_t* p_box = pred.boxes.as<int64_t>() + 4 * p;
    for (int64_t g = 0; g < num_gt; ++g) {
      const int64_t g_area = gt.areas.as<int64_t>()[g];
      const int64_t* g_box = gt.boxes.as<int64_t>() + 4 * g;
      const int64_t left = std::max(p_box[0], g_box[0]);
      const int64_t across = std::min(p_box[2], g_box[2]) - left;
      const int64_t down = std::min(p_box[3], g_box[3]) - std::max(p_box[1], g_box[1]);
      if (across <= 0 || down <= 0) continue;
      const bool is_crowd = crowd.as<bool>()[g];
      // One division of exact integers: the quotient is pycocotools' to the last bit.
      const auto ratio = [&](int64_t shared) {
        const int64_t all = is_crowd ? p_area : p_area + g_area - shared;
        return static_cast<double>(shared) / static_cast<double>(all);
      };
      if (ratio(std::min({across * down, p_area, g_area})) < min_iou) continue;
      const double value = ratio(shared_pixels(runs_of(pred, p), runs_of(gt, g), left * height));
      if (value < min_iou) continue;
      out_pred.as<int64_t>()[count] = p;
      out_gt.as<int64_t>()[count] = g;
      iou.as<double>()[count] = value;
      ++count;
    }
  }
  return count;
}

}  // namespace sohes
