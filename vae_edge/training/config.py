"""What a training run is told, and the numbers that follow from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from vae_edge.data import rotation_range
from vae_edge.errors import ConfigError
from vae_edge.model import LossWeights
from vae_edge.model.config import checked_fields

IMAGES_SEEN = 700_000  # by default, images shown in all; small sets are shown more often
EPOCHS_LEAST, EPOCHS_MOST = 10, 120
SEEN_LEAST = 60_000  # images shown to the smallest sets, whatever the epochs
SMALL_SET = 10_000
LEAST_BATCH, SMALL_BATCH, LARGEST_BATCH = 16, 128, 256


LIGHT = {"rotation_deg": 10.0, "scale": 0.1, "shear_deg": 5.0, "shift": 0.07}
MEDIUM = {"rotation_deg": 15.0, "scale": 0.2, "shear_deg": 15.0, "shift": 0.1, "elastic": 0.054}
STRONG = {"rotation_deg": 20.0, "scale": 0.25, "shear_deg": 20.0, "shift": 0.1, "elastic": 0.054, "thickness": 0.8}
AUGMENTATIONS = ("auto", "none", "light", "medium", "strong")
FEW_IMAGES = 2_000  # labelled images below which `auto` augments strongly


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run.

    Attributes:
        rotation: `none`, `full`, or the largest angle in degrees either way.
        epochs: passes over the images; None: so many that about 700,000 are shown.
        batch: images a step over all processes; None: by the number of images.
        augment: `none`, `light`, `medium`, `strong`, or `auto`: light; where few images are labelled strong, or medium
            if there are unlabelled ones.
        mirror: whether half of the images are mirrored.
        labels_per_class: how many labels of each class are used; the other images count as unlabelled. None: all.
        labels_only: leave the images without labels out.
        unlabelled: weight of the pseudo-labels of unlabelled images against the labels; 0: their pixels alone teach.
        mutual: weight, against the cross-entropy, of the mutual information between what the averaged model and the
            moving one say of two views of an unlabelled image.
        confidence: probability from which on a pseudo-label is believed, and a generated image is kept.
        generated: share of generated images in a batch in the second part of training; 0: there is no second part.
        pretrain: share of the steps that come before the images are generated.
        patience: epochs without improvement on a watched tenth of the training images after which training ends.
        bf16: bfloat16 arithmetic; None: where the processor or GPU has it.
        compile: whether the step goes through `torch.compile`.
    """

    rotation: str = "full"
    epochs: int | None = None
    batch: int | None = None
    augment: str = "auto"
    mirror: bool = False
    labels_per_class: int | None = None
    labels_only: bool = False
    unlabelled: float = 1.0
    mutual: float = 0.5
    confidence: float = 0.95
    generated: float = 0.0
    pretrain: float = 0.4
    patience: int | None = None
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    warmup: float = 0.15
    ema: float = 0.998
    gradient_clip: float = 5.0
    holdout: float = 0.1
    reject_rate: float = 0.01
    bf16: bool | None = None
    compile: bool = False
    seed: int = 0
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        rotation_range(self.rotation)
        for name, least in (("epochs", 1), ("batch", 2), ("patience", 1), ("labels_per_class", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} {value}: expected at least {least}")
        for name, low, high in (
            ("learning_rate", 0, 1),
            ("holdout", 0, 0.9),
            ("reject_rate", 0, 0.5),
            ("ema", 0, 1),
            ("pretrain", 0, 1),
            ("confidence", 0, 1),
        ):
            value = getattr(self, name)
            if not low < value < high:
                raise ConfigError(f"{name} {value}: expected a number between {low} and {high}")
        if not 0 <= self.generated < 1:
            raise ConfigError(f"generated {self.generated}: expected a share from 0 to below 1")
        for name in ("unlabelled", "mutual"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} {value}: expected a finite weight from 0 on")
        if self.augment not in AUGMENTATIONS:
            raise ConfigError(f"augment {self.augment!r}: expected one of {', '.join(AUGMENTATIONS)}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed {self.seed}: expected a whole number from 0 to {2**31 - 1}")

    def epochs_for(self, images: int) -> int:
        """The number of passes over `images` images: as told, or so that about 700,000 are shown in all."""
        if self.epochs is not None:
            return self.epochs
        most = max(EPOCHS_MOST, math.ceil(SEEN_LEAST / images))
        return min(most, max(EPOCHS_LEAST, math.ceil(IMAGES_SEEN / images)))

    def batch_for(self, images: int) -> int:
        """Images a step: as told, or 256, fewer for sets under 10,000, so that an epoch has enough steps."""
        if self.batch is not None:
            return min(self.batch, images)
        if images >= SMALL_SET:
            return LARGEST_BATCH
        return min(SMALL_BATCH, max(LEAST_BATCH, 2 ** int(math.log2(max(1, images / 16)))))

    def augmentation_kind(self, labelled: int = SMALL_SET, unlabelled: int = 0) -> str:
        """`augment`, or what `auto` means for so many labelled and unlabelled images."""
        if self.augment != "auto":
            return self.augment
        return "light" if labelled >= FEW_IMAGES else ("medium" if unlabelled else "strong")

    def augmentation(self, labelled: int = SMALL_SET, unlabelled: int = 0) -> dict[str, float]:
        """Arguments of `affine_augment` for a run with so many labelled and unlabelled images.

        Turned training turns by the range asked for; small changes of shape come with it only where few images are
        labelled, because shear makes some classes (6 and 9) alike.
        """
        kind = self.augmentation_kind(labelled, unlabelled)
        turns = {} if self.rotation == "none" else {"rotation_deg": rotation_range(self.rotation)}
        if kind == "none":
            return {"rotation_deg": 0.0, **turns}
        if kind == "light":
            return turns or LIGHT
        return {**(MEDIUM if kind == "medium" else STRONG), **turns}

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> TrainConfig:
        """As JSON stored it, where earlier versions may lack some; anything else is a ConfigError."""
        return cls(**checked_fields(cls, values, "training configuration", all_of_them=False))


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """One cycle (Smith and Topin 2018): cosine up to `peak` over the first `warmup` of the steps, cosine down to 0."""
    turn_at = max(1.0, warmup * steps)
    if step < turn_at:
        return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * step / turn_at)) / 2)
    return peak * (1 + math.cos(math.pi * (step - turn_at) / max(1.0, steps - turn_at))) / 2 + peak * 1e-4
