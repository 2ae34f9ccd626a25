# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run, as plain dataclasses. A run is one `Config`, stored as `config.json` in its folder.

Labels say where a value comes from: [paper] the SOHES authors, [cited] said about SOHES by others, [sibling] the value
of HASSOD or UnSAM, [ours] decided here. The docstring below a field is its text in `--help-all`, the range in
its type is checked and shown there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from sohes.configs.io import ConfigError, from_dict
from sohes.configs.io import to_dict as to_dict  # callers find it here, beside the classes
from sohes.configs.model import LossConfig, ModelConfig
from sohes.configs.ranges import Range, above, at_least, between

Phase = Literal["explore", "instruct", "correct"]
DataSetName = Literal[
    "coco",
    "lvis",
    "ade20k",
    "ade20k-full",
    "entityseg",
    "entityseg-full",
    "sa1b",
    "partimagenet",
    "partimagenet-parts",
    "paco",
    "paco-parts",
    "bsds500",
    "bsds500-val",
    "plain",
]
BaselineName = Literal["felzenszwalb", "slic-tree", "box-grid", "tree-oracle"]
PHASES: tuple[Phase, ...] = ("explore", "instruct", "correct")


@dataclass
class SceneConfig:
    """The embedded data set, drawn when no `--images` are given."""

    num_train: Annotated[int, at_least(1)] = 200
    """Scenes to learn from. [ours]"""
    num_eval: Annotated[int, at_least(1)] = 48
    """Held-out scenes. [ours]"""
    size: Annotated[int, at_least(32)] = 128
    """Side of a scene in pixels. [ours]"""


