// SPDX-License-Identifier: Apache-2.0
// The Python module, by pybind11: functions of the kernels over TensorView, and build_info(). One section per
// operator, in the order of csrc/. Every function releases the GIL while its kernel runs. sohes/ops/<op>.py
// validates the arguments.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "sohes/basins.h"
#include "sohes/evaluation.h"
#include "sohes/facility_location.h"
#include "sohes/mask_ops.h"
#include "sohes/merge_borders.h"
#include "sohes/merge_regions.h"
#include "sohes/ms_deform_attn.h"
#include "sohes/tensor_view.h"
#include "sohes/torch_caster.h"

namespace py = pybind11;
using sohes::TensorView;
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

namespace {

py::dict build_info() {
  py::dict info;
  info["source_digest"] = SOHES_SOURCE_DIGEST;
#ifdef SOHES_WITH_CUDA
  info["cuda"] = true;
  info["cuda_version"] = SOHES_CUDA_VERSION;
  info["cuda_architectures"] = SOHES_CUDA_ARCHITECTURES;
#else
  info["cuda"] = false;
#endif
  info["compiler"] = __VERSION__;
  return info;
}

using Runs = std::array<TensorView, 5>;  // starts, stops, bounds, areas, boxes

sohes::RunMasksView as_masks(const Runs& runs) { return {runs[0], runs[1], runs[2], runs[3], runs[4]}; }

int64_t run_pairs(const Runs& pred, const Runs& gt, const TensorView& crowd, int64_t height, double min_iou,
                  const TensorView& out_pred, const TensorView& out_gt, const TensorView& iou) {
  return sohes::run_pairs(as_masks(pred), as_masks(gt), crowd, height, min_iou, out_pred, out_gt, iou);
}

std::array<int64_t, 2> rle_pairs(const TensorView& text, const TensorView& places, bool escaped,
                                 int64_t height, int64_t width, const Runs& gt, const TensorView& crowd,
                                 double min_iou, const TensorView& scratch, const TensorView& areas,
                                 const TensorView& boxes, const TensorView& out_pred,
                                 const TensorView& out_gt, const TensorView& iou) {
  return sohes::rle_pairs(text, places, escaped, height, width, as_masks(gt), crowd, min_iou, scratch, areas,
                          boxes, out_pred, out_gt, iou);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of sohes. Use sohes.ops, which validates and dispatches.";
  m.def("build_info", &build_info);

  // --- basins ---
  m.def("catchment_basins", &sohes::catchment_basins_cpu, ReleaseGil());
  m.def("region_sides", &sohes::region_sides_cpu, ReleaseGil());
  m.def("region_borders_scratch", &sohes::region_borders_scratch);
  m.def("region_borders", &sohes::region_borders_cpu, ReleaseGil());

  // --- evaluation ---
  m.def("coco_groups", &sohes::coco_groups, ReleaseGil());
  m.def("coco_records", &sohes::coco_records, ReleaseGil());
  m.def("rle_runs", &sohes::rle_runs, ReleaseGil());
  m.def("run_pairs", &run_pairs, ReleaseGil());
  m.def("rle_pairs", &rle_pairs, ReleaseGil());
  m.def("match_lanes", &sohes::match_lanes, ReleaseGil());
  m.def("coco_image_scratch", &sohes::coco_image_scratch);
  m.def("coco_image", &sohes::coco_image, ReleaseGil());
  m.def("count_precision", &sohes::count_precision, ReleaseGil());

  // --- facility_location ---
  m.def("facility_location_scratch", &sohes::facility_location_scratch);
  m.def("facility_location", &sohes::facility_location_cpu, ReleaseGil());

  // --- merge_regions ---
  m.def("merge_regions_loops", &sohes::merge_regions_loops);
  m.def("merge_regions_scratch", &sohes::merge_regions_scratch);
  m.def("merge_regions", &sohes::merge_regions_cpu, ReleaseGil());
  m.def("merge_regions_graph", &sohes::merge_regions_graph_cpu, ReleaseGil());
  m.def("merge_tree_layout", &sohes::merge_tree_layout, ReleaseGil());
  m.def("merge_tree_cuts", &sohes::merge_tree_cuts, ReleaseGil());
  m.def("merge_tree_distinct", &sohes::merge_tree_distinct, ReleaseGil());
#ifdef SOHES_WITH_CUDA
  m.def("merge_regions_cuda_table", &sohes::merge_regions_cuda_table);
  m.def("merge_regions_cuda", &sohes::merge_regions_cuda, ReleaseGil());
  m.def("merge_rounds_cuda", &sohes::merge_rounds_cuda, ReleaseGil());
#endif

  // --- merge_borders ---
  m.def("merge_borders", &sohes::merge_borders_cpu, ReleaseGil());

  // --- mask_ops ---
  m.def("mask_pack", &sohes::mask_pack, ReleaseGil());
  m.def("mask_from_index", &sohes::mask_from_index, ReleaseGil());
  m.def("mask_from_nodes", &sohes::mask_from_nodes, ReleaseGil());
  m.def("mask_unpack", &sohes::mask_unpack, ReleaseGil());
  m.def("mask_pack_logits_scratch", &sohes::mask_pack_logits_scratch);
  m.def("mask_pack_logits", &sohes::mask_pack_logits, ReleaseGil());
  m.def("mask_stats", &sohes::mask_stats, ReleaseGil());
  m.def("mask_take", &sohes::mask_take, ReleaseGil());
  m.def("mask_overlap_scratch", &sohes::mask_overlap_scratch);
  m.def("mask_overlap", &sohes::mask_overlap, ReleaseGil());
  m.def("mask_nms", &sohes::mask_nms, ReleaseGil());
  m.def("mask_parents", &sohes::mask_parents, ReleaseGil());
  m.def("mask_pairs_scratch", &sohes::mask_pairs_scratch);
  m.def("mask_find_pairs", &sohes::mask_find_pairs, ReleaseGil());
  m.def("mask_sort_pairs", &sohes::mask_sort_pairs, ReleaseGil());
  m.def("mask_num_runs", &sohes::mask_num_runs, ReleaseGil());
  m.def("rle_encode", &sohes::rle_encode, ReleaseGil());
  m.def("rle_decode", &sohes::rle_decode, ReleaseGil());
  m.def("mask_count_components", &sohes::mask_count_components, ReleaseGil());
  m.def("mask_components", &sohes::mask_components, ReleaseGil());
  m.def("mask_largest_component", &sohes::mask_largest_component, ReleaseGil());
  m.def("mask_fill_holes", &sohes::mask_fill_holes, ReleaseGil());
  m.def("mask_boundary", &sohes::mask_boundary, ReleaseGil());
  m.def("mask_resize", &sohes::mask_resize, ReleaseGil());
  m.attr("RLE_SLACK") = sohes::kRleSlack;
#ifdef SOHES_WITH_CUDA
  m.def("mask_pack_cuda", &sohes::mask_pack_cuda, ReleaseGil());
  m.def("mask_from_index_cuda", &sohes::mask_from_index_cuda, ReleaseGil());
  m.def("mask_unpack_cuda", &sohes::mask_unpack_cuda, ReleaseGil());
  m.def("mask_stats_cuda", &sohes::mask_stats_cuda, ReleaseGil());
  m.def("mask_pack_logits_cuda", &sohes::mask_pack_logits_cuda, ReleaseGil());
  m.def("mask_overlap_cuda", &sohes::mask_overlap_cuda, ReleaseGil());
  m.def("mask_duplicates_cuda", &sohes::mask_duplicates_cuda, ReleaseGil());
  m.def("mask_keep_cuda", &sohes::mask_keep_cuda, ReleaseGil());
  m.def("mask_parents_cuda", &sohes::mask_parents_cuda, ReleaseGil());
  m.def("mask_num_runs_cuda", &sohes::mask_num_runs_cuda, ReleaseGil());
  m.def("mask_num_column_runs_cuda", &sohes::mask_num_column_runs_cuda, ReleaseGil());
  m.def("mask_label_runs_cuda", &sohes::mask_label_runs_cuda, ReleaseGil());
  m.def("mask_paint_runs_cuda", &sohes::mask_paint_runs_cuda, ReleaseGil());
  m.def("mask_boundary_cuda", &sohes::mask_boundary_cuda, ReleaseGil());
  m.def("mask_resize_cuda", &sohes::mask_resize_cuda, ReleaseGil());
  m.def("rle_stops_cuda", &sohes::rle_stops_cuda, ReleaseGil());
  m.def("rle_lengths_cuda", &sohes::rle_lengths_cuda, ReleaseGil());
  m.def("rle_text_cuda", &sohes::rle_text_cuda, ReleaseGil());
#endif

  // --- ms_deform_attn ---
  m.def("ms_deform_attn_workspace", &sohes::ms_deform_attn_workspace);
  m.def("ms_deform_attn", &sohes::ms_deform_attn_cpu, ReleaseGil());
  m.def("ms_deform_attn_backward", &sohes::ms_deform_attn_backward_cpu, ReleaseGil());
#ifdef SOHES_WITH_CUDA
  m.def("ms_deform_attn_cuda", &sohes::ms_deform_attn_cuda, ReleaseGil());
  m.def("ms_deform_attn_backward_cuda", &sohes::ms_deform_attn_backward_cuda, ReleaseGil());
#endif
}
