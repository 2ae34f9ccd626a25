# SPDX-License-Identifier: Apache-2.0
"""Photos to forests: resize, predict, score, remove duplicates, link parents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sohes.configs.run import InferConfig
from sohes.data.transforms import normalize
from sohes.models.distinct import DistinctMasks, masks_per_chunk, pairwise_overlap
from sohes.models.outputs import Outputs
from sohes.models.precision import no_autocast
from sohes.models.segmenter_model import SohesModel
from sohes.models.tiles import Tile, TileMasks, join_tiles, make_tiles
from sohes.structures.forest import Forest, build_forest
from sohes.structures.masks import PackedMasks, nms_masks

_MIN_TILE_MASKS = 50
_CHUNK_BYTES = 2**26  # of mask logits computed at once


@torch.no_grad()
def predict(model: SohesModel, images: Sequence[Tensor], config: InferConfig) -> list[Forest]:
    """Segment photos of any sizes. Changes neither the model nor global state, so threads may share a model.

    Photos of equal working size are batched without padding: a photo's masks do not depend on the rest of the batch.

    Args:
        model: in eval mode.
        images: uint8 [3, H, W] each.

    Returns:
        One forest per photo, on the CPU, at the photo's own size, best scores first.
    """
    if config.tile and any(max(image.shape[1:]) > config.tile for image in images):
        return [_predict_tiled(model, image, config) for image in images]
    device = next(model.parameters()).device
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        groups[working_size((image.shape[1], image.shape[2]), config.size)].append(index)
    forests: dict[int, Forest] = {}
    for size, members in groups.items():
        for start in range(0, len(members), config.batch_size):
            chunk = members[start : start + config.batch_size]
            batch = torch.stack([prepare(images[i].to(device), size) for i in chunk])  # [B, 3, h, w]
            outputs = model(batch, grid_size=config.grid_size or None)
            for row, index in enumerate(chunk):
                shape = (images[index].shape[1], images[index].shape[2])
                forests[index] = extract_forest(outputs, row, shape, config)
    return [forests[index] for index in range(len(images))]


def _predict_tiled(model: SohesModel, image: Tensor, config: InferConfig) -> Forest:
    """Segment a photo as a whole and, if it is larger than a tile, in tiles."""
    plain = replace(config, tile=0)
    (whole,) = predict(model, [image], plain)
    size = (image.shape[1], image.shape[2])
    if max(size) <= config.tile:
        return whole
    tiles = make_tiles(size, config.tile, config.tile_overlap)
    # The tiles share the photo's maximum number of masks; up to four times the mean, since some tiles have more.
    tile_config = replace(plain, max_masks=max(_MIN_TILE_MASKS, 4 * config.max_masks // len(tiles)))
    whole_masks = TileMasks.from_forest(Tile(0, 0, *size), whole)
    tile_masks: list[TileMasks] = []
    del whole  # frees 1.4 GiB for 1000 masks of 12 million pixels
    for start in range(0, len(tiles), config.batch_size):
        chunk = tiles[start : start + config.batch_size]
        crops = [image[:, tile.y0 : tile.y1, tile.x0 : tile.x1] for tile in chunk]
        tile_masks += map(TileMasks.from_forest, chunk, predict(model, crops, tile_config))
    return join_tiles(whole_masks, tile_masks, config)


def working_size(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """(H, W) scaled to a long side of about `long_side`, with the same aspect ratio and sides that are multiples of 4.

    With sides that are multiples of the mask stride, the mask map covers the photo exactly.
    """
    scale = long_side / max(size)
    height, width = (max(4, round(side * scale / 4) * 4) for side in size)
    return height, width


def prepare(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [3, H, W] -> normalised float32 [3, *size]."""
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"expected an image of uint8 [3, H, W], got {image.dtype} {list(image.shape)}")
    pixels = normalize(image)[None]  # [1, 3, H, W]
    return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def score_masks(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Entity probability x mean mask probability inside the mask. [sibling]

    Args:
        class_logits: [Q, 2].
        mask_logits: [Q, h, w].

    Returns:
        float32 [Q]; 0 for empty masks and for values that are not finite.
    """
    logits = mask_logits.float()
    inside = logits > 0
    total = (logits.sigmoid() * inside).sum(dim=(1, 2))
    mean = total / inside.sum(dim=(1, 2)).clamp(min=1)
    return (class_logits.float().softmax(-1)[:, 0] * mean).nan_to_num(0.0)


def extract_forest(outputs: Outputs, row: int, size: tuple[int, int], config: InferConfig) -> Forest:
    """The forest of one image of a batch, at `size` (H, W).

    Mask logits are computed for a chunk of queries at a time, once for the scores and again for the masks that are
    kept; in float32, also under autocast.
    """
    with no_autocast(outputs.mask_features.device):
        return _extract_forest(outputs, row, size, config)


def _extract_forest(outputs: Outputs, row: int, size: tuple[int, int], config: InferConfig) -> Forest:
    embeddings, features = outputs.mask_embeddings[row].float(), outputs.mask_features[row].float()  # [Q, E], [E, h, w]
    step = max(1, _CHUNK_BYTES // (4 * features[0].numel()))

    def mask_logits(queries: Tensor) -> Tensor:
        return torch.einsum("qe,ehw->qhw", queries, features)

    classes = outputs.class_logits[row]
    pairs = zip(classes.split(step), embeddings.split(step), strict=True)
    scores = torch.cat([score_masks(logits, mask_logits(chunk)) for logits, chunk in pairs])  # [Q]
    kept = (scores > max(config.min_score, 0.0)).nonzero().flatten()
    kept = kept[scores[kept].argsort(descending=True, stable=True)][: config.max_masks]
    distinct, masks = _pack_distinct(lambda index: mask_logits(embeddings[index]), kept, step, size, config)
    kept = kept[distinct]
    if outputs.ancestor_logits is None:
        parents = build_forest(masks, config.theta_cover)
    else:
        logits = outputs.ancestor_logits[row][kept][:, kept].float()
        parents = link_parents(masks, scores[kept], logits.sigmoid(), config)
    return Forest(masks.to("cpu"), scores[kept].cpu(), parents.cpu())


def _pack_distinct(
    mask_logits: Callable[[Tensor], Tensor], queries: Tensor, step: int, size: tuple[int, int], config: InferConfig
) -> tuple[Tensor, PackedMasks]:
    """Pack the masks of `queries`, int64 [K] with the best first, without small masks and duplicates.

    Returns the indices into `queries` that are kept, and their masks.
    """
    step = min(step, masks_per_chunk(size))
    distinct: DistinctMasks | None = None
    kept: list[Tensor] = []
    for start in range(0, len(queries), step):
        masks = PackedMasks.from_logits(mask_logits(queries[start : start + step]), size)
        large = (masks.areas >= config.min_area).nonzero().flatten()
        masks = masks[large]
        if len(queries) <= step:
            best = nms_masks(masks, config.nms_iou, -torch.arange(len(masks), device=masks.device))
            return large[best].to(queries.device), masks[best]
        distinct = distinct or DistinctMasks(size, len(queries), config.nms_iou, masks.device)
        kept.append(start + large.cpu()[distinct.add(masks)])
    if distinct is None:
        return queries, PackedMasks.empty(size, queries.device)
    return torch.cat(kept).to(queries.device), distinct.masks


def link_parents(masks: PackedMasks, scores: Tensor, ancestor_probability: Tensor, config: InferConfig) -> Tensor:
    """Parent of each mask: the smallest of its possible ancestors, or one nearly as small with a better score.

    Possible ancestors have a probability above `ancestor_threshold`, cover the mask (`ancestor_cover`) and are larger
    (`child_area`). Parents are strictly larger than their children, so there are no cycles. With `child_area` 1,
    near-duplicates form chains, mostly among masks of low score.

    Args:
        masks: N of them.
        scores: float [N].
        ancestor_probability: float [N, N]; [i, j]: i is an ancestor of j.

    Returns:
        int64 [N], -1 for a root. Among equal scores the smaller parent wins, then the lower index.
    """
    N, areas = len(masks), masks.areas
    if N == 0:
        return torch.zeros(0, dtype=torch.int64, device=areas.device)
    share = (pairwise_overlap(masks).double() / areas[:, None].clamp(min=1)).float()  # [N, N]
    covered = share >= config.ancestor_cover  # [j, i]: i covers j
    larger = (areas[None, :] > areas[:, None]) & (config.child_area * areas[None, :] >= areas[:, None])
    is_ancestor = (ancestor_probability > config.ancestor_threshold).T.to(areas.device)
    legal = covered & larger & is_ancestor
    order = areas.argsort(stable=True)  # small first: among equal scores argmax takes the smallest
    legal, ordered = legal[:, order], areas[order]
    smallest = torch.where(legal, ordered, torch.iinfo(torch.int64).max).amin(1, keepdim=True)  # [N, 1]
    near = legal & (config.child_area * ordered <= smallest)
    best = torch.where(near, scores.to(areas.device)[order], -1.0).argmax(1)  # [N]
    return torch.where(legal.any(1), order[best], -1)
