// SPDX-License-Identifier: Apache-2.0
// Runs ms_deform_attn and its backward in every type on small random inputs in buffers of exactly their size,
// with points in and far outside the maps, from locations and from offsets, and compares forward with a loop.
// Built by tests/test_sanitizers.py with the address and undefined-behaviour sanitizers.
#include "sohes/ms_deform_attn.h"

#include <cmath>
#include <cstdio>
#include <optional>
#include <vector>

#include "typed_tensor.h"

namespace {

int failures = 0;

// The definition, for one query and head and channel.
double expected(const Sizes& s, const Tensor& value, const Tensor& points, const Tensor& weights,
                const Tensor* reference, int64_t b, int64_t q, int64_t k, int64_t d) {
  const int64_t L = static_cast<int64_t>(s.levels.size() / 2), count = L * s.P;
  const int64_t first = ((b * s.Q + q) * s.K + k) * count;
  double total = 0, sum = 0;
  for (int64_t i = 0; i < count; ++i) total += std::exp(weights.get(first + i));
  int64_t start = 0, positions = value.shape[1];
  for (int64_t i = 0, level = 0; i < count; ++i) {
    if (i > 0 && i % s.P == 0) start += s.levels[2 * level] * s.levels[2 * level + 1], ++level;
    const int64_t height = s.levels[2 * level], width = s.levels[2 * level + 1];
    double x = points.get(2 * (first + i)), y = points.get(2 * (first + i) + 1);
    x = (reference ? reference->get(2 * q) * width + x : x * width) - 0.5;
    y = (reference ? reference->get(2 * q + 1) * height + y : y * height) - 0.5;
    const double weight = reference ? std::exp(weights.get(first + i)) / total : weights.get(first + i);
    for (int c = 0; c < 4; ++c) {
      const double px = std::floor(x) + c % 2, py = std::floor(y) + c / 2;
      if (!(px >= 0 && px < width && py >= 0 && py < height)) continue;
      const int64_t at = start + static_cast<int64_t>(py) * width + static_cast<int64_t>(px);
      sum += weight * (1 - std::abs(x - px)) * (1 - std::abs(y - py)) *
             value.get(((b * positions + at) * s.K + k) * s.D + d);
    }
  }
  return sum;
}

void check(const Sizes& s, DType type, DType point_type, bool has_reference, int threads) {
  const int64_t S = s.num_positions(), L = s.num_levels();
  Tensor value({s.B, S, s.K, s.D}, type), points({s.B, s.Q, s.K, L, s.P, 2}, point_type);
  Tensor weights({s.B, s.Q, s.K, L, s.P}, point_type), output({s.B, s.Q, s.K * s.D}, type);
  Tensor reference({s.Q, 2}, type == DType::kFloat64 ? type : DType::kFloat32);
  value.fill(-1, 1), points.fill(-0.5, 1.5), weights.fill(-1, 1), reference.fill(0, 1);
  for (int64_t i = 0; i < points.numel(); i += 17) points.set(i, i % 2 ? 1e30 : -1e30);
  std::optional<TensorView> maybe;
  if (has_reference) maybe = reference.view();

  Tensor scratch({sohes::ms_deform_attn_workspace(value.view(), weights.view(), false, threads)},
                 DType::kUInt8);
  sohes::ms_deform_attn_cpu(value.view(), s.levels, points.view(), weights.view(), maybe, output.view(),
                            scratch.view(), threads);
  const double limit = element_size(type) == 2 ? 0.02 : 1e-4;
  for (int64_t i = 0; i < output.numel(); ++i) {
    const int64_t d = i % s.D, k = i / s.D % s.K, q = i / (s.D * s.K) % s.Q, b = i / (s.D * s.K * s.Q);
    const double true_value =
        expected(s, value, points, weights, has_reference ? &reference : nullptr, b, q, k, d);
    if (std::abs(output.get(i) - true_value) <= limit * (1 + std::abs(true_value))) continue;
    std::printf("output %lld of %lld channels is %g, expected %g\n", static_cast<long long>(i),
                static_cast<long long>(s.D), output.get(i), true_value);
    ++failures;
    break;
  }

  Tensor more({sohes::ms_deform_attn_workspace(value.view(), weights.view(), true, threads)}, DType::kUInt8);
  Tensor grad_value(value.shape, type), grad_points(points.shape, point_type),
      grad_weights(weights.shape, point_type);
  Tensor grad_output(output.shape, type);
  grad_output.fill(-1, 1);
  sohes::ms_deform_attn_backward_cpu(grad_output.view(), value.view(), s.levels, points.view(),
                                     weights.view(), maybe, grad_value.view(), grad_points.view(),
                                     grad_weights.view(), more.view(), threads);
  // The output is linear in value, so both of these are <grad_output, output>.
  double forward = 0, backward = 0;
  for (int64_t i = 0; i < output.numel(); ++i) forward += grad_output.get(i) * output.get(i);
  for (int64_t i = 0; i < value.numel(); ++i) backward += grad_value.get(i) * value.get(i);
  if (!(std::abs(forward - backward) <= 10 * limit * (1 + std::abs(forward)))) {
    std::printf("grad_value of %lld channels: %g, expected %g\n", static_cast<long long>(s.D), backward,
                forward);
    ++failures;
  }
}

}  // namespace

int main() {
  const Sizes cases[] = {
      {1, 1, 1, 1, 1, {1, 1}},    {2, 5, 2, 8, 3, {3, 2, 1, 1}},   {1, 7, 3, 71, 4, {4, 4, 2, 3}},
      {1, 3, 2, 16, 19, {5, 4}},  {2, 0, 1, 4, 1, {2, 2}},         {1, 4, 1, 200, 5, {3, 3}},
      {1, 2, 2, 32, 4, {19, 23}}, {3, 40, 2, 32, 4, {6, 5, 3, 3}}, {1, 300, 2, 64, 4, {80, 70, 30, 30}},
  };
  for (const Sizes& sizes : cases) {
    for (const auto& type : kTypes) {
      for (const bool has_reference : {false, true}) check(sizes, type[0], type[1], has_reference, 3);
    }
  }
  if (failures == 0) std::printf("clean\n");
  return failures == 0 ? 0 : 1;
}
