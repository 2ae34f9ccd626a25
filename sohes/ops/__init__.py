# SPDX-License-Identifier: Apache-2.0
"""The operators. Each has a PyTorch reference that defines it and faster twins that agree with it.

Names of functions here are those of modules, too: `sohes.ops.merge_regions` is the function, and
`from sohes.ops.merge_regions import ...` reads the module.
"""

from sohes.ops.mask_overlap import mask_overlap
from sohes.ops.merge_borders import merge_borders
from sohes.ops.merge_regions import merge_regions, merge_regions_graph
from sohes.ops.merge_tree import MergeTree
from sohes.ops.ms_deform_attn import ms_deform_attn
from sohes.ops.ms_deform_attn_fused import ms_deform_attn_fused

__all__ = [
    "MergeTree",
    "mask_overlap",
    "merge_borders",
    "merge_regions",
    "merge_regions_graph",
    "ms_deform_attn",
    "ms_deform_attn_fused",
]
