// SPDX-License-Identifier: Apache-2.0
// Non-maximum suppression and parents on a CUDA device, from rows of the matrix of intersections (reads 8
// bytes per pair, writes one bit per pair for duplicates). The greedy selection runs in one block, 64 masks
// at a time.
#include "device.cuh"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

// Rows of intersections of the masks first, first + 1, ... with all.
struct Rows {
  const int64_t* shared;  // [count, num]
  int64_t first, count, num;
  const int64_t* areas;  // [num]
  const int64_t* order;  // [num], the mask at each rank
  const int64_t* rank;   // [num], the rank of each mask
};

// Bit r of row rank[i]: the mask at rank r comes after i and is its duplicate. A thread makes 64 of them.
__global__ void duplicates_kernel(Rows rows, double threshold, int64_t num_words, Word* duplicates) {
  for (int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x; k < rows.count * num_words;
       k += int64_t{gridDim.x} * kThreads) {
    const int64_t row = k / num_words, i = rows.first + row, word = k % num_words, own = rows.rank[i];
    Word bits = 0;
    for (int64_t r = own > 64 * word ? own + 1 : 64 * word; r < 64 * (word + 1) && r < rows.num; ++r) {
      const int64_t j = rows.order[r], shared = rows.shared[row * rows.num + j];
      const int64_t all = rows.areas[i] + rows.areas[j] - shared;
      const bool over = r > own && static_cast<double>(shared) > threshold * static_cast<double>(all);
      bits |= Word{over} << (r - 64 * word);
    }
    duplicates[own * num_words + word] = bits;
  }
}

// keep[i]: no mask kept before i has it as a duplicate. dropped [num_words] is zero before.
__global__ void keep_kernel(const Word* duplicates, int64_t num, int64_t num_words, const int64_t* order,
                            Word* dropped, bool* keep) {
  __shared__ Word of_group[64];
  __shared__ Word kept;
  for (int64_t group = 0; group < num_words; ++group) {
    const int64_t first = 64 * group, count = num - first < 64 ? num - first : 64;
    if (threadIdx.x < count) of_group[threadIdx.x] = duplicates[(first + threadIdx.x) * num_words + group];
    __syncthreads();
    if (threadIdx.x == 0) {
      Word gone = dropped[group], stays = 0;
      for (int64_t k = 0; k < count; ++k) {
        if (gone >> k & 1) continue;
        stays |= Word{1} << k;
        gone |= of_group[k];
      }
      kept = stays;
    }
    __syncthreads();
    if (threadIdx.x < count) keep[order[first + threadIdx.x]] = kept >> threadIdx.x & 1;
    for (int64_t word = group + 1 + threadIdx.x; word < num_words; word += blockDim.x) {
      Word gone = dropped[word];
      for (Word rest = kept; rest != 0; rest &= rest - 1) {
        gone |= duplicates[(first + __ffsll(rest) - 1) * num_words + word];
      }
      dropped[word] = gone;
    }
    __syncthreads();
  }
}

// A block looks for the parent of one mask, kThreads candidates at a time.
__global__ void __launch_bounds__(kThreads) parents_kernel(Rows rows, double theta, int64_t* parents) {
  __shared__ Word best;
  for (int64_t row = blockIdx.x; row < rows.count; row += gridDim.x) {
    const int64_t i = rows.first + row;
    const double needed = theta * static_cast<double>(rows.areas[i]);
    if (threadIdx.x == 0) best = rows.num;
    __syncthreads();
    for (int64_t start = rows.rank[i] + 1; rows.areas[i] > 0 && start < rows.num; start += kThreads) {
      const int64_t r = start + threadIdx.x;
      if (r < rows.num) {
        const int64_t j = rows.order[r];
        const auto shared = static_cast<double>(rows.shared[row * rows.num + j]);
        const bool inside = shared >= needed && shared < theta * static_cast<double>(rows.areas[j]);
        if (inside) atomicMin(&best, static_cast<Word>(r));
      }
      __syncthreads();
      const bool is_found = best < static_cast<Word>(rows.num);
      __syncthreads();
      if (is_found) break;
    }
    if (threadIdx.x == 0) parents[i] = best < static_cast<Word>(rows.num) ? rows.order[best] : -1;
    __syncthreads();
  }
}

Rows rows_of(const TensorView& shared, int64_t first, const TensorView& areas, const TensorView& order,
             const TensorView& rank) {
  return {
      shared.as<int64_t>(), first, shared.shape[0], shared.shape[1], areas.as<int64_t>(), order.as<int64_t>(),
      rank.as<int64_t>()};
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_duplicates_cuda(const TensorView& shared, int64_t first, const TensorView& areas,
                          const TensorView& order, const TensorView& rank, double threshold,
                          const TensorView& duplicates, uintptr_t stream) {
  if (shared.numel() == 0) return;
  launch(duplicates_kernel, grid_for(shared.shape[0] * duplicates.shape[1], kThreads), dim3(kThreads), stream,
         rows_of(shared, first, areas, order, rank), threshold, duplicates.shape[1], duplicates.as<Word>());
}

void mask_keep_cuda(const TensorView& duplicates, const TensorView& order, const TensorView& dropped,
                    const TensorView& keep, uintptr_t stream) {
  if (duplicates.numel() == 0) return;
  launch(keep_kernel, dim3(1), dim3(1024), stream, duplicates.as<Word>(), duplicates.shape[0],
         duplicates.shape[1], order.as<int64_t>(), dropped.as<Word>(), keep.as<bool>());
}

void mask_parents_cuda(const TensorView& shared, int64_t first, const TensorView& areas,
                       const TensorView& order, const TensorView& rank, double theta,
                       const TensorView& parents, uintptr_t stream) {
  if (shared.numel() == 0) return;
  launch(parents_kernel, grid_for(shared.shape[0], 1), dim3(kThreads), stream,
         rows_of(shared, first, areas, order, rank), theta, parents.as<int64_t>());
}

}  // namespace sohes
