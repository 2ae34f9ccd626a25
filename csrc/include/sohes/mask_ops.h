// SPDX-License-Identifier: Apache-2.0
// Sets of packed binary masks: N masks of H x W pixels as int64 words [N, V], V = ceil(H * W / 64).
// Pixel (y, x) is flat bit i = x * H + y (column-major, as in COCO RLE), in word i / 64 at position i % 64;
// the bits past H * W are zero. Boxes are int64 [N, 4]: x0, y0, x1, y1, half-open, zeros for an empty mask.
// All offsets have 64 bits. The functions do not allocate, are bitwise repeatable for any number of threads,
// and take contiguous tensors unless stated otherwise. N = 0 and H * W = 0 are legal. "zeroed" means that the
// caller passes zeros, preferably new memory from the system.
#pragma once

#include <cstdint>

#include "sohes/tensor_view.h"

namespace sohes {

// dense bool / uint8 [N, H, W] (non-zero is inside) -> words, areas [N], boxes. The pixels of a row, or of a
// mask in column-major order, are contiguous; masks and rows may have any strides. Either words are zeroed
// and scratch is empty, or scratch, int64 [num_threads, V], is zeroed (also on return) and every word is
// written once with non-temporal stores: better for reused memory.
void mask_pack(const TensorView& dense, const TensorView& scratch, const TensorView& words,
               const TensorView& areas, const TensorView& boxes, int num_threads);

// index int64 [W, H] of the mask at each pixel, or -1 -> words (zeroed).
void mask_from_index(const TensorView& index, const TensorView& words);

// leaves int64 [W, H]: the leaf of each pixel, 0..L - 1. orders int64 [T, L]: the leaves of each of T trees,
// depth first. nodes int64 [N, 3]: mask n has the pixels of leaves orders[tree, start .. stop - 1], for
// (tree, start, stop) = nodes[n], and with `fill` its holes filled. -> words (zeroed), areas [N], boxes.
// Scratch, of which no more is touched than the data need: runs int64 [2 * H * W + 5 * L + 1], and with
// `fill` holes int64 [num_threads, 2 * W * (H + 1)]. Allocates a few lists of N integers, unlike the other
// functions.
void mask_from_nodes(const TensorView& leaves, const TensorView& orders, const TensorView& nodes, bool fill,
                     const TensorView& runs, const TensorView& holes, const TensorView& words,
                     const TensorView& areas, const TensorView& boxes, int num_threads);

// words -> dense bool [N, H, W].
void mask_unpack(const TensorView& words, const TensorView& dense, int num_threads);

// Bilinear upsampling, threshold and packing in one pass, without upsampled masks in memory.
//   d = clamp(logits - threshold, -1e30, 1e30), NaN as -1e30, 0 < d < 1e-30 as 0                   [h, w]
//   c[y', x] = d[y', k] * (1 - col_weight[x]) + d[y', min(k + 1, w - 1)] * col_weight[x],  k = col_index[x]
//   inside(y, x) = c[j, x] * (1 - row_weight[y]) + c[min(j + 1, h - 1), x] * row_weight[y] > 0
// where j is the source row of y: row_start[j] <= y < row_start[j + 1]. logits float32 [N, h, w]; row_start
// int64 [h + 1], col_index int64 [W]; weights float32 [H] and [W] in 0..1; words zeroed; scratch int64
// [num_threads, mask_pack_logits_scratch].
int64_t mask_pack_logits_scratch(int64_t height, int64_t width);
void mask_pack_logits(const TensorView& logits, float threshold, const TensorView& row_start,
                      const TensorView& row_weight, const TensorView& col_index, const TensorView& col_weight,
                      const TensorView& scratch, const TensorView& words, const TensorView& areas,
                      const TensorView& boxes, int num_threads);

// Masks index[k] (int64 [K], each in 0..N - 1) of words -> out [K, V] (zeroed). Reads and writes only words
// inside the boxes.
void mask_take(const TensorView& words, const TensorView& boxes, int64_t height, const TensorView& index,
               const TensorView& out, int num_threads);

// words -> areas [N], boxes.
void mask_stats(const TensorView& words, int64_t height, int64_t width, const TensorView& areas,
                const TensorView& boxes, int num_threads);

// out[i, j] = sum_v popcount(a[i, v] & b[j, v]), int64 [N, M]. The time of a pair is proportional
// to the intersection of its boxes; one set with itself takes half the time. scratch int64
// [mask_overlap_scratch].
int64_t mask_overlap_scratch(const TensorView& words_a, const TensorView& boxes_a, const TensorView& words_b,
                             const TensorView& boxes_b, int64_t height);
void mask_overlap(const TensorView& words_a, const TensorView& boxes_a, const TensorView& words_b,
                  const TensorView& boxes_b, int64_t height, const TensorView& scratch, const TensorView& out,
                  int num_threads);

// keep[i] (bool [N]): i is in `order` (int64 [K], distinct, best first), and no mask kept before it has an
// IoU above `threshold` with i. kept int64 [K] is scratch.
void mask_nms(const TensorView& words, const TensorView& areas, const TensorView& boxes,
              const TensorView& order, double threshold, int64_t height, const TensorView& kept,
              const TensorView& keep);

// parents[i] (int64 [N]): the first mask j in `order` (int64 [N], smallest area first) with |i & j| >=
// theta * |i| and |i & j| < theta * |j|, else -1; -1 for an empty mask. 0 < theta <= 1.
void mask_parents(const TensorView& words, const TensorView& areas, const TensorView& boxes,
                  const TensorView& order, double theta, int64_t height, const TensorView& parents,
                  int num_threads);

// Pairs i < j with |i & j| >= min_iou * |i | j| > 0, in two steps. The first writes (i, j, |i & j|) to rows
// of found, int64 [capacity, 3], in any order, and returns the number of pairs; those beyond the capacity are
// counted, not written. order int64 [N]: smallest area first. scratch int64 [mask_pairs_scratch]. The second
// sorts all of them into pairs int64 [E, 2], by (i, j), with iou float32 [E]. starts int64 [N + 1] is
// scratch.
int64_t mask_pairs_scratch(int64_t num_masks);
int64_t mask_find_pairs(const TensorView& words, const TensorView& areas, const TensorView& boxes,
                        const TensorView& order, double min_iou, int64_t height, const TensorView& scratch,
                        const TensorView& found, int num_threads);
void mask_sort_pairs(const TensorView& found, const TensorView& areas, const TensorView& starts,
                     const TensorView& pairs, const TensorView& iou, int num_threads);

// Number of runs of each mask in COCO RLE (the first may have length 0), int64 [N]. With boxes (or an empty
// tensor) only words inside the boxes are read.
void mask_num_runs(const TensorView& words, int64_t num_pixels, const TensorView& boxes, int64_t height,
                   const TensorView& num_runs, int num_threads);

// Compressed COCO RLE. Mask n is written to text[offsets[n]..] and its length to lengths[n]. Its slot needs
// bits / 5 + 1 characters per run, for the bits of num_pixels, and kRleSlack more. H * W < 2^38. Boxes as
// above.
constexpr int64_t kRleSlack = 8;
void rle_encode(const TensorView& words, int64_t num_pixels, const TensorView& boxes, int64_t height,
                const TensorView& offsets, const TensorView& text, const TensorView& lengths,
                int num_threads);

// Compressed COCO RLE, mask n at text[offsets[n]..offsets[n + 1]] -> words (zeroed). ok[n] (bool) is false,
// and the words of the mask are undefined, if the text is not RLE of exactly num_pixels pixels.
void rle_decode(const TensorView& text, const TensorView& offsets, int64_t num_pixels,
                const TensorView& words, const TensorView& ok, int num_threads);

// Foreground is 8-connected and background 4-connected, so that a closed line has an inside.
// scratch int64 [num_threads, 4 * (runs + W)], with runs the maximum of mask_num_runs.
void mask_count_components(const TensorView& words, int64_t height, int64_t width, const TensorView& scratch,
                           const TensorView& counts, int num_threads);
// Component k of mask n, in the order of their first pixels, goes to row first[n] + k of out (zeroed).
void mask_components(const TensorView& words, int64_t height, int64_t width, const TensorView& scratch,
                     const TensorView& first, const TensorView& out, int num_threads);
// The largest component, into out (zeroed); of equal ones the one with the first pixel.
void mask_largest_component(const TensorView& words, int64_t height, int64_t width, const TensorView& scratch,
                            const TensorView& out, int num_threads);
// The mask with the background regions filled that do not touch the border of the image.
void mask_fill_holes(const TensorView& words, int64_t height, int64_t width, const TensorView& scratch,
                     const TensorView& out, int num_threads);

// The pixels of the mask with a 4-neighbour outside the mask or the image.
void mask_boundary(const TensorView& words, int64_t height, int64_t width, const TensorView& out,
                   int num_threads);

// Nearest pixel by centres: out(y, x) = in(row(y), col_index[x]), row(y) = r where row_start[r] <= y <
// row_start[r + 1]. row_start int64 [H_in + 1], col_index int64 [W_out]; out zeroed.
void mask_resize(const TensorView& words, int64_t height, const TensorView& row_start,
                 const TensorView& col_index, int64_t out_height, const TensorView& out, int num_threads);

#ifdef SOHES_WITH_CUDA
// The same functions on a CUDA device and stream. Words, areas, boxes and out are zeroed.
void mask_pack_cuda(const TensorView& dense, const TensorView& words, const TensorView& areas,
                    const TensorView& boxes, uintptr_t stream);  // dense of any strides
void mask_from_index_cuda(const TensorView& index, const TensorView& words, uintptr_t stream);
void mask_unpack_cuda(const TensorView& words, const TensorView& dense, uintptr_t stream);
void mask_stats_cuda(const TensorView& words, int64_t height, int64_t width, const TensorView& areas,
                     const TensorView& boxes, uintptr_t stream);
// row_index int64 [H]: the source row j of each y.
void mask_pack_logits_cuda(const TensorView& logits, float threshold, const TensorView& row_index,
                           const TensorView& row_start, const TensorView& row_weight,
                           const TensorView& col_index, const TensorView& col_weight, const TensorView& words,
                           const TensorView& areas, const TensorView& boxes, uintptr_t stream);
// order int64 [N] and [M]: a permutation of the masks, fastest if it puts nearby masks side by side.
void mask_overlap_cuda(const TensorView& words_a, const TensorView& boxes_a, const TensorView& order_a,
                       const TensorView& words_b, const TensorView& boxes_b, const TensorView& order_b,
                       int64_t height, const TensorView& out, uintptr_t stream);

// mask_nms and mask_parents in steps: `shared` int64 [n, N] are rows first, first + 1, ... of the
// intersections of all pairs; rank int64 [N] is the position of each mask in `order`. Bit r of row rank[i] of
// duplicates (int64 [N, ceil(N / 64)]): the mask at rank r > rank[i] duplicates i.
void mask_duplicates_cuda(const TensorView& shared, int64_t first, const TensorView& areas,
                          const TensorView& order, const TensorView& rank, double threshold,
                          const TensorView& duplicates, uintptr_t stream);
void mask_keep_cuda(const TensorView& duplicates, const TensorView& order, const TensorView& dropped,
                    const TensorView& keep, uintptr_t stream);  // dropped int64 [ceil(N / 64)], zeroed
void mask_parents_cuda(const TensorView& shared, int64_t first, const TensorView& areas,
                       const TensorView& order, const TensorView& rank, double theta,
                       const TensorView& parents, uintptr_t stream);

// rle_encode in steps. first int64 [N + 1]: the sums of num_runs before each mask; stops int64 [R]: the pixel
// after each run; lengths int64 [R]: the characters of each, text_stops their sums including it.
void mask_num_runs_cuda(const TensorView& words, int64_t num_pixels, const TensorView& num_runs,
                        uintptr_t stream);
void rle_stops_cuda(const TensorView& words, int64_t num_pixels, const TensorView& first,
                    const TensorView& stops, uintptr_t stream);
void rle_lengths_cuda(const TensorView& stops, const TensorView& first, const TensorView& lengths,
                      uintptr_t stream);
void rle_text_cuda(const TensorView& stops, const TensorView& first, const TensorView& text_stops,
                   const TensorView& text, uintptr_t stream);

// Components in steps, from the runs of the columns of the masks: maximal sequences of pixels of one column
// that equal `value`. num_runs int64 [N]; first int64 [N + 1]: their sums before each mask. starts, stops
// int64 [R]: flat bits of the runs, in order; labels int64 [R]: the first run of the component, 8-connected
// inside and 4-connected outside.
void mask_num_column_runs_cuda(const TensorView& words, int64_t height, int64_t width, bool value,
                               const TensorView& num_runs, uintptr_t stream);
void mask_label_runs_cuda(const TensorView& words, int64_t height, int64_t width, bool value,
                          const TensorView& first, const TensorView& starts, const TensorView& stops,
                          const TensorView& labels, uintptr_t stream);
// Sets the bits of run r in mask target[r] (int64 [R]) of words; negative targets are skipped.
void mask_paint_runs_cuda(const TensorView& starts, const TensorView& stops, const TensorView& target,
                          const TensorView& words, uintptr_t stream);
void mask_boundary_cuda(const TensorView& words, int64_t height, int64_t width, const TensorView& out,
                        uintptr_t stream);
// row_index int64 [H_out], col_index int64 [W_out]: the source row and column of each.
void mask_resize_cuda(const TensorView& words, int64_t height, const TensorView& row_index,
                      const TensorView& col_index, const TensorView& out, uintptr_t stream);
#endif

}  // namespace sohes