@dataclass
class ExploreConfig:
    """Phase 1, self-exploration: clustering of patch features into pseudo-labels."""

    features: str = "descriptor"
    """`descriptor` (weight-free), the name of a timm ViT, e.g. `vit_base_patch8_224.dino` [paper: DINO ViT-B/8], or a
    folder with a timm model, such as `sohes.pretrain` writes."""
    weights: str = "timm"
    """Of a ViT: `timm` for the published ones, `random`, or a local file (.safetensors, .pth). Not used by
    `descriptor`."""
    facet: Literal["key", "query", "value", "output"] = "key"
    """What of the ViT's last block is a patch's feature. [sibling: key]"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format in which the ViT runs. [ours]"""
    batch_size: Annotated[int, at_least(1)] = 1
    """Photos of a shard that go through the ViT together, and then all of their crops. Those of one grid of
    patches are one forward pass. For GPUs; `descriptor` gains nothing by it. [ours]"""
    side: Annotated[int, at_least(1)] = 480
    """Photos are resized to about side^2 pixels, aspect ratio kept; `descriptor` does not enlarge. [ours]"""
    feature_side: Annotated[int, at_least(0)] = 0
    """A ViT sees photos of about this many pixels squared, at most `side`, while basins and patches keep those of
    `side`; 0: of `side` too. For one that was trained on small crops, in which objects are small. [ours]"""
    color_share: Annotated[float, between(0, 1)] = 0.0
    """Of a ViT's features pooled into basins: weight of the basins' mean colours beside them. [ours]"""
    color_trees: bool = False
    """Of basins with a ViT's features: the trees of colours alone, which `descriptor` grows, stand beside the ViT's.
    Colours find what is small, features what is large. [ours]"""
    feature_weight: Annotated[float, between(0, 1)] = 0.93
    """Scores of the ViT's tree count this much beside trees of colours. [ours]"""
    feature_border_weight: Annotated[float, at_least(0)] = 8.0
    """`border_weight` of the ViT's tree beside trees of colours. [ours]"""
    start: Literal["basins", "patches"] = "basins"
    """What the merge tree starts from: `basins`, pixel-sharp watershed basins into which features are pooled, merged by
    features and border strength [ours]; or `patches` of the features' grid, merged by features alone. [paper]"""
    basin_sigma: Annotated[float, above(0)] = 1.5
    """Blur in pixels before the gradient whose basins are the starting regions. [ours]"""
    border_sigma: Annotated[float, above(0)] = 1.0
    """Blur in pixels before the gradient that measures the strength of borders. [ours]"""
    border_softness: Annotated[float, above(0)] = 10.0
    """Step in Lab at which a border has half its full strength. [ours]"""
    border_weight: Annotated[float, at_least(0)] = 3.0
    """Weight of border strength beside the distance of features when basins merge. [ours]"""
    size_exponent: Annotated[float, at_least(0)] = 0.3
    """How much basins prefer to merge small regions first. [ours]"""
    ward_weight: Annotated[float, between(0, 1)] = 0.88
    """Scores of a second tree of basins, merged by features alone as Ward does, count this much; 0: no second
    tree. [ours]"""
    patch: Annotated[int, at_least(1)] = 4
    """Side of a patch of `descriptor` in pixels; a ViT has its own. [ours]"""
    snap_rounds: Annotated[int, at_least(0)] = 2
    """Rounds in which pixels of `patches` move to the neighbouring patch they resemble; 0 leaves them square. [ours]"""
    compactness: Annotated[float, above(0)] = 5.0
    """Lab distance that counts as much as one patch side when pixels choose their patch. [ours]"""
    color_width: Annotated[float, above(0)] = 12.0
    """Lab distance at which two colours begin to count as different. [ours]"""
    texture_width: Annotated[float, above(0)] = 6.0
    """The same for texture (spread and oriented gradients of lightness). [ours]"""
    texture_weight: Annotated[float, at_least(0)] = 0.3
    """Weight of texture beside colour. [ours]"""
    place_width: Annotated[float, above(0)] = 0.1
    """Distance, relative to the image's size, at which two places begin to count as different. [ours]"""
    place_weight: Annotated[float, at_least(0)] = 0.7
    """Weight of place beside colour: keeps regions together and lets small ones merge first. [ours]"""
    diffusion_steps: Annotated[int, at_least(0)] = 20
    """Steps in which descriptors even out within surfaces. [ours]"""
    diffusion_contrast: Annotated[float, above(0)] = 8.0
    """Lab difference of neighbouring patches that stops the evening out. [ours]"""
    schedule: Literal["exact", "rounds"] = "exact"
    """How `patches` merge: `exact`, the most similar pair of all first, as the method says; `rounds`, all mutually best
    pairs at once: another tree, for devices that do much at a time. [ours]"""
    cuts: Literal["adaptive", "fixed"] = "adaptive"
    """Where to cut the merge tree: `adaptive` at quantiles of its own similarities, `fixed` at `thresholds`. [ours]"""
    num_cuts: Annotated[int, at_least(0)] = 64
    """Adaptive cuts, spread evenly over the logarithm of the number of regions; 0 takes every node. [ours]"""
    thresholds: Annotated[tuple[float, ...], between(-1, 1)] = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    """Fixed cuts: similarities, falling. [sibling]"""
    theta_small: Annotated[float, between(0, 1)] = 0.0
    """Candidates smaller than this share of the image are cropped at full resolution and clustered again; 0: none
    are. [cited that it exists; ours: the value]"""
    local_regions: Annotated[int, at_least(1)] = 16
    """Crops per image, best candidates first. [ours]"""
    local_margin: Annotated[float, at_least(0)] = 0.3
    """Margin of a crop on each side, relative to the longer side of its candidate's box. [ours]"""
    local_side: Annotated[int, at_least(1)] = 256
    """Crops are resized to about this many pixels squared, aspect ratio kept. [sibling]"""
    local_cover: Annotated[float, between(0, 1)] = 0.9
    """Share of a crop's mask that must lie in the candidate. [cited]"""
    local_masks: Annotated[int, at_least(1)] = 20
    """Masks kept per crop, best first. [ours]"""
    local_min_area: Annotated[float, above(0)] = 4.0
    """`min_area` counts this much in a crop, which is enlarged. [ours]"""
    refiner: Literal["none", "snap", "guided", "crf", "cascadepsp"] = "none"
    """What sharpens masks: `snap` moves outlines to borders of basins; `guided` is the fast guided filter; `crf` the
    mean field of a dense CRF; `cascadepsp` the network of segmentation-refinement, which was trained on HUMAN masks
    [cited: the paper's]. Masks of basins, and of patches with `snap_rounds`, are sharp without. [ours]"""
    crf_steps: Annotated[int, at_least(1)] = 5
    """Steps of the mean field. [ours; sibling: 10]"""
    refine_min_iou: Annotated[float, between(0, 1)] = 0.5
    """A refined mask whose IoU with itself before is lower is dropped. [sibling]"""
    min_area: Annotated[float, at_least(0)] = 100.0
    """Smallest mask in pixels of an image of 480x480; scales with the image's size. [sibling: 100 px]"""
    min_pixels: Annotated[int, at_least(0)] = 16
    """Smallest mask in pixels of the photo, whatever its size. [ours]"""
    max_area: Annotated[float, between(0, 1)] = 0.9
    """Largest mask as a share of the image. [sibling]"""
    max_corners: Annotated[int, between(0, 4)] = 2
    """Masks that hold more image corners are dropped. [sibling: 3 or more are dropped]"""
    nms_iou: Annotated[float, between(0, 1)] = 0.9
    """Of two masks with a higher IoU only one stays. [sibling]"""
    theta_cover: Annotated[float, Range(gt=0, le=1)] = 0.9
    """Share of a mask that must lie in another to be its part. [sibling]"""
    max_masks: Annotated[int, at_least(1)] = 300
    """Masks kept per image, best scores first. [ours]"""
    shard_size: Annotated[int, at_least(1)] = 100
    """Images per file of labels; a killed run loses at most one. [ours]"""
    max_failures: Annotated[int, at_least(0)] = 100
    """With more unreadable images than this, the phase ends with an error, after everything is written. [ours]"""
    num_workers: Annotated[int, at_least(0)] = 0
    """Threads that decode and label, an image each; 0: one per CPU of this process's share. Labels do not depend
    on it. [ours]"""
    patience: Annotated[float, at_least(0)] = 3600.0
    """Of several processes: seconds without a new file of labels from the others until waiting ends with an
    error. [ours]"""


