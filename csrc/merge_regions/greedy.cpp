// SPDX-License-Identifier: Apache-2.0
// The greedy order is exact, yet most similarities are never computed.
//
// Every edge carries either its similarity or an upper bound of it. A bound costs no pass over the channels:
// when a and b become c = a + b, a neighbour n of both has <c, n> = <a, n> + <b, n>, and a neighbour of a
// alone turns towards the merged region by no more than the angle between a and c (bounds.h). Only an edge
// whose bound comes before everything else pays for a dot product, of the sums as they are then. What decides
// is always a freshly computed similarity.
//
// An edge belongs to the younger of its two regions, and the heap holds one entry per region: its best edge.
// A merge makes all edges of c belong to c, so the entries of other regions can only become too optimistic,
// never too pessimistic, and are repaired when they surface. Nothing is ever searched for or updated inside
// the heap.
//
// One merge reads two rows of features and those of the neighbours that are evaluated (6 to 12 of them on
// feature maps of 60x60 to 200x200), and touches each neighbour's edge a few times.
#include "greedy.h"

#include <algorithm>
#include <utility>

#include "bounds.h"
#include "state.h"

namespace sohes::merging {
namespace {

// Up to this many edges, a region evaluates its candidates together, as rows in flight hide each other's
// latency. With more, the most promising one goes first, as its similarity may spare the others.
constexpr int kFewEdges = 8;

class Merger {
 public:
  Merger(const Graph& graph, const ChannelLoops& loops, const State& state)
      : graph_(graph), loops_(loops), s_(state), next_row_(state.rows) {}

  int32_t run(float min_similarity, const Merges& out) {
    build_lists();
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
      const Edge& edge = s_.edges[top.edge];
      const bool is_current = edge.u >= 0 && s_.id[other_end(edge, owner)] == top.low;
      if (!is_current || !edge.is_exact) {
        replace_top(owner);
        continue;
      }
      out.pairs[2 * count] = top.low;
      out.pairs[2 * count + 1] = top.high;
      out.similarity[count] = top.bound;
      const int32_t merged = merge(top.edge, graph_.num_regions + count);
      ++count;
      replace_top(merged);
    }
    return count;
  }

 private:
  static int32_t other_end(const Edge& edge, int32_t slot) { return edge.u ^ edge.v ^ slot; }

  Entry entry_of(int32_t edge, int32_t owner) const {
    return {s_.edges[edge].bound, s_.id[other_end(s_.edges[edge], owner)], s_.id[owner], edge};
  }

  // --- setting up ---

  void build_lists() {
    const int32_t n = graph_.num_regions, e = graph_.num_edges;
    for (int32_t i = 0; i < n; ++i) s_.row[i] = graph_.features + i * graph_.channels;
    for (int32_t i = 0; i < n; ++i) s_.id[i] = s_.slot[i] = i;
    std::fill_n(s_.slot + n, n, -1);
    std::fill_n(s_.mark, n, -1);
    std::fill_n(s_.degree, n, 0);
    for (int32_t i = 0; i < 2 * e; ++i) ++s_.degree[graph_.edges[i]];
    for (int32_t i = 0; i < n; ++i) {
      s_.first[i] = used_;
      used_ += s_.degree[i];
      s_.degree[i] = 0;
    }
    for (int32_t k = 0; k < e; ++k) {
      const int32_t u = graph_.edges[2 * k], v = graph_.edges[2 * k + 1];
      s_.edges[k] = {u, v, 1.0f, false};
      s_.list[s_.first[u] + s_.degree[u]++] = k;
      s_.list[s_.first[v] + s_.degree[v]++] = k;
    }
  }

  // The length of region i and its similarities to the neighbours before it, whose lengths are known: each
  // row is read while the rows around it are still in the cache.
  void first_similarities(int32_t i) {
    double own = 0;
    const float* row = s_.row[i];
    loops_.dots(row, &row, 1, graph_.channels, &own);
    s_.norm[i] = own;
    int32_t batch[kMaxRows];
    int count = 0;
    for (int32_t k = 0; k < s_.degree[i]; ++k) {
      const int32_t edge = s_.list[s_.first[i] + k];
      if (other_end(s_.edges[edge], i) > i) continue;
      batch[count++] = edge;
      if (count < kMaxRows) continue;
      evaluate(i, batch, count);
      count = 0;
    }
    evaluate(i, batch, count);
  }

