// SPDX-License-Identifier: Apache-2.0
// Merging in the exact greedy order, while most similarities are never computed.
//
// Every pair has a lower bound of its angle, so an upper bound of its similarity, computed without a pass
// over the channels: if a and b become c = a + b, a neighbour n of both has <c, n> = <a, n> + <b, n>, and for
// a neighbour of one of them the angle decreases by at most the angle between that one and c (bounds.h). A
// dot product of the current sums is computed only for a pair whose bound is the best of all. The decision
// always uses a computed similarity.
//
// A pair belongs to the newer of its two regions, and the heap has one entry per region: the best pair that
// belongs to it. A merge makes all pairs of c belong to c, so the entries of other regions can only become
// too high, never too low, and are corrected when they reach the top. No entry inside the heap is searched
// for or updated.
//
// Long borders. A region that grows by small neighbours has hundreds of neighbours, and only a few of them
// change in a merge. The angle by which it turns is added to one number (`turned`) instead of subtracted from
// every angle; its pairs are not moved, only those of the part with fewer neighbours. The only step
// proportional to the border is the search for the least key, a few keys per nanosecond.
//
// One merge reads two rows of features and those of the neighbours that are evaluated (5 to 15 of them on
// feature maps of 28x28 to 200x200).
#include "greedy.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "borders.h"
#include "bounds.h"
#include "rows.h"
#include "state.h"

namespace sohes::merging {
namespace {

// With up to this many neighbours, a region evaluates its candidates together, so that reads overlap. With
// more, it evaluates the best candidate first, because its similarity may exclude the others.
constexpr int kFewNeighbours = 8;
constexpr int kParts = 8;

class Merger {
 public:
  Merger(const Graph& graph, const ChannelLoops& loops, const State& state)
      : graph_(graph), loops_(loops), s_(state), borders_(s_), rows_(graph, state.free_rows, state.rows) {}

  int32_t run(float min_similarity, const Merges& out) {
    borders_.build(graph_);
    for (int32_t i = 0; i < graph_.num_regions; ++i) {
      s_.row[i] = graph_.features + i * graph_.channels;
      s_.id[i] = s_.slot[i] = i;
    }
    std::fill_n(s_.slot + graph_.num_regions, graph_.num_regions, -1);
    for (int32_t i = 0; i < graph_.num_regions; ++i) first_similarities(i);
    build_heap();
    int32_t count = 0;
    while (heap_size_ > 0) {
      const Entry top = s_.heap[0];
      if (top.bound < min_similarity) break;
      const int32_t owner = s_.slot[top.high];
      if (owner < 0) {
        pop();
        continue;
      }
      if (top.other < 0 || s_.slot[top.low] < 0) {
        replace_top(owner);
        continue;
      }
      out.pairs[2 * count] = top.low;
      out.pairs[2 * count + 1] = top.high;
      out.similarity[count] = top.bound;
      const int32_t merged = merge(owner, top.other, graph_.num_regions + count);
      ++count;
      replace_top(merged);
    }
    return count;
  }

 private:
  // --- setting up ---

  // The length of region i and its similarities to the neighbours before it, whose lengths are known: each
  // row is read once, while the rows around it are still in the cache.
  void first_similarities(int32_t i) {
    const float* rows[kMaxRows] = {s_.row[i]};
    int32_t places[kMaxRows];
    double dots[kMaxRows];
    int count = 1;
    int32_t k = 0;
    const int32_t first = s_.first[i];
    for (; k < s_.degree[i] && count < kMaxRows; ++k) {
      const int32_t other = s_.lists.other[first + k];
      if (other > i) continue;
      rows[count] = s_.row[other];
      places[count++] = k;
    }
    loops_.dots(s_.row[i], rows, count, graph_.channels, dots);
    s_.norm[i] = dots[0];
    for (int j = 1; j < count; ++j) set_exact(i, places[j], dots[j]);
    for (; k < s_.degree[i]; ++k) {
      if (s_.lists.other[first + k] < i) evaluate(i, &k, 1);
    }
  }

  void build_heap() {
    for (int32_t i = 0; i < graph_.num_regions; ++i) {
      Entry best = kNoEntry;
      for (int32_t k = 0; k < s_.degree[i]; ++k) {
        if (s_.lists.other[s_.first[i] + k] < i) best = first_of(best, exact_entry(i, k));
      }
      if (best.other >= 0) s_.heap[heap_size_++] = best;
    }
    for (int32_t i = heap_size_ / 2 - 1; i >= 0; --i) sift_down(i);
  }

  // --- the heap ---

  void sift_down(int32_t i) {
    const Entry moving = s_.heap[i];
    for (int32_t child; (child = 2 * i + 1) < heap_size_; i = child) {
      if (child + 1 < heap_size_ && comes_before(s_.heap[child + 1], s_.heap[child])) ++child;
      if (!comes_before(s_.heap[child], moving)) break;
      s_.heap[i] = s_.heap[child];
    }
    s_.heap[i] = moving;
  }

