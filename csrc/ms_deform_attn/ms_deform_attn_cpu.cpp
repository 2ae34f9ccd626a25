// SPDX-License-Identifier: Apache-2.0
// Multi-scale deformable attention on the CPU: sizes, scratch, choice of instruction set, threads. The
// arithmetic is in kernel_isa.h.
#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "kernel.h"
#include "sohes/ms_deform_attn.h"

namespace sohes {
namespace {

using deform::Kernels;
using deform::PointTable;
using deform::Problem;
using deform::Scratch;

template <typename T>
Kernels<T> choose_kernels(int64_t channels) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return deform::avx512::kernels<T>(channels);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return deform::avx2::kernels<T>(channels);
#endif
  return deform::baseline::kernels<T>(channels);
}

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Bytes of an element in the tensor, and where it is computed with.
int64_t stored_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }
int64_t computed_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// How the work is cut and what scratch it takes. Both follow from the sizes and the number of threads alone.
struct Plan {
  int64_t
      chunks;  // of the queries of one (batch, head); more than one only where heads are fewer than threads
  int64_t tasks;  // B * K * chunks
  int workers;
  int64_t table_bytes;
  int64_t worker_bytes;
};

Problem make_problem(const TensorView& value, const TensorView& weights) {
  Problem p = {};
  p.B = value.shape[0], p.S = value.shape[1], p.K = value.shape[2], p.D = value.shape[3];
  p.Q = weights.shape[1];
  p.num_points = static_cast<int>(weights.shape[3] * weights.shape[4]);
  const int64_t size = computed_size(value.dtype);
  p.padded_channels = p.D * size <= 32 ? 32 / size : round_up(p.D, 64 / size);
  p.padded_points = round_up(p.num_points, 16);
  p.value_dtype = value.dtype, p.value_size = stored_size(value.dtype);
  p.point_dtype = weights.dtype, p.point_size = stored_size(weights.dtype);
  p.in_place = p.value_size == size && p.D == p.padded_channels && p.Q * p.num_points * 4 < p.S;
  return p;
}

Plan make_plan(const Problem& p, bool backward, int num_threads) {
  // Starting a thread costs some 20 us, in which one moves a few hundred thousand elements.
  constexpr int64_t kElementsPerThread = 1 << 19;
  const int64_t heads = p.B * p.K;
  const int64_t elements = heads * (p.Q * p.num_points * 4 + p.S) * p.D;
  const int64_t wanted = std::clamp<int64_t>(elements / kElementsPerThread, 1, std::max(num_threads, 1));
  Plan plan;
  plan.chunks =
      backward || heads == 0 ? 1 : std::min((wanted + heads - 1) / heads, std::max<int64_t>(p.Q, 1));
  plan.tasks = heads * plan.chunks;
  plan.workers = static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(plan.tasks, 1)));
  const int64_t size = computed_size(p.value_dtype);
  const int64_t rows = p.in_place ? 0 : p.S * (backward ? 2 : 1);
  plan.table_bytes = round_up(5 * p.padded_points * size, 64);
  plan.worker_bytes = round_up(((rows + 1) * p.padded_channels + 6 * p.padded_points) * size, 64);
  return plan;
}

template <typename T>
PointTable<T> fill_table(const Problem& p, const std::vector<int64_t>& spatial_shapes, void* memory) {
  using Int = typename PointTable<T>::Int;
  T* reals = static_cast<T*>(memory);
  Int* integers = reinterpret_cast<Int*>(reals + 2 * p.padded_points);
  const PointTable<T> table = {reals, reals + p.padded_points, integers, integers + p.padded_points,
                               integers + 2 * p.padded_points};
  const int64_t points_per_level = p.num_points / static_cast<int64_t>(spatial_shapes.size() / 2);
  int64_t start = 0, level = 0;
  for (int64_t i = 0; i < p.padded_points; ++i) {
    const bool unused = i >= p.num_points;
    if (!unused && i > 0 && i % points_per_level == 0) {
      start += spatial_shapes[2 * level] * spatial_shapes[2 * level + 1];
      ++level;
    }
    const int64_t height = unused ? 0 : spatial_shapes[2 * level],
                  width = unused ? 0 : spatial_shapes[2 * level + 1];
    table.height[i] = static_cast<T>(height), table.int_height[i] = static_cast<Int>(height);
    table.width[i] = static_cast<T>(width), table.int_width[i] = static_cast<Int>(width);
    table.start[i] = static_cast<Int>(unused ? 0 : start);
  }
  return table;
}

template <typename T>
Scratch<T> worker_scratch(const Problem& p, const Plan& plan, bool backward, char* workspace, int worker) {
  T* memory = reinterpret_cast<T*>(workspace + plan.table_bytes + worker * plan.worker_bytes);
  const int64_t rows = p.in_place ? 0 : p.S * p.padded_channels;
  Scratch<T> scratch;
  scratch.value_rows = memory;
  scratch.grad_rows = memory + rows;
  scratch.channels = memory + rows * (backward ? 2 : 1);
  scratch.points = scratch.channels + p.padded_channels;
  std::fill_n(scratch.points, 6 * p.padded_points, T(0));
  return scratch;
}

// Calls work(worker, task) for every task; a worker takes the next one when it is free, so uneven threads
// even out.
template <typename Work>
void run_tasks(int64_t tasks, int workers, const Work& work) {
  std::atomic<int64_t> next{0};
  const auto loop = [&](int worker) {
    for (int64_t task = next++; task < tasks; task = next++) work(worker, task);
  };
  std::vector<std::thread> threads;
  threads.reserve(workers - 1);
  for (int worker = 1; worker < workers; ++worker) {
    try {
      threads.emplace_back(loop, worker);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: those that run do all of it
    }
  }
  loop(0);
  for (std::thread& thread : threads) thread.join();
}