@dataclass
class OptimConfig:
    """Optimiser and schedule, shared by phases 2 and 3."""

    learning_rate: Annotated[float, above(0)] = 1e-4
    """Peak learning rate of AdamW. [sibling]"""
    backbone_factor: Annotated[float, at_least(0)] = 0.1
    """The backbone ViT learns at this share of the learning rate. [sibling]"""
    layer_decay: Annotated[float, Range(gt=0, le=1)] = 1.0
    """Each layer of the backbone ViT learns at this share of the rate of the layer above it: what a
    pretrained ViT knows of edges and textures then changes least. 1: all alike; BEiT takes 0.65. [ours]"""
    weight_decay: Annotated[float, at_least(0)] = 0.05
    """Weight decay of matrices; vectors (norms, biases) and embeddings have none. [sibling]"""
    clip_norm: Annotated[float, at_least(0)] = 0.01
    """Gradients are clipped to this total norm; 0 switches clipping off. [sibling]"""
    warmup_steps: Annotated[int, at_least(0)] = 20
    """Steps of linear warm-up. [ours]"""
    final_factor: Annotated[float, between(0, 1)] = 0.01
    """The cosine schedule ends at this share of the peak. [ours]"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of forward passes; losses and matching stay in fp32, fp16 scales its gradients. Half types are for
    GPUs: on a CPU without matrix units they are far slower."""
    max_bad_steps: Annotated[int, at_least(1)] = 10
    """This many steps in a row with a non-finite loss end the run; a single one is reported and skipped. [ours]"""


@dataclass
class EngineConfig:
    """How training is carried out and kept. Nothing here changes what is learned, so --resume may change it."""

    accumulate: Annotated[int, at_least(1)] = 1
    """Parts in which each process works through its share of a batch: less memory, more time, same result."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: `ddp` copies the model to each, `fsdp` (FSDP2) parts weights, gradients and optimiser."""
    compile: bool = False
    """Compile the layers of ViT and decoders with torch.compile."""
    checkpoint_seconds: Annotated[float, at_least(0)] = 60.0
    """Training writes a checkpoint about this often, in seconds; a killed run goes on from the newest."""
    keep_checkpoints: Annotated[int, at_least(1)] = 2
    """Checkpoints kept per phase."""
    async_checkpoints: bool = False
    """Write checkpoints while training goes on, from a copy of the state in CPU memory."""
    half_checkpoints: bool = False
    """Round checkpoints to bfloat16, for half the bytes: a resumed run then goes on nearly, not bitwise, equally."""
    tensorboard: bool = False
    """Write metrics for TensorBoard too, into tensorboard/ of the run. Needs the package `tensorboard`."""
    timeout_minutes: Annotated[float, above(0)] = 60.0
    """A process that waits for the others longer than this gives up."""


