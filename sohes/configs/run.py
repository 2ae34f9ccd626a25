# SPDX-License-Identifier: Apache-2.0
"""All settings of a run, as dataclasses. A run is one `Config`, stored as `config.json` in its folder.

Labels give the source of a value: [paper] the SOHES authors, [cited] others about SOHES, [sibling] HASSOD or UnSAM,
[ours] chosen here. The docstring below a field is its text in `--help-all`, the range in
its type is checked and shown there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, overload

from sohes.configs.io import ConfigError as ConfigError  # exported here too, beside the classes
from sohes.configs.io import Settings
from sohes.configs.io import from_dict as from_dict
from sohes.configs.io import to_dict as to_dict
from sohes.configs.model import LossConfig as LossConfig
from sohes.configs.model import ModelConfig as ModelConfig
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
LookName = Literal["full", "half", "third", "faded", "vivid"]
PhotoBaselineName = Literal["felzenszwalb", "slic-tree", "box-grid", "tree-oracle"]
BaselineName = Literal[PhotoBaselineName, "other-annotators"]
PHASES: tuple[Phase, ...] = ("explore", "instruct", "correct")


@dataclass
class SceneConfig:
    """The built-in data set, drawn if no `--images` are given."""

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
    """Weights of a ViT: `timm`, the published ones; `random`; or a local file (.safetensors, .pth). Not used by
    `descriptor`."""
    facet: Literal["key", "query", "value", "output"] = "key"
    """Output of the ViT's last block that is a patch's feature. [sibling: key]"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the ViT's forward pass. [ours]"""
    batch_size: Annotated[int, at_least(1)] = 1
    """Photos of a shard in one batch of the ViT; their crops are the next batch. Photos with the same grid of patches
    share a forward pass. For GPUs: `descriptor` gets no faster. [ours]"""
    side: Annotated[int, at_least(1)] = 480
    """Photos are resized to about side^2 pixels, aspect ratio kept; `descriptor` does not enlarge them. [ours]"""
    feature_side: Annotated[int, at_least(0)] = 0
    """A ViT's input is resized to about this many pixels squared, at most `side`; basins and patches keep the
    resolution of `side`. 0: `side`. For a ViT trained on small crops, in which objects are small. [ours]"""
    color_share: Annotated[float, between(0, 1)] = 0.0
    """Weight of a basin's mean colour beside its mean ViT feature. [ours]"""
    color_trees: bool = False
    """With `basins` and a ViT: add the trees of colours alone, as `descriptor` grows them, to the ViT's tree. Colours
    find small objects, features large ones. [ours]"""
    feature_weight: Annotated[float, between(0, 1)] = 0.93
    """With `color_trees`: factor on the scores of the ViT's tree. [ours]"""
    feature_border_weight: Annotated[float, at_least(0)] = 8.0
    """With `color_trees`: `border_weight` of the ViT's tree. [ours]"""
    looks: tuple[LookName, ...] = ("full",)
    """Looks at a photo that are clustered one by one: `full`; `half` and `third` of the working size (0.5 and 0.35 of
    each side); `faded` and `vivid` colours. The masks of several looks are joined by consensus: what more looks find
    ranks higher. [ours]"""
    vote_iou: Annotated[float, Range(ge=0.5, le=1)] = 0.7
    """With several looks: a look votes for a mask if it has a mask of at least this IoU with it. [ours]"""
    start: Literal["basins", "patches"] = "basins"
    """Leaves of the merge tree: `basins`, pixel-sharp watershed basins with mean features, merged by features and
    border strength [ours]; or `patches` of the feature grid, merged by features alone. [paper]"""
    basin_sigma: Annotated[float, above(0)] = 1.5
    """Sigma in pixels of the blur before the gradient that gives the basins. [ours]"""
    border_sigma: Annotated[float, above(0)] = 1.0
    """Sigma in pixels of the blur before the gradient that gives the strength of borders. [ours]"""
    border_softness: Annotated[float, above(0)] = 10.0
    """Lab difference at which a border has half of the full strength. [ours]"""
    border_weight: Annotated[float, at_least(0)] = 3.0
    """Weight of border strength beside feature distance when basins merge. [ours]"""
    size_exponent: Annotated[float, at_least(0)] = 0.3
    """Preference for merging small basins first; 0: none. [ours]"""
    ward_weight: Annotated[float, between(0, 1)] = 0.88
    """Factor on the scores of a second tree of basins, merged by features alone with Ward's criterion; 0: no second
    tree. [ours]"""
    patch: Annotated[int, at_least(1)] = 4
    """Side of a patch of `descriptor` in pixels; a ViT has its own. [ours]"""
    snap_rounds: Annotated[int, at_least(0)] = 2
    """Rounds in which pixels at the outlines of `patches` move to the neighbouring patch of most similar colour; 0:
    patches stay square. [ours]"""
    compactness: Annotated[float, above(0)] = 5.0
    """Lab distance equivalent to one patch side when pixels choose their patch. [ours]"""
    color_width: Annotated[float, above(0)] = 12.0
    """Lab distance at which two colours begin to count as different. [ours]"""
    texture_width: Annotated[float, above(0)] = 6.0
    """The same for texture (spread and oriented gradients of lightness). [ours]"""
    texture_weight: Annotated[float, at_least(0)] = 0.3
    """Weight of texture beside colour. [ours]"""
    place_width: Annotated[float, above(0)] = 0.1
    """Distance, relative to the image's size, at which two places begin to count as different. [ours]"""
    place_weight: Annotated[float, at_least(0)] = 0.7
    """Weight of place beside colour: keeps regions connected, and small ones merge first. [ours]"""
    diffusion_steps: Annotated[int, at_least(0)] = 20
    """Steps of diffusion that smooth descriptors within surfaces. [ours]"""
    diffusion_contrast: Annotated[float, above(0)] = 8.0
    """Lab difference of neighbouring patches that stops the diffusion. [ours]"""
    schedule: Literal["exact", "rounds"] = "exact"
    """Order in which `patches` merge: `exact`, the most similar pair of all first, as in the paper's method; `rounds`,
    all mutually best pairs at once, which gives another tree and suits parallel devices. [ours]"""
    cuts: Literal["adaptive", "fixed"] = "adaptive"
    """Where the merge tree is cut: `adaptive`, at quantiles of its own similarities; `fixed`, at `thresholds`.
    [ours]"""
    num_cuts: Annotated[int, at_least(0)] = 64
    """Adaptive cuts, evenly spaced in the logarithm of the number of regions; 0: every node is a candidate. [ours]"""
    thresholds: Annotated[tuple[float, ...], between(-1, 1)] = (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    """Similarities of the fixed cuts, in falling order. [sibling]"""
    theta_small: Annotated[float, between(0, 1)] = 0.0
    """Candidates smaller than this share of the image are cropped at full resolution and clustered again; 0: none.
    [cited that it exists; ours: the value]"""
    local_regions: Annotated[int, at_least(1)] = 16
    """Crops per image, of the best candidates. [ours]"""
    local_margin: Annotated[float, at_least(0)] = 0.3
    """Margin of a crop on each side, relative to the longer side of its candidate's box. [ours]"""
    local_side: Annotated[int, at_least(1)] = 256
    """Crops are resized to about this many pixels squared, aspect ratio kept. [sibling]"""
    local_cover: Annotated[float, between(0, 1)] = 0.9
    """Share of a crop's mask that must lie in the candidate. [cited]"""
    local_masks: Annotated[int, at_least(1)] = 20
    """Masks kept per crop, best scores first. [ours]"""
    local_min_area: Annotated[float, above(0)] = 4.0
    """Factor on `min_area` in a crop, which is enlarged. [ours]"""
    refiner: Literal["none", "snap", "guided", "crf", "cascadepsp"] = "none"
    """Refinement of mask outlines: `snap` moves them to borders of basins; `guided` is the fast guided filter; `crf`
    the mean field of a dense CRF; `cascadepsp` the network of segmentation-refinement, which was trained on HUMAN masks
    [cited: the paper's]. Masks of basins, and of patches with `snap_rounds`, are sharp without it. [ours]"""
    crf_steps: Annotated[int, at_least(1)] = 5
    """Steps of the mean field. [ours; sibling: 10]"""
    refine_min_iou: Annotated[float, between(0, 1)] = 0.5
    """A refined mask with a lower IoU with the original is dropped. [sibling]"""
    min_area: Annotated[float, at_least(0)] = 100.0
    """Smallest mask in pixels of an image of 480x480; scales with the image's size. [sibling: 100 px]"""
    min_pixels: Annotated[int, at_least(0)] = 16
    """Smallest mask in pixels of the photo, at any size of the photo. [ours]"""
    max_area: Annotated[float, between(0, 1)] = 0.9
    """Largest mask as a share of the image. [sibling]"""
    max_corners: Annotated[int, between(0, 4)] = 2
    """Masks that contain more image corners than this are dropped. [sibling: 3 or more are dropped]"""
    nms_iou: Annotated[float, between(0, 1)] = 0.9
    """Of two masks with a higher IoU one is dropped. [sibling]"""
    theta_cover: Annotated[float, Range(gt=0, le=1)] = 0.9
    """Share of a mask that must lie in another to be its part. [sibling]"""
    max_masks: Annotated[int, at_least(1)] = 300
    """Masks kept per image, best scores first. [ours]"""
    shard_size: Annotated[int, at_least(1)] = 100
    """Images per label file (shard); a killed run loses at most one shard. [ours]"""
    max_failures: Annotated[int, at_least(0)] = 100
    """Above this number of unreadable images the phase ends with an error, after all labels are written. [ours]"""
    num_workers: Annotated[int, at_least(0)] = 0
    """Threads that decode and label images; 0: one per CPU of this process's share. Labels do not depend on it.
    [ours]"""
    patience: Annotated[float, at_least(0)] = 3600.0
    """With several processes: seconds without a new label file from the others before waiting ends with an error.
    [ours]"""


@dataclass
class OptimConfig:
    """Optimiser and schedule of phases 2 and 3."""

    learning_rate: Annotated[float, above(0)] = 1e-4
    """Peak learning rate of AdamW. [sibling]"""
    backbone_factor: Annotated[float, at_least(0)] = 0.1
    """Learning rate of the backbone ViT relative to `learning_rate`. [sibling]"""
    layer_decay: Annotated[float, Range(gt=0, le=1)] = 1.0
    """Learning rate of each layer of the backbone ViT relative to the layer above it, so that a pretrained ViT's early
    layers change least. 1: the same for all; BEiT uses 0.65. [ours]"""
    weight_decay: Annotated[float, at_least(0)] = 0.05
    """Weight decay of matrices; vectors (norms, biases) and embeddings have none. [sibling]"""
    clip_norm: Annotated[float, at_least(0)] = 0.01
    """Gradients are clipped to this total norm; 0: no clipping. [sibling]"""
    warmup_steps: Annotated[int, at_least(0)] = 20
    """Steps of linear warm-up. [ours]"""
    final_factor: Annotated[float, between(0, 1)] = 0.01
    """Learning rate at the end of the cosine schedule, relative to the peak. [ours]"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of forward passes; losses and matching stay in fp32, and fp16 scales the loss. Half precision is
    for GPUs: far slower on a CPU without matrix units."""
    max_bad_steps: Annotated[int, at_least(1)] = 10
    """This many steps in a row with a non-finite loss end the run; a single one is logged and skipped. [ours]"""


@dataclass
class EngineConfig:
    """Execution and storage of training. Nothing here changes the result, so --resume may change it."""

    accumulate: Annotated[int, at_least(1)] = 1
    """Micro-batches in each process's share of a batch: less memory, more time, same result."""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: `ddp` copies the model to each, `fsdp` (FSDP2) shards weights, gradients and
    optimiser."""
    compile: bool = False
    """Compile the layers of ViT and decoders with torch.compile."""
    checkpoint_seconds: Annotated[float, at_least(0)] = 60.0
    """Seconds between checkpoints; a killed run continues from the newest one."""
    keep_checkpoints: Annotated[int, at_least(1)] = 2
    """Checkpoints kept per phase."""
    async_checkpoints: bool = False
    """Write checkpoints while training continues, from a copy of the state in CPU memory."""
    half_checkpoints: bool = False
    """Round checkpoints to bfloat16, for half the bytes: a resumed run is then nearly, not bitwise, the same."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard, into tensorboard/ of the run. Needs the package `tensorboard`."""
    timeout_minutes: Annotated[float, above(0)] = 60.0
    """Minutes that a process waits for the others before it gives up."""


@dataclass
class ViewConfig:
    """Training views of a photo."""

    size: Annotated[int, at_least(32)] = 512
    """Side of the square training view in pixels (photos are padded, never squashed). [ours]"""
    scale: Annotated[tuple[float, float], above(0)] = (0.5, 2.0)
    """Range of the random resize, relative to fitting the photo into the view. [sibling: large-scale jitter]"""
    min_area: Annotated[int, at_least(1)] = 8
    """Masks with fewer pixels in a view are no targets: masks smaller than a cell of the model's maps are noise, and
    can be half of a photo's labels. [ours]"""
    num_workers: Annotated[int, at_least(0)] = 0
    """Processes that decode and augment; 0: the training process itself."""
    cache_mb: Annotated[int, at_least(0)] = 256
    """Memory for decoded small photos, in MB per process."""


@dataclass
class InstructConfig:
    """Phase 2, self-instruction: the model learns the pseudo-labels."""

    num_steps: Annotated[int, at_least(1)] = 2000
    """Optimiser steps."""
    batch_size: Annotated[int, at_least(1)] = 8
    """Images per step, over all processes. [sibling: 16]"""


@dataclass
class CorrectConfig:
    """Phase 3, self-correction: a student learns from the initial labels and from its own EMA teacher."""

    num_steps: Annotated[int, at_least(1)] = 1000
    """Optimiser steps."""
    batch_size: Annotated[int, at_least(1)] = 8
    """Images per step, over all processes. [sibling: 16]"""
    learning_rate_factor: Annotated[float, at_least(0)] = 0.5
    """Peak learning rate of this phase relative to phase 2's. [ours]"""
    ema_decay: Annotated[float, Range(ge=0, lt=1)] = 0.9996
    """EMA decay of the teacher per step; 0: the teacher equals the student after each step. It averages over about 1 /
    (1 - decay) steps: short runs need a smaller decay, for about a tenth of their steps. [sibling]"""
    ema_warmup_steps: Annotated[int, at_least(0)] = 0
    """Steps in which the decay rises from 0 to `ema_decay`. The teacher starts equal to the student, so none are
    needed. [ours]"""
    student_view: Literal["strong", "weak"] = "strong"
    """View that the student sees: the strong view of the teacher's crop [sibling], or the teacher's own weak view."""
    label_weight: Annotated[tuple[float, float], at_least(0)] = (1.0, 0.0)
    """Weight of the initial-label branch, from start to end by cosine; `0 0`: off. [sibling]"""
    teacher_weight: Annotated[tuple[float, float], at_least(0)] = (2.0, 3.0)
    """Weight of the teacher branch, from start to end by cosine; `0 0`: off. [sibling]"""
    score_thresholds: Annotated[tuple[float, float, float], between(0, 1)] = (0.3, 0.5, 0.7)
    """A teacher mask above this score becomes a label: small, medium, large. Three equal values are one threshold,
    which keeps too few small masks. [ours]"""
    size_limits: Annotated[tuple[float, float], at_least(0)] = (32.0**2, 96.0**2)
    """Areas that separate small, medium and large, in pixels of the photo scaled to 640 on its long side. [COCO]"""
    theta_cover: Annotated[float, between(0, 1)] = 0.75
    """Share of a teacher mask that must lie in another to be its descendant. [sibling]"""
    teacher_forest: bool = True
    """Derive ancestors of teacher masks from coverage and train the student on them; otherwise the teacher's labels
    give no ancestor loss. [sibling]"""
    nms_iou: Annotated[float, between(0, 1)] = 0.9
    """Of two teacher masks with a higher IoU only the better one becomes a label; 1: both. [sibling]"""
    max_labels: Annotated[int, at_least(1)] = 100
    """Teacher labels per image, best scores first. [ours]"""


@dataclass
class InferConfig:
    """Inference: from the model's outputs to a forest of masks."""

    size: Annotated[int, at_least(32)] = 512
    """Long side to which a photo is resized for the model, in pixels."""
    grid_size: Annotated[int, at_least(0)] = 0
    """With `seeds`: cells along each side that have seed points. More than in training find more masks, with more time
    and memory. 0: as in training. [ours]"""
    max_masks: Annotated[int, at_least(1)] = 1000
    """Masks per image, best scores first. [paper: AR@1000]"""
    min_score: Annotated[float, between(0, 1)] = 0.1
    """Masks with a lower score are dropped. 0.1: those with less than one chance in ten, by the model. [ours]"""
    eval_min_score: Annotated[float, between(0, 1)] = 0.0
    """The same when a phase is scored: AR counts up to 1000 masks an image, and more masks never lower it. [ours]"""
    nms_iou: Annotated[float, between(0, 1)] = 0.9
    """Of two masks with a higher IoU only the better one is kept. [sibling]"""
    ancestor_threshold: Annotated[float, between(0, 1)] = 0.5
    """Probability from which mask i counts as an ancestor of mask j. [ours]"""
    ancestor_cover: Annotated[float, between(0, 1)] = 0.8
    """Share of a child that must lie in a parent that the ancestor head predicts: less than for coverage alone, as the
    prediction is evidence too. Of 0.7, 0.75, 0.8, 0.85 and 0.9 the best ancestor F1 on scenes. [ours]"""
    child_area: Annotated[float, between(0.01, 1)] = 1.0
    """Largest area of a predicted child relative to its parent; of several parents within this ratio of the smallest,
    the one with the best score is taken. 1: no limit. Lower values give shallower forests and miss more relations: on
    24 scenes after the default run, 1 / 0.95 / 0.9 give ancestor F1 53.7 / 47.0 / 41.9 and forests 37 / 21 / 15 levels
    deep; with `min_score` 0.1, 47.0 / 44.3 / 38.4 and 5.3 / 4.4 / 3.6. [ours]"""
    theta_cover: Annotated[float, between(0, 1)] = 0.9
    """Share of a child that must lie in its parent, for a model without ancestor head. [sibling]"""
    min_area: Annotated[int, at_least(0)] = 10
    """Masks with fewer pixels, at the photo's own size, are dropped. [ours]"""
    batch_size: Annotated[int, at_least(1)] = 8
    """Photos per forward pass, of one working size."""
    tile: Annotated[int, at_least(0)] = 0
    """Photos with a longer side than this, in pixels, are segmented as a whole and in overlapping tiles of this side;
    objects cut by tile borders are joined. 0: never. [ours]"""
    tile_overlap: Annotated[float, between(0, 0.9)] = 0.25
    """Overlap of neighbouring tiles relative to their side. [ours]"""
    join_iou: Annotated[float, between(0, 1)] = 0.5
    """Masks of two tiles with a higher IoU in their overlap are one object. [ours]"""


@dataclass
class Config:
    """All settings of a run."""

    preset: str = "tiny"
    """The preset that gives the other defaults; `--help` lists them."""
    images: tuple[Path, ...] = ()
    """Photos to learn from, one source or several: folders (nested is fine), tar archives, .txt lists, COCO .json files
    (images only). None: scenes are drawn."""
    eval: Path | None = None
    """Ground truth to score every phase on: a folder with annotations.json and images/, or a COCO JSON file."""
    eval_dataset: DataSetName | None = None
    """The data set whose official layout is under --eval; see docs/datasets.md. It is converted once, into the run
    folder."""
    eval_num_images: Annotated[int | None, at_least(1)] = None
    """Score on this many images of --eval-dataset, evenly spaced. Default: all."""
    phases: tuple[Phase, ...] = PHASES
    """Phases to run; those already finished in the run folder are skipped."""
    seed: Annotated[int, at_least(0)] = 0
    """Seed of all random numbers: scenes, weights, views, sampled points."""
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


@overload
def load(path: Path) -> Config: ...
@overload
def load(path: Path, cls: type[Settings]) -> Settings: ...
def load(path: Path, cls: type[Any] = Config) -> Any:
    """The settings in a `config.json`. Raises ConfigError if the file does not exist or does not fit `cls`."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return from_dict(cls, values, where=str(path))
