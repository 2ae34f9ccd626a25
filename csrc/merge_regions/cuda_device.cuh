// SPDX-License-Identifier: Apache-2.0
// Shared by the CUDA kernels of merging: the batch, the edges of an image, norms and similarities.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "sohes/cuda_launch.cuh"
#include "sohes/tensor_view.h"

namespace sohes::merging::device {

constexpr unsigned kFull = 0xffffffffu;

// One image of a batch: its first row in the tensors, its size, and the offset of its state in the scratch.
struct ImageSpan {
  int64_t first_row, height, width, scratch;
};

// Number of edges between 4-neighbours of a grid.
__host__ __device__ inline int64_t grid_edges(int64_t height, int64_t width) {
  return height * (width - 1) + (height - 1) * width;
}

__device__ inline double sum_of_warp(double value) {
  for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(kFull, value, step);
  return value;
}

// <a, b> / sqrt(<a, a> <b, b>) in float32; 0 if a feature has zero length, -inf if the result is not finite.
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

// Dot product by one warp of x (float or double) and a row. Six loads of 16 bytes per lane read 768 channels.
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

// The regions that edge e of a grid joins: first the h * (w - 1) edges to the right, then those downwards.
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

// Arguments of both kernels.
struct Batch {
  float* sums;  // [T, C], overwritten
  int64_t channels;
  const ImageSpan* images;     // [B]
  const int32_t* graph_edges;  // [E, 2] of a general graph, or null for 4-neighbours
  int64_t num_graph_edges;
  const bool* mask;  // [T] or null
  char* scratch;
  int32_t* merges;      // [T, 2]
  float* similarity;    // [T]
  int32_t* num_merges;  // [B]

  __device__ int64_t num_edges(const ImageSpan& image) const {
    return graph_edges != nullptr ? num_graph_edges : grid_edges(image.height, image.width);
  }

  // Reads the regions that edge e joins. False if the mask excludes one of them.
  __device__ bool read_edge(const ImageSpan& image, int64_t e, int32_t* u, int32_t* v) const {
    if (graph_edges != nullptr) {
      *u = graph_edges[2 * e];
      *v = graph_edges[2 * e + 1];
    } else {
      grid_edge(e, image.height, image.width, u, v);
    }
    return mask == nullptr || (mask[image.first_row + *u] && mask[image.first_row + *v]);
  }

  // Writes the squared lengths of the n rows of an image, one row per warp.
  template <int kWarps>
  __device__ void write_norms(const ImageSpan& image, int64_t n, double* norms) const {
    const float* rows = sums + image.first_row * channels;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int64_t i = warp; i < n; i += kWarps) {
      const float* row = rows + i * channels;
      const double norm = warp_dot(row, row, channels, lane);
      if (lane == 0) norms[i] = norm;
    }
  }
};

// Checks the tensors of a call and takes their pointers.
inline Batch make_batch(const TensorView& sums, const std::optional<TensorView>& edges,
                        const std::optional<TensorView>& region_mask, const std::vector<int64_t>& grid_sizes,
                        const TensorView& table, const TensorView& scratch, const TensorView& merges,
                        const TensorView& similarity, const TensorView& num_merges) {
  require(sums.dtype == DType::kFloat32 && sums.ndim == 2 && sums.is_contiguous(),
          "merge_regions: expected sums contiguous float32 [T, C]");
  require(table.numel() * 2 == static_cast<int64_t>(grid_sizes.size()) * 4,
          "merge_regions: expected a table [B, 4]");
  return {sums.as<float>(),
          sums.shape[1],
          table.as<const ImageSpan>(),
          edges ? edges->as<const int32_t>() : nullptr,
          edges ? edges->shape[0] : 0,
          region_mask ? region_mask->as<const bool>() : nullptr,
          scratch.as<char>(),
          merges.as<int32_t>(),
          similarity.as<float>(),
          num_merges.as<int32_t>()};
}

}  // namespace sohes::merging::device
