// SPDX-License-Identifier: Apache-2.0
// cost(a, b) = (|mean_a - mean_b| + border_weight * strength / length) * (n_a n_b / ((n_a + n_b)
// n))^size_exponent
//
// A pair belongs to the newer of its two regions, which knows its cost, and the heap has one entry per
// region: the best pair that belongs to it. A merge makes all pairs of the new region belong to it, so other
// entries can only become too cheap, never too dear, and are corrected when they reach the top.
//
// A merged region takes the slot of the part with more neighbours, so that the neighbours of only this part
// keep their lists; its id is new.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "distances.h"
#include "entry_heap.h"
#include "sohes/merge_borders.h"

namespace sohes {
namespace borders {
namespace {

struct Neighbour {
  uint64_t cost;  // `ordered`; only of a pair that belongs to the owner of the list
  int32_t slot;
  float length, strength;
};

// Lists of neighbours, given out in pieces that are never returned.
class Arena {
 public:
  Neighbour* take(int64_t count) {
    if (count > left_) {
      left_ = std::max(count, kBlock);
      blocks_.emplace_back(new Neighbour[left_]);
      next_ = blocks_.back().get();
    }
    Neighbour* const taken = next_;
    next_ += count;
    left_ -= count;
    return taken;
  }

 private:
  static constexpr int64_t kBlock = 16384;
  std::vector<std::unique_ptr<Neighbour[]>> blocks_;
  Neighbour* next_ = nullptr;
  int64_t left_ = 0;
};

struct alignas(32) Region {  // alignment: half a cache line each
  int32_t id;
  int32_t count = 0;  // of the list
  Neighbour* list = nullptr;
  const float* row;  // the mean feature
  double size;
};

class Merger {
 public:
  Merger(const float* means, const int64_t* sizes, int64_t num_regions, int64_t channels,
         double border_weight, double size_exponent)
      : num_regions_(num_regions),
        channels_(channels),
        border_weight_(border_weight),
        size_exponent_(size_exponent),
        regions_(num_regions),
        slot_(2 * num_regions, -1),
        place_(num_regions, -1),
        capacity_(num_regions, 0),
        rows_(new float[num_regions / 2 * channels]),
        next_row_(rows_.get()),
        heap_(num_regions) {
    for (int32_t i = 0; i < num_regions; ++i) {
      regions_[i].id = slot_[i] = i;
      regions_[i].row = means + i * channels;
      regions_[i].size = static_cast<double>(sizes[i]);
      total_ += regions_[i].size;
    }
  }

  void connect(const int32_t* edges, const float* borders, int64_t num_edges) {
    for (int64_t i = 0; i < 2 * num_edges; ++i) ++capacity_[edges[i]];
    Neighbour* next = arena_.take(2 * num_edges);
    for (int64_t i = 0; i < num_regions_; ++i) {
      regions_[i].list = next;
      next += capacity_[i];
    }
    for (int64_t e = 0; e < num_edges; ++e) {
      const int32_t a = edges[2 * e], b = edges[2 * e + 1];
      const float length = borders[2 * e], strength = borders[2 * e + 1];
      regions_[a].list[regions_[a].count++] = {0, b, length, strength};
      regions_[b].list[regions_[b].count++] = {0, a, length, strength};
    }
    for (Region& region : regions_) {
      // Its own pairs first, then those that belong to newer regions.
      Neighbour* const end = std::partition(region.list, region.list + region.count,
                                            [&](const Neighbour& other) { return other.slot < region.id; });
      const Entry best = evaluate(region, static_cast<int32_t>(end - region.list));
      if (end != region.list) heap_.append(best);
    }
    heap_.build();
  }

  int32_t run(int32_t* merges, float* costs, float* shared) {
    int32_t done = 0;
    while (!heap_.empty()) {
      const Entry top = heap_.top();
      const int32_t high = slot_[top.high()], low = slot_[top.low()];
      if (high < 0) {
        heap_.pop();
      } else if (low < 0) {
        replace_top(best_of(regions_[high]));
      } else {
        merges[2 * done] = top.low();
        merges[2 * done + 1] = top.high();
        costs[done] = static_cast<float>(unordered(top.cost));
        const int32_t node = static_cast<int32_t>(num_regions_) + done;
        const bool keep_low = regions_[low].count >= regions_[high].count;
        Region& merged = merge(keep_low ? low : high, keep_low ? high : low, node, shared + 2 * done);
        ++done;
        replace_top(evaluate(merged, merged.count));
      }
    }
    return done;
  }

 private:
  static constexpr Entry kNone = {UINT64_MAX, UINT64_MAX};

  void replace_top(const Entry& entry) {
    if (entry.ids == kNone.ids) return heap_.pop();
    heap_.replace_top(entry);
  }