@dataclass
class ViewConfig:
    """Training views of a photo."""

    size: Annotated[int, at_least(32)] = 512
    """Side of the square training view in pixels (photos are padded, never squashed). [ours]"""
    scale: Annotated[tuple[float, float], above(0)] = (0.5, 2.0)
    """Range of the random resize, relative to fitting the photo into the view. [sibling: large-scale jitter]"""
    min_area: Annotated[int, at_least(1)] = 8
    """Masks with fewer pixels left in a view are no targets: what is smaller than the cells of a model's maps is
    noise to it, and half of the labels of a photo may be that small. [ours]"""
    num_workers: Annotated[int, at_least(0)] = 0
    """Processes that decode and augment; 0 means in the training process."""
    cache_mb: Annotated[int, at_least(0)] = 256
    """Decoded small photos kept in memory, in MB, per process."""


@dataclass
class InstructConfig:
    """Phase 2, self-instruction: the model learns the pseudo-labels."""

    num_steps: Annotated[int, at_least(1)] = 2000
    """Optimiser steps."""
    batch_size: Annotated[int, at_least(1)] = 8
    """Images a step, over all processes. [sibling: 16]"""


@dataclass
class CorrectConfig:
    """Phase 3, self-correction: a student learns from the initial labels and from its own EMA teacher."""

    num_steps: Annotated[int, at_least(1)] = 1000
    """Optimiser steps."""
    batch_size: Annotated[int, at_least(1)] = 8
    """Images a step, over all processes. [sibling: 16]"""
    learning_rate_factor: Annotated[float, at_least(0)] = 0.5
    """Peak learning rate of this phase relative to phase 2's. [ours]"""
    ema_decay: Annotated[float, Range(ge=0, lt=1)] = 0.9996
    """The teacher's momentum in every step; 0: no average, the teacher is the student after each step. Its memory is
    1 / (1 - decay) steps: short runs need a smaller one, for a tenth of them. [sibling]"""
    ema_warmup_steps: Annotated[int, at_least(0)] = 0
    """Over these first steps the momentum rises from 0 to `ema_decay`; the teacher starts as the student, so
    that none are needed. [ours]"""
    student_view: Literal["strong", "weak"] = "strong"
    """What the student sees: the strong view of the teacher's crop [sibling], or the very view of the teacher."""
    label_weight: Annotated[tuple[float, float], at_least(0)] = (1.0, 0.0)
    """Weight of the initial-label branch, from start to end by cosine; `0 0` switches it off. [sibling]"""
    teacher_weight: Annotated[tuple[float, float], at_least(0)] = (2.0, 3.0)
    """Weight of the teacher branch, from start to end by cosine; `0 0` switches it off. [sibling]"""
    score_thresholds: Annotated[tuple[float, float, float], between(0, 1)] = (0.3, 0.5, 0.7)
    """A teacher mask becomes a label above this score: small, medium, large. Three equal ones are one threshold,
    which starves the small. [ours]"""
    size_limits: Annotated[tuple[float, float], at_least(0)] = (32.0**2, 96.0**2)
    """Areas in pixels of the photo scaled to 640 on its long side that part small, medium and large. [COCO]"""
    theta_cover: Annotated[float, between(0, 1)] = 0.75
    """Coverage from which a teacher mask counts as inside another. [sibling]"""
    teacher_forest: bool = True
    """Coverage says which teacher mask is an ancestor of which, and the student learns it; else the teacher's labels
    teach it nothing about ancestors. [sibling]"""
    nms_iou: Annotated[float, between(0, 1)] = 0.9
    """Of two teacher masks with a higher IoU only the better becomes a label; 1 keeps all. [sibling]"""
    max_labels: Annotated[int, at_least(1)] = 100
    """Teacher labels kept per image, best scores first. [ours]"""


