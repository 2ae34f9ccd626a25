// SPDX-License-Identifier: Apache-2.0
// Upsampled, thresholded and packed logits, without the upsampled image. Between two neighbouring source rows
// a column interpolates two numbers. If both have one sign, all pixels between are inside or outside; pixels
// are computed only where the sign changes. So the time depends on the length of the contours, not on the
// number of pixels.
#include <algorithm>

#include "bits.h"
#include "huge_pages.h"
#include "parallel.h"
#include "rows.h"
#include "simd.h"
#include "sohes/mask_ops.h"

// The reference rounds each product: no fused multiply-add.
#include "sohes/no_fma.h"

namespace sohes {
namespace mask_ops {
namespace {

// Distance above the threshold, clamped so that interpolation of two values of one sign keeps the sign.
inline float distance(float logit, float threshold) {
  float d = logit - threshold;
  if (!(d > -kFar)) d = -kFar;  // NaN too
  if (d > kFar) d = kFar;
  return d > 0.0f && d < kNear ? 0.0f : d;
}

struct Grid {
  int64_t height, width;          // of the source
  int64_t out_height, out_width;  // of the mask
  const int64_t* row_start;       // [height + 1]
  const float* row_weight;        // [out_height]
  const int64_t* col_index;       // [out_width]
  const float* col_weight;        // [out_width]
};

struct Scratch {
  uint64_t* any;    // [ceil(width / 64)], bit x: some pixel of source column x is inside
  uint64_t* signs;  // [ceil(max(width, height) / 64)]
  float* turned;    // [width * height], distances, columns first
  float* column;    // [height]

  static int64_t size(int64_t height, int64_t width) {  // in int64
    return num_words(width) + num_words(std::max(height, width)) + (height * (width + 1) + 1) / 2;
  }

