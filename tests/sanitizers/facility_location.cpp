// SPDX-License-Identifier: Apache-2.0
// Runs csrc/facility_location/ on random items in buffers of exactly their size, and compares with a plain
// greedy search over a dense matrix. Built by tests/test_sanitizers.py with the address and
// undefined-behaviour sanitizers.
#include "sohes/facility_location.h"

#include <algorithm>
#include <vector>

#include "tensors.h"

// Each product is rounded, as in the kernel.
#include "sohes/no_fma.h"

namespace {

// Few levels of values make many ties.
void check(int64_t num, int64_t share, int64_t levels) {
  std::vector<int64_t> ends;
  std::vector<float> values;
  std::vector<float> matrix(static_cast<size_t>(num * num));
  const auto level = [&](int64_t least) {
    return static_cast<float>(least + below(levels + 1 - least)) / static_cast<float>(levels);
  };
  for (int64_t i = 0; i < num; ++i) {
    matrix[i * num + i] = 1;
    for (int64_t j = i + 1; j < num; ++j) {
      if (below(100) >= share) continue;
      ends.insert(ends.end(), {i, j});
      values.push_back(level(0));
      matrix[i * num + j] = matrix[j * num + i] = values.back();
    }
  }
  const auto num_pairs = static_cast<int64_t>(values.size());
  Ints pairs({num_pairs, 2}), scratch({sohes::facility_location_scratch(num, num_pairs)}), order({num});
  Floats similarity({num_pairs}), weights({num}), factors({num}), gains({num});
  std::copy(ends.begin(), ends.end(), pairs.data.begin());
  std::copy(values.begin(), values.end(), similarity.data.begin());
  for (float& weight : weights.data) weight = level(0);
  for (float& factor : factors.data) factor = level(1);
  sohes::facility_location_cpu(pairs.view(), similarity.view(), weights.view(), factors.view(),
                               scratch.view(), order.view(), gains.view());
  std::vector<double> covered(static_cast<size_t>(num));
  std::vector<char> is_chosen(static_cast<size_t>(num));
  for (int64_t round = 0; round < num; ++round) {
    int64_t best = -1;
    double most = -1;
    for (int64_t j = 0; j < num; ++j) {
      double sum = 0;
      for (int64_t i = 0; i < num; ++i) {
        sum += weights.data[i] * std::max(0.0, matrix[j * num + i] - covered[i]);
      }
      if (!is_chosen[j] && factors.data[j] * sum > most) best = j, most = factors.data[j] * sum;
    }
    is_chosen[best] = 1;
    for (int64_t i = 0; i < num; ++i) covered[i] = std::max<double>(covered[i], matrix[best * num + i]);
    expect(order.data[round] == best && gains.data[round] == static_cast<float>(most), "facility_location",
           num, num_pairs);
  }
}

}  // namespace

int main() {
  for (const int64_t num : {0, 1, 2, 7, 40}) {
    for (const int64_t share : {0, 15, 60, 100}) {
      for (const int64_t levels : {1, 4, 64}) check(num, share, levels);
    }
  }
  return finish();
}
