// SPDX-License-Identifier: Apache-2.0
// Evaluation of predicted masks from COCO JSON: one pass over the bytes of a file gives runs, pairs and
// matches, without a Python object per annotation. Results are defined by sohes/evaluation/reference, bit by
// bit. Input that is not supported here (string ids, polygons, invalid JSON) is rejected, and the reference
// reads it or raises the error. The functions do not allocate, are bitwise repeatable and thread-safe, and
// take contiguous tensors.
#pragma once

#include <array>

#include "sohes/tensor_view.h"

namespace sohes {

// Reads the objects of a JSON array, from the first character of one, and groups consecutive ones with the
// same "image_id". text uint8 [B]; begin in 0..B. Group k: groups[k] (int64 [K, 5]) holds the first byte of
// its first object, the byte past its last, first byte and byte past the value of "image_id", and the number
// of objects. Returns {groups, position after the last object read, whether some object has an "annotator" (0
// or 1), the number of objects whose "segmentation" is missing, null, [] or {}}. Stops at the end of the
// array or text, at K groups, and before an object whose "image_id" is not a number or string, that is not
// strict ASCII JSON, or nests deeper than 32.
std::array<int64_t, 4> coco_groups(const TensorView& text, int64_t begin, const TensorView& groups);

// Columns of coco_records. `kHas` holds the kHas... bits of the fields that exist; missing fields are 0.
enum CocoColumn : int {
  kHas,
  kId,
  kParent,
  kCategory,
  kAnnotator,
  kCrowd,
  kHeight,
  kWidth,
  kCounts,
  kCountsEnd
};
constexpr int kCocoColumns = 10;
enum CocoNumber : int { kScore, kArea, kBox };  // a box takes four
constexpr int kCocoNumbers = 6;
enum CocoHas : int {
  kHasId = 1,
  kHasParentKey = 2,
  kHasParent = 4,  // not null
  kHasCategory = 8,
  kHasAnnotator = 16,
  kHasScore = 32,
  kHasArea = 64,
  kHasBox = 128,
  kHasRle = 256,  // "size" of two, and "counts" a string: text[kCounts..kCountsEnd], \\ is one backslash
  kHasSegmentation = 512,  // of any other form
  kHasCrowd = 1024,
};

// The annotations of one image: text uint8 [B] of N objects with commas between -> columns int64
// [N, kCocoColumns], numbers float64 [N, kCocoNumbers]. Returns false unless there are exactly N, each
// read in full with valid numbers: area and box sides in 0..1e10, crowd 0 or 1.
bool coco_records(const TensorView& text, const TensorView& columns, const TensorView& numbers);

// Compressed COCO RLE, mask n at text[places[n, 0]..places[n, 1]] (places int64 [N, 2], any strides), where
// `escaped` means that a backslash is written twice, as in JSON -> runs of set pixels starts, stops int64 [C]
// of all masks; bounds int64 [N, 2], the first run of each and the one after its last; areas int64 [N]; boxes
// int64 [N, 4] (x0, y0, x1, y1, half-open, zeros for an empty mask). C is at least half the characters of all
// masks. Returns -1, or the first mask that is not RLE of height * width pixels; nothing is written after it.
int64_t rle_runs(const TensorView& text, const TensorView& places, bool escaped, int64_t height,
                 int64_t width, const TensorView& starts, const TensorView& stops, const TensorView& bounds,
                 const TensorView& areas, const TensorView& boxes);

// N masks as written by rle_runs; bounds may refer to any runs in any order.
struct RunMasksView {
  TensorView starts, stops, bounds, areas, boxes;
};

// Pairs of masks with IoU >= min_iou > 0, sorted by pred, then gt: out_pred, out_gt int64 and iou float64,
// each with capacity N * M. For crowd (bool [M]) IoU is |p & g| / |p|. Returns the number of pairs. Boxes and
// areas exclude most pairs before runs are read.
int64_t run_pairs(const RunMasksView& pred, const RunMasksView& gt, const TensorView& crowd, int64_t height,
                  double min_iou, const TensorView& out_pred, const TensorView& out_gt,
                  const TensorView& iou);

// rle_runs and run_pairs in one pass, for many masks of which few overlap a ground-truth mask: runs are
// discarded after the comparison, so that they stay in the cache. scratch int64 [2, S], S at least half the
// characters of the longest mask. Returns {as rle_runs, number of pairs}.
std::array<int64_t, 2> rle_pairs(const TensorView& text, const TensorView& places, bool escaped,
                                 int64_t height, int64_t width, const RunMasksView& gt,
                                 const TensorView& crowd, double min_iou, const TensorView& scratch,
                                 const TensorView& areas, const TensorView& boxes, const TensorView& out_pred,
                                 const TensorView& out_gt, const TensorView& iou);

// COCO's greedy matching of pairs in the order of run_pairs, in all lanes (area range a, threshold t: lane
// a * T + t) at once; at most 64. pred, gt int64 [P], iou float64 [P]; ignored bool [A, M], crowd bool [M];
// thresholds float64 [T], rising. For each prediction that some lane matched: out_pred int64 [R], hit and
// spare uint8 [R, 8] (lane l is bit l % 8 of byte l / 8), room for every prediction. scratch int64 [3, M].
// Returns R.
int64_t match_lanes(const TensorView& pred, const TensorView& gt, const TensorView& iou,
                    const TensorView& ignored, const TensorView& crowd, const TensorView& thresholds,
                    const TensorView& scratch, const TensorView& out_pred, const TensorView& hit,
                    const TensorView& spare);

// Interpolated precision, counted in every lane over predictions that come by falling score. rows uint8 [n,
// B]: of each a float64 score, an int32 rank, a byte with bit a where it is out of area range a, and the
// lanes of its hits and of its matches to ignored masks, ceil(L / 8) bytes each, lane l in bit l % 8 of byte
// l / 8. At most 8 ranges and 64 lanes. Rows of rank >= max_dets are passed over. needed int64 [A, K], rising
// in a row; inside int64 [A], hits, change and point int64 [L], best float64 [L, K] are counted on, see
// sohes/evaluation/reference/precision.py.
void count_precision(const TensorView& rows, int64_t max_dets, const TensorView& needed,
                     const TensorView& inside, const TensorView& hits, const TensorView& change,
                     const TensorView& point, const TensorView& best);

// A whole image at once, so that threads of Python do not meet between kernels: coco_records, rle_runs,
// rle_pairs and match_lanes, of num_gt true masks and num_pred predictions that are matched without regard to
// their categories. limits float64 [2, A], least and most of each area range; thresholds float64 [T]; steps
// int64 [S], rising; scratch uint8 [coco_image_scratch(...)], at an address that is a multiple of 8 -> num_gt
// int64 [A], found int32 [S, A * T] and rows uint8 [D, B] of the D <= num_pred best predictions, as
// sohes/evaluation/image.py has them and count_precision reads them. Returns false for what is not plain:
// some annotation is not understood or broken, has no RLE or one of another size, a prediction has no score,
// a true mask has a parent or an annotator.
int64_t coco_image_scratch(int64_t gt_bytes, int64_t pred_bytes, int64_t num_gt, int64_t num_pred,
                           int64_t num_ranges);
bool coco_image(const TensorView& gt_text, const TensorView& pred_text, int64_t num_gt, int64_t num_pred,
                int64_t height, int64_t width, double min_iou, const TensorView& limits,
                const TensorView& thresholds, const TensorView& steps, const TensorView& scratch,
                const TensorView& out_num_gt, const TensorView& found, const TensorView& rows);

}  // namespace sohes