  Scratch(int64_t* memory, int64_t height, int64_t width)
      : any(reinterpret_cast<uint64_t*>(memory)),
        signs(any + num_words(width)),
        turned(reinterpret_cast<float*>(signs + num_words(std::max(height, width)))),
        column(turned + height * width) {}
};

// The box of the source pixels that are needed: half-open, one pixel wider than the foreground.
struct Band {
  int64_t x0, y0, x1, y1;
};

// Finds the band and fills scratch.any. An empty mask has an empty band.
Band find_band(const Grid& grid, const float* source, float threshold, const Scratch& scratch) {
  const int64_t words = num_words(grid.width);
  std::fill(scratch.any, scratch.any + words, 0);
  Band band = {0, grid.height, 0, 0};
  for (int64_t y = 0; y < grid.height; ++y) {
    simd().above(source + y * grid.width, threshold, grid.width, scratch.signs);
    uint64_t hit = 0;
    for (int64_t k = 0; k < words; ++k) {
      hit |= scratch.signs[k];
      scratch.any[k] |= scratch.signs[k];
    }
    if (hit) {
      band.y0 = std::min(band.y0, y);
      band.y1 = y + 1;
    }
  }
  if (band.y1 == 0) return {0, 0, 0, 0};
  band.x0 = std::max<int64_t>(find_bit(scratch.any, 0, grid.width, true) - 1, 0);
  band.x1 = std::min(find_last_set(scratch.any, 0, grid.width) + 2, grid.width);
  band.y0 = std::max<int64_t>(band.y0 - 1, 0);
  band.y1 = std::min(band.y1 + 1, grid.height);
  return band;
}

// The band of source [height, width] -> turned [x1 - x0, y1 - y0], as distances.
void turn(const Grid& grid, const float* source, float threshold, const Band& band, float* turned) {
  constexpr int64_t kTile = 16;
  const int64_t rows = band.y1 - band.y0;
  for (int64_t left = band.x0; left < band.x1; left += kTile) {
    const int64_t right = std::min(left + kTile, band.x1);
    for (int64_t y = 0; y < rows; ++y) {
      const float* from = source + (band.y0 + y) * grid.width;
      for (int64_t x = left; x < right; ++x) turned[(x - band.x0) * rows + y] = distance(from[x], threshold);
    }
  }
}

// Number of output pixels inside between source rows j and j + 1, where the column goes from `upper` to
// `lower` and one of them is inside. The interpolation is monotonic, also when rounded, so these pixels are
// at that end.
int64_t count_inside(const Grid& grid, float upper, float lower, int64_t j) {
  int64_t inside = 0;
  for (int64_t y = grid.row_start[j]; y < grid.row_start[j + 1]; ++y) {
    const float above = upper * (1.0f - grid.row_weight[y]);
    const float below = lower * grid.row_weight[y];
    inside += above + below > 0.0f;
  }
  return inside;
}

// Area and box of the mask so far.
struct Stats {
  int64_t area = 0;
  int64_t x0, y0, x1 = 0, y1 = 0;
};

// Output column x, from its source column and the signs of that within the band.
void fill_column(const Grid& grid, const Band& band, const Scratch& scratch, int64_t x, uint64_t* words,
                 Stats& stats) {
  const int64_t rows = band.y1 - band.y0;
  const float* column = scratch.column;
  for_each_run(scratch.signs, 0, rows, true, [&](int64_t start, int64_t stop) {
    // The band is a row wider than the mask, except at the border of the image; after its last row the sign
    // stays.
    const int64_t first = band.y0 + start, last = band.y0 + (stop < rows ? stop - 1 : stop);
    int64_t begin = grid.row_start[first], end = grid.row_start[last];
    if (start > 0) begin -= count_inside(grid, column[start - 1], column[start], first - 1);
    if (stop < rows) end += count_inside(grid, column[stop - 1], column[stop], last);
    if (begin == end) return;
    fill_bits(words, x * grid.out_height + begin, x * grid.out_height + end);
    stats.area += end - begin;
    stats.x0 = std::min(stats.x0, x);
    stats.x1 = x + 1;
    stats.y0 = std::min(stats.y0, begin);
    stats.y1 = std::max(stats.y1, end);
  });
}

Stats pack_one(const Grid& grid, const float* source, float threshold, const Scratch& scratch,
               uint64_t* words) {
  const Band band = find_band(grid, source, threshold, scratch);
  Stats stats;
  stats.x0 = grid.out_width;
  stats.y0 = grid.out_height;
  if (band.x1 == 0) return stats;
  turn(grid, source, threshold, band, scratch.turned);
  const int64_t rows = band.y1 - band.y0;
  for (int64_t x = 0; x < grid.out_width; ++x) {
    const int64_t left = grid.col_index[x];
    const int64_t right = std::min(left + 1, grid.width - 1);
    if (!get_bit(scratch.any, left) && !get_bit(scratch.any, right)) continue;
    const float weight = grid.col_weight[x];
    simd().blend(scratch.turned + (left - band.x0) * rows, 1.0f - weight,
                 scratch.turned + (right - band.x0) * rows, weight, rows, scratch.column, scratch.signs);
    fill_column(grid, band, scratch, x, words, stats);
  }
  return stats;
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

int64_t mask_pack_logits_scratch(int64_t height, int64_t width) { return Scratch::size(height, width); }

void mask_pack_logits(const TensorView& logits, float threshold, const TensorView& row_start,
                      const TensorView& row_weight, const TensorView& col_index, const TensorView& col_weight,
                      const TensorView& scratch, const TensorView& words, const TensorView& areas,
                      const TensorView& boxes, int num_threads) {
  require(logits.ndim == 3 && logits.dtype == DType::kFloat32 && logits.is_contiguous(),
          "mask_pack_logits: expected contiguous float32 [N, h, w]");
  const Grid grid = {logits.shape[1],         logits.shape[2],         row_weight.shape[0],
                     col_index.shape[0],      row_start.as<int64_t>(), row_weight.as<float>(),
                     col_index.as<int64_t>(), col_weight.as<float>()};
  require_words(words, grid.out_height * grid.out_width);
  require(scratch.shape[0] >= num_threads && scratch.shape[1] >= Scratch::size(grid.height, grid.width),
          "mask_pack_logits: scratch is too small");
  choose_pages(words);
  parallel_for(logits.shape[0], 1, num_threads, [&](int thread, int64_t n, int64_t) {
    const Scratch own(scratch.as<int64_t>() + thread * scratch.shape[1], grid.height, grid.width);
    uint64_t* out = row(words, n);
    const float* source = logits.as<float>() + n * grid.height * grid.width;
    const Stats stats = pack_one(grid, source, threshold, own, out);
    areas.as<int64_t>()[n] = stats.area;
    const int64_t box[4] = {stats.x0, stats.y0, stats.x1, stats.y1};
    for (int k = 0; k < 4; ++k) boxes.as<int64_t>()[4 * n + k] = stats.area ? box[k] : 0;
  });
}

}  // namespace sohes
