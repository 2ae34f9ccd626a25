// SPDX-License-Identifier: Apache-2.0
// COCO run-length encoding on a CUDA device: count the runs of each mask, write where each run stops, count
// the characters of each, write them. The caller adds up the counts between the steps. The words are read
// twice (0.84 GB for 1000 masks of 1500 x 2250), the rest follows the runs: some 30 bytes for each. Only the
// text then goes to the host: about 4 MB of those masks, 1 % of their words.
#include "device.cuh"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

// Bit p: pixel 64 * k + p differs from the one before it; the one before the first is outside.
__device__ Word changes(const Word* words, int64_t k, int64_t num_pixels) {
  const Word before = k > 0 ? words[k - 1] >> 63 : 0;
  const Word differ = words[k] ^ (words[k] << 1 | before);
  const int64_t count = num_pixels - 64 * k;
  return count >= 64 ? differ : differ & ((Word{1} << count) - 1);
}

__global__ void __launch_bounds__(kThreads) num_runs_kernel(const Word* words, int64_t num, int64_t num_words,
                                                            int64_t num_pixels, int64_t* num_runs) {
  __shared__ Word sum;
  for (int64_t n = blockIdx.x; n < num; n += gridDim.x) {
    if (threadIdx.x == 0) sum = 1;
    __syncthreads();
    Word own = 0;
    for (int64_t k = threadIdx.x; k < num_words; k += kThreads) {
      own += __popcll(changes(words + n * num_words, k, num_pixels));
    }
    if (own) atomicAdd(&sum, own);
    __syncthreads();
    if (threadIdx.x == 0) num_runs[n] = static_cast<int64_t>(sum);
    __syncthreads();
  }
}

// stops[first[n] + r]: the pixel past run r of mask n.
__global__ void __launch_bounds__(kThreads)
    run_stops_kernel(const Word* words, int64_t num, int64_t num_words, int64_t num_pixels,
                     const int64_t* first, int64_t* stops) {
  for (int64_t n = blockIdx.x; n < num; n += gridDim.x) {
    int64_t* out = stops + first[n];
    for (int64_t start = 0; start < num_words; start += kThreads) {
      const int64_t k = start + threadIdx.x;
      Word rest = k < num_words ? changes(words + n * num_words, k, num_pixels) : 0;
      unsigned total;
      int64_t* at = out + add_up_before(static_cast<unsigned>(__popcll(rest)), total);
      for (; rest != 0; rest &= rest - 1) *at++ = 64 * k + __ffsll(rest) - 1;
      out += total;
    }
    if (threadIdx.x == 0) *out = num_pixels;
  }
}

struct Runs {
  const int64_t* stops;  // [R]
  const int64_t* first;  // [N + 1]
  int64_t num_masks;

  // What is written for run r: its length, from the fourth of a mask on less that of the run two before it.
  __device__ int64_t number(int64_t r) const {
    int64_t low = 0, high = num_masks - 1;  // the mask is the last one that begins at or before r
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (first[middle] <= r) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const int64_t begin = first[low];
    const auto length = [&](int64_t run) { return stops[run] - (run > begin ? stops[run - 1] : 0); };
    return r - begin > 2 ? length(r) - length(r - 2) : length(r);
  }

  // Groups of 5 bits that a number needs, with room for its sign.
  static __device__ int groups(int64_t number) {
    return (64 - __clzll(static_cast<long long>(number ^ (number >> 63)))) / 5 + 1;
  }
};

__global__ void text_lengths_kernel(Runs runs, int64_t num_runs, int64_t* lengths) {
  for (int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x; r < num_runs;
       r += int64_t{gridDim.x} * kThreads) {
    lengths[r] = Runs::groups(runs.number(r));
  }
}

__global__ void text_kernel(Runs runs, int64_t num_runs, const int64_t* text_stops, uint8_t* text) {
  for (int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x; r < num_runs;
       r += int64_t{gridDim.x} * kThreads) {
    const int64_t number = runs.number(r);
    const int count = Runs::groups(number);
    uint8_t* at = text + text_stops[r] - count;
    for (int g = 0; g < count; ++g) {
      at[g] = static_cast<uint8_t>((number >> (5 * g) & 31) + (g + 1 < count ? 32 : 0) + 48);
    }
  }
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_num_runs_cuda(const TensorView& words, int64_t num_pixels, const TensorView& num_runs,
                        uintptr_t stream) {
  const int64_t num = words.shape[0];
  if (num == 0) return;
  launch(num_runs_kernel, grid_for(num, 1), dim3(kThreads), stream, words.as<Word>(), num, words.shape[1],
         num_pixels, num_runs.as<int64_t>());
}

void rle_stops_cuda(const TensorView& words, int64_t num_pixels, const TensorView& first,
                    const TensorView& stops, uintptr_t stream) {
  const int64_t num = words.shape[0];
  if (num == 0) return;
  launch(run_stops_kernel, grid_for(num, 1), dim3(kThreads), stream, words.as<Word>(), num, words.shape[1],
         num_pixels, first.as<int64_t>(), stops.as<int64_t>());
}

void rle_lengths_cuda(const TensorView& stops, const TensorView& first, const TensorView& lengths,
                      uintptr_t stream) {
  const int64_t num_runs = stops.shape[0];
  if (num_runs == 0) return;
  launch(text_lengths_kernel, grid_for(num_runs, kThreads), dim3(kThreads), stream,
         Runs{stops.as<int64_t>(), first.as<int64_t>(), first.shape[0] - 1}, num_runs, lengths.as<int64_t>());
}

void rle_text_cuda(const TensorView& stops, const TensorView& first, const TensorView& text_stops,
                   const TensorView& text, uintptr_t stream) {
  const int64_t num_runs = stops.shape[0];
  if (num_runs == 0) return;
  launch(text_kernel, grid_for(num_runs, kThreads), dim3(kThreads), stream,
         Runs{stops.as<int64_t>(), first.as<int64_t>(), first.shape[0] - 1}, num_runs,
         text_stops.as<int64_t>(), text.as<uint8_t>());
}

}  // namespace sohes