  void pop() {
    s_.heap[0] = s_.heap[--heap_size_];
    if (heap_size_ > 0) sift_down(0);
  }

  // The best entry below the top.
  Entry runner_up() const {
    if (heap_size_ < 2) return kNoEntry;
    return heap_size_ > 2 && comes_before(s_.heap[2], s_.heap[1]) ? s_.heap[2] : s_.heap[1];
  }

  // Puts the best pair of this region at the top in place of what is there, and lets it sink to its place.
  void replace_top(int32_t region) {
    Entry best = promise_of(region);
    if (best.high < 0) return pop();
    const Entry rest = runner_up();
    if (comes_before(best, rest)) best = settle(region, best, rest);
    s_.heap[0] = best;
    sift_down(0);
  }

  // --- the best pair of one region ---

  Entry exact_entry(int32_t region, int32_t place) const {
    const int32_t at = s_.first[region] + place, other = s_.lists.other[at];
    return {s_.lists.value[at], s_.id[other], s_.id[region], other};
  }

  bool is_exact(int32_t region, int32_t place) const {
    return s_.lists.stamp[s_.first[region] + place] == s_.id[region];
  }

  // The entry of a region from its bounds alone; high < 0 if no pair belongs to it.
  Entry promise_of(int32_t region) const {
    const float* keys = borders_.keys(region);
    const float key = least(keys, s_.degree[region]);
    if (key == kForeign) return {kNever, INT32_MAX, -1, -1};
    const float bound = bound_of_angle(key - s_.turned[region]);
    int32_t low = -1;
    if (bound == 1.0f) {  // the maximum: ids decide the order
      low = INT32_MAX;
      for (int32_t i = 0; i < s_.degree[region]; ++i) {
        if (bound_of_angle(keys[i] - s_.turned[region]) < 1.0f) continue;
        low = std::min(low, s_.id[borders_.others(region)[i]]);
      }
    }
    return {bound, low, s_.id[region], -1};
  }

  // Evaluates the pairs of a region until its best one is known, or `rest` is before all candidates.
  Entry settle(int32_t region, const Entry& promise, const Entry& rest) {
    const int32_t count = s_.degree[region];
    const float* keys = borders_.keys(region);
    Entry exact = kNoEntry;
    float most = 0;  // pairs with higher keys are beaten
    const auto tighten = [&] {
      const double angle = most_angle(std::max(rest.bound, exact.bound));
      most = static_cast<float>(s_.turned[region] + angle + 2 * kKeyRounding);
    };
    const auto look_at = [&](const int32_t* places, int number) {
      evaluate(region, places, number);
      for (int i = 0; i < number; ++i) exact = first_of(exact, exact_entry(region, places[i]));
      tighten();
    };
    tighten();
    int32_t batch[kMaxRows];
    int in_batch = 0;
    if (count > kFewNeighbours) {
      in_batch = most_promising(region, promise, batch);
      look_at(batch, in_batch);
      in_batch = 0;
    }
    const int32_t num_chosen = choose(region, most, exact);
    tighten();
    for (int32_t i = 0; i < num_chosen; ++i) {
      const int32_t place = s_.chosen[i];
      if (keys[place] > most || is_beaten(region, place, exact)) continue;
      batch[in_batch++] = place;
      if (in_batch < kMaxRows) continue;
      look_at(batch, in_batch);
      in_batch = 0;
    }
    look_at(batch, in_batch);
    while (exact.bound < rest.bound) {  // else it comes before all that was not evaluated
      const int32_t place = least_unknown(region, exact);
      if (place < 0) break;
      const float bound = bound_of_angle(keys[place] - s_.turned[region]);
      if (bound < exact.bound) break;
      if (bound < rest.bound) return {bound, -1, s_.id[region], -1};
      look_at(&place, 1);  // only the slack of its bound is above `rest`
    }
    return exact;
  }

  // Up to kMaxRows places whose similarities are not known and that are likely to be the best: the least keys
  // of some parts of the list, the least of all first. Returns their number.
  int most_promising(int32_t region, const Entry& promise, int32_t* places) const {
    const int32_t count = s_.degree[region];
    const float* keys = borders_.keys(region);
    if (promise.low >= 0) {
      places[0] = find(borders_.others(region), count, s_.slot[promise.low]);
      return !is_exact(region, places[0]);
    }
    float lanes[kParts];
    int32_t at[kParts];
    for (int j = 0; j < kParts; ++j) {
      lanes[j] = keys[j];
      at[j] = j;
    }
    int32_t i = kParts;
    for (; i + kParts <= count; i += kParts) {
      for (int j = 0; j < kParts; ++j) {
        at[j] = keys[i + j] < lanes[j] ? i + j : at[j];
        lanes[j] = keys[i + j] < lanes[j] ? keys[i + j] : lanes[j];
      }
    }
    for (; i < count; ++i) {
      if (keys[i] < lanes[0]) at[0] = i, lanes[0] = keys[i];
    }
    int number = 0;
    for (int k = 0; k < kMaxRows; ++k) {
      const int best = static_cast<int>(std::min_element(lanes, lanes + kParts) - lanes);
      if (lanes[best] == kForeign) break;
      lanes[best] = kForeign;
      if (!is_exact(region, at[best])) places[number++] = at[best];
    }
    return number;
  }

