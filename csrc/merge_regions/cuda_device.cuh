// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels of merging share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "sohes/cuda_launch.cuh"

namespace sohes::merging::device {

constexpr unsigned kFull = 0xffffffffu;

// Where an image's state lies: its first row, its number of regions and of edges, and its place in the
// scratch.
struct ImageSpan {
  int64_t first_row, height, width, scratch;
};

__device__ inline double sum_of_warp(double value) {
  for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(kFull, value, step);
  return value;
}

// <a, b> / sqrt(<a, a> <b, b>) in float32; 0 beside a feature of zero length, -inf where it is not a finite
// number.
__device__ inline float similarity_of(double dot, double norm_a, double norm_b) {
  const double square = norm_a * norm_b;
  if (square == 0) return 0.0f;
  const double value = dot / sqrt(square);
  return isfinite(value) ? static_cast<float>(value) : -INFINITY;
}

// Four neighbouring channels as doubles: from memory, or from the sum in shared memory.
struct Four {
  double x, y, z, w;
};

__device__ inline Four load4(const float* from) {
  const float4 values = *reinterpret_cast<const float4*>(from);
  return {values.x, values.y, values.z, values.w};
}

__device__ inline Four load4(const double* from) { return {from[0], from[1], from[2], from[3]}; }

// One warp's dot product of x (float or double) and a row. Six loads of 16 bytes a lane cover 768 channels at
// once.
template <typename T>
__device__ double warp_dot(const T* x, const float* row, int64_t channels, int lane) {
  double sum = 0;
  if (channels % 4 == 0) {
#pragma unroll 6
    for (int64_t c = 4 * lane; c < channels; c += 128) {
      const Four p = load4(x + c), q = load4(row + c);
      sum += (p.x * q.x + p.y * q.y) + (p.z * q.z + p.w * q.w);
    }
  } else {
    for (int64_t c = lane; c < channels; c += 32)
      sum += static_cast<double>(x[c]) * static_cast<double>(row[c]);
  }
  return sum_of_warp(sum);
}

// The ends of edge e of a grid: first the h * (w - 1) to the right, then those downwards.
__device__ inline void grid_edge(int64_t e, int64_t height, int64_t width, int32_t* u, int32_t* v) {
  const int64_t num_right = height * (width - 1);
  if (e < num_right) {
    *u = static_cast<int32_t>(e / (width - 1) * width + e % (width - 1));
    *v = *u + 1;
  } else {
    *u = static_cast<int32_t>(e - num_right);
    *v = *u + static_cast<int32_t>(width);
  }
}

inline int64_t grid_edges(int64_t height, int64_t width) {
  return height * (width - 1) + (height - 1) * width;
}

}  // namespace sohes::merging::device
