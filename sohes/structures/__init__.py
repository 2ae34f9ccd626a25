# SPDX-License-Identifier: Apache-2.0
"""Data types that modules exchange: `masks.PackedMasks`, `forest.Forest`, `target.Target`."""
