"""What is compared: the models, the cells of the table, the settings that they share, and their files' form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vae_edge.errors import CheckpointError, ConfigError
from vae_edge.files import read_json
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
        record = read_json(path)
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}, not an object")
        if record.get("schema") != SCHEMA:
            raise CheckpointError(
                f"{path} has schema {record.get('schema')!r}; this version reads {SCHEMA}; choose another --out"
            )
        _check_record(record)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error}): remove it, and its cell is done again") from error
    return record


_NUMBER = (int, float)
_FORM: dict[str, Any] = {
    "settings": dict,
    "fingerprint": str,
    "accuracy": _NUMBER,
    "training": {
        "macs": (*_NUMBER, type(None)),
        "images_seen": _NUMBER,
        "wall_seconds": _NUMBER,
        "processor_seconds": _NUMBER,
    },
    "inference": dict,
    "images": {"judged_on": _NUMBER, "trained_on": _NUMBER},
    "files": dict,
    "cell": {"model": str, "images": str, "generated": bool, "seed": int},
}
"""What is read of a record, and its types."""


def _check_record(record: dict[str, Any]) -> None:
    """Refuse a record whose fields are not those of a finished cell (ValueError)."""
    _check_form(record, _FORM, "")
    cell = record["cell"]
    if set(cell) != set(_FORM["cell"]) or cell["model"] not in MODELS or cell["images"] not in KINDS:
        raise ValueError("its cell is none of this version's")
    if not all(isinstance(part, dict) for part in record["inference"].values()):
        raise ValueError("its field inference is of another form")
    for file in record["files"].values():
        _check_form(file, {"file": str, "sha256": str, "bytes": int}, "files.")
        if Path(file["file"]).name != file["file"] or not file["file"].isprintable():
            raise ValueError(f"one of its files, {file['file'][:80]!r}, lies elsewhere")
    generator = record.get("generator", "")
    if generator is not None:
        _check_form(generator, {"cell": str}, "generator.")


def _check_form(values: Any, form: dict[str, Any], where: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"its field {where.rstrip('.') or 'all'} is no object")
    for name, kind in form.items():
        value = values.get(name)
        if isinstance(kind, dict):
            _check_form(value, kind, f"{where}{name}.")
        elif name not in values or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"its field {where}{name} is missing or of another type")
