// SPDX-License-Identifier: Apache-2.0
// Lists of neighbours with a key per pair (a lower bound of the angle), and their update by a merge.
#pragma once

#include <algorithm>
#include <utility>

#include "greedy.h"
#include "state.h"

namespace sohes::merging {

// Keys are float32 numbers below 16, and rounded down.
constexpr double kMostTurned = 4;
constexpr double kKeyRounding = 6e-7;

inline float key_of(double angle, double turned) { return static_cast<float>(angle + turned - kKeyRounding); }

// The index of x among the first `count` values, or -1. Compares whole blocks at once.
inline int32_t find(const int32_t* values, int32_t count, int32_t x) {
  constexpr int kBlock = 16;
  int32_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    int32_t hits = 0;
    for (int j = 0; j < kBlock; ++j) hits |= values[i + j] == x;
    if (hits != 0) break;
  }
  for (; i < count; ++i) {
    if (values[i] == x) return i;
  }
  return -1;
}

inline float least(const float* keys, int32_t count) {
  constexpr int kBlock = 16;
  float lanes[kBlock];
  for (int j = 0; j < kBlock; ++j) lanes[j] = kForeign;
  int32_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    for (int j = 0; j < kBlock; ++j) lanes[j] = keys[i + j] < lanes[j] ? keys[i + j] : lanes[j];
  }
  float found = kForeign;
  for (; i < count; ++i) found = std::min(found, keys[i]);
  for (int j = 0; j < kBlock; ++j) found = std::min(found, lanes[j]);
  return found;
}

class Borders {
 public:
  explicit Borders(State& state) : s_(state) {}

  void build(const Graph& graph) {
    const int32_t n = num_regions_ = graph.num_regions, e = num_edges_ = graph.num_edges;
    std::fill_n(s_.turned, n, 0.0);
    std::fill_n(s_.degree, n, 0);
    for (int32_t i = 0; i < 2 * e; ++i) ++s_.degree[graph.edges[i]];
    for (int32_t i = 0; i < n; ++i) {
      s_.first[i] = used_;
      s_.capacity[i] = s_.degree[i];
      used_ += s_.degree[i];
      s_.degree[i] = 0;
    }
    for (int32_t k = 0; k < e; ++k) {
      const int32_t u = graph.edges[2 * k], v = graph.edges[2 * k + 1];
      if (find(others(u), s_.degree[u], v) >= 0) continue;  // repeated edge
      append(u, v, u < v ? kForeign : 0.0f);
      append(v, u, v < u ? kForeign : 0.0f);
    }
  }

  const int32_t* others(int32_t region) const { return s_.lists.other + s_.first[region]; }
  const float* keys(int32_t region) const { return s_.lists.key + s_.first[region]; }

  // Makes all pairs of the region in slot a belong to it; resets the offset of their keys when it is large.
  void take_over(int32_t a) {
    float* keys = s_.lists.key + s_.first[a];
    for (int32_t i = 0; i < s_.degree[a]; ++i) {
      if (keys[i] == kForeign) keys[i] = key_of(take_angle(s_.lists.other[s_.first[a] + i], a), s_.turned[a]);
    }
    if (s_.turned[a] < kMostTurned) return;
    for (int32_t i = 0; i < s_.degree[a]; ++i) keys[i] = key_of(std::max(0.0, keys[i] - s_.turned[a]), 0);
    s_.turned[a] = 0;
  }

  // The neighbours of b become those of a, whose pairs all belong to it.
  void join(int32_t a, int32_t b, const Turn& turn_a, const Turn& turn_b) {
    make_room(a, s_.degree[b]);
    if (turn_a.is_regular) {
      s_.turned[a] += turn_a.angle;
    } else {
      std::fill_n(s_.lists.key + s_.first[a], s_.degree[a], key_of(0, s_.turned[a]));
    }
    const int32_t num_before = s_.degree[a];
    for (int32_t i = 0; i < s_.degree[b]; ++i) {
      const int32_t other = s_.lists.other[s_.first[b] + i];
      if (other == a) continue;
      const float key = s_.lists.key[s_.first[b] + i];
      const double angle = key == kForeign ? take_angle(other, b) : std::max(0.0, key - s_.turned[b]);
      const int32_t back = find(others(other), s_.degree[other], b);
      const bool is_shared = find_either(a, num_before, other);
      if (is_shared) {
        const int32_t at = s_.first[a] + find(others(a), num_before, other);
        const double before = s_.lists.key[at] - s_.turned[a] + turn_a.angle;  // the angle to part a
        s_.lists.key[at] = key_of(joined_angle(before, angle, turn_a, turn_b), s_.turned[a]);
        remove(other, back);
      } else {
        s_.lists.other[s_.first[other] + back] = a;
        append(a, other, key_of(turn_b.is_regular ? angle - turn_b.angle : 0, s_.turned[a]));
      }
    }
    s_.degree[b] = 0;
  }

  void remove(int32_t region, int32_t place) {
    const int32_t at = s_.first[region] + place, last = s_.first[region] + --s_.degree[region];
    s_.lists.other[at] = s_.lists.other[last];
    s_.lists.key[at] = s_.lists.key[last];
    s_.lists.value[at] = s_.lists.value[last];
    s_.lists.stamp[at] = s_.lists.stamp[last];
  }

 private:
  // The least angle of a pair that belongs to `owner`, from whom it is taken.
  double take_angle(int32_t owner, int32_t other) {
    const int32_t at = s_.first[owner] + find(others(owner), s_.degree[owner], other);
    const double angle = std::max(0.0, s_.lists.key[at] - s_.turned[owner]);
    s_.lists.key[at] = kForeign;
    return angle;
  }

  // Whether a and b are neighbours, by a search of the shorter list; of a the first `count` entries.
  bool find_either(int32_t a, int32_t count, int32_t b) const {
    if (count < s_.degree[b]) return find(others(a), count, b) >= 0;
    return find(others(b), s_.degree[b], a) >= 0;
  }

  void append(int32_t region, int32_t other, float key) {
    const int32_t at = s_.first[region] + s_.degree[region]++;
    s_.lists.other[at] = other;
    s_.lists.key[at] = key;
    s_.lists.stamp[at] = -1;
  }

  // Reserves capacity for `more` neighbours of a region, twice as much as needed. The live lists have at most
  // 2E entries and a region has at most E neighbours, so after compaction the 4E entries are enough.
  void make_room(int32_t region, int32_t more) {
    const int32_t needed = s_.degree[region] + more;
    if (needed <= s_.capacity[region]) return;
    if (used_ + 2 * needed > 4 * num_edges_) {
      used_ = 0;
      for (int32_t i = 0; i < num_regions_; ++i) move_list(i, s_.spare, s_.degree[i]);
      std::swap(s_.lists, s_.spare);
    }
    move_list(region, s_.lists, 2 * needed);
  }

  // Moves the list of a region to the end of `to`.
  void move_list(int32_t region, const Lists& to, int32_t capacity) {
    const int32_t from = s_.first[region], count = s_.degree[region];
    std::copy_n(s_.lists.other + from, count, to.other + used_);
    std::copy_n(s_.lists.key + from, count, to.key + used_);
    std::copy_n(s_.lists.value + from, count, to.value + used_);
    std::copy_n(s_.lists.stamp + from, count, to.stamp + used_);
    s_.first[region] = used_;
    s_.capacity[region] = capacity;
    used_ += capacity;
  }

  State& s_;
  int32_t num_regions_ = 0, num_edges_ = 0;
  int32_t used_ = 0;  // entries of the lists
};

}  // namespace sohes::merging
