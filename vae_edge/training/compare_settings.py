"""What is compared: the models, the cells of the table, the settings that they share, and their files' form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vae_edge.errors import CheckpointError, ConfigError
from vae_edge.training import baselines
from vae_edge.training.config import TrainConfig

SCHEMA = 1
MODELS = {
    "svm": "support vector machine, radial kernel (scikit-learn)",
    "logistic": "logistic regression (scikit-learn)",
    "mlp": "perceptron with 256 hidden units",
    "cnn": "small convolutional network",
    "cnn-equal": "convolutional network of the angle VAE's size and training compute",
    "vae": "VAE classifier without angle encoder",
    "angle-vae": "angle VAE",
}
KINDS = ("upright", "turned")
ESTIMATORS = {"svm": baselines.fit_svm, "logistic": baselines.fit_logistic}
GENERATORS = {"upright": "vae", "turned": "angle-vae"}  # whose decoder draws the generated images
POSE = {"vae": False, "angle-vae": True}
HELD = 0.1  # share of the training half that judges and is never trained on
INNER = 0.05  # share of what is left that only our models use, for the rejection score's threshold
LEAST_IMAGES = 32
TRAINING = (
    "batch",
    "augment",
    "mirror",
    "learning_rate",
    "weight_decay",
    "warmup",
    "ema",
    "gradient_clip",
    "bf16",
    "weights",
)


@dataclass(frozen=True)
class Cell:
    """One model, trained once."""

    model: str
    images: str
    generated: bool
    seed: int

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.images}-{self.model}-{'generated' if self.generated else 'real'}-{self.seed}"


@dataclass(frozen=True)
class Settings:
    """What all cells have in common. `train_images` None: all that are not held out.

    Raises:
        ConfigError: for a number that makes no sense.
    """

    preset: str = "small"
    train_images: int | None = None
    images_seen: int = 240_000
    generated: float = 0.3

    def __post_init__(self) -> None:
        if self.train_images is not None and self.train_images < LEAST_IMAGES:
            raise ConfigError(f"{self.train_images} images to train on: a comparison needs at least {LEAST_IMAGES}")
        if self.images_seen < 1:
            raise ConfigError(f"{self.images_seen} images seen in training: expected at least 1")
        if not 0 < self.generated < 0.95:
            raise ConfigError(f"generated images' share {self.generated}: expected a number above 0 and below 0.95")

    def of(self, cell: Cell) -> dict[str, Any]:
        """What a cell's result depends on, as its file stores it."""
        usual = TrainConfig().to_dict()
        common = {**asdict(self), "generated": self.generated if cell.generated else None}
        return {**common, "training": {name: usual[name] for name in TRAINING}}


def list_cells(models: Sequence[str], kinds: Sequence[str], generated: bool, seeds: Sequence[int]) -> list[Cell]:
    """All cells, seed by seed, so that a comparison that was stopped has whole seeds.

    Raises:
        ConfigError: for an unknown model or kind of image, or none.
    """
    for names, known, what in ((models, MODELS, "model"), (kinds, KINDS, "kind of image")):
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ConfigError(f"unknown {what} {', '.join(unknown) or '(none)'}: expected some of {', '.join(known)}")
    if not seeds:
        raise ConfigError("no seed was given: expected at least one")
    mixtures = (False, True) if generated else (False,)
    order = [name for name in MODELS if name in models]
    return [Cell(model, kind, mix, seed) for seed in seeds for kind in kinds for mix in mixtures for model in order]


def read_cell(path: Path) -> dict[str, Any]:
    """What a finished cell's file says.

    Raises:
        CheckpointError: if it is damaged, or of another version.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] != SCHEMA:
            raise CheckpointError(
                f"{path} has schema {record['schema']!r}; this version reads {SCHEMA}; choose another --out"
            )
        for name in ("cell", "settings", "fingerprint", "accuracy", "training", "inference", "files"):
            record[name]
        Cell(**record["cell"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): remove it, and its cell is done again") from error
    return record
