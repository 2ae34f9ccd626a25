// SPDX-License-Identifier: Apache-2.0
// Pixel sides between two regions are sorted by their lower region, by counting. Then each region has few
// sides, and its neighbours are found through a table of the place of every region in the result.
//
// Sums are float64: first the sides between left and right pixels, then those between upper and lower ones,
// each in raster order, as in the reference.
#include <algorithm>
#include <limits>

#include "sohes/basins.h"

namespace sohes {
namespace {

struct Side {
  int32_t high;  // the higher region; the lower one is that of the list
  float strength;
};

struct Edge {
  int64_t low, high;
};

static_assert(sizeof(Side) == sizeof(int64_t) && sizeof(double) == sizeof(int64_t) &&
              sizeof(Edge) == 2 * sizeof(int64_t));

constexpr int64_t kBlock = 512;

// f(pixel, other) for all pairs of a pixel and the next one in its row (step 1) or column (step W), in raster
// order, that are in two regions. Sides are first collected without a branch, which no one could predict.
template <typename F>
void for_each_side(const int64_t* label, int64_t rows, int64_t columns, bool down, F&& f) {
  const int64_t step = down ? columns : 1;
  for (int64_t y = 0; y < rows - down; ++y) {
    const int64_t last = (y + 1) * columns - !down;
    for (int64_t begin = y * columns; begin < last; begin += kBlock) {
      const int64_t *here = label + begin, count = std::min(kBlock, last - begin);
      int32_t found[kBlock], num_found = 0;
      for (int32_t i = 0; i < count; ++i) {
        found[num_found] = i;
        num_found += here[i] != here[i + step];
      }
      for (int32_t k = 0; k < num_found; ++k) f(begin + found[k], begin + found[k] + step);
    }
  }
}

void require_labels(const TensorView& labels, const TensorView& starts) {
  require(labels.ndim == 2 && labels.is_contiguous() && labels.dtype == DType::kInt64,
          "region_borders: labels are not int64 [H, W]");
  require(starts.ndim == 1 && starts.is_contiguous() && starts.dtype == DType::kInt64 && starts.shape[0] > 0,
          "region_borders: starts are not int64 [N + 1]");
}

}  // namespace

int64_t region_sides_cpu(const TensorView& labels, const TensorView& starts) {
  require_labels(labels, starts);
  const int64_t* const label = labels.as<int64_t>();
  int64_t* const start = starts.as<int64_t>();
  std::fill_n(start, starts.shape[0], 0);
  for (const bool down : {false, true})
    for_each_side(label, labels.shape[0], labels.shape[1], down,
                  [&](int64_t a, int64_t b) { ++start[std::min(label[a], label[b]) + 1]; });
  for (int64_t i = 1; i < starts.shape[0]; ++i) start[i] += start[i - 1];
  return start[starts.shape[0] - 1];
}

int64_t region_borders_scratch(int64_t num_regions, int64_t num_sides) { return num_regions + 3 * num_sides; }

int64_t region_borders_cpu(const TensorView& labels, const TensorView& strength, const TensorView& starts,
                           const TensorView& scratch, const TensorView& edges, const TensorView& borders) {
  require_labels(labels, starts);
  const int64_t num_regions = starts.shape[0] - 1, num_sides = edges.shape[0];
  require(num_regions <= std::numeric_limits<int32_t>::max(), "region_borders: too many regions");
  require(strength.is_contiguous() && strength.dtype == DType::kFloat32 && strength.numel() == labels.numel(),
          "region_borders: strength is not float32 of the right size");
  require(edges.ndim == 2 && edges.is_contiguous() && edges.dtype == DType::kInt64 &&
              borders.is_contiguous() && borders.dtype == DType::kFloat32 &&
              borders.numel() == edges.numel() && num_sides == starts.as<int64_t>()[num_regions],
          "region_borders: an output has the wrong size");
  require(scratch.is_contiguous() && scratch.dtype == DType::kInt64 &&
              scratch.numel() >= region_borders_scratch(num_regions, num_sides),
          "region_borders: scratch is too small");
  const int64_t* const label = labels.as<int64_t>();
  const float* const edge_strength = strength.as<float>();
  int64_t* const place = scratch.as<int64_t>();  // [N], of the edge to a region, or one of an earlier list
  Side* const sides = reinterpret_cast<Side*>(place + num_regions);   // [S]
  double* const sums = reinterpret_cast<double*>(sides + num_sides);  // [S, 2]
  int64_t* const start = starts.as<int64_t>();
  Edge* const edge = edges.as<Edge>();

  // start[a] runs from the begin of list a to its end.
  for (const bool down : {false, true})
    for_each_side(label, labels.shape[0], labels.shape[1], down, [&](int64_t a, int64_t b) {
      const auto [low, high] = std::minmax(label[a], label[b]);
      const float x = edge_strength[a], y = edge_strength[b];
      sides[start[low]++] = {static_cast<int32_t>(high), x > y || x != x ? x : y};
    });

  std::fill_n(place, num_regions, int64_t{-1});
  int64_t num_edges = 0, begin = 0;
  for (int64_t low = 0; low < num_regions; ++low) {
    const int64_t end = start[low], first = num_edges;
    for (int64_t i = begin; i < end; ++i) {
      int64_t& at = place[sides[i].high];
      if (at >= first) continue;
      at = num_edges;
      edge[num_edges++] = {low, sides[i].high};
    }
    std::sort(edge + first, edge + num_edges, [](const Edge& a, const Edge& b) { return a.high < b.high; });
    for (int64_t i = first; i < num_edges; ++i) place[edge[i].high] = i;
    std::fill(sums + 2 * first, sums + 2 * num_edges, 0.0);
    for (int64_t i = begin; i < end; ++i) {
      double* const sum = sums + 2 * place[sides[i].high];
      sum[0] += 1;
      sum[1] += static_cast<double>(sides[i].strength);
    }
    begin = end;
  }
  std::transform(sums, sums + 2 * num_edges, borders.as<float>(),
                 [](double sum) { return static_cast<float>(sum); });
  return num_edges;
}

}  // namespace sohes
