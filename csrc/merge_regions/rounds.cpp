// SPDX-License-Identifier: Apache-2.0
// Merging in rounds. A round makes a few passes over the pairs and computes the similarities of the new
// regions, in one fixed order, so that results are repeatable, and without a queue. Feature maps with objects
// take about 40 rounds at 28x28, 90 at 60x60, 800 at 200x200. A region that is the best of all its neighbours
// merges one of them per round, which gives many rounds.
#include "rounds.h"

#include <algorithm>
#include <limits>

#include "bounds.h"
#include "carver.h"
#include "rows.h"

namespace sohes::merging {
namespace {

struct Pair {
  int32_t low, high;  // node ids
  float similarity;
};

bool comes_before(const Pair& a, const Pair& b) {
  if (a.similarity != b.similarity) return a.similarity > b.similarity;
  return a.low != b.low ? a.low < b.low : a.high < b.high;
}

// Arrays by node id have 2N elements.
struct State {
  Carver carver;
  float** row;
  double* norm;
  float* height;
  int32_t* best;  // a place among the pairs, -1
  int32_t* into;  // the node that contains the node after this round
  int32_t* mark;  // the last region that listed this one as its neighbour
  int32_t* start;
  Pair* pairs;      // [E]
  Pair* touched;    // [E] of regions made in this round
  Pair* by_region;  // [E] the same, one region after the other
  Pair* chosen;     // [N/2]
  float** free_rows;
  float* rows;
  size_t bytes;

  State(void* scratch, int64_t n, int64_t e, int64_t channels, bool may_overwrite)
      : carver(scratch),
        row(carver.take<float*>(2 * n)),
        norm(carver.take<double>(2 * n)),
        height(carver.take<float>(2 * n)),
        best(carver.take<int32_t>(2 * n)),
        into(carver.take<int32_t>(2 * n)),
        mark(carver.take<int32_t>(2 * n)),
        start(carver.take<int32_t>(2 * n + 1)),
        pairs(carver.take<Pair>(e)),
        touched(carver.take<Pair>(e)),
        by_region(carver.take<Pair>(e)),
        chosen(carver.take<Pair>(n / 2)),
        free_rows(carver.take<float*>(may_overwrite ? 0 : n / 2)),
        rows(carver.take<float>(may_overwrite ? 0 : n / 2 * channels)),
        bytes(carver.used()) {}
};

class Merger {
 public:
  Merger(const Graph& graph, const ChannelLoops& loops, const State& state)
      : graph_(graph), loops_(loops), s_(state), rows_(graph, state.free_rows, state.rows) {}

  int32_t run(const Merges& out, float* heights) {
    begin();
    const int32_t num_regions = graph_.num_regions;
    while (num_pairs_ > 0) {
      const int32_t first_new = next_id_, num_chosen = choose();
      for (int32_t i = 0; i < num_chosen; ++i) {
        const int32_t k = next_id_ - num_regions;
        const Pair& pair = s_.chosen[i];
        out.pairs[2 * k] = pair.low;
        out.pairs[2 * k + 1] = pair.high;
        out.similarity[k] = pair.similarity;
        heights[k] = merge(pair);
      }
      relabel();
      evaluate_touched(first_new, next_id_);
    }
    return next_id_ - num_regions;
  }

 private:
  void begin() {
    const int32_t n = graph_.num_regions;
    std::fill_n(s_.mark, 2 * n, -1);
    for (int32_t i = 0; i < n; ++i) {
      s_.row[i] = graph_.features + i * graph_.channels;
      const float* row = s_.row[i];
      loops_.dots(row, &row, 1, graph_.channels, &s_.norm[i]);
      s_.height[i] = std::numeric_limits<float>::infinity();
      s_.into[i] = i;
    }
    for (int32_t k = 0; k < graph_.num_edges; ++k) {
      const auto [low, high] = std::minmax(graph_.edges[2 * k], graph_.edges[2 * k + 1]);
      s_.touched[num_touched_++] = {low, high, 0};
    }
    next_id_ = n;
    evaluate_touched(0, n);
  }

