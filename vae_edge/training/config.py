"""What a training run is told, and the numbers that follow from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from vae_edge.data import rotation_range
from vae_edge.errors import ConfigError
from vae_edge.model import LossWeights

IMAGES_SEEN = 700_000  # by default, images shown in all; small sets are shown more often
EPOCHS_LEAST, EPOCHS_MOST = 10, 120
SMALL_SET = 10_000
LEAST_BATCH, SMALL_BATCH, LARGEST_BATCH = 16, 128, 256


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. `rotation` is `none`, `full`, or the largest angle in degrees either way."""

    rotation: str = "full"
    epochs: int | None = None
    batch: int | None = None
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    warmup: float = 0.15
    ema: float = 0.998
    gradient_clip: float = 5.0
    holdout: float = 0.1
    reject_rate: float = 0.01
    bf16: bool | None = None
    seed: int = 0
    weights: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        rotation_range(self.rotation)
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"{self.epochs} epochs: expected at least 1")
        if self.batch is not None and self.batch < 2:
            raise ConfigError(f"batch {self.batch}: expected at least 2 images")
        for name, low, high in (("learning_rate", 0, 1), ("holdout", 0, 0.9), ("reject_rate", 0, 0.5), ("ema", 0, 1)):
            value = getattr(self, name)
            if not low < value < high:
                raise ConfigError(f"{name} {value}: expected a number between {low} and {high}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed {self.seed}: expected a whole number from 0 to {2**31 - 1}")

    def epochs_for(self, images: int) -> int:
        """The number of passes over `images` images: as told, or so that about 700,000 are shown in all."""
        if self.epochs is not None:
            return self.epochs
        return min(EPOCHS_MOST, max(EPOCHS_LEAST, math.ceil(IMAGES_SEEN / images)))

    def batch_for(self, images: int) -> int:
        """Images a step: as told, or 256, fewer for sets under 10,000, so that an epoch has enough steps."""
        if self.batch is not None:
            return min(self.batch, images)
        if images >= SMALL_SET:
            return LARGEST_BATCH
        return min(SMALL_BATCH, max(LEAST_BATCH, 2 ** int(math.log2(max(1, images / 16)))))

    def augmentation(self) -> dict[str, float]:
        """Arguments of `affine_augment`. Turned training turns and nothing else: shear confuses 6 with 9."""
        if self.rotation == "none":
            return {"rotation_deg": 10.0, "scale": 0.1, "shear_deg": 5.0, "shift_px": 2.0}
        return {"rotation_deg": rotation_range(self.rotation)}

    def to_dict(self) -> dict[str, Any]:
        """As JSON stores it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """As JSON stored it."""
        return cls(**{**values, "weights": LossWeights(**values["weights"])})


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """One cycle (Smith and Topin 2018): cosine up to `peak` over the first `warmup` of the steps, cosine down to 0."""
    turn_at = max(1.0, warmup * steps)
    if step < turn_at:
        return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * step / turn_at)) / 2)
    return peak * (1 + math.cos(math.pi * (step - turn_at) / max(1.0, steps - turn_at))) / 2 + peak * 1e-4
