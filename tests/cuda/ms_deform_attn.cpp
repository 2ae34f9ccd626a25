// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels of ms_deform_attn on the emulated device of cuda_runtime.h, against the CPU kernels:
// forward and all gradients, in every type, with wide loads and (shifted by one element) without; and the
// gradient of value in integers, which must be equal for any order of threads.
#include "sohes/ms_deform_attn.h"

#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <optional>
#include <vector>

#include "../sanitizers/typed_tensor.h"

namespace {

int failures = 0;

// The largest difference, beside numbers of size 1 and more relative to them.
double difference(const Tensor& a, const Tensor& b) {
  double most = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double x = a.get(i), y = b.get(i);
    const double d = std::abs(x - y) / (1 + std::abs(y));
    most = d <= most ? most : d;  // NaN counts
  }
  return most;
}

void expect_near(const char* what, const Tensor& got, const Tensor& expected, double limit, const Sizes& s,
                 DType type) {
  const double d = difference(got, expected);
  if (d <= limit) return;
  std::printf("%s of %lld channels, type %d, is off by %g\n", what, static_cast<long long>(s.D),
              static_cast<int>(type), d);
  ++failures;
}

// A copy that begins `shift` elements after an aligned address.
struct Shifted {
  Tensor buffer;
  TensorView view;

  Shifted(const Tensor& from, int64_t shift) : buffer({from.numel() + shift}, from.dtype) {
    const int64_t offset = shift * element_size(from.dtype);
    std::copy(from.bytes.begin(), from.bytes.end(), buffer.bytes.begin() + offset);
    view = dense_view(buffer.bytes.data() + offset, from.shape, from.dtype);
  }

  Tensor back() const {
    Tensor out(std::vector<int64_t>(view.shape, view.shape + view.ndim), view.dtype);
    const char* from = static_cast<const char*>(view.data);
    std::copy(from, from + out.bytes.size(), out.bytes.begin());
    return out;
  }
};

void check(const Sizes& s, DType type, DType point_type, int64_t shift) {
  const int64_t S = s.num_positions(), L = s.num_levels();
  const DType sum_type = type == DType::kFloat64 ? type : DType::kFloat32;
  Tensor value({s.B, S, s.K, s.D}, type), points({s.B, s.Q, s.K, L, s.P, 2}, point_type);
  Tensor weights({s.B, s.Q, s.K, L, s.P}, point_type), output({s.B, s.Q, s.K * s.D}, type);
  Tensor grad_output(output.shape, type), grad_value(value.shape, type),
      grad_points(points.shape, point_type), grad_weights(weights.shape, point_type);
  value.fill(-1, 1), points.fill(-0.5, 1.5), weights.fill(-1, 1), grad_output.fill(-1, 1);
  for (int64_t i = 0; i < points.numel(); i += 17) points.set(i, i % 2 ? 1e30 : -1e30);

  Tensor scratch({sohes::ms_deform_attn_workspace(value.view(), weights.view(), true, 1)}, DType::kUInt8);
  sohes::ms_deform_attn_cpu(value.view(), s.levels, points.view(), weights.view(), std::nullopt,
                            output.view(), scratch.view(), 1);
  sohes::ms_deform_attn_backward_cpu(grad_output.view(), value.view(), s.levels, points.view(),
                                     weights.view(), std::nullopt, grad_value.view(), grad_points.view(),
                                     grad_weights.view(), scratch.view(), 1);

  const Shifted value_there(value, shift), grad_output_there(grad_output, shift);
  const Shifted output_there(Tensor(output.shape, type), shift);
  sohes::ms_deform_attn_cuda(value_there.view, s.levels, points.view(), weights.view(), output_there.view, 0);
  const double limit = type == DType::kFloat64 ? 1e-12 : element_size(point_type) == 4 ? 1e-5 : 0.01;
  const double half_limit = element_size(type) == 2 ? 0.01 : limit;
  expect_near("output", output_there.back(), output, half_limit, s, type);

  const Shifted sums_there(Tensor(value.shape, sum_type), shift);
  Tensor points_there(points.shape, point_type), weights_there(weights.shape, point_type);
  sohes::ms_deform_attn_backward_cuda(grad_output_there.view, value_there.view, s.levels, points.view(),
                                      weights.view(), sums_there.view, std::nullopt, points_there.view(),
                                      weights_there.view(), 0);
  expect_near("grad_value", sums_there.back(), grad_value, half_limit, s, type);
  expect_near("grad_locations", points_there, grad_points, limit, s, type);
  expect_near("grad_weights", weights_there, grad_weights, limit, s, type);

  std::vector<std::vector<int64_t>> counts;
  for (const bool is_reversed : {false, true}) {
    emulation::is_reversed = is_reversed;
    Tensor units({1}, DType::kFloat64);
    units.set(0, 1 << 24);
    counts.emplace_back(value.numel());
    sohes::ms_deform_attn_backward_cuda(grad_output_there.view, value_there.view, s.levels, points.view(),
                                        weights.view(),
                                        dense_view(counts.back().data(), value.shape, DType::kInt64),
                                        units.view(), points_there.view(), weights_there.view(), 0);
  }
  emulation::is_reversed = false;
  Tensor counted(value.shape, DType::kFloat64);
  for (int64_t i = 0; i < value.numel(); ++i) {
    counted.set(i, static_cast<double>(counts[0][static_cast<size_t>(i)]) / (1 << 24));
  }
  expect_near("grad_value in integers", counted, grad_value, std::max(half_limit, 1e-5), s, type);
  if (counts[0] != counts[1]) {
    std::printf("grad_value in integers depends on the order of threads\n");
    ++failures;
  }
}

}  // namespace

int main() {
  const Sizes cases[] = {
      {1, 1, 1, 1, 1, {1, 1}},         {2, 5, 2, 8, 3, {3, 2, 1, 1}},
      {1, 7, 3, 71, 4, {4, 4, 2, 3}},  {1, 3, 2, 16, 19, {5, 4}},
      {2, 0, 1, 4, 1, {2, 2}},         {1, 4, 1, 200, 5, {3, 3}},
      {1, 2, 2, 32, 4, {19, 23}},      {1, 3, 1, 1056, 2, {3, 4}},
      {2, 20, 2, 32, 4, {6, 5, 3, 3}}, {1, 2, 1, 8, 150, {7, 7, 4, 4, 2, 2, 1, 1}},
  };
  for (const Sizes& sizes : cases) {
    for (const auto& type : kTypes) {
      for (const int64_t shift : {0, 1}) check(sizes, type[0], type[1], shift);
    }
  }
  if (failures == 0) std::printf("clean\n");
  return failures == 0 ? 0 : 1;
}
