# SPDX-License-Identifier: Apache-2.0
"""The operators. Each has a PyTorch reference that defines it and faster twins that agree with it.

Some modules here have the name of their function: `sohes.ops.merge_regions` is the function, and what else the module
has is imported from it, `from sohes.ops.merge_regions import merge_regions_graph`.
"""

from sohes.ops._library import BackendUnavailable
from sohes.ops.mask_overlap import mask_overlap
from sohes.ops.mask_pack import mask_from_index, mask_pack, mask_pack_logits, mask_stats, mask_unpack
from sohes.ops.mask_regions import mask_boundary, mask_components, mask_fill_holes, mask_largest_component, mask_resize
from sohes.ops.mask_rle import decode_rle, encode_rle
from sohes.ops.mask_select import mask_nms, mask_parents
from sohes.ops.merge_borders import merge_borders
from sohes.ops.merge_regions import merge_regions, merge_regions_graph, merge_rounds
from sohes.ops.merge_tree import MergeTree
from sohes.ops.ms_deform_attn import ms_deform_attn
from sohes.ops.ms_deform_attn_fused import ms_deform_attn_fused

__all__ = [
    "BackendUnavailable",
    "MergeTree",
    "decode_rle",
    "encode_rle",
    "mask_boundary",
    "mask_components",
    "mask_fill_holes",
    "mask_from_index",
    "mask_largest_component",
    "mask_nms",
    "mask_overlap",
    "mask_pack",
    "mask_pack_logits",
    "mask_parents",
    "mask_resize",
    "mask_stats",
    "mask_unpack",
    "merge_borders",
    "merge_regions",
    "merge_regions_graph",
    "merge_rounds",
    "ms_deform_attn",
    "ms_deform_attn_fused",
]
