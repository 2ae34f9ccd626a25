// SPDX-License-Identifier: Apache-2.0
// A baseline for bench_ms_deform_attn.py, written for it: the algorithm of Deformable DETR's CUDA operator.
// Forward has one thread for each number of the output, which reads its level's shape from device memory and
// single elements of value. Backward has one block for each (batch, query, head), one thread a channel:
// partial gradients of a point meet in shared memory, where one thread adds them up, and those of value are
// added atomically, one by one. float32, at most 1024 channels a head.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

__device__ float sample(const float* value, int height, int width, int K, int D, float y, float x, int k,
                        int d) {
  const int y0 = static_cast<int>(floorf(y)), x0 = static_cast<int>(floorf(x));
  const float fy = y - y0, fx = x - x0;
  const int row = width * K * D, base = k * D + d;
  float v00 = 0, v01 = 0, v10 = 0, v11 = 0;
  if (y0 >= 0 && x0 >= 0) v00 = value[y0 * row + x0 * K * D + base];
  if (y0 >= 0 && x0 + 1 <= width - 1) v01 = value[y0 * row + (x0 + 1) * K * D + base];
  if (y0 + 1 <= height - 1 && x0 >= 0) v10 = value[(y0 + 1) * row + x0 * K * D + base];
  if (y0 + 1 <= height - 1 && x0 + 1 <= width - 1) v11 = value[(y0 + 1) * row + (x0 + 1) * K * D + base];
  return (1 - fy) * (1 - fx) * v00 + (1 - fy) * fx * v01 + fy * (1 - fx) * v10 + fy * fx * v11;
}

__global__ void forward_kernel(int64_t count, const float* value, const int64_t* shapes,
                               const int64_t* starts, const float* locations, const float* weights, int S,
                               int K, int D, int L, int Q, int P, float* output) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{blockDim.x} * gridDim.x) {
    const int d = i % D, k = i / D % K;
    const int64_t row = i / D, b = i / D / K / Q;
    const float* of_batch = value + b * S * K * D;
    float sum = 0;
    for (int level = 0; level < L; ++level) {
      const int height = shapes[2 * level], width = shapes[2 * level + 1];
      for (int p = 0; p < P; ++p) {
        const int64_t at = (row * L + level) * P + p;
        const float x = locations[2 * at] * width - 0.5f, y = locations[2 * at + 1] * height - 0.5f;
        if (y <= -1 || x <= -1 || y >= height || x >= width) continue;
        sum += weights[at] * sample(of_batch + starts[level] * K * D, height, width, K, D, y, x, k, d);
      }
    }
    output[i] = sum;
  }
}

__global__ void backward_kernel(const float* grad_output, const float* value, const int64_t* shapes,
                                const int64_t* starts, const float* locations, const float* weights, int S,
                                int K, int L, int Q, int P, float* grad_value, float* grad_locations,
                                float* grad_weights) {
  extern __shared__ float partial[];  // [3, D]: x, y, weight
  const int D = blockDim.x, d = threadIdx.x;
  const int64_t row = blockIdx.x, b = row / K / Q;
  const int k = row % K;
  const float top = grad_output[row * D + d];
  for (int level = 0; level < L; ++level) {
    const int height = shapes[2 * level], width = shapes[2 * level + 1];
    const int64_t first = (b * S + starts[level]) * K * D + k * D + d;
    for (int p = 0; p < P; ++p) {
      const int64_t at = (row * L + level) * P + p;
      const float x = locations[2 * at] * width - 0.5f, y = locations[2 * at + 1] * height - 0.5f;
      float grad_x = 0, grad_y = 0, grad_weight = 0;
      if (y > -1 && x > -1 && y < height && x < width) {
        const int y0 = static_cast<int>(floorf(y)), x0 = static_cast<int>(floorf(x));
        for (int c = 0; c < 4; ++c) {
          const int cy = y0 + c / 2, cx = x0 + c % 2;
          if (cy < 0 || cx < 0 || cy >= height || cx >= width) continue;
          const float factor_y = c / 2 ? y - y0 : 1 - (y - y0), factor_x = c % 2 ? x - x0 : 1 - (x - x0);
          const int64_t pixel = first + (int64_t{cy} * width + cx) * K * D;
          const float v = value[pixel];
          atomicAdd(grad_value + pixel, factor_y * factor_x * weights[at] * top);
          grad_weight += factor_y * factor_x * v;
          grad_x += (c % 2 ? factor_y : -factor_y) * v;
          grad_y += (c / 2 ? factor_x : -factor_x) * v;
        }
      }
      partial[d] = width * grad_x * weights[at] * top;
      partial[D + d] = height * grad_y * weights[at] * top;
      partial[2 * D + d] = grad_weight * top;
      __syncthreads();
      if (d == 0) {
        float sums[3] = {};
        for (int i = 0; i < D; ++i) {
          for (int j = 0; j < 3; ++j) sums[j] += partial[j * D + i];
        }
        grad_locations[2 * at] = sums[0], grad_locations[2 * at + 1] = sums[1], grad_weights[at] = sums[2];
      }
      __syncthreads();
    }
  }
}

}  // namespace

extern "C" int forward(const float* value, const int64_t* shapes, const int64_t* starts,
                       const float* locations, const float* weights, int B, int S, int K, int D, int L, int Q,
                       int P, float* output, void* stream) {
  const int64_t count = int64_t{B} * Q * K * D;
  forward_kernel<<<(count + 1023) / 1024, 1024, 0, static_cast<cudaStream_t>(stream)>>>(
      count, value, shapes, starts, locations, weights, S, K, D, L, Q, P, output);
  return cudaGetLastError();
}

extern "C" int backward(const float* grad_output, const float* value, const int64_t* shapes,
                        const int64_t* starts, const float* locations, const float* weights, int B, int S,
                        int K, int D, int L, int Q, int P, float* grad_value, float* grad_locations,
                        float* grad_weights, void* stream) {
  backward_kernel<<<B * Q * K, D, 3 * D * sizeof(float), static_cast<cudaStream_t>(stream)>>>(
      grad_output, value, shapes, starts, locations, weights, S, K, L, Q, P, grad_value, grad_locations,
      grad_weights);
  return cudaGetLastError();
}
