// SPDX-License-Identifier: Apache-2.0
// Runs catchment_basins and region_borders on small random images in buffers of exactly their size, and
// compares with plain loops. Built by tests/test_sanitizers.py with the address and undefined-behaviour
// sanitizers.
#include "sohes/basins.h"

#include <algorithm>
#include <map>
#include <utility>

#include "tensors.h"

namespace {

int64_t lowest_around(const std::vector<float>& height, int64_t rows, int64_t columns, int64_t pixel) {
  const int64_t y = pixel / columns, x = pixel % columns;
  int64_t best = pixel;
  const auto look = [&](bool inside, int64_t other) {
    if (inside && std::pair(height[other], other) < std::pair(height[best], best)) best = other;
  };
  look(y > 0, pixel - columns);
  look(x > 0, pixel - 1);
  look(x + 1 < columns, pixel + 1);
  look(y + 1 < rows, pixel + columns);
  return best;
}

void check_basins(int64_t rows, int64_t columns, int64_t levels) {
  Floats height({rows, columns});
  Ints labels({rows, columns}, 77);
  for (float& value : height.data) value = static_cast<float>(below(levels));
  sohes::catchment_basins_cpu(height.view(), labels.view());
  int64_t found = 0;
  for (int64_t pixel = 0; pixel < rows * columns; ++pixel) {
    const int64_t target = lowest_around(height.data, rows, columns, pixel);
    expect(labels.data[pixel] == labels.data[target], "the basin of a pixel", rows, columns);
    if (target == pixel) expect(labels.data[pixel] == found++, "the number of a minimum", rows, columns);
  }
}

void check_borders(int64_t rows, int64_t columns, int64_t num_regions) {
  Ints labels({rows, columns}), starts({num_regions + 1}, 77);
  Floats strength({rows, columns});
  for (int64_t& label : labels.data) label = below(num_regions);
  for (float& value : strength.data) value = static_cast<float>(below(100));
  std::map<std::pair<int64_t, int64_t>, std::pair<float, float>> expected;
  int64_t num_sides = 0;
  const auto add = [&](int64_t a, int64_t b) {
    const int64_t one = labels.data[a], other = labels.data[b];
    if (one == other) return;
    auto& [length, sum] = expected[std::minmax(one, other)];
    length += 1;
    sum += std::max(strength.data[a], strength.data[b]);
    ++num_sides;
  };
  for (int64_t pixel = 0; pixel < rows * columns; ++pixel) {
    if (pixel % columns + 1 < columns) add(pixel, pixel + 1);
    if (pixel + columns < rows * columns) add(pixel, pixel + columns);
  }
  expect(sohes::region_sides_cpu(labels.view(), starts.view()) == num_sides, "the number of sides", rows,
         columns);
  Ints scratch({sohes::region_borders_scratch(num_regions, num_sides)}, 77), edges({num_sides, 2}, 77);
  Floats borders({num_sides, 2}, 77);
  const int64_t count = sohes::region_borders_cpu(labels.view(), strength.view(), starts.view(),
                                                  scratch.view(), edges.view(), borders.view());
  expect(count == static_cast<int64_t>(expected.size()), "the number of edges", rows, columns);
  int64_t e = 0;
  for (const auto& [pair, border] : expected) {
    expect(edges.data[2 * e] == pair.first && edges.data[2 * e + 1] == pair.second, "an edge", rows, columns);
    expect(borders.data[2 * e] == border.first && borders.data[2 * e + 1] == border.second, "a border", rows,
           columns);
    ++e;
  }
}

}  // namespace

int main() {
  for (int64_t round = 0; round < 300; ++round) {
    const int64_t rows = below(12), columns = below(12);  // both may be 0
    check_basins(rows, columns, 1 + below(20));
    check_borders(rows, columns, 1 + below(std::max<int64_t>(rows * columns, 1)));
  }
  return finish();
}
