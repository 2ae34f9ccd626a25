// SPDX-License-Identifier: Apache-2.0
// Multi-scale deformable attention on the CPU: sizes, scratch, selection of the instruction set, threads. The
// computation is in kernel_isa.h.
#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "kernel.h"
#include "sohes/ms_deform_attn.h"

namespace sohes {
namespace {

using deform::Kernels;
using deform::PointTable;
using deform::Problem;
using deform::Scratch;

enum class Isa { kBaseline, kAvx2, kAvx512 };

// What this processor has. Every one with AVX2 has F16C; a virtual one may hide it.
Isa find_isa() {
#ifdef __x86_64__
  unsigned a, b, c = 0, d;
  const bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  if (has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    return has_avx512 ? Isa::kAvx512 : Isa::kAvx2;
  }
#endif
  return Isa::kBaseline;
}

Isa isa() {
  static const Isa found = find_isa();
  return found;
}

template <typename T>
Kernels<T> choose_kernels(const Problem& p) {
#ifdef __x86_64__
  if (isa() == Isa::kAvx512) return deform::avx512::kernels<T>(p);
  if (isa() == Isa::kAvx2) return deform::avx2::kernels<T>(p);
#endif
  return deform::baseline::kernels<T>(p);
}

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Bytes of an element in the tensor, and where it is computed with.
int64_t stored_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }
int64_t computed_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// How the work is cut and what scratch it takes. Both follow from the sizes and the number of threads alone.
struct Plan {
  // A task is one (batch, head), or a part of its queries where heads are fewer than threads. Forward without
  // packed rows takes all heads of a smaller part instead: they share the cache lines around the same
  // positions.
  int64_t heads_per_task, parts, tasks;
  int workers;
  int64_t value_bytes, grad_bytes, small_bytes;  // of a worker's Scratch

  int64_t worker_bytes() const { return value_bytes + grad_bytes + small_bytes; }
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
  // Reading a value of this size where it lies is as fast as packing it; at 20 MB it takes up to 1.7 times as
  // long.
  constexpr int64_t kDirectBytes = 1 << 20;
  const bool has_few_visits = p.Q * p.num_points * 4 < p.S;
  p.whole = p.D == p.padded_channels && (value.dtype != DType::kFloat16 || isa() != Isa::kBaseline);
  p.direct = p.whole && (p.S * p.K * p.D * p.value_size <= kDirectBytes || has_few_visits);
  p.in_place = p.whole && p.value_size == size && has_few_visits;
  return p;
}

int64_t table_bytes(const Problem& p) {
  return round_up(5 * p.padded_points * computed_size(p.value_dtype), 64);
}

Plan make_plan(const Problem& p, bool backward, int num_threads) {
  // Starting a thread costs some 20 us, in which one moves a few hundred thousand elements.
  constexpr int64_t kElementsPerThread = 1 << 19;
  constexpr int64_t kQueriesPerTask = 64;
  const int64_t heads = p.B * p.K;
  const int64_t elements = heads * (p.Q * p.num_points * 4 + p.S) * p.D;
  const int64_t wanted = std::clamp<int64_t>(elements / kElementsPerThread, 1, std::max(num_threads, 1));
  const int64_t most_parts = std::max<int64_t>(p.Q, 1);
  Plan plan = {};
  plan.heads_per_task = plan.parts = 1;
  plan.tasks = heads;
  if (!backward && heads > 0) {
    plan.heads_per_task = p.direct ? p.K : 1;
    const int64_t for_threads =
        (p.direct ? 4 * wanted + p.B - 1 : wanted + heads - 1) / (heads / plan.heads_per_task);
    const int64_t for_cache = p.direct ? (p.Q + kQueriesPerTask - 1) / kQueriesPerTask : 1;
    plan.parts = std::min(std::max(for_threads, for_cache), most_parts);
    plan.tasks = heads / plan.heads_per_task * plan.parts;
  }
  plan.workers = static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(plan.tasks, 1)));
  const int64_t size = computed_size(p.value_dtype);
  const int64_t row_bytes = round_up(p.S * p.padded_channels * size, 64);
  plan.value_bytes = p.direct ? 0 : row_bytes;
  plan.grad_bytes = backward && !p.in_place ? row_bytes : 0;
  plan.small_bytes = round_up((p.padded_channels + 6 * p.padded_points) * size, 64);
  return plan;
}

