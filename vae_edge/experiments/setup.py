"""What is compared: the models, the cells of the table, the settings that they share, and their files' form.

The ground that all models are compared on: whose images they train on and are judged by, and how long they train.

From the cells' records to rows, differences and one sentence. Differences are paired: one seed on both sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vae_edge.data import Dataset, LabelledImages, check_trainable, holdout
from vae_edge.errors import CheckpointError, ConfigError, DataError
from vae_edge.experiments import baselines
from vae_edge.files import read_json
from vae_edge.model import AngleVAE, ModelConfig, create_config
from vae_edge.preprocess import measure_input
from vae_edge.training.config import RunConfig, TrainConfig
from vae_edge.training.data import DataSplits, make_run_config, make_splits

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


class Ground:
    """A data set and settings; from them the images of each seed, the networks, and their budgets.

    Raises:
        DataError: if there is no training half, or one class alone.
    """

    def __init__(self, dataset: Dataset, settings: Settings) -> None:
        if dataset.train is None:
            raise DataError(
                f"{dataset.source} has no training half; give a data set with training images to compare on"
            )
        check_trainable(dataset.train)
        self.dataset, self.settings, self.train = dataset, settings, dataset.train
        self._parts: dict[int, tuple[LabelledImages, LabelledImages]] = {}
        self._costs: dict[str, baselines.Cost] = {}

    def parts(self, seed: int) -> tuple[LabelledImages, LabelledImages]:
        """The images that training may use, and those that judge; both drawn by the seed, the same share of classes."""
        if seed not in self._parts:
            rest, held = holdout(self.train, HELD, seed)
            self._parts = {seed: (self._drawn(rest, seed), held)}
        return self._parts[seed]

    def _drawn(self, rest: LabelledImages, seed: int) -> LabelledImages:
        wanted = self.settings.train_images
        most = int(len(rest) * (1 - INNER))
        if wanted is not None and wanted > most:
            raise DataError(
                f"{wanted} images to train on were asked for, but {self.dataset.source} has {most} "
                f"(the others are held out); ask for fewer, or for all of them"
            )
        pool = rest
        if wanted is not None and round(wanted / (1 - INNER)) < len(rest):
            pool = holdout(rest, wanted / (1 - INNER) / len(rest), seed + 1)[1]
        counts = np.bincount(pool.labels, minlength=len(pool.classes))
        alone = [name for name, count in zip(pool.classes, counts, strict=True) if count == 1]
        if alone or len(pool) < LEAST_IMAGES:
            what = f"class {alone[0]} has one of them" if alone else f"at least {LEAST_IMAGES} are needed"
            raise DataError(f"{len(pool)} images of {self.dataset.source} to train on are too few: {what}")
        return pool

    @cached_property
    def fill(self) -> int:
        """What comes in from outside the frame when an image is turned, 0 to 255."""
        return measure_input(self.train.images).fill

    def config(self, orientation: bool) -> ModelConfig:
        """The shape of our network on these images."""
        _, size, _, channels = self.train.images.shape
        shape = {"classes": len(self.dataset.classes), "size": size, "channels": channels}
        return create_config(self.settings.preset, **shape, orientation=orientation, fill=self.fill / 255)

    @cached_property
    def angle_vae_macs(self) -> float:
        """Multiply-accumulates of training the angle VAE on one image."""
        return self.training_macs(AngleVAE(self.config(orientation=True)))

    def training_macs(self, network: nn.Module) -> float:
        """Multiply-accumulates of training a network on one image."""
        config = self.config(orientation=True)
        loss = baselines.our_loss if isinstance(network, AngleVAE) else baselines.cross_entropy_of_anything
        return baselines.training_macs(network, loss, config.size, config.channels)

    def cost(self, name: str, network: nn.Module) -> dict[str, int]:
        """Parameters and multiply-accumulates for one image of a network that takes pixels; `name` names its form."""
        config = self.config(orientation=True)
        return self._cost(name, network, torch.zeros(1, config.channels, config.size, config.size))

    def graph_cost(self, name: str, graph: nn.Module) -> dict[str, int]:
        """The same of a graph that takes bytes."""
        config = self.config(orientation=True)
        return self._cost(name, graph, torch.zeros(1, config.size, config.size, config.channels, dtype=torch.uint8))

    def _cost(self, name: str, network: nn.Module, image: torch.Tensor) -> dict[str, int]:
        if name not in self._costs:
            self._costs[name] = baselines.inference_cost(network, image)
        return asdict(self._costs[name])

    def network(self, model: str, seed: int) -> nn.Module:
        """A baseline's network; the seed fixes its first weights."""
        config = self.config(orientation=True)
        ours = self.cost("angle-vae", baselines.Decision(AngleVAE(config))) if model == "cnn-equal" else {}
        torch.manual_seed(seed)
        if model == "cnn-equal":
            return baselines.cnn_of_size(config, ours["parameters"])
        return {"mlp": baselines.mlp, "cnn": baselines.cnn}[model](config)

    def plan(self, cell: Cell, images: LabelledImages, kept: int) -> tuple[DataSplits, RunConfig]:
        """Splits and run config of our training on these images, `kept` of which it keeps; all networks follow it."""
        dataset = Dataset(self.dataset.name, self.dataset.source, images, None)
        orientation = POSE.get(cell.model, False)
        settings = self.training_config(cell, kept)
        splits = make_splits(dataset, settings)
        return splits, make_run_config(dataset, splits, self.settings.preset, settings, orientation=orientation)

    def training_config(self, cell: Cell, images: int) -> TrainConfig:
        """The recipe for so many images: whole epochs that show about as many images as the settings say.

        Batch and augmentation are those of training on the real images alone, so that a cell with generated ones takes
        as many steps and changes its images alike.
        """
        rotation = "full" if cell.images == "turned" else "none"
        real = round((1 - INNER) * len(self.parts(cell.seed)[0]))
        batch, augment = TrainConfig().batch_for(real), TrainConfig().augmentation_kind(real)
        epochs = max(1, round(self.settings.images_seen / (images // batch * batch)))
        return TrainConfig(
            rotation=rotation, epochs=epochs, batch=batch, augment=augment, holdout=INNER, seed=cell.seed
        )

    def steps(self, cell: Cell, images: int) -> int:
        """Steps of the angle VAE on so many images; every network but cnn-equal takes as many."""
        settings = self.training_config(cell, images)
        return images // settings.batch_for(images) * settings.epochs_for(images)

    def steps_of(self, cell: Cell, images: int, network: nn.Module) -> tuple[int, float]:
        """A baseline's steps, and its multiply-accumulates for one image: cnn-equal's product is the angle VAE's."""
        macs, steps = self.training_macs(network), self.steps(cell, images)
        return (steps if cell.model != "cnn-equal" else max(1, round(steps * self.angle_vae_macs / macs))), macs


OURS, CONTROL = "angle-vae", "cnn-equal"
Record = Mapping[str, Any]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None of a single value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": deviation, "by_seed": list(values)}


def summarize_cells(records: Sequence[Record], latency_us: Mapping[str, float]) -> dict[str, Any]:
    """What the table, the plot and the closing sentence show.

    Args:
        records: of finished cells.
        latency_us: median time of one call by the name of the ONNX file.

    Returns:
        `rows` (one for each kind of image, mixture and model: `accuracy` over the seeds, means of what training cost,
        and what a decision costs), `gains` of the angle VAE over the control, `generated_helps` by model, in points of
        a hundred, and `sentence`.
    """
    groups: dict[tuple[str, bool, str], dict[int, Record]] = {}
    for record in records:
        cell = Cell(**record["cell"])
        groups.setdefault((cell.images, cell.generated, cell.model), {})[cell.seed] = record
    order = [key for kind in KINDS for mix in (False, True) for key in [(kind, mix, name) for name in MODELS]]
    rows = [_row(key, groups[key], latency_us) for key in order if key in groups]
    gains, helps = [], []
    for kind in KINDS:
        for mix in (False, True):
            points = _points(groups.get((kind, mix, OURS)), groups.get((kind, mix, CONTROL)))
            if points is not None:
                gains.append({"images": kind, "generated": mix, "of": OURS, "over": CONTROL, "points": points})
        for name in MODELS:
            points = _points(groups.get((kind, True, name)), groups.get((kind, False, name)))
            if points is not None:
                helps.append({"images": kind, "model": name, "points": points})
    return {"rows": rows, "gains": gains, "generated_helps": helps, "sentence": sentence(gains)}


def _row(key: tuple[str, bool, str], by_seed: Mapping[int, Record], latency_us: Mapping[str, float]) -> dict[str, Any]:
    records = [by_seed[seed] for seed in sorted(by_seed)]
    files: dict[str, Any] = next((record["files"] for record in records if record["files"]), {})
    inference = records[0]["inference"]
    costs = {
        part: {
            **inference[part],
            "bytes": files[part]["bytes"] if part in files else None,
            "latency_us": latency_us.get(files[part]["file"]) if part in files else None,
        }
        for part in inference
    }
    macs = [record["training"]["macs"] for record in records]
    return {
        "images": key[0],
        "generated": key[1],
        "model": key[2],
        "seeds": sorted(by_seed),
        "accuracy": spread([record["accuracy"] for record in records]),
        "judged_on": records[0]["images"]["judged_on"],
        "trained_on": records[0]["images"]["trained_on"],
        "images_seen": _mean([record["training"]["images_seen"] for record in records]),
        "wall_seconds": _mean([record["training"]["wall_seconds"] for record in records]),
        "processor_seconds": _mean([record["training"]["processor_seconds"] for record in records]),
        "training_macs": None if None in macs else _mean(macs),
        **costs,
    }


def _mean(values: Sequence[float]) -> float:
    return round(statistics.fmean(values), 3)


def _points(ours: Mapping[int, Record] | None, others: Mapping[int, Record] | None) -> dict[str, Any] | None:
    """Differences of the accuracy in points, seed by seed; None where there is nothing to take them of."""
    seeds = sorted(set(ours or ()) & set(others or ()))
    if ours is None or others is None or not seeds:
        return None
    return spread([100 * (ours[seed]["accuracy"] - others[seed]["accuracy"]) for seed in seeds])


def sentence(gains: Sequence[Mapping[str, Any]]) -> str:
    """What the angle encoder is worth: on turned images over the network of equal size and compute, without others."""
    found = [gain for gain in gains if gain["images"] == "turned" and not gain["generated"]]
    if not found:
        return f"What the angle encoder is worth is not known: that takes {OURS} and {CONTROL} on turned images."
    points = found[0]["points"]
    each = ", ".join(f"{value:+.2f}" for value in points["by_seed"])
    count = len(points["by_seed"])
    what = f"{OURS} over {CONTROL} (as many parameters, as many multiply-accumulates in training)"
    if points["std"] is None:
        return f"On turned images the gain of {what} is {points['mean']:+.2f} points, with a single seed."
    size = (
        f"{points['mean']:+.2f} ± {points['std']:.2f} points (mean and standard deviation over {count} seeds: {each})"
    )
    if min(points["by_seed"]) <= 0 <= max(points["by_seed"]):
        return f"On turned images there is no clear gain of {what}: {size}."
    word = "gain" if points["mean"] > 0 else "loss"
    return f"On turned images the {word} of {what} is {size}."