template <typename T>
void run(const Problem& p, bool backward, const std::vector<int64_t>& spatial_shapes, char* workspace,
         int num_threads) {
  const Kernels<T> kernels = choose_kernels<T>(p.D);
  const Plan plan = make_plan(p, backward, num_threads);
  const PointTable<T> table = fill_table<T>(p, spatial_shapes, workspace);
  std::vector<Scratch<T>> scratch;
  for (int i = 0; i < plan.workers; ++i)
    scratch.push_back(worker_scratch<T>(p, plan, backward, workspace, i));
  run_tasks(plan.tasks, plan.workers, [&](int worker, int64_t task) {
    const int64_t head = task / plan.chunks, chunk = task % plan.chunks;
    const int64_t b = head / p.K, k = head % p.K;
    if (backward) {
      kernels.backward(p, table, scratch[worker], b, k);
    } else {
      kernels.forward(p, table, scratch[worker], b, k, chunk * p.Q / plan.chunks,
                      (chunk + 1) * p.Q / plan.chunks);
    }
  });
}

void check(const Problem& p, const TensorView& value, const std::vector<int64_t>& spatial_shapes,
           const TensorView& locations, const TensorView& weights, const TensorView& workspace, bool backward,
           int num_threads) {
  int64_t area = 0;
  for (size_t i = 0; i + 1 < spatial_shapes.size(); i += 2) area += spatial_shapes[i] * spatial_shapes[i + 1];
  require(area == p.S, "spatial_shapes do not sum to the positions of value");
  require(p.S <= INT32_MAX, "more than 2^31 - 1 positions");
  require(weights.shape[0] == p.B && weights.shape[2] == p.K &&
              weights.shape[3] * 2 == static_cast<int64_t>(spatial_shapes.size()),
          "attention_weights do not fit value and spatial_shapes");
  require(locations.numel() == 2 * weights.numel(), "sampling_locations do not fit attention_weights");
  require(value.is_contiguous() && locations.is_contiguous() && weights.is_contiguous(),
          "expected contiguous inputs");
  require(locations.dtype == weights.dtype, "sampling_locations and attention_weights differ in dtype");
  const Plan plan = make_plan(p, backward, num_threads);
  require(workspace.dtype == DType::kUInt8 &&
              workspace.numel() >= plan.table_bytes + plan.workers * plan.worker_bytes,
          "workspace is too small");
}

void dispatch(const Problem& p, bool backward, const std::vector<int64_t>& spatial_shapes,
              const TensorView& workspace, int num_threads) {
  if (p.value_dtype == DType::kFloat64) {
    run<double>(p, backward, spatial_shapes, workspace.as<char>(), num_threads);
  } else {
    run<float>(p, backward, spatial_shapes, workspace.as<char>(), num_threads);
  }
}

}  // namespace

int64_t ms_deform_attn_workspace(const TensorView& value, const TensorView& attention_weights, bool backward,
                                 int num_threads) {
  require(value.ndim == 4 && attention_weights.ndim == 5,
          "expected value [B, S, K, D] and weights [B, Q, K, L, P]");
  const Plan plan = make_plan(make_problem(value, attention_weights), backward, num_threads);
  return plan.table_bytes + plan.workers * plan.worker_bytes;
}

void ms_deform_attn_cpu(const TensorView& value, const std::vector<int64_t>& spatial_shapes,
                        const TensorView& sampling_locations, const TensorView& attention_weights,
                        const TensorView& output, const TensorView& workspace, int num_threads) {
  require(value.ndim == 4 && attention_weights.ndim == 5,
          "expected value [B, S, K, D] and weights [B, Q, K, L, P]");
  Problem p = make_problem(value, attention_weights);
  check(p, value, spatial_shapes, sampling_locations, attention_weights, workspace, false, num_threads);
  require(output.is_contiguous() && output.dtype == value.dtype && output.numel() == p.B * p.Q * p.K * p.D,
          "output does not fit");
  p.value = value.data, p.locations = sampling_locations.data, p.weights = attention_weights.data;
  p.output = output.data;
  dispatch(p, false, spatial_shapes, workspace, num_threads);
}

void ms_deform_attn_backward_cpu(const TensorView& grad_output, const TensorView& value,
                                 const std::vector<int64_t>& spatial_shapes,
                                 const TensorView& sampling_locations, const TensorView& attention_weights,
                                 const TensorView& grad_value, const TensorView& grad_locations,
                                 const TensorView& grad_weights, const TensorView& workspace,
                                 int num_threads) {
  require(value.ndim == 4 && attention_weights.ndim == 5,
          "expected value [B, S, K, D] and weights [B, Q, K, L, P]");
  Problem p = make_problem(value, attention_weights);
  check(p, value, spatial_shapes, sampling_locations, attention_weights, workspace, true, num_threads);
  require(grad_output.is_contiguous() && grad_output.dtype == value.dtype &&
              grad_output.numel() == p.B * p.Q * p.K * p.D,
          "grad_output does not fit");
  const TensorView* pairs[][2] = {
      {&grad_value, &value}, {&grad_locations, &sampling_locations}, {&grad_weights, &attention_weights}};
  for (const auto& [grad, input] : pairs) {
    require(grad->is_contiguous() && grad->dtype == input->dtype && grad->numel() == input->numel(),
            "a gradient does not fit its input");
  }
  p.value = value.data, p.locations = sampling_locations.data, p.weights = attention_weights.data;
  p.grad_output = grad_output.data, p.grad_value = grad_value.data;
  p.grad_locations = grad_locations.data, p.grad_weights = grad_weights.data;
  dispatch(p, true, spatial_shapes, workspace, num_threads);
}

}  // namespace sohes
