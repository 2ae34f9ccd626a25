// SPDX-License-Identifier: Apache-2.0
// Multi-scale deformable attention on a CUDA device.
//
//   x = location_x * width - 0.5, y = location_y * height - 0.5; corner weights (1-fx)(1-fy) .. fx*fy
//   out[row]            = sum over points and corners of  attention * corner weight * value[corner]
//   grad_value[corner] += attention * corner weight * grad_out[row]
//   dot[corner]         = <grad_out[row], value[corner]>, from which the gradients of location and weight
//   follow
//
// A row is one (batch, query, head); a group of 1 to 32 lanes of a warp owns it, each lane a run of channels
// that one 128-bit load brings (or every so many-th channel where D or a pointer does not allow that). The
// block first places a chunk of points of all its rows, one thread a point, in shared memory; then each group
// walks through the points of its row. Backward adds to grad_value atomically: in float, not repeatable to
// the last bit, or where `units` is given as integers counted in 1 / units, which is.
//
// Bytes, for elements of e bytes and points of 4: from memory value, output, locations and weights once,
// B*K*((S + Q)*D*e + Q*L*P*12); from the L2 cache 4*D*e a point. With maps of 128, 64 and 32 a side, B = 8,
// K = 8, D = 32, 4 points, all positions as queries that is 0.55 GB from memory and 8.5 GB from L2 in
// float32, 0.37 and 4.2 GB in half types: bound by L2. Backward reads as much and adds 8.5 GB of float
// atomics in either type, which L2 carries out.
// Measured (H200, 2026-11-27, benchmarks/results/gpu.md): forward 1.6 ms in float32, 1.0 ms in bfloat16; with
// backward 4.2 and 3.7 ms.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <optional>
#include <type_traits>

#include "sohes/cuda_launch.cuh"
#include "sohes/ms_deform_attn.h"

