// SPDX-License-Identifier: Apache-2.0
// cost(a, b) = (|mean_a - mean_b| + border_weight * strength / length) * (n_a n_b / ((n_a + n_b)
// n))^size_exponent
//
// A heap has every pair with its cost when it became adjacent. A merged region gets a new id, so entries of
// regions that no longer exist are skipped. The lists of neighbours are exact and symmetric.
#include <algorithm>
#include <cmath>
#include <queue>
#include <vector>

#include "sohes/merge_borders.h"

namespace sohes {
namespace {

struct Neighbour {
  int32_t id;
  float length, strength;
};

struct Pair {
  double cost;
  int32_t low, high;
  // For std::priority_queue, whose top is the largest: cheaper, then lower ids, come out first.
  bool operator<(const Pair& other) const {
    if (cost != other.cost) return cost > other.cost;
    return low != other.low ? low > other.low : high > other.high;
  }
};

class Merger {
 public:
  Merger(const float* means, const int64_t* sizes, int64_t num_regions, int64_t channels,
         double border_weight, double size_exponent)
      : count_(num_regions),
        channels_(channels),
        border_weight_(border_weight),
        size_exponent_(size_exponent),
        mean_(static_cast<size_t>(2 * num_regions * channels)),
        size_(2 * num_regions),
        is_alive_(2 * num_regions, 0),
        neighbours_(2 * num_regions),
        place_(2 * num_regions, -1) {
    std::copy_n(means, num_regions * channels, mean_.begin());
    for (int64_t i = 0; i < num_regions; ++i) {
      size_[i] = static_cast<double>(sizes[i]);
      total_ += size_[i];
      is_alive_[i] = 1;
    }
  }

  void connect(const int32_t* edges, const float* borders, int64_t num_edges) {
    std::vector<Pair> pairs;
    pairs.reserve(2 * num_edges);
    for (int64_t e = 0; e < num_edges; ++e) {
      const int32_t a = edges[2 * e], b = edges[2 * e + 1];
      const float length = borders[2 * e], strength = borders[2 * e + 1];
      neighbours_[a].push_back({b, length, strength});
      neighbours_[b].push_back({a, length, strength});
      pairs.push_back({cost(a, b, length, strength), std::min(a, b), std::max(a, b)});
    }
    heap_ = std::priority_queue<Pair>(std::less<Pair>(), std::move(pairs));
  }

  int32_t run(int32_t* merges, float* costs, float* shared) {
    int32_t done = 0;
    while (!heap_.empty()) {
      const Pair pair = heap_.top();
      heap_.pop();
      if (!is_alive_[pair.low] || !is_alive_[pair.high]) continue;
      merges[2 * done] = pair.low;
      merges[2 * done + 1] = pair.high;
      costs[done] = static_cast<float>(pair.cost);
      for (const Neighbour& other : neighbours_[pair.low])
        if (other.id == pair.high) {
          shared[2 * done] = other.length;
          shared[2 * done + 1] = other.strength;
        }
      merge(pair.low, pair.high, static_cast<int32_t>(count_ + done++));
    }
    return done;
  }

 private:
  double cost(int64_t a, int64_t b, float length, float strength) const {
    const float *x = &mean_[a * channels_], *y = &mean_[b * channels_];
    // Eight running sums, in this order whatever the instruction set: a loop that compilers turn into
    // vectors.
    float lanes[8] = {};
    int64_t i = 0;
    for (; i + 8 <= channels_; i += 8)
      for (int lane = 0; lane < 8; ++lane) {
        const float difference = x[i + lane] - y[i + lane];
        lanes[lane] += difference * difference;
      }
    double square = 0;
    for (const float lane : lanes) square += lane;
    for (; i < channels_; ++i) square += static_cast<double>(x[i] - y[i]) * (x[i] - y[i]);
    const double harmonic = size_[a] * size_[b] / (size_[a] + size_[b]) / total_;
    const double mean_strength = static_cast<double>(strength) / length;
    return (std::sqrt(square) + border_weight_ * mean_strength) * std::pow(harmonic, size_exponent_);
  }

  void merge(int32_t a, int32_t b, int32_t node) {
    size_[node] = size_[a] + size_[b];
    const float share_a = static_cast<float>(size_[a] / size_[node]);
    const float share_b = static_cast<float>(size_[b] / size_[node]);
    for (int64_t i = 0; i < channels_; ++i)
      mean_[node * channels_ + i] = share_a * mean_[a * channels_ + i] + share_b * mean_[b * channels_ + i];
    is_alive_[a] = is_alive_[b] = 0;
    is_alive_[node] = 1;
    std::vector<Neighbour>& around = neighbours_[node];
    for (const int32_t part : {a, b}) {
      for (const Neighbour& other : neighbours_[part]) {
        if (other.id == a || other.id == b) continue;
        if (place_[other.id] < 0) {
          place_[other.id] = static_cast<int32_t>(around.size());
          around.push_back(other);
        } else {
          around[place_[other.id]].length += other.length;
          around[place_[other.id]].strength += other.strength;
        }
      }
      std::vector<Neighbour>().swap(neighbours_[part]);
    }
    for (const Neighbour& other : around) {
      place_[other.id] = -1;
      std::vector<Neighbour>& back = neighbours_[other.id];
      std::erase_if(back, [=](const Neighbour& n) { return n.id == a || n.id == b; });
      back.push_back({node, other.length, other.strength});
      heap_.push({cost(other.id, node, other.length, other.strength), other.id, node});
    }
  }

  int64_t count_, channels_;
  double border_weight_, size_exponent_, total_ = 0;
  std::vector<float> mean_;
  std::vector<double> size_;
  std::vector<uint8_t> is_alive_;
  std::vector<std::vector<Neighbour>> neighbours_;
  std::vector<int32_t> place_;  // of a region in the list being made, -1 elsewhere
  std::priority_queue<Pair> heap_;
};

}  // namespace

void merge_borders_cpu(const TensorView& means, const TensorView& sizes, const TensorView& edges,
                       const TensorView& borders, double border_weight, double size_exponent,
                       const TensorView& merges, const TensorView& cost, const TensorView& shared,
                       const TensorView& num_merges) {
  const int64_t num_regions = means.shape[0], num_edges = edges.shape[0];
  require(means.is_contiguous() && means.dtype == DType::kFloat32 && borders.is_contiguous() &&
              borders.dtype == DType::kFloat32 && borders.numel() == 2 * num_edges,
          "merge_borders: means or borders are not float32 of the right size");
  require(edges.is_contiguous() && edges.dtype == DType::kInt32 && sizes.is_contiguous() &&
              sizes.dtype == DType::kInt64 && sizes.numel() == num_regions,
          "merge_borders: edges or sizes are not integers of the right size");
  require(merges.numel() == 2 * num_regions && shared.numel() == 2 * num_regions &&
              cost.numel() == num_regions && num_merges.numel() == 1,
          "merge_borders: an output has the wrong size");
  std::fill_n(merges.as<int32_t>(), merges.numel(), -1);
  std::fill_n(shared.as<float>(), shared.numel(), 0.0f);
  std::fill_n(cost.as<float>(), cost.numel(), 0.0f);
  Merger merger(means.as<float>(), sizes.as<int64_t>(), num_regions, means.shape[1], border_weight,
                size_exponent);
  merger.connect(edges.as<int32_t>(), borders.as<float>(), num_edges);
  *num_merges.as<int32_t>() = merger.run(merges.as<int32_t>(), cost.as<float>(), shared.as<float>());
}

}  // namespace sohes