@dataclass
class InferConfig:
    """From the model's outputs to a forest."""

    size: Annotated[int, at_least(32)] = 512
    """Long side to which a photo is resized for the model, in pixels."""
    grid_size: Annotated[int, at_least(0)] = 0
    """Cells along each side with seeds of their own, for `seeds`: more than in training find more, at more time
    and memory. 0: as in training. [ours]"""
    max_masks: Annotated[int, at_least(1)] = 1000
    """At most this many masks an image. [paper: AR@1000]"""
    min_score: Annotated[float, between(0, 1)] = 0.1
    """Masks that score less are dropped: 0.1 leaves out what a model holds for a mask with less than one chance
    in ten. [ours]"""
    eval_min_score: Annotated[float, between(0, 1)] = 0.0
    """The same where a phase is scored: AR counts up to 1000 masks an image, and more never lower it. [ours]"""
    nms_iou: Annotated[float, between(0, 1)] = 0.9
    """Of two masks with a higher IoU only the better stays. [sibling]"""
    ancestor_threshold: Annotated[float, between(0, 1)] = 0.5
    """Probability from which mask i counts as an ancestor of mask j. [ours]"""
    ancestor_cover: Annotated[float, between(0, 1)] = 0.8
    """Share of a child that must lie in a parent which the head names: less than for coverage alone, as a head
    that knows of a relation needs less proof. Of 0.7, 0.75, 0.8, 0.85 and 0.9 the best ancestor F1 on scenes. [ours]"""
    child_area: Annotated[float, between(0.01, 1)] = 1.0
    """Largest share of its parent's pixels that a child named by the ancestor head may fill; of several parents within
    this share of the smallest, the one with the best score is taken. 1: no limit. Lower values give shallower forests
    and miss more relations: on 24 scenes after the default run, 1 / 0.95 / 0.9 give ancestor F1 53.7 / 47.0 / 41.9 and
    forests 37 / 21 / 15 levels deep; with `min_score` 0.1, 47.0 / 44.3 / 38.4 and 5.3 / 4.4 / 3.6. [ours]"""
    theta_cover: Annotated[float, between(0, 1)] = 0.9
    """Share of a child that must lie in its parent where a model has no ancestor head. [sibling]"""
    min_area: Annotated[int, at_least(0)] = 10
    """Masks with fewer pixels, at the photo's own size, are dropped. [ours]"""
    batch_size: Annotated[int, at_least(1)] = 8
    """Photos of one working size that go through the model together."""
    tile: Annotated[int, at_least(0)] = 0
    """Photos with a longer side than this are segmented as a whole and in overlapping tiles of this side, in pixels of
    the photo; objects that tile borders cut are joined. 0: never. [ours]"""
    tile_overlap: Annotated[float, between(0, 0.9)] = 0.25
    """Share of a tile's side that neighbouring tiles have in common. [ours]"""
    join_iou: Annotated[float, between(0, 1)] = 0.5
    """Masks of two tiles with a higher IoU, where the tiles overlap, are one object. [ours]"""


@dataclass
class Config:
    """A run."""

    preset: str = "tiny"
    """The preset that the other defaults come from; `--help` lists them."""
    images: tuple[Path, ...] = ()
    """Photos to learn from, one source or several: folders (nested is fine), tar archives, .txt lists, COCO .json files
    (images only). None: scenes are drawn."""
    eval: Path | None = None
    """Ground truth to score every phase on: a folder with annotations.json and images/, or a COCO JSON file."""
    eval_dataset: DataSetName | None = None
    """The data set whose official layout lies under --eval; see docs/datasets.md. It is converted once, into the run
    folder."""
    eval_num_images: Annotated[int | None, at_least(1)] = None
    """Take only so many images of --eval-dataset, at equal distances. Default: all."""
    phases: tuple[Phase, ...] = PHASES
    """Phases to run; those already finished in the run folder are not done again."""
    seed: Annotated[int, at_least(0)] = 0
    """Of everything random: scenes, weights, views, sampled points."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    instruct: InstructConfig = field(default_factory=InstructConfig)
    correct: CorrectConfig = field(default_factory=CorrectConfig)
    infer: InferConfig = field(default_factory=InferConfig)


def load(path: Path, cls: type = Config) -> Any:
    """Read a `config.json` as `cls`. Raises ConfigError when it is not one."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return from_dict(cls, values, where=str(path))
