# SPDX-License-Identifier: Apache-2.0
"""Phase 1, self-exploration: from photos to forests of pseudo-labels, and the files that hold them.

`pipeline` labels photos, step by step; the other modules are its steps. `shards` has the label files; `photo_regions`
cuts photos into regions for pretraining. Import from the modules themselves; `sohes.phases.explore` runs the phase.
"""
