"""Settings of a training run, what it says of its data, and the schedule that follows from both."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from vae_edge.data import rotation_range
from vae_edge.data.groups import check_rule
from vae_edge.errors import ConfigError
from vae_edge.model import LossWeights, ModelConfig
from vae_edge.model.config import checked_fields, rename_keys
from vae_edge.preprocess import InputSpec
from vae_edge.training.augment import Augmentation

SCHEMA = 2  # of a run's files

SCHEMA_1_TRAINING = {
    "generated": "synthetic_ratio",
    "mutual": "mutual_info_weight",
    "unlabelled": "pseudo_label_weight",
    "confidence": "pseudo_label_threshold",
}
SCHEMA_1_DATA = {"watched": "val", "copies": "duplicates", "also_tested": "in_test"}
"""Fields of `TrainConfig` and `TrainingData` in files of schema 1, and what they are called now."""

IMAGES_SEEN = 700_000  # images shown by default, over all epochs; small sets are shown for more epochs
MIN_EPOCHS, MAX_EPOCHS = 10, 120
MIN_IMAGES_SEEN = 60_000  # shown to the smallest sets, beyond MAX_EPOCHS
SMALL_SET = 10_000
MIN_BATCH, MAX_SMALL_BATCH, MAX_BATCH = 16, 128, 256
PRETRAINED_BATCH = 32  # of a pretrained backbone: more steps for few epochs
PRETRAINED_EPOCHS = 8  # at most, of a pretrained backbone

AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "light": Augmentation(rotation_deg=10.0, scale=0.1, shear_deg=5.0, shift=0.07),
    "medium": Augmentation(rotation_deg=15.0, scale=0.2, shear_deg=15.0, shift=0.1, elastic=0.054),
    "strong": Augmentation(rotation_deg=20.0, scale=0.25, shear_deg=20.0, shift=0.1, elastic=0.054, thickness=0.8),
    "photo": Augmentation(
        rotation_deg=10.0,
        scale=0.15,
        shear_deg=5.0,
        shift=0.07,
        identity=0.3,
        contrast=0.4,
        brightness=0.15,
        gamma=0.3,
        color=0.15,
        sharpness=0.8,
        noise=0.04,
    ),
}
"""`light`, `medium` and `strong` are for drawings on an even background; `photo` for all other images."""
DRAWING_COLORS: dict[str, Any] = {"contrast": 0.4, "brightness": 0.15, "gamma": 0.3, "color": 0.3}
"""Ranges that drawings in colour get beside these: another hand draws the same thing in other colours."""
FEW_LABELS = 2_000  # labelled images below which `auto` augments strongly

PSEUDO_LABEL_RAMP = 0.1  # fraction of the steps over which pseudo-labels reach their full weight


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run.

    Attributes:
        rotation: `none`, `full`, or the largest angle in degrees either way.
        epochs: passes over the images; None: as many as show about 700,000 images.
        batch: images a step over all processes; None: by the number of images.
        augment: `none`, `light`, `medium`, `strong`, `photo`, or `auto`. `auto` is photo for images without a
            background in common; else light, or with few labelled images strong, or medium if there are unlabelled
            ones.
        mirror: mirror half of the images.
        class_balance: from 0 to 1: a label of a class of n images counts in proportion to n to the power of
            -class_balance. With 0 all labels count the same, with 1 all classes.
        labels_per_class: labels of each class that are used; the other images count as unlabelled. None: all.
        labels_only: leave unlabelled images out.
        pseudo_label_weight: weight of the pseudo-labels of unlabelled images relative to labels. With 0 only the
            pixels of these images are learnt from.
        mutual_info_weight: weight, relative to the cross-entropy, of the mutual information between the EMA model's
            and the model's classes of two views of an unlabelled image.
        pseudo_label_threshold: probability from which on a pseudo-label counts, and a generated image is kept.
        synthetic_ratio: fraction of generated images in a batch in the second part of training; 0: there is no second
            part.
        pretrain: fraction of the steps before the images are generated.
        patience: early stopping: epochs without improvement on the validation images, a tenth of the training images.
        learning_rate: peak of the schedule.
        weight_decay: of weights with more than one dimension.
        warmup: fraction of the steps up to the peak.
        ema: decay of the exponential moving average of the weights.
        gradient_clip: largest norm of the gradient.
        holdout: fraction of the training images that are held out.
        group_by: what is held out as a whole: `folder`, a table `FILE.csv`, or a pattern of the file's name such as
            `{group}__*` (`vae_edge.data.groups`). None: single images.
        reject_rate: fraction of the held-out images that the score's threshold rejects.
        bf16: bfloat16 arithmetic; None: where the processor or GPU has it in hardware.
        compile: run the step through `torch.compile`.
        seed: of all random numbers.
        backbone_weights: file of the weights that a pretrained backbone begins with, safetensors or a PyTorch state
            dict. None: its library downloads them.
        backbone_lr_ratio: learning rate of the pretrained weights relative to that of the others.
        weights: of the terms of the loss.
    """

    rotation: str = "full"
    epochs: int | None = None
    batch: int | None = None
    augment: str = "auto"
    mirror: bool = False
    class_balance: float = 0.0
    labels_per_class: int | None = None
    labels_only: bool = False
    pseudo_label_weight: float = 1.0
    mutual_info_weight: float = 0.5
    pseudo_label_threshold: float = 0.95
    synthetic_ratio: float = 0.0
    pretrain: float = 0.4
    patience: int | None = None
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    warmup: float = 0.15
    ema: float = 0.998
    gradient_clip: float = 5.0
    holdout: float = 0.1
    group_by: str | None = None
    reject_rate: float = 0.01
    bf16: bool | None = None
    compile: bool = False
    seed: int = 0
    backbone_weights: str | None = None
    backbone_lr_ratio: float = 0.01
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        rotation_range(self.rotation)
        if self.group_by is not None:
            check_rule(self.group_by)
        for name, minimum in (("epochs", 1), ("batch", 2), ("patience", 1), ("labels_per_class", 1)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ConfigError(f"{name} {value}: expected at least {minimum}")
        for name, low, high in (
            ("learning_rate", 0, 1),
            ("holdout", 0, 0.9),
            ("reject_rate", 0, 0.5),
            ("ema", 0, 1),
            ("pretrain", 0, 1),
            ("pseudo_label_threshold", 0, 1),
        ):
            value = getattr(self, name)
            if not low < value < high:
                raise ConfigError(f"{name} {value}: expected a number between {low} and {high}")
        if not 0 <= self.synthetic_ratio < 1:
            raise ConfigError(f"synthetic_ratio {self.synthetic_ratio}: expected a fraction from 0 to below 1")
        if not 0 <= self.backbone_lr_ratio <= 1:
            raise ConfigError(f"backbone_lr_ratio {self.backbone_lr_ratio}: expected a number from 0 to 1")
        if not 0 <= self.class_balance <= 1:
            raise ConfigError(f"class_balance {self.class_balance}: expected a number from 0 to 1")
        for name in ("pseudo_label_weight", "mutual_info_weight"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} {value}: expected a finite weight from 0 on")
        if self.augment not in ("auto", *AUGMENTATIONS):
            raise ConfigError(f"augment {self.augment!r}: expected one of auto, {', '.join(AUGMENTATIONS)}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed {self.seed}: expected a whole number from 0 to {2**31 - 1}")

    def epochs_for(self, images: int) -> int:
        """Epochs over `images` images: `epochs`, or the documented number."""
        return self.documented_epochs(images) if self.epochs is None else self.epochs

    @staticmethod
    def documented_epochs(images: int) -> int:
        """As many epochs as show about 700,000 images."""
        most = max(MAX_EPOCHS, math.ceil(MIN_IMAGES_SEEN / images))
        return min(most, max(MIN_EPOCHS, math.ceil(IMAGES_SEEN / images)))

    def batch_for(self, images: int) -> int:
        """Images a step: `batch`, or 256; fewer for sets under 10,000 images, so that an epoch has enough steps."""
        if self.batch is not None:
            return min(self.batch, images)
        if images >= SMALL_SET:
            return MAX_BATCH
        return min(MAX_SMALL_BATCH, max(MIN_BATCH, 2 ** int(math.log2(max(1, images / 16)))))

    def augmentation_kind(self, labelled: int = SMALL_SET, unlabelled: int = 0, background: str = "dark") -> str:
        """`augment`, or what `auto` means for so many labelled and unlabelled images with such a background."""
        if self.augment != "auto":
            return self.augment
        if background == "none":
            return "photo"
        return "light" if labelled >= FEW_LABELS else ("medium" if unlabelled else "strong")

    def augmentation(
        self, labelled: int = SMALL_SET, unlabelled: int = 0, background: str = "dark", channels: int = 1
    ) -> Augmentation:
        """The random changes of a run with so many labelled and unlabelled images.

        Training with rotation rotates by the whole range. Drawings change their shapes then only where few of them are
        labelled, because shear makes some classes (6 and 9) alike.

        Args:
            labelled: number of labelled training images.
            unlabelled: number of those without a label.
            background: of the images, as `InputSpec.background`.
            channels: of the images.
        """
        kind = self.augmentation_kind(labelled, unlabelled, background)
        ranges = replace(AUGMENTATIONS[kind], mirror=self.mirror)
        colors = DRAWING_COLORS if channels == 3 and kind in ("light", "medium", "strong") else {}
        ranges = replace(ranges, **colors)
        if self.rotation == "none":
            return ranges
        rotation_deg = rotation_range(self.rotation)
        if kind == "light":
            return Augmentation(rotation_deg=rotation_deg, mirror=self.mirror, **colors)
        return replace(ranges, rotation_deg=rotation_deg, shear_deg=0.0 if kind == "photo" else ranges.shear_deg)

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> TrainConfig:
        """Read what JSON of schema 1 or 2 stored. Earlier versions had fewer fields. Else a ConfigError."""
        renamed = rename_keys(values, SCHEMA_1_TRAINING)
        return cls(**checked_fields(cls, renamed, "training configuration", complete=False))


@dataclass(frozen=True)
class TrainingData:
    """What a run says of its data. Names are of classes, numbers without a unit are counts of images.

    Attributes:
        fingerprint: of the data set's pixels and labels.
        trained_on: labelled training images.
        unlabelled: images that are trained on without a label.
        holdout_fraction: fraction of the training images that were held out.
        seed: that the held-out images were drawn with.
        ambiguous: classes that look upright when rotated by 180°, as earlier versions took them from the pixels; now
            the trained model tells (`TrainResult.symmetry`), and this is empty.
        absent: classes without a labelled training image.
        name: of the data set.
        val: validation images of early stopping.
        held_out: images that set temperature and thresholds.
        duplicates: training images that repeat others pixel by pixel.
        in_test: training images that are also test images.
        unlike_mirrored: with `mirror`: classes whose mirrored images look unlike the class.
        own_validation: whether the held-out images are a validation split that the data set brought.
        group_by: as in `TrainConfig`; of a table the file's name alone.
        groups: number of groups of the training images, held-out ones included; 0: they have none.
        held_out_groups: number of the groups that were held out.
        held_out_group_names: the first of them.
    """

    fingerprint: str
    trained_on: int
    unlabelled: int
    holdout_fraction: float
    seed: int
    ambiguous: tuple[str, ...]
    absent: tuple[str, ...]
    name: str = ""
    val: int = 0
    held_out: int = 0
    duplicates: int = 0
    in_test: int = 0
    unlike_mirrored: tuple[str, ...] = ()
    own_validation: bool = False
    group_by: str | None = None
    groups: int = 0
    held_out_groups: int = 0
    held_out_group_names: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it, in a run's `config.json` and in a bundle's manifest."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingData:
        """Read what JSON of schema 1 or 2 stored, without unknown names. Wrong types are a ConfigError, missing names
        a KeyError."""
        values = rename_keys(values, SCHEMA_1_DATA)
        known = {field.name for field in fields(cls)}
        found = checked_fields(cls, {name: values[name] for name in values if name in known}, "data", complete=False)
        for name in ("fingerprint", "trained_on", "unlabelled", "holdout_fraction", "seed", "ambiguous", "absent"):
            if name not in found:
                raise KeyError(f"data.{name}")
        return cls(**found)


@dataclass(frozen=True)
class RunConfig:
    """Everything that is fixed when training begins."""

    model: ModelConfig
    training: TrainConfig
    classes: tuple[str, ...]
    input: InputSpec
    data: TrainingData

    def to_dict(self) -> dict[str, Any]:
        """As `config.json` holds it."""
        return {
            "schema": SCHEMA,
            "classes": list(self.classes),
            "input": self.input.to_json(),
            "model": asdict(self.model),
            "training": self.training.to_dict(),
            "data": self.data.to_dict(),
        }


@dataclass(frozen=True)
class Schedule:
    """Number of steps, the step at which images are generated, and the learning rate of each step.

    With generated images there are two cycles of the learning rate, one before and one after that step.
    """

    settings: TrainConfig
    batch: int
    per_epoch: int
    steps: int
    boundary: int  # the first step with generated images; `steps` where there are none

    @classmethod
    def from_config(cls, settings: TrainConfig, images: int) -> Schedule:
        """The schedule of a run on this number of images."""
        batch = settings.batch_for(images)
        per_epoch = max(1, images // batch)
        steps = per_epoch * settings.epochs_for(images)
        boundary = max(1, round(settings.pretrain * steps)) if settings.synthetic_ratio else steps
        return cls(settings, batch, per_epoch, steps, boundary)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step."""
        peak, warmup = self.settings.learning_rate, self.settings.warmup
        if step < self.boundary:
            return warmup_cosine_lr(step, self.boundary, peak, warmup)
        return warmup_cosine_lr(step - self.boundary, self.steps - self.boundary, peak, warmup)

    def ramp_at(self, step: int) -> float:
        """Weight of the pseudo-labels at a step, from 0 to 1."""
        return min(1.0, step / max(1.0, PSEUDO_LABEL_RAMP * self.steps))


def warmup_cosine_lr(step: int, steps: int, peak: float, warmup: float) -> float:
    """One cycle (Smith and Topin 2018): cosine up to `peak` over the first `warmup` of the steps, cosine down to 0."""
    warmup_steps = max(1.0, warmup * steps)
    if step < warmup_steps:
        return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * step / warmup_steps)) / 2)
    return peak * (1 + math.cos(math.pi * (step - warmup_steps) / max(1.0, steps - warmup_steps))) / 2 + peak * 1e-4