namespace sohes {
namespace {

constexpr int kThreads = 128;
constexpr int kEntries = 512;  // points in shared memory: 14 KB of floats
constexpr int kMaxLevels = 64;

struct Levels {
  int height[kMaxLevels], width[kMaxLevels], start[kMaxLevels];
};

struct Sizes {
  int64_t num_rows;  // B*Q*K
  int64_t S, K, D, Q;
  int num_points, points_per_level;
  int lanes;  // of a group, a power of two
};

template <typename A>
struct Entry {
  int corner[4];      // positions in S, -1 beside the map; ordered (y, x) 00 01 10 11
  A x, y, attention;  // fractions; backward puts the gradients here in turn
};

template <typename V>
using Accumulator = std::conditional_t<std::is_same_v<V, double>, double, float>;

template <typename A, typename V>
__device__ A convert(V x) {
  if constexpr (std::is_same_v<V, __half>) {
    return __half2float(x);
  } else if constexpr (std::is_same_v<V, __nv_bfloat16>) {
    return __bfloat162float(x);
  } else {
    return x;
  }
}

template <typename V, typename A>
__device__ V round_to(A x) {
  if constexpr (std::is_same_v<V, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<V, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}

template <int kVector, typename V>
struct alignas(kVector * sizeof(V)) Pack {
  V x[kVector];
};

template <int kVector, typename V, typename A>
__device__ void load(const V* from, A (&to)[kVector]) {
  const Pack<kVector, V> pack = *reinterpret_cast<const Pack<kVector, V>*>(from);
#pragma unroll
  for (int i = 0; i < kVector; ++i) to[i] = convert<A>(pack.x[i]);
}

template <int kVector, typename V, typename A>
__device__ void store(V* to, const A (&from)[kVector]) {
  Pack<kVector, V> pack;
#pragma unroll
  for (int i = 0; i < kVector; ++i) pack.x[i] = round_to<V>(from[i]);
  *reinterpret_cast<Pack<kVector, V>*>(to) = pack;
}

// The pixel below a coordinate and the fraction above it. NaN fails the test and lands outside; the bounds
// keep the conversion to integer defined.
template <typename A>
__device__ int pixel_and_fraction(A location, int size, A& fraction) {
  A x = location * size - A(0.5);
  x = x > A(-2) ? x : A(-2);
  x = x < A(size) ? x : A(size);
  const A low = floor(x);
  fraction = x - low;
  return static_cast<int>(low);
}

// Entries [r * chunk + i] for the rows r of the block and the points first_point + i, i < count.
template <typename A, typename W>
__device__ void place_points(const Sizes& s, const Levels& levels, const W* locations, const W* weights,
                             int64_t first_row, int first_point, int count, int chunk, Entry<A>* entries) {
  const int rows = kThreads / s.lanes;
  for (int e = threadIdx.x; e < rows * count; e += kThreads) {
    const int r = e / count, i = e % count;
    Entry<A> entry = {{-1, -1, -1, -1}, A(0), A(0), A(0)};
    if (first_row + r < s.num_rows) {
      const int point = first_point + i, level = point / s.points_per_level;
      const int64_t at = (first_row + r) * s.num_points + point;
      const int height = levels.height[level], width = levels.width[level];
      const int x = pixel_and_fraction(convert<A>(locations[2 * at]), width, entry.x);
      const int y = pixel_and_fraction(convert<A>(locations[2 * at + 1]), height, entry.y);
      entry.attention = convert<A>(weights[at]);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int cx = x + c % 2, cy = y + c / 2;
        if (cx >= 0 && cx < width && cy >= 0 && cy < height) {
          entry.corner[c] = levels.start[level] + cy * width + cx;
        }
      }
    }
    entries[r * chunk + i] = entry;
  }
}

template <typename V, typename W, int kVector>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Sizes s, Levels levels, const V* value, const W* locations, const W* weights, V* output) {
  using A = Accumulator<V>;
  __shared__ Entry<A> entries[kEntries];
  const int rows = kThreads / s.lanes, chunk = kEntries / rows;
  const int r = threadIdx.x / s.lanes, lane = threadIdx.x % s.lanes;
  const int64_t first_row = int64_t{blockIdx.x} * rows, row = first_row + r;
  const V* head =
      value + (row / (s.Q * s.K) * s.S * s.K + row % s.K) * s.D;  // position 0 of this batch and head
  // One pass, unless a row is longer than a warp's loads.
  for (int64_t first = 0; first < s.D; first += s.lanes * kVector) {
    const int64_t d = first + lane * kVector;
    A sums[kVector] = {};
    for (int first_point = 0; first_point < s.num_points; first_point += chunk) {
      const int count = min(chunk, s.num_points - first_point);
      __syncthreads();
      place_points(s, levels, locations, weights, first_row, first_point, count, chunk, entries);
      __syncthreads();
      if (row >= s.num_rows || d >= s.D) continue;
      for (int i = 0; i < count; ++i) {
        const Entry<A>& entry = entries[r * chunk + i];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if (entry.corner[c] < 0) continue;
          A sample[kVector];
          load<kVector>(head + entry.corner[c] * s.K * s.D + d, sample);
          const A weight =
              entry.attention * (c % 2 ? entry.x : 1 - entry.x) * (c / 2 ? entry.y : 1 - entry.y);
#pragma unroll
          for (int v = 0; v < kVector; ++v) sums[v] += weight * sample[v];
        }
      }
    }
    if (row < s.num_rows && d < s.D) store<kVector>(output + row * s.D + d, sums);
  }
}

// One transaction where the hardware has it. `to` is aligned to 16 bytes.
__device__ void add_four(float* to, const float* parts) {
#if __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(to), make_float4(parts[0], parts[1], parts[2], parts[3]));
#else
#pragma unroll
  for (int v = 0; v < 4; ++v) atomicAdd(to + v, parts[v]);
#endif
}

// sums[offset ..] += parts. `units` null: floats; else integers counted in 1 / units.
template <int kVector, typename A>
__device__ void add_atomically(void* sums, int64_t offset, const A (&parts)[kVector], const double* units) {
  if (units != nullptr) {
    auto* to = static_cast<unsigned long long*>(sums) + offset;
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
      atomicAdd(to + v, static_cast<unsigned long long>(__double2ll_rn(double(parts[v]) * *units)));
    }
    return;
  }
  A* to = static_cast<A*>(sums) + offset;
  if constexpr (kVector % 4 == 0 && std::is_same_v<A, float>) {
#pragma unroll
    for (int v = 0; v < kVector; v += 4) add_four(to + v, parts + v);
  } else {
#pragma unroll
    for (int v = 0; v < kVector; ++v) atomicAdd(to + v, parts[v]);
  }
}

