# SPDX-License-Identifier: Apache-2.0
"""The operators. Each has a PyTorch reference that defines it and faster twins that agree with it."""

from sohes.ops.merge_borders import merge_borders
from sohes.ops.merge_regions import merge_regions, merge_regions_graph
from sohes.ops.merge_tree import MergeTree

__all__ = ["MergeTree", "merge_borders", "merge_regions", "merge_regions_graph"]
