// SPDX-License-Identifier: Apache-2.0
// Intersections of every pair on a CUDA device: out[i, j] = sum_v popcount(a[i, v] & b[j, v]).
//
// This is a matrix product of single bits, and tensor cores have it since sm_80: one mma.m16n8k256 counts 128
// pairs over 256 pixels. A block of 4 warps owns 64 x 64 pairs and a share of the words, which pass through
// shared memory 16 at a time: each is read N / 64 times, and a warp makes 8 mma of 8 loads. The masks are
// taken in an order of the caller's; where neighbours in it lie near each other a tile spans few words, and
// only the words between the columns that both sides of a tile reach are read. For 1000 masks of 1500 x 2250,
// drawn as in the benchmarks and ordered by place, a fifth of the words is left: 1.6 GB of reads, half of
// them from the second-level cache or better, and 3.6e11 bit products; either is well below a millisecond.
#include "device.cuh"
#include "sohes/mask_ops.h"

namespace sohes {
namespace mask_ops {
namespace {

constexpr int kSide = 64;         // masks on each side of a tile
constexpr int kDepth = 16;        // words of each at a time
constexpr int kRow = kDepth + 4;  // with padding: the 32 words that a warp loads at once lie in all banks
constexpr int kWarpsOverlap = 4;  // each owns 32 x 32 pairs
constexpr int kLoads = kSide * kDepth / (32 * kWarpsOverlap);  // words of each side that a thread brings in
constexpr int64_t kMost = int64_t{1} << 24;  // words between two flushes: counts of 32 bits hold 2^30 pixels

// c += popcount of (rows of a) & (rows of b), 16 x 8 pairs over 256 bits. Lane l holds of a the rows l / 4
// and l / 4 + 8, of b the row l / 4, of each the 64 bits number l % 4; of c the rows l / 4 and l / 4 + 8,
// columns 2 (l % 4) and the next. (The instruction wants its halves 128 bits apart: any order of the bits
// will do.)
__device__ inline void count_shared(int (&c)[4], Word a0, Word a1, Word b) {
  const unsigned a[4] = {static_cast<unsigned>(a0), static_cast<unsigned>(a1),
                         static_cast<unsigned>(a0 >> 32), static_cast<unsigned>(a1 >> 32)};
#ifdef SOHES_EMULATE_CUDA
  emulate_mma(c, a, static_cast<unsigned>(b), static_cast<unsigned>(b >> 32));
#else
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(static_cast<unsigned>(b)),
        "r"(static_cast<unsigned>(b >> 32)));
#endif
}

struct Masks {
  const Word* words;
  const int64_t* boxes;
  const int64_t* order;  // [num]
  int64_t num;
};

__global__ void __launch_bounds__(32 * kWarpsOverlap)
    overlap_kernel(Masks a, Masks b, int64_t num_words, int64_t height, bool same, Word* out) {
  __shared__ Word tile[2][kSide][kRow];
  __shared__ Word span[2][2];  // of each side the first word that one of its masks reaches, and past the last
  __shared__ int64_t id[2][kSide];
  if (same && blockIdx.x < blockIdx.y) return;  // the mirrored tile writes both
  const int thread = threadIdx.x, side = thread / kSide, place = thread % kSide;
  if (place == 0) {
    span[side][0] = Word{1} << 62;
    span[side][1] = 0;
  }
  __syncthreads();
  {
    const int64_t at = int64_t{side == 0 ? blockIdx.y : blockIdx.x} * kSide + place;
    const int64_t* const order = side == 0 ? a.order : b.order;
    const int64_t n = at < (side == 0 ? a.num : b.num) ? order[at] : -1;
    id[side][place] = n;
    const int64_t* box = (side == 0 ? a.boxes : b.boxes) + 4 * n;
    if (n >= 0 && box[0] < box[2]) {
      atomicMin(&span[side][0], static_cast<Word>((box[0] * height + box[1]) >> 6));
      atomicMax(&span[side][1], static_cast<Word>((((box[2] - 1) * height + box[3] - 1) >> 6) + 1));
    }
  }
  __syncthreads();
  const int64_t begin = static_cast<int64_t>(span[0][0] > span[1][0] ? span[0][0] : span[1][0]);
  const int64_t end = static_cast<int64_t>(span[0][1] < span[1][1] ? span[0][1] : span[1][1]);

  const int lane = thread % 32, group = lane / 4, member = lane % 4;
  const int top = thread / 64 * 32, left = thread / 32 % 2 * 32;  // of this warp's pairs within the tile
  const int64_t step = int64_t{gridDim.z} * kDepth, first = begin + int64_t{blockIdx.z} * kDepth;
  Word next[2][kLoads];
  const auto fetch = [&](int64_t start) {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int row = (thread + k * 32 * kWarpsOverlap) / kDepth, word = thread % kDepth;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        const bool inside = start + word < end && id[s][row] >= 0;
        const Word* const words = s == 0 ? a.words : b.words;
        next[s][k] = inside ? words[id[s][row] * num_words + start + word] : 0;
      }
    }
  };
  if (first < end) fetch(first);
  for (int64_t part = first; part < end; part += kMost / kDepth * step) {
    int counts[2][4][4] = {};
    const int64_t stop = end - part < kMost / kDepth * step ? end : part + kMost / kDepth * step;
    for (int64_t start = part; start < stop; start += step) {
      for (int k = 0; k < kLoads; ++k) {
        const int row = (thread + k * 32 * kWarpsOverlap) / kDepth, word = thread % kDepth;
        tile[0][row][word] = next[0][k];
        tile[1][row][word] = next[1][k];
      }
      __syncthreads();
      if (start + step < end) fetch(start + step);  // on its way while the tensor cores count
#pragma unroll
      for (int word = member; word < kDepth; word += 4) {
        Word of_b[4];
#pragma unroll
        for (int q = 0; q < 4; ++q) of_b[q] = tile[1][left + 8 * q + group][word];
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          const Word upper = tile[0][top + 16 * p + group][word];
          const Word lower = tile[0][top + 16 * p + group + 8][word];
#pragma unroll
          for (int q = 0; q < 4; ++q) count_shared(counts[p][q], upper, lower, of_b[q]);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < 32; ++k) {
      const int p = k / 16, q = k / 4 % 4, c = k % 4;
      const int64_t i = id[0][top + 16 * p + group + c / 2 * 8], j = id[1][left + 8 * q + 2 * member + c % 2];
      if (counts[p][q][c] == 0) continue;
      atomicAdd(out + i * b.num + j, static_cast<Word>(counts[p][q][c]));
      if (same && blockIdx.x != blockIdx.y) {
        atomicAdd(out + j * b.num + i, static_cast<Word>(counts[p][q][c]));
      }
    }
  }
}

}  // namespace
}  // namespace mask_ops