  void build_heap() {
    for (int32_t i = 0; i < graph_.num_regions; ++i) {
      const Entry best = best_edge(i);
      if (best.edge >= 0) s_.heap[heap_size_++] = best;
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

  // Puts the best edge of this region at the top in place of what is there, and lets it sink to its place.
  void replace_top(int32_t region) {
    Entry best = best_edge(region);
    if (best.edge < 0) return pop();
    const Entry rest = runner_up();
    if (!s_.edges[best.edge].is_exact && comes_before(best, rest)) best = settle(region, best, rest);
    s_.heap[0] = best;
    sift_down(0);
  }

  // --- edges of one region ---

  // The best edge that belongs to this region, kNoEntry if none does. Forgets edges that are gone.
  Entry best_edge(int32_t region) {
    int32_t* list = s_.list + s_.first[region];
    Entry best = kNoEntry;
    int32_t kept = 0;
    for (int32_t i = 0; i < s_.degree[region]; ++i) {
      const int32_t edge = list[i];
      if (s_.edges[edge].u < 0) continue;
      list[kept++] = edge;
      const Entry entry = entry_of(edge, region);
      if (entry.low < entry.high && comes_before(entry, best)) best = entry;
    }
    s_.degree[region] = kept;
    return best;
  }

  // Evaluates this region's edges until its best one is exact, or one that `rest` comes before. `promising`
  // is its best.
  Entry settle(int32_t region, const Entry& promising, const Entry& rest) {
    const int32_t* list = s_.list + s_.first[region];
    Entry exact = kNoEntry, bounded = kNoEntry;
    if (s_.degree[region] > kFewEdges) {
      evaluate(region, &promising.edge, 1);
      exact = entry_of(promising.edge, region);
    }
    int32_t batch[kMaxRows];
    int count = 0;
    const auto flush = [&] {
      evaluate(region, batch, count);
      for (int i = 0; i < count; ++i) exact = first_of(exact, entry_of(batch[i], region));
      count = 0;
    };
    for (int32_t i = 0; i < s_.degree[region]; ++i) {
      const Entry entry = entry_of(list[i], region);
      if (entry.low > entry.high || !comes_before(entry, exact)) continue;
      if (s_.edges[entry.edge].is_exact) {
        exact = entry;
      } else if (comes_before(rest, entry)) {
        bounded = first_of(bounded, entry);
      } else {
        batch[count++] = entry.edge;
        if (count == kMaxRows) flush();
      }
    }
    flush();
    return first_of(exact, bounded);
  }

  static Entry first_of(const Entry& a, const Entry& b) { return comes_before(b, a) ? b : a; }

  void evaluate(int32_t region, const int32_t* edges, int count) {
    const float* rows[kMaxRows];
    double dots[kMaxRows];
    for (int i = 0; i < count; ++i) rows[i] = s_.row[other_end(s_.edges[edges[i]], region)];
    loops_.dots(s_.row[region], rows, count, graph_.channels, dots);
    for (int i = 0; i < count; ++i) {
      Edge& edge = s_.edges[edges[i]];
      edge.bound = similarity_of(dots[i], s_.norm[edge.u], s_.norm[edge.v]);
      edge.is_exact = true;
    }
  }

  // --- merging ---

  // Merges the two regions of an edge; returns the slot of the new one.
  int32_t merge(int32_t through, int32_t new_id) {
    int32_t a = s_.edges[through].u, b = s_.edges[through].v;
    if (s_.degree[a] < s_.degree[b]) std::swap(a, b);
    const double norm_a = s_.norm[a], norm_b = s_.norm[b];
    const SumDots dots = add_rows(a, b);
    s_.norm[a] = dots.cc;
    s_.slot[s_.id[a]] = s_.slot[s_.id[b]] = -1;
    s_.id[a] = new_id;
    s_.slot[new_id] = a;
    merge_lists(a, b, Turn(norm_a, norm_b, dots.cc, dots.ac), Turn(norm_b, norm_a, dots.cc, dots.bc));
    return a;
  }

  SumDots add_rows(int32_t a, int32_t b) {
    const bool owns_a = owns_row(a), owns_b = owns_row(b);
    float* sum = owns_a ? s_.row[a] : owns_b ? s_.row[b] : new_row();
    const SumDots dots = loops_.add(s_.row[a], s_.row[b], sum, graph_.channels);
    if (owns_a && owns_b && !graph_.may_overwrite) s_.free_rows[num_free_rows_++] = s_.row[b];
    s_.row[a] = sum;
    return dots;
  }

  // May the row be written to? Those of leaves lie in the input.
  bool owns_row(int32_t slot) const {
    return graph_.may_overwrite || s_.row[slot] != graph_.features + slot * graph_.channels;
  }

  float* new_row() {
    if (num_free_rows_ > 0) return s_.free_rows[--num_free_rows_];
    float* row = next_row_;
    next_row_ += graph_.channels;
    return row;
  }

  // The list of slot a becomes that of the merged region: edges of b alone move over, and of two edges to a
  // shared neighbour one stays.
  void merge_lists(int32_t a, int32_t b, const Turn& turn_a, const Turn& turn_b) {
    make_room(s_.degree[a] + s_.degree[b]);
    int32_t* merged = s_.list + used_;
    int32_t count = 0;
    for (int32_t i = 0; i < s_.degree[a]; ++i) {
      const int32_t k = s_.list[s_.first[a] + i];
      Edge& edge = s_.edges[k];
      if (edge.u < 0) continue;
      const int32_t other = other_end(edge, a);
      if (other == b || s_.mark[other] >= 0) {  // between the two, or named twice in the graph
        edge.u = -1;
        continue;
      }
      s_.mark[other] = k;
      merged[count++] = k;
    }
    const int32_t count_a = count;
    for (int32_t i = 0; i < s_.degree[b]; ++i) {
      const int32_t k = s_.list[s_.first[b] + i];
      Edge& edge = s_.edges[k];
      if (edge.u < 0) continue;
      const int32_t other = other_end(edge, b);
      if (s_.mark[other] >= 0) {
        join(s_.edges[s_.mark[other]], edge, turn_a, turn_b);
        s_.mark[other] = -1;
        continue;
      }
      edge = {a, other, turned_bound(edge.bound, turn_b), false};
      merged[count++] = k;
    }
    for (int32_t i = 0; i < count_a; ++i) {
      Edge& edge = s_.edges[merged[i]];
      int32_t& mark = s_.mark[other_end(edge, a)];
      if (mark < 0) continue;  // shared: done above
      mark = -1;
      edge.bound = turned_bound(edge.bound, turn_a);
      edge.is_exact = false;
    }
    s_.first[a] = used_;
    s_.degree[a] = count;
    s_.degree[b] = 0;
    used_ += count;
  }

  // `kept` leads from a, `gone` from b, to one neighbour.
  static void join(Edge& kept, Edge& gone, const Turn& turn_a, const Turn& turn_b) {
    float bound = added_bound(kept.bound, gone.bound, turn_a, turn_b);
    if (!kept.is_exact) bound = std::min(bound, turned_bound(gone.bound, turn_b));
    if (!gone.is_exact) bound = std::min(bound, turned_bound(kept.bound, turn_a));
    kept.bound = bound;
    kept.is_exact = false;
    gone.u = -1;
  }

  // Live lists hold at most 2E entries, so after moving them together at least half of the 4E are free again.
  void make_room(int32_t count) {
    if (used_ + count <= 4 * graph_.num_edges) return;
    used_ = 0;
    for (int32_t i = 0; i < graph_.num_regions; ++i) {
      std::copy_n(s_.list + s_.first[i], s_.degree[i], s_.spare + used_);
      s_.first[i] = used_;
      used_ += s_.degree[i];
    }
    std::swap(s_.list, s_.spare);
  }

  const Graph& graph_;
  const ChannelLoops& loops_;
  State s_;
  int32_t heap_size_ = 0;
  int32_t used_ = 0;  // entries of s_.list
  int32_t num_free_rows_ = 0;
  float* next_row_;
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
