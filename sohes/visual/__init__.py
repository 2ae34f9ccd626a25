# SPDX-License-Identifier: Apache-2.0
"""Pictures of forests: a colour for every mask (colors), and overlays on photos (draw)."""