int64_t workspace_bytes(const Problem& p, const Plan& plan) {
  return table_bytes(p) + plan.workers * plan.worker_bytes();
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
Scratch<T> worker_scratch(const Problem& p, const Plan& plan, char* workspace, int worker) {
  char* memory = workspace + table_bytes(p) + worker * plan.worker_bytes();
  Scratch<T> scratch;
  scratch.value_rows = reinterpret_cast<T*>(memory);
  scratch.grad_rows = reinterpret_cast<T*>(memory + plan.value_bytes);
  scratch.channels = reinterpret_cast<T*>(memory + plan.value_bytes + plan.grad_bytes);
  scratch.points = scratch.channels + p.padded_channels;
  std::fill_n(scratch.points, 6 * p.padded_points, T(0));
  return scratch;
}

// Calls work(worker, task) for every task, with dynamic scheduling.
//
// The caller is worker 0 and waits for tasks, not for threads: if the idle threads of an OpenMP pool keep the
// cores busy for milliseconds, a helper thread may start after all tasks are done. It then finds no task,
// does not access memory of the caller, and ends; the data that it reads lives as long as the thread.
template <typename Work>
void run_tasks(int64_t tasks, int workers, const Work& work) {
  struct Shared {
    int64_t tasks;
    const Work* work;
    std::atomic<int64_t> next{0}, done{0};

    void run(int worker) {
      for (int64_t task = next++; task < tasks; task = next++) {
        (*work)(worker, task);
        if (++done == tasks) done.notify_one();
      }
    }
  };
  const auto shared = std::make_shared<Shared>();
  shared->tasks = tasks;
  shared->work = &work;
  for (int worker = 1; worker < workers; ++worker) {
    try {
      std::thread([shared, worker] { shared->run(worker); }).detach();
    } catch (const std::system_error&) {
      break;  // no more threads available: the running ones do all tasks
    }
  }
  shared->run(0);
  for (int64_t done = shared->done; done < tasks; done = shared->done) shared->done.wait(done);
}

template <typename T>
void run(const Problem& p, bool backward, const std::vector<int64_t>& spatial_shapes, char* workspace,
         int num_threads) {
  const Kernels<T> kernels = choose_kernels<T>(p);
  const Plan plan = make_plan(p, backward, num_threads);
  const PointTable<T> table = fill_table<T>(p, spatial_shapes, workspace);
  std::vector<Scratch<T>> scratch;
  for (int i = 0; i < plan.workers; ++i) scratch.push_back(worker_scratch<T>(p, plan, workspace, i));
  run_tasks(plan.tasks, plan.workers, [&](int worker, int64_t task) {
    const int64_t first_head = task / plan.parts * plan.heads_per_task, part = task % plan.parts;
    for (int64_t head = first_head; head < first_head + plan.heads_per_task; ++head) {
      const int64_t b = head / p.K, k = head % p.K;
      if (backward) {
        kernels.backward(p, table, scratch[worker], b, k);
      } else {
        kernels.forward(p, table, scratch[worker], b, k, part * p.Q / plan.parts,
                        (part + 1) * p.Q / plan.parts);
      }
    }
  });
}

void check(const Problem& p, const TensorView& value, const std::vector<int64_t>& spatial_shapes,
           const TensorView& locations, const TensorView& weights, const std::optional<TensorView>& reference,
           const TensorView& workspace, bool backward, int num_threads) {
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
  require(!reference ||
              (reference->is_contiguous() && reference->numel() == 2 * p.Q &&
               reference->dtype == (p.value_dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32)),
          "reference_points do not fit");
  const Plan plan = make_plan(p, backward, num_threads);
  require(workspace.dtype == DType::kUInt8 && workspace.numel() >= workspace_bytes(p, plan),
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
  const Problem p = make_problem(value, attention_weights);
  return workspace_bytes(p, make_plan(p, backward, num_threads));
}

void ms_deform_attn_cpu(const TensorView& value, const std::vector<int64_t>& spatial_shapes,
                        const TensorView& sampling_locations, const TensorView& attention_weights,
                        const std::optional<TensorView>& reference_points, const TensorView& output,
                        const TensorView& workspace, int num_threads) {
  require(value.ndim == 4 && attention_weights.ndim == 5,
          "expected value [B, S, K, D] and weights [B, Q, K, L, P]");
  Problem p = make_problem(value, attention_weights);
  check(p, value, spatial_shapes, sampling_locations, attention_weights, reference_points, workspace, false,
        num_threads);
  require(output.is_contiguous() && output.dtype == value.dtype && output.numel() == p.B * p.Q * p.K * p.D,
          "output does not fit");
  p.value = value.data, p.locations = sampling_locations.data, p.weights = attention_weights.data;
  p.reference = reference_points ? reference_points->data : nullptr;
  p.output = output.data;
  dispatch(p, false, spatial_shapes, workspace, num_threads);
}

void ms_deform_attn_backward_cpu(const TensorView& grad_output, const TensorView& value,
                                 const std::vector<int64_t>& spatial_shapes,
                                 const TensorView& sampling_locations, const TensorView& attention_weights,
                                 const std::optional<TensorView>& reference_points,
                                 const TensorView& grad_value, const TensorView& grad_locations,
                                 const TensorView& grad_weights, const TensorView& workspace,
                                 int num_threads) {
  require(value.ndim == 4 && attention_weights.ndim == 5,
          "expected value [B, S, K, D] and weights [B, Q, K, L, P]");
  Problem p = make_problem(value, attention_weights);
  check(p, value, spatial_shapes, sampling_locations, attention_weights, reference_points, workspace, true,
        num_threads);
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
  p.reference = reference_points ? reference_points->data : nullptr;
  p.grad_output = grad_output.data, p.grad_value = grad_value.data;
  p.grad_locations = grad_locations.data, p.grad_weights = grad_weights.data;
  dispatch(p, true, spatial_shapes, workspace, num_threads);
}

}  // namespace sohes
