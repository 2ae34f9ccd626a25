# SPDX-License-Identifier: Apache-2.0
"""Published results, shown beside those of a run for orientation only: the photos and the scale differ."""

# Mask AR@1000 in per cent, zero-shot and class-agnostic, as the papers and their follow-ups report them.
DATA_SETS = ("COCO", "LVIS", "ADE20K", "EntitySeg", "SA-1B", "PartImageNet", "PACO", "mean")
RECALL: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("SAM (supervised)", "ViT-B, 11 M images", (49.6, 46.1, 45.8, 45.9, 60.8, 28.3, 18.1, 42.1)),
    ("CutLER", "R50, 1.3 M images", (28.1, 20.2, 26.3, 23.1, 17.0, 28.7, 8.9, 21.8)),
    ("SOHES", "ViT-B/8, 0.2 M images", (30.5, 29.1, 31.1, 33.5, 33.3, 36.0, 17.1, 30.1)),
    ("UnSAM", "R50, 0.4 M images", (42.0, 40.5, 37.5, 41.0, 44.5, 52.7, 29.7, 41.1)),
    ("MoSA", "R50, 0.1 M images", (43.5, 42.2, 38.4, 41.1, 48.2, 52.7, 28.4, 42.1)),
)

# Mask AR at 10, 100 and 1000 masks a photo, in per cent, of older segment proposals on COCO val2014, as published; and
# what of each was learned from human labels.
PROPOSALS: tuple[tuple[str, str, tuple[float, float, float]], ...] = (
    ("Selective Search", "none", (2.5, 9.5, 23.0)),
    ("GOP", "contours, seeds", (2.3, 12.3, 25.3)),
    ("MCG", "contours, ranking", (7.7, 18.6, 29.9)),
    ("DeepMask", "masks", (12.6, 24.5, 33.1)),
)

# The column for each data set of sohes.evaluate.
COLUMN_OF = {
    "coco": "COCO",
    "lvis": "LVIS",
    "ade20k": "ADE20K",
    "entityseg": "EntitySeg",
    "sa1b": "SA-1B",
    "partimagenet": "PartImageNet",
    "partimagenet-parts": "PartImageNet",
    "paco": "PACO",
    "paco-parts": "PACO",
}


def published_recall(dataset: str | None) -> list[tuple[str, str, float]]:
    """(method, scale, AR@1000 as a fraction) for a data set by its name in sohes.evaluate; [] if none is known."""
    if dataset not in COLUMN_OF:
        return []
    column = DATA_SETS.index(COLUMN_OF[dataset])
    return [(method, scale, values[column] / 100) for method, scale, values in RECALL]
