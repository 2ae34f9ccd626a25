# SPDX-License-Identifier: Apache-2.0
"""Images and labels: image folders, procedural scenes, COCO label sets, training views and batches.

Import from the modules themselves (`sohes.data.images`, `.scenes`, `.coco`, `.transforms`, `.dataset`,
`.sampling`); this package imports none of them, so that reading a photo does not load the training code.
"""