template <typename V, typename W, int kVector>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(Sizes s, Levels levels, const V* grad_output, const V* value, const W* locations,
                    const W* weights, void* grad_value, const double* units, W* grad_locations,
                    W* grad_weights) {
  using A = Accumulator<V>;
  __shared__ Entry<A> entries[kEntries];
  const int rows = kThreads / s.lanes, chunk = kEntries / rows;
  const int r = threadIdx.x / s.lanes, lane = threadIdx.x % s.lanes;
  const int64_t first_row = int64_t{blockIdx.x} * rows, row = first_row + r;
  const int64_t head =
      (row / (s.Q * s.K) * s.S * s.K + row % s.K) * s.D;  // position 0 of this batch and head
  const bool is_active = row < s.num_rows && lane * kVector < s.D;
  A grad[kVector] = {};
  if (is_active) load<kVector>(grad_output + row * s.D + lane * kVector, grad);
  for (int first_point = 0; first_point < s.num_points; first_point += chunk) {
    const int count = min(chunk, s.num_points - first_point);
    __syncthreads();
    place_points(s, levels, locations, weights, first_row, first_point, count, chunk, entries);
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      const Entry<A> entry = entries[r * chunk + i];
      A grad_x = 0, grad_y = 0, grad_weight = 0;
      for (int64_t d = lane * kVector; is_active && d < s.D; d += s.lanes * kVector) {
        if (s.D > s.lanes * kVector) load<kVector>(grad_output + row * s.D + d, grad);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if (entry.corner[c] < 0) continue;
          const int64_t at = head + entry.corner[c] * s.K * s.D + d;
          const A factor_x = c % 2 ? entry.x : 1 - entry.x, factor_y = c / 2 ? entry.y : 1 - entry.y;
          A sample[kVector], parts[kVector], dot = 0;
          load<kVector>(value + at, sample);
#pragma unroll
          for (int v = 0; v < kVector; ++v) {
            dot += grad[v] * sample[v];
            parts[v] = entry.attention * factor_x * factor_y * grad[v];
          }
          add_atomically<kVector>(grad_value, at, parts, units);
          grad_weight += factor_x * factor_y * dot;
          grad_x += (c % 2 ? factor_y : -factor_y) * dot;
          grad_y += (c / 2 ? factor_x : -factor_x) * dot;
        }
      }
      for (int step = s.lanes / 2; step > 0; step /= 2) {
        grad_x += __shfl_xor_sync(0xFFFFFFFFu, grad_x, step);
        grad_y += __shfl_xor_sync(0xFFFFFFFFu, grad_y, step);
        grad_weight += __shfl_xor_sync(0xFFFFFFFFu, grad_weight, step);
      }
      __syncwarp();  // all lanes hold their copy of the entry before it is overwritten
      if (lane == 0) {
        Entry<A>& result = entries[r * chunk + i];
        result.x = entry.attention * grad_x, result.y = entry.attention * grad_y;
        result.attention = grad_weight;
      }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < rows * count; e += kThreads) {
      if (first_row + e / count >= s.num_rows) continue;
      const Entry<A>& result = entries[e / count * chunk + e % count];
      const int point = first_point + e % count, level = point / s.points_per_level;
      const int64_t at = (first_row + e / count) * s.num_points + point;
      grad_locations[2 * at] = round_to<W>(result.x * levels.width[level]);
      grad_locations[2 * at + 1] = round_to<W>(result.y * levels.height[level]);
      grad_weights[at] = round_to<W>(result.attention);
    }
  }
}

Levels make_levels(const std::vector<int64_t>& spatial_shapes) {
  require(spatial_shapes.size() / 2 <= kMaxLevels, "ms_deform_attn: expected at most 64 levels");
  Levels levels = {};
  int64_t start = 0;
  for (size_t i = 0; i + 1 < spatial_shapes.size(); i += 2) {
    levels.height[i / 2] = static_cast<int>(spatial_shapes[i]);
    levels.width[i / 2] = static_cast<int>(spatial_shapes[i + 1]);
    levels.start[i / 2] = static_cast<int>(start);
    start += spatial_shapes[i] * spatial_shapes[i + 1];
  }
  require(start <= INT32_MAX, "ms_deform_attn: more than 2^31 - 1 positions");
  return levels;
}

// Channels of a lane in the forward pass: a load of 16 bytes. In the backward pass no more than four, so that
// the atomic additions of a row, four floats a lane, lie side by side in half types too.
int wide_vector(int64_t element_size, bool is_backward) {
  const int vector = static_cast<int>(16 / element_size);
  return is_backward ? std::min(vector, 4) : vector;
}