  // Writes the pairs that are the best of both their regions to s_.chosen, by rising lower id; returns their
  // number.
  int32_t choose() {
    for (int32_t k = 0; k < num_pairs_; ++k) s_.best[s_.pairs[k].low] = s_.best[s_.pairs[k].high] = -1;
    for (int32_t k = 0; k < num_pairs_; ++k) {
      for (const int32_t region : {s_.pairs[k].low, s_.pairs[k].high}) {
        int32_t& best = s_.best[region];
        if (best < 0 || comes_before(s_.pairs[k], s_.pairs[best])) best = k;
      }
    }
    int32_t count = 0;
    for (int32_t k = 0; k < num_pairs_; ++k) {
      if (s_.best[s_.pairs[k].low] == k && s_.best[s_.pairs[k].high] == k) s_.chosen[count++] = s_.pairs[k];
    }
    std::sort(s_.chosen, s_.chosen + count, [](const Pair& a, const Pair& b) { return a.low < b.low; });
    return count;
  }

  // Returns the height of the new region.
  float merge(const Pair& pair) {
    const int32_t a = pair.low, b = pair.high, c = next_id_++;
    SumDots dots;
    s_.row[c] = rows_.add(s_.row[a], s_.row[b], loops_, dots);
    s_.norm[c] = dots.cc;
    s_.into[a] = s_.into[b] = s_.into[c] = c;
    s_.height[c] = std::min({pair.similarity, s_.height[a], s_.height[b]});
    return s_.height[c];
  }

  // Pairs of merged regions become touched pairs of the new ones; the others stay as they are.
  void relabel() {
    int32_t kept = 0;
    for (int32_t k = 0; k < num_pairs_; ++k) {
      const Pair& pair = s_.pairs[k];
      const int32_t a = s_.into[pair.low], b = s_.into[pair.high];
      if (a == b) continue;
      if (a == pair.low && b == pair.high) {
        s_.pairs[kept++] = pair;
      } else {
        s_.touched[num_touched_++] = {std::min(a, b), std::max(a, b), 0};
      }
    }
    num_pairs_ = kept;
  }

  // Moves the touched pairs to the pairs, each once and with its similarity. Their higher ids are in [begin,
  // end).
  void evaluate_touched(int32_t begin, int32_t end) {
    int32_t* start = s_.start;
    std::fill(start + begin, start + end + 1, 0);
    for (int32_t k = 0; k < num_touched_; ++k) ++start[s_.touched[k].high + 1];
    for (int32_t i = begin; i < end; ++i) start[i + 1] += start[i];
    for (int32_t k = 0; k < num_touched_; ++k) s_.by_region[start[s_.touched[k].high]++] = s_.touched[k];
    int32_t k = 0;
    for (int32_t region = begin; region < end; ++region) {
      const int32_t first = num_pairs_;
      for (; k < start[region]; ++k) {  // where the next region begins, by now
        int32_t& mark = s_.mark[s_.by_region[k].low];
        if (mark != region) s_.pairs[num_pairs_++] = s_.by_region[k];
        mark = region;
      }
      for (int32_t i = first; i < num_pairs_; i += kMaxRows) evaluate(i, std::min(kMaxRows, num_pairs_ - i));
    }
    num_touched_ = 0;
  }

  // Pairs of one higher region.
  void evaluate(int32_t first, int count) {
    const float* rows[kMaxRows];
    double dots[kMaxRows];
    Pair* pairs = s_.pairs + first;
    const int32_t high = pairs[0].high;
    for (int i = 0; i < count; ++i) rows[i] = s_.row[pairs[i].low];
    loops_.dots(s_.row[high], rows, count, graph_.channels, dots);
    for (int i = 0; i < count; ++i) {
      pairs[i].similarity = static_cast<float>(similarity_of(dots[i], s_.norm[high], s_.norm[pairs[i].low]));
    }
  }

  const Graph& graph_;
  const ChannelLoops& loops_;
  State s_;
  Rows rows_;
  int32_t next_id_ = 0, num_pairs_ = 0, num_touched_ = 0;
};

}  // namespace

size_t rounds_scratch_bytes(int64_t num_regions, int64_t num_edges, int64_t channels, bool may_overwrite) {
  return State(nullptr, num_regions, num_edges, channels, may_overwrite).bytes;
}

int32_t merge_in_rounds(const Graph& graph, const ChannelLoops& loops, void* scratch, const Merges& out,
                        float* heights) {
  const State state(scratch, graph.num_regions, graph.num_edges, graph.channels, graph.may_overwrite);
  return Merger(graph, loops, state).run(out, heights);
}

}  // namespace sohes::merging
