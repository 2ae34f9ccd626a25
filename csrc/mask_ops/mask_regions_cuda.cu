// SPDX-License-Identifier: Apache-2.0
// Components, boundaries and resizing of packed masks on a CUDA device. As on the CPU, components are built
// from the runs of the columns, so that memory and time depend on the number of runs, not of pixels. A run is
// joined with the runs that it touches in the previous column, found by bisection, in a lock-free union-find
// forest. Links go from the higher run to the lower one and only decrease, so that the label of a component
// is its first run for any order of the threads. Words are read twice for the runs and written once; a run
// takes 24 bytes.
#include "device.cuh"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

// Bits of word k that lie in the first row of a column; moved by one, those after the last row.
__device__ Word first_rows(int64_t k, int64_t height) {
  Word bits = 0;
  for (int64_t p = (height - 64 * k % height) % height; p < 64; p += height) bits |= Word{1} << p;
  return bits;
}

// Words of one mask as the bits that equal `value`, and where runs of them begin and end.
struct Columns {
  const Word* words;
  int64_t num_words, height, num_pixels;
  bool value;

  __device__ Word at(int64_t k) const {
    if (k < 0 || k >= num_words) return 0;
    const int64_t count = num_pixels - 64 * k;
    const Word bits = value ? words[k] : ~words[k];
    return count >= 64 ? bits : bits & ((Word{1} << count) - 1);
  }

  __device__ Word begins(int64_t k) const {
    const Word own = at(k);
    return own & (~(own << 1 | at(k - 1) >> 63) | first_rows(k, height));
  }

  // Bit p: a run ends with pixel 64 * k + p.
  __device__ Word ends(int64_t k) const {
    const Word own = at(k);
    const Word lasts = first_rows(k, height) >> 1 | first_rows(k + 1, height) << 63;
    return own & (~(own >> 1 | at(k + 1) << 63) | lasts);
  }
};

__global__ void __launch_bounds__(kThreads) count_kernel(Columns masks, int64_t num, int64_t* num_runs) {
  __shared__ Word sum;
  for (int64_t n = blockIdx.x; n < num; n += gridDim.x) {
    Columns mask = masks;
    mask.words += n * masks.num_words;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    Word own = 0;
    for (int64_t k = threadIdx.x; k < mask.num_words; k += kThreads) own += __popcll(mask.begins(k));
    if (own) atomicAdd(&sum, own);
    __syncthreads();
    if (threadIdx.x == 0) num_runs[n] = static_cast<int64_t>(sum);
    __syncthreads();
  }
}

// Runs of all masks, those of mask n from first[n] on, in order; each is its own label.
struct Runs {
  const int64_t* first;  // [N + 1]
  int64_t *starts, *stops;
  Word* labels;
};

__global__ void __launch_bounds__(kThreads) runs_kernel(Columns masks, int64_t num, Runs runs) {
  for (int64_t n = blockIdx.x; n < num; n += gridDim.x) {
    Columns mask = masks;
    mask.words += n * masks.num_words;
    int64_t start = runs.first[n], stop = start;
    for (int64_t base = 0; base < mask.num_words; base += kThreads) {
      const int64_t k = base + threadIdx.x;
      Word begins = k < mask.num_words ? mask.begins(k) : 0, ends = k < mask.num_words ? mask.ends(k) : 0;
      unsigned total;
      int64_t at = start + add_up_before(static_cast<unsigned>(__popcll(begins)), total);
      for (; begins != 0; begins &= begins - 1, ++at) {
        runs.starts[at] = 64 * k + __ffsll(begins) - 1;
        runs.labels[at] = static_cast<Word>(at);
      }
      start += total;
      at = stop + add_up_before(static_cast<unsigned>(__popcll(ends)), total);
      for (; ends != 0; ends &= ends - 1, ++at) runs.stops[at] = 64 * k + __ffsll(ends);
      stop += total;
    }
  }
}

__device__ Word find_root(const Word* labels, Word run) {
  for (Word next = load_now(labels + run); next != run; next = load_now(labels + run)) run = next;
  return run;
}

