// SPDX-License-Identifier: Apache-2.0
// merge_regions: exact greedy merging of adjacent regions, one merge tree per image. Similarity, ties, zero
// and non-finite features are defined by sohes/ops/reference/merge_regions.py.
//
// features      float32, float16 or bfloat16 [T, C], contiguous: the regions of B images, image after image
// grid_sizes    h and w of each image, T = sum of h*w; regions are adjacent to their 4-neighbours
// region_mask   bool [T], or none: false for regions without neighbours
// merges        int32 [T, 2], and similarity float32 [T]: an image with regions from row t on has its merges
//               from row t on; the rows after the last merge are -1 and 0
// num_merges    int32 [B]
//
// Results are bitwise equal for every processor and number of threads.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "sohes/tensor_view.h"

namespace sohes {

// Bytes of uint8 scratch for a batch of grids, or (num_edges >= 0) for a graph of grid_sizes[0] *
// grid_sizes[1] regions.
int64_t merge_regions_scratch(const std::vector<int64_t>& grid_sizes, int64_t num_edges, int64_t channels,
                              bool is_half, int num_threads, bool in_rounds);

// Up to num_threads threads merge one image each. `loops` names the instruction set, "" for the fastest of
// merge_regions_loops(). With `heights` (float32 [T]) all mutually best pairs are merged at once, in rounds,
// and min_similarity is ignored: see sohes/ops/reference/merge_rounds.py, which builds the tree from the
// merges and heights.
void merge_regions_cpu(const TensorView& features, const std::optional<TensorView>& region_mask,
                       const std::vector<int64_t>& grid_sizes, float min_similarity, int num_threads,
                       const std::string& loops, const TensorView& scratch, const TensorView& merges,
                       const TensorView& similarity, const TensorView& num_merges,
                       const std::optional<TensorView>& heights);

// One image as a general graph: edges int32 [E, 2] between different regions, in any order; they may repeat.
void merge_regions_graph_cpu(const TensorView& features, const TensorView& edges, float min_similarity,
                             const std::string& loops, const TensorView& scratch, const TensorView& merges,
                             const TensorView& similarity, const TensorView& num_merges,
                             const std::optional<TensorView>& heights);

// Names of the instruction sets with loops for this processor, fastest first.
std::vector<std::string> merge_regions_loops();

// Depth-first layout of a tree of merges int32 [M, 2] over N leaves on a grid of this width; R = N + M.
// counts int64 [R], starts and parents int32 [R], order int32 [N], boxes int32 [R, 4]: see
// sohes/ops/reference/merge_tree.py.
void merge_tree_layout(const TensorView& merges, int64_t width, const TensorView& counts,
                       const TensorView& starts, const TensorView& parents, const TensorView& order,
                       const TensorView& boxes);

// labels int32 [n, N]: the node at each leaf just before the first merge whose similarity (float32 [M]) is
// below each of n thresholds.
void merge_tree_cuts(const TensorView& similarity, const TensorView& counts, const TensorView& starts,
                     const TensorView& parents, const TensorView& order, const std::vector<float>& thresholds,
                     const TensorView& labels);

// The first `limit` of ids (int64 [n], best first) whose IoU with every better one is at most `iou`, to kept
// (int64 [min(limit, n)]); returns their number. Two nodes are nested or disjoint, so only ancestors and
// descendants of a similar area (int64 [R], no node larger than its parent) are visited. dropped bool [R],
// zeroed, is scratch.
int64_t merge_tree_distinct(const TensorView& merges, const TensorView& parents, const TensorView& areas,
                            const TensorView& ids, double iou, int64_t limit, const TensorView& dropped,
                            const TensorView& kept);

#ifdef SOHES_WITH_CUDA
// Table of the images for merge_regions_cuda, int64 [B, 4] to be copied to the device (first row, h, w,
// offset in the scratch), followed by the bytes of scratch. num_edges: of a general graph, -1 for grids.
std::vector<int64_t> merge_regions_cuda_table(const std::vector<int64_t>& grid_sizes, int64_t num_edges,
                                              bool in_rounds);

// Bytes of scratch of one image that is merged in rounds.
int64_t merge_rounds_cuda_bytes(int64_t num_regions, int64_t num_edges);

// merge_regions_cpu on a CUDA device and stream. `sums`, float32 [T, C], are the features; they are
// overwritten. `edges` (int32 [E, 2], then B = 1) replace the 4-neighbours of the grid. Bitwise repeatable.
void merge_regions_cuda(const TensorView& sums, const std::optional<TensorView>& edges,
                        const std::optional<TensorView>& region_mask, const std::vector<int64_t>& grid_sizes,
                        const TensorView& table, float min_similarity, const TensorView& scratch,
                        const TensorView& merges, const TensorView& similarity, const TensorView& num_merges,
                        uintptr_t stream);

// Merging in rounds, as merge_regions_cpu with `heights`.
void merge_rounds_cuda(const TensorView& sums, const std::optional<TensorView>& edges,
                       const std::optional<TensorView>& region_mask, const std::vector<int64_t>& grid_sizes,
                       const TensorView& table, const TensorView& scratch, const TensorView& merges,
                       const TensorView& similarity, const TensorView& num_merges, const TensorView& heights,
                       uintptr_t stream);
#endif

}  // namespace sohes