  // The place of the least key whose similarity is not known, or -1; `exact` learns of those that are.
  int32_t least_unknown(int32_t region, Entry& exact) const {
    const float* keys = borders_.keys(region);
    int32_t found = -1;
    for (int32_t i = 0; i < s_.degree[region]; ++i) {
      if (keys[i] == kForeign) continue;
      if (is_exact(region, i)) {
        exact = first_of(exact, exact_entry(region, i));
      } else if (found < 0 || keys[i] < keys[found]) {
        found = i;
      }
    }
    return found;
  }

  // Writes the places with keys up to `most` to s_.chosen and returns their number, less those that are
  // known, which `exact` learns of, and those that it beats.
  int32_t choose(int32_t region, float most, Entry& exact) {
    const float* keys = borders_.keys(region);
    int32_t num_near = 0, num_chosen = 0;
    for (int32_t i = 0; i < s_.degree[region]; ++i) {
      s_.chosen[num_near] = i;
      num_near += keys[i] <= most;
    }
    for (int32_t i = 0; i < num_near; ++i) {
      const int32_t place = s_.chosen[i];
      if (is_exact(region, place)) {
        exact = first_of(exact, exact_entry(region, place));
      } else if (!is_beaten(region, place, exact)) {
        s_.chosen[num_chosen++] = place;
      }
    }
    return num_chosen;
  }

  // Among pairs that may be as similar as can be, only one with a lower id comes before one that is.
  bool is_beaten(int32_t region, int32_t place, const Entry& exact) const {
    return exact.bound == 1.0f && s_.id[borders_.others(region)[place]] > exact.low;
  }

  static Entry first_of(const Entry& a, const Entry& b) { return comes_before(b, a) ? b : a; }

  void evaluate(int32_t region, const int32_t* places, int count) {
    const float* rows[kMaxRows] = {};
    double dots[kMaxRows];
    for (int i = 0; i < count; ++i) rows[i] = s_.row[borders_.others(region)[places[i]]];
    loops_.dots(s_.row[region], rows, count, graph_.channels, dots);
    for (int i = 0; i < count; ++i) set_exact(region, places[i], dots[i]);
  }

  void set_exact(int32_t region, int32_t place, double dot) {
    const int32_t at = s_.first[region] + place;
    const double similarity = similarity_of(dot, s_.norm[region], s_.norm[s_.lists.other[at]]);
    s_.lists.value[at] = static_cast<float>(similarity);
    s_.lists.stamp[at] = s_.id[region];
    s_.lists.key[at] = key_of(least_angle(similarity), s_.turned[region]);
  }

  // --- merging ---

  // Merges the regions in two slots; returns the slot of the new one.
  int32_t merge(int32_t a, int32_t b, int32_t new_id) {
    if (s_.degree[a] < s_.degree[b]) std::swap(a, b);
    const double norm_a = s_.norm[a], norm_b = s_.norm[b];
    SumDots dots;
    s_.row[a] = rows_.add(s_.row[a], s_.row[b], loops_, dots);
    s_.norm[a] = dots.cc;
    s_.slot[s_.id[a]] = s_.slot[s_.id[b]] = -1;
    s_.id[a] = new_id;
    s_.slot[new_id] = a;
    borders_.remove(a, find(borders_.others(a), s_.degree[a], b));
    borders_.take_over(a);
    borders_.join(a, b, Turn(norm_a, norm_b, dots.cc, dots.ac), Turn(norm_b, norm_a, dots.cc, dots.bc));
    return a;
  }

  const Graph& graph_;
  const ChannelLoops& loops_;
  State s_;
  Borders borders_;
  Rows rows_;
  int32_t heap_size_ = 0;
};

}  // namespace

size_t greedy_scratch_bytes(int64_t num_regions, int64_t num_edges, int64_t channels, bool may_overwrite) {
  return State(nullptr, num_regions, num_edges, channels, may_overwrite).bytes;
}

int32_t merge_greedily(const Graph& graph, float min_similarity, const ChannelLoops& loops, void* scratch,
                       const Merges& out) {
  const State state(scratch, graph.num_regions, graph.num_edges, graph.channels, graph.may_overwrite);
  return Merger(graph, loops, state).run(min_similarity, out);
}

}  // namespace sohes::merging