__device__ void unite(Word* labels, Word a, Word b) {
  for (;;) {
    a = find_root(labels, a);
    b = find_root(labels, b);
    if (a == b) return;
    const Word low = a < b ? a : b, high = a < b ? b : a;
    const Word before = atomicMin(labels + high, low);
    if (before == high) return;  // it was a root until now
    a = before;                  // else what it was joined with has to be joined, too
    b = low;
  }
}

// A block goes through the runs of one mask. reach is 1 where runs that touch at a corner belong together.
__global__ void __launch_bounds__(kThreads)
    unite_kernel(int64_t num, int64_t height, int64_t reach, Runs runs) {
  for (int64_t n = blockIdx.x; n < num; n += gridDim.x) {
    const int64_t begin = runs.first[n], end = runs.first[n + 1];
    for (int64_t r = begin + threadIdx.x; r < end; r += kThreads) {
      const int64_t top = runs.starts[r] / height * height;  // of its column
      const int64_t above = runs.starts[r] - height - reach, below = runs.stops[r] - height + reach;
      const int64_t from = above > top - height ? above : top - height, to = below < top ? below : top;
      int64_t low = begin, high = r;  // the first run that ends past `from`
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (runs.stops[middle] > from) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      for (; low < r && runs.starts[low] < to; ++low) {
        unite(runs.labels, static_cast<Word>(low), static_cast<Word>(r));
      }
    }
  }
}

__global__ void roots_kernel(Word* labels, int64_t num_runs) {
  for (int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x; r < num_runs;
       r += int64_t{gridDim.x} * kThreads) {
    labels[r] = find_root(labels, static_cast<Word>(r));  // others may pass through it: it only comes closer
  }
}

// A thread sets the bits of one run in the mask that target names, if any. The words between its ends are its
// own.
__global__ void paint_kernel(const int64_t* starts, const int64_t* stops, const int64_t* target,
                             int64_t num_runs, Word* words, int64_t num_words) {
  for (int64_t r = int64_t{blockIdx.x} * kThreads + threadIdx.x; r < num_runs;
       r += int64_t{gridDim.x} * kThreads) {
    if (target[r] < 0) continue;
    Word* const row = words + target[r] * num_words;
    const int64_t k = starts[r] >> 6, last = (stops[r] - 1) >> 6;
    const Word head = ~Word{0} << (starts[r] & 63), tail = ~Word{0} >> (63 - ((stops[r] - 1) & 63));
    atomicOr(row + k, k == last ? head & tail : head);
    for (int64_t between = k + 1; between < last; ++between) row[between] = ~Word{0};
    if (k != last) atomicOr(row + last, tail);
  }
}

// A thread makes one word: what is inside, less what has all four neighbours inside. Moving by one bit
// crosses from column to column only at the first and last row, which are edge anyway.
__global__ void boundary_kernel(const Word* words, int64_t num, int64_t num_words, int64_t height,
                                int64_t num_pixels, Word* out) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < num * num_words;
       i += int64_t{gridDim.x} * kThreads) {
    const int64_t k = i % num_words, at = 64 * k;
    const Word* mask = words + i - k;
    const Word own = mask[k];
    if (own == 0) {
      out[i] = 0;
      continue;
    }
    const Word up = own << 1 | (k > 0 ? mask[k - 1] >> 63 : 0);
    const Word down = own >> 1 | (k + 1 < num_words ? mask[k + 1] << 63 : 0);
    const int64_t beyond = num_pixels - at - height;
    const Word right = beyond > 0 ? read_bits(mask, at + height, beyond < 64 ? beyond : 64) : 0;
    Word left = 0;
    if (at >= height) {
      left = read_bits(mask, at - height, 64);
    } else if (at + 64 > height) {
      left = read_bits(mask, 0, at + 64 - height) << (height - at);
    }
    const Word lasts = first_rows(k, height) >> 1 | first_rows(k + 1, height) << 63;
    out[i] = own & ~(up & down & left & right & ~first_rows(k, height) & ~lasts);
  }
}

