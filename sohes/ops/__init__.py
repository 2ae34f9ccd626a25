# SPDX-License-Identifier: Apache-2.0
"""Operators on tensors: packed masks, merge trees of regions, and multi-scale deformable attention.

Each operator has a PyTorch reference that defines its result, and faster backends that agree with it.

- Packed masks: `mask_pack`, `mask_unpack`, `mask_pack_logits`, `mask_from_index`, `mask_from_nodes`, `mask_stats`.
- Shape of masks: `mask_fill_holes`, `mask_largest_component`, `mask_components`, `mask_boundary`, `mask_resize`.
- Pairs of masks: `mask_overlap`, `mask_pairs`, `mask_nms`, `mask_parents`.
- Choosing masks that cover others: `facility_location`.
- COCO RLE: `encode_rle`, `decode_rle`.
- Regions of an image: `catchment_basins`, `region_borders`.
- Merge trees: `merge_regions`, `merge_rounds`, `merge_regions_graph`, `merge_borders`, which return a `MergeTree`.
- Attention: `ms_deform_attn`, `ms_deform_attn_fused`.

`BackendUnavailable` is raised when a requested backend cannot run. Some modules have the name of their function:
`sohes.ops.merge_regions` is the function, not the module.
"""

from sohes.ops._library import BackendUnavailable
from sohes.ops.catchment_basins import catchment_basins
from sohes.ops.facility_location import facility_location
from sohes.ops.mask_nodes import mask_from_nodes
from sohes.ops.mask_overlap import mask_overlap
from sohes.ops.mask_pack import mask_from_index, mask_pack, mask_pack_logits, mask_stats, mask_unpack
from sohes.ops.mask_pairs import mask_pairs
from sohes.ops.mask_regions import mask_boundary, mask_components, mask_fill_holes, mask_largest_component, mask_resize
from sohes.ops.mask_rle import decode_rle, encode_rle
from sohes.ops.mask_select import mask_nms, mask_parents
from sohes.ops.merge_borders import merge_borders
from sohes.ops.merge_regions import merge_regions, merge_regions_graph, merge_rounds
from sohes.ops.merge_tree import MergeTree
from sohes.ops.ms_deform_attn import ms_deform_attn
from sohes.ops.ms_deform_attn_fused import ms_deform_attn_fused
from sohes.ops.region_borders import region_borders

__all__ = [
    "BackendUnavailable",
    "MergeTree",
    "catchment_basins",
    "decode_rle",
    "encode_rle",
    "facility_location",
    "mask_boundary",
    "mask_components",
    "mask_fill_holes",
    "mask_from_index",
    "mask_from_nodes",
    "mask_largest_component",
    "mask_nms",
    "mask_overlap",
    "mask_pack",
    "mask_pack_logits",
    "mask_pairs",
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
    "region_borders",
]