  // Sets the costs of the first `count` pairs of a region, which belong to it, and returns the best.
  Entry evaluate(Region& region, int32_t count) {
    Entry best = kNone;
    const float* rows[kMaxRows];
    double values[kMaxRows], harmonics[kMaxRows];
    for (int32_t begin = 0; begin < count; begin += kMaxRows) {
      const int batch = std::min(count - begin, kMaxRows);
      Neighbour* const others = region.list + begin;
      for (int i = 0; i < batch; ++i) rows[i] = regions_[others[i].slot].row;
      squared_distances(region.row, rows, batch, channels_, values);
      for (int i = 0; i < batch; ++i) {
        const Region& other = regions_[others[i].slot];
        harmonics[i] = other.size * region.size / (other.size + region.size) / total_;
        const double mean_strength = static_cast<double>(others[i].strength) / others[i].length;
        values[i] = std::sqrt(values[i]) + border_weight_ * mean_strength;
      }
      for (int i = 0; i < batch; ++i) values[i] *= std::pow(harmonics[i], size_exponent_);
      for (int i = 0; i < batch; ++i) {
        others[i].cost = ordered(values[i]);
        const Entry entry = {others[i].cost, ids_of(regions_[others[i].slot].id, region.id)};
        if (comes_before(entry, best)) best = entry;
      }
    }
    return best;
  }

  // The best pair that belongs to a region.
  Entry best_of(const Region& region) const {
    Entry best = kNone;
    for (int32_t i = 0; i < region.count; ++i) {
      const int32_t other = regions_[region.list[i].slot].id;
      const Entry entry = {region.list[i].cost, ids_of(other, region.id)};
      if (other < region.id && comes_before(entry, best)) best = entry;
    }
    return best;
  }

  // Makes the region `node` of those in the slots `kept` and `gone`, in slot `kept`; writes their border.
  Region& merge(int32_t kept, int32_t gone, int32_t node, float* shared) {
    Region &into = regions_[kept], &part = regions_[gone];
    join_rows(into, part);
    slot_[into.id] = slot_[part.id] = -1;
    slot_[node] = kept;
    into.id = node;
    for (int32_t i = 0; i < into.count;) {
      if (into.list[i].slot == gone) {
        shared[0] = into.list[i].length;
        shared[1] = into.list[i].strength;
        into.list[i] = into.list[--into.count];
      } else {
        place_[into.list[i].slot] = i;
        fetch_row(regions_[into.list[i].slot].row, channels_);
        ++i;
      }
    }
    for (int32_t i = 0; i < part.count; ++i) __builtin_prefetch(regions_[part.list[i].slot].list);
    reserve(kept, into.count + part.count - 1);
    for (int32_t i = 0; i < part.count; ++i) {
      const Neighbour& other = part.list[i];
      if (other.slot == kept) continue;
      Region& around = regions_[other.slot];
      int32_t& place = place_[other.slot];
      Neighbour& back = find(around, gone);
      if (place < 0) {
        place = into.count;
        fetch_row(around.row, channels_);
        into.list[into.count++] = other;
        back.slot = kept;
      } else {
        Neighbour& joined = into.list[place];
        joined.length += other.length;
        joined.strength += other.strength;
        Neighbour& forth = find(around, kept);
        forth.length = joined.length;
        forth.strength = joined.strength;
        back = around.list[--around.count];
      }
    }
    for (int32_t i = 0; i < into.count; ++i) place_[into.list[i].slot] = -1;
    return into;
  }

  static Neighbour& find(Region& region, int32_t slot) {
    Neighbour* at = region.list;
    while (at->slot != slot) ++at;
    return *at;
  }

  // Room for `count` neighbours of the region in a slot.
  void reserve(int32_t slot, int32_t count) {
    if (count <= capacity_[slot]) return;
    capacity_[slot] = count + count / 2;
    Region& region = regions_[slot];
    Neighbour* const list = arena_.take(capacity_[slot]);
    std::copy_n(region.list, region.count, list);
    region.list = list;
  }

  // The mean of both parts. Starting regions have their rows in the input; merged ones, at most half as many
  // at a time, have one of `rows_` each.
  void join_rows(Region& into, const Region& part) {
    float* row = nullptr;
    for (const Region* region : {&part, &std::as_const(into)}) {
      if (region->id >= num_regions_) row = const_cast<float*>(region->row);
    }
    if (row == nullptr) {
      row = next_row_;
      next_row_ += channels_;
    }
    const double size = into.size + part.size;
    weighted_sum(into.row, static_cast<float>(into.size / size), part.row,
                 static_cast<float>(part.size / size), channels_, row);
    into.row = row;
    into.size = size;
  }

  int64_t num_regions_, channels_;
  double border_weight_, size_exponent_, total_ = 0;
  std::vector<Region> regions_;    // by slot
  std::vector<int32_t> slot_;      // of each id, -1 if the region is no more
  std::vector<int32_t> place_;     // of each slot in the list being made, -1 elsewhere
  std::vector<int32_t> capacity_;  // of the list of each slot
  std::unique_ptr<float[]> rows_;
  float* next_row_;
  Arena arena_;
  EntryHeap heap_;
};

}  // namespace
}  // namespace borders

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
  borders::Merger merger(means.as<float>(), sizes.as<int64_t>(), num_regions, means.shape[1], border_weight,
                         size_exponent);
  merger.connect(edges.as<int32_t>(), borders.as<float>(), num_edges);
  const int32_t done = merger.run(merges.as<int32_t>(), cost.as<float>(), shared.as<float>());
  std::fill(merges.as<int32_t>() + 2 * done, merges.as<int32_t>() + 2 * num_regions, -1);
  std::fill(shared.as<float>() + 2 * done, shared.as<float>() + 2 * num_regions, 0.0f);
  std::fill(cost.as<float>() + done, cost.as<float>() + num_regions, 0.0f);
  *num_merges.as<int32_t>() = done;
}

}  // namespace sohes