// A thread makes one word of the new size, column by column of it.
__global__ void resize_kernel(const Word* words, int64_t num, int64_t num_words, int64_t height,
                              const int64_t* row_index, const int64_t* col_index, int64_t out_height,
                              int64_t out_pixels, int64_t out_words, Word* out) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < num * out_words;
       i += int64_t{gridDim.x} * kThreads) {
    const Word* mask = words + i / out_words * num_words;
    const int64_t begin = i % out_words * 64, end = begin + 64 < out_pixels ? begin + 64 : out_pixels;
    Word bits = 0;
    for (int64_t at = begin; at < end;) {
      const int64_t x = at / out_height, y0 = at % out_height;
      const int64_t stop = (x + 1) * out_height < end ? (x + 1) * out_height : end;
      const int64_t column = col_index[x] * height, first = row_index[y0];
      const int64_t count = row_index[y0 + stop - at - 1] + 1 - first;
      if (count <= 64) {  // the whole stretch at once; often nothing
        const Word source = read_bits(mask, column + first, count);
        for (int64_t y = y0; source != 0 && y < y0 + stop - at; ++y) {
          bits |= (source >> (row_index[y] - first) & 1) << (at + y - y0 - begin);
        }
      } else {
        for (int64_t y = y0; y < y0 + stop - at; ++y) {
          bits |= read_bits(mask, column + row_index[y], 1) << (at + y - y0 - begin);
        }
      }
      at = stop;
    }
    out[i] = bits;
  }
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_num_column_runs_cuda(const TensorView& words, int64_t height, int64_t width, bool value,
                               const TensorView& num_runs, uintptr_t stream) {
  const Columns masks = {words.as<Word>(), words.shape[1], height, height * width, value};
  if (words.shape[0] == 0) return;
  launch(count_kernel, grid_for(words.shape[0], 1), dim3(kThreads), stream, masks, words.shape[0],
         num_runs.as<int64_t>());
}

void mask_label_runs_cuda(const TensorView& words, int64_t height, int64_t width, bool value,
                          const TensorView& first, const TensorView& starts, const TensorView& stops,
                          const TensorView& labels, uintptr_t stream) {
  const int64_t num = words.shape[0], num_runs = labels.shape[0];
  if (num_runs == 0) return;
  const Columns masks = {words.as<Word>(), words.shape[1], height, height * width, value};
  const Runs runs = {first.as<int64_t>(), starts.as<int64_t>(), stops.as<int64_t>(), labels.as<Word>()};
  launch(runs_kernel, grid_for(num, 1), dim3(kThreads), stream, masks, num, runs);
  launch(unite_kernel, grid_for(num, 1), dim3(kThreads), stream, num, height, int64_t{value}, runs);
  launch(roots_kernel, grid_for(num_runs, kThreads), dim3(kThreads), stream, runs.labels, num_runs);
}

void mask_paint_runs_cuda(const TensorView& starts, const TensorView& stops, const TensorView& target,
                          const TensorView& words, uintptr_t stream) {
  const int64_t num_runs = starts.shape[0];
  if (num_runs == 0) return;
  launch(paint_kernel, grid_for(num_runs, kThreads), dim3(kThreads), stream, starts.as<int64_t>(),
         stops.as<int64_t>(), target.as<int64_t>(), num_runs, words.as<Word>(), words.shape[1]);
}

void mask_boundary_cuda(const TensorView& words, int64_t height, int64_t width, const TensorView& out,
                        uintptr_t stream) {
  if (words.numel() == 0) return;
  launch(boundary_kernel, grid_for(words.numel(), kThreads), dim3(kThreads), stream, words.as<Word>(),
         words.shape[0], words.shape[1], height, height * width, out.as<Word>());
}

void mask_resize_cuda(const TensorView& words, int64_t height, const TensorView& row_index,
                      const TensorView& col_index, const TensorView& out, uintptr_t stream) {
  if (out.numel() == 0) return;
  const int64_t out_height = row_index.shape[0];
  launch(resize_kernel, grid_for(out.numel(), kThreads), dim3(kThreads), stream, words.as<Word>(),
         words.shape[0], words.shape[1], height, row_index.as<int64_t>(), col_index.as<int64_t>(), out_height,
         out_height * col_index.shape[0], out.shape[1], out.as<Word>());
}

}  // namespace sohes
