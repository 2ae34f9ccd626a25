# SPDX-License-Identifier: Apache-2.0
"""Photos and labels: from files to tensors, and from COCO JSON to training batches.

- Finding photos: `sources` lists folders, archives (`tars`) and lists; `formats` says which files are images.
- Reading a photo: `images.read_image`; `bit_depth` converts any depth and transparency to 8-bit RGB.
- Labels: `coco` reads and writes COCO JSON; `coco_records`, `coco_fields`, `coco_image`, `polygons` are its parts.
- Training: `transforms` makes views, `dataset` samples and batches, `sampling` their order.
- Pretraining: `photos` and `photo_pack` hold many small photos, `crops` cuts them.
- Drawn data: `scenes`, from `scene_layout`, `scene_objects` and `scene_paint`.

Import from the modules themselves; this package imports none, so that reading a photo loads no training code.
"""