using namespace mask_ops;

void mask_overlap_cuda(const TensorView& words_a, const TensorView& boxes_a, const TensorView& order_a,
                       const TensorView& words_b, const TensorView& boxes_b, const TensorView& order_b,
                       int64_t height, const TensorView& out, uintptr_t stream) {
  const int64_t num_a = words_a.shape[0], num_b = words_b.shape[0], num_words = words_a.shape[1];
  if (num_a == 0 || num_b == 0 || num_words == 0) return;
  const int64_t tiles_a = (num_a + kSide - 1) / kSide, tiles_b = (num_b + kSide - 1) / kSide;
  require(tiles_a <= 65535, "mask_overlap: expected at most 4,194,240 masks on the left");
  // Few tiles leave the device idle, and they are uneven: each is shared by several blocks, of 8 steps or
  // more.
  const int64_t enough = 8192 / (tiles_a * tiles_b) + 1;
  const int64_t slices = std::clamp<int64_t>(num_words / (8 * kDepth), 1, std::min<int64_t>(enough, 64));
  const dim3 grid(static_cast<unsigned>(tiles_b), static_cast<unsigned>(tiles_a),
                  static_cast<unsigned>(slices));
  const bool same = words_a.data == words_b.data && order_a.data == order_b.data && num_a == num_b;
  const Masks a = {words_a.as<Word>(), boxes_a.as<int64_t>(), order_a.as<int64_t>(), num_a};
  const Masks b = {words_b.as<Word>(), boxes_b.as<int64_t>(), order_b.as<int64_t>(), num_b};
  launch(overlap_kernel, grid, dim3(32 * kWarpsOverlap), stream, a, b, num_words, height, same,
         out.as<Word>());
}

}  // namespace sohes
