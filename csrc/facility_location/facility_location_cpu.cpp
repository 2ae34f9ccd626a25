// SPDX-License-Identifier: Apache-2.0
// Lazy greedy (Minoux, 1978): items are kept in a heap by the value they had when it was last computed.
// Values only fall as more is covered, so the top of the heap, once computed again, is the best of all if it
// stays on top. That holds for rounded values too: each difference, product and sum is rounded monotonically,
// and sums run over the neighbours in one order.
#include <algorithm>

#include "sohes/facility_location.h"

// The reference rounds each product: no fused multiply-add.
#include "sohes/no_fma.h"

namespace sohes {
namespace {

struct Neighbour {
  int32_t item;
  float similarity;
};

// An upper bound of an item's value: its value when `round` items were chosen.
struct Bound {
  double value;
  int32_t item, round;

  bool operator<(const Bound& other) const {  // of equal values the smallest item is best
    return value != other.value ? value < other.value : item > other.item;
  }
};

static_assert(sizeof(Neighbour) == sizeof(int64_t) && sizeof(Bound) == 2 * sizeof(int64_t));

struct Items {
  int64_t num;
  int64_t* start;     // [N + 1], of the neighbours of each item
  Neighbour* nearby;  // [N + 2 E], by item, each item among its own
  double* covered;    // [N], the largest similarity to a chosen item
  Bound* heap;        // [N]
  const float *weights, *factors;
};

// start[i + 1] is used as the place for the next neighbour of i until all are placed.
void place_neighbours(const Items& items, const TensorView& pairs, const float* similarity) {
  const int64_t count = pairs.shape[0], *pair = pairs.as<int64_t>();
  int64_t* const start = items.start;
  std::fill(start, start + items.num + 1, 0);
  for (int64_t e = 0; e < 2 * count; ++e) {
    if (pair[e] + 2 <= items.num) ++start[pair[e] + 2];
  }
  for (int64_t i = 2; i <= items.num; ++i) start[i] += start[i - 1] + 1;
  const auto place = [&](int64_t i, int64_t other, float value) {
    items.nearby[start[i + 1]++] = {static_cast<int32_t>(other), value};
  };
  // Pairs are sorted, so this order gives each item its neighbours by index.
  for (int64_t e = 0; e < count; ++e) place(pair[2 * e + 1], pair[2 * e], similarity[e]);
  for (int64_t i = 0; i < items.num; ++i) place(i, i, 1);
  for (int64_t e = 0; e < count; ++e) place(pair[2 * e], pair[2 * e + 1], similarity[e]);
}

// factors[j] * sum_i weights[i] * max(0, similarity(i, j) - covered[i]).
double value_of(const Items& items, int64_t j) {
  double sum = 0;
  for (int64_t k = items.start[j]; k < items.start[j + 1]; ++k) {
    const auto [i, similarity] = items.nearby[k];
    sum += static_cast<double>(items.weights[i]) * std::max(0.0, similarity - items.covered[i]);
  }
  return static_cast<double>(items.factors[j]) * sum;
}

}  // namespace

int64_t facility_location_scratch(int64_t num_items, int64_t num_pairs) {
  return num_items + 1 + num_items + 2 * num_pairs + num_items + 2 * num_items;
}

void facility_location_cpu(const TensorView& pairs, const TensorView& similarity, const TensorView& weights,
                           const TensorView& factors, const TensorView& scratch, const TensorView& order,
                           const TensorView& gains) {
  const int64_t num = weights.shape[0], num_pairs = pairs.shape[0];
  require(num < INT32_MAX, "facility_location: expected fewer than 2^31 - 1 items");
  require(scratch.numel() >= facility_location_scratch(num, num_pairs),
          "facility_location: scratch is too small");
  int64_t* const memory = scratch.as<int64_t>();
  const Items items = {num,
                       memory,
                       reinterpret_cast<Neighbour*>(memory + num + 1),
                       reinterpret_cast<double*>(memory + 2 * num + 1 + 2 * num_pairs),
                       reinterpret_cast<Bound*>(memory + 3 * num + 1 + 2 * num_pairs),
                       weights.as<float>(),
                       factors.as<float>()};
  place_neighbours(items, pairs, similarity.as<float>());
  std::fill(items.covered, items.covered + num, 0.0);
  for (int64_t j = 0; j < num; ++j) items.heap[j] = {value_of(items, j), static_cast<int32_t>(j), 0};
  std::make_heap(items.heap, items.heap + num);
  Bound* end = items.heap + num;
  for (int32_t round = 0; round < order.shape[0]; ++round) {
    for (;;) {
      std::pop_heap(items.heap, end);
      Bound& best = end[-1];
      if (best.round == round) break;
      best = {value_of(items, best.item), best.item, round};
      std::push_heap(items.heap, end);
    }
    const Bound chosen = *--end;
    order.as<int64_t>()[round] = chosen.item;
    gains.as<float>()[round] = static_cast<float>(chosen.value);
    for (int64_t k = items.start[chosen.item]; k < items.start[chosen.item + 1]; ++k) {
      double& covered = items.covered[items.nearby[k].item];
      covered = std::max(covered, static_cast<double>(items.nearby[k].similarity));
    }
  }
}

}  // namespace sohes
