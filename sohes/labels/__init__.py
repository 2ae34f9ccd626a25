# SPDX-License-Identifier: Apache-2.0
"""What self-exploration is made of: views of photos, patch features, merge-tree candidates, label files.

Import from the modules themselves; `sohes.phases.explore` puts them together.
"""