// Calls launch(V(), W(), integral_constant<kVector>) for the types of the tensors and the widest vectors they
// allow.
template <bool kIsBackward, typename Launch>
void dispatch(DType value, DType points, bool is_wide, const Launch& launch) {
  const auto by_width = [&](auto v, auto w) {
    constexpr int kLoad = 16 / sizeof(v), kWide = kIsBackward && kLoad > 4 ? 4 : kLoad;
    if (is_wide) {
      launch(v, w, std::integral_constant<int, kWide>());
    } else {
      launch(v, w, std::integral_constant<int, 1>());
    }
  };
  const bool has_float_points = points == DType::kFloat32;
  if (value == DType::kFloat32) {
    by_width(float(), float());
  } else if (value == DType::kFloat64) {
    by_width(double(), double());
  } else if (value == DType::kFloat16) {
    has_float_points ? by_width(__half(), float()) : by_width(__half(), __half());
  } else {
    has_float_points ? by_width(__nv_bfloat16(), float()) : by_width(__nv_bfloat16(), __nv_bfloat16());
  }
}

bool is_aligned(const TensorView& tensor) { return reinterpret_cast<uintptr_t>(tensor.data) % 16 == 0; }

int64_t element_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

Sizes make_sizes(const TensorView& value, const TensorView& weights, bool is_wide, bool is_backward) {
  Sizes s = {};
  s.S = value.shape[1], s.K = value.shape[2], s.D = value.shape[3], s.Q = weights.shape[1];
  s.num_rows = value.shape[0] * s.Q * s.K;
  s.points_per_level = static_cast<int>(weights.shape[4]);
  s.num_points = static_cast<int>(weights.shape[3] * weights.shape[4]);
  const int64_t vector = is_wide ? wide_vector(element_size(value.dtype), is_backward) : 1;
  s.lanes = 1;
  while (s.lanes < 32 && s.lanes * vector < s.D) s.lanes *= 2;
  return s;
}

unsigned num_blocks(const Sizes& s) {
  const int64_t rows = kThreads / s.lanes, blocks = (s.num_rows + rows - 1) / rows;
  require(blocks <= INT32_MAX, "ms_deform_attn: too many queries for one launch");
  return static_cast<unsigned>(blocks);
}

}  // namespace

void ms_deform_attn_cuda(const TensorView& value, const std::vector<int64_t>& spatial_shapes,
                         const TensorView& sampling_locations, const TensorView& attention_weights,
                         const TensorView& output, uintptr_t stream) {
  const bool is_wide =
      value.shape[3] * element_size(value.dtype) % 16 == 0 && is_aligned(value) && is_aligned(output);
  const Sizes s = make_sizes(value, attention_weights, is_wide, false);
  const Levels levels = make_levels(spatial_shapes);
  if (s.num_rows == 0) return;
  dispatch<false>(value.dtype, attention_weights.dtype, is_wide, [&](auto v, auto w, auto vector) {
    using V = decltype(v);
    using W = decltype(w);
    launch(forward_kernel<V, W, decltype(vector)::value>, num_blocks(s), kThreads, stream, s, levels,
           value.as<V>(), sampling_locations.as<W>(), attention_weights.as<W>(), output.as<V>());
  });
}

void ms_deform_attn_backward_cuda(const TensorView& grad_output, const TensorView& value,
                                  const std::vector<int64_t>& spatial_shapes,
                                  const TensorView& sampling_locations, const TensorView& attention_weights,
                                  const TensorView& grad_value, const std::optional<TensorView>& units,
                                  const TensorView& grad_locations, const TensorView& grad_weights,
                                  uintptr_t stream) {
  const bool is_wide = value.shape[3] * element_size(value.dtype) % 16 == 0 && is_aligned(value) &&
                       is_aligned(grad_output) && is_aligned(grad_value);
  const Sizes s = make_sizes(value, attention_weights, is_wide, true);
  const Levels levels = make_levels(spatial_shapes);
  if (s.num_rows == 0) return;
  dispatch<true>(value.dtype, attention_weights.dtype, is_wide, [&](auto v, auto w, auto vector) {
    using V = decltype(v);
    using W = decltype(w);
    launch(backward_kernel<V, W, decltype(vector)::value>, num_blocks(s), kThreads, stream, s, levels,
           grad_output.as<V>(), value.as<V>(), sampling_locations.as<W>(), attention_weights.as<W>(),
           grad_value.data, units ? units->as<double>() : nullptr, grad_locations.as<W>(),
           grad_weights.as<W>());
  });
}

}  // namespace sohes
