"""A run's folder: its files, their format, and the reader of schema 1.

    config.json             everything that is fixed when training begins; written once
    state.safetensors       model, EMA model, optimizer and step: training resumes from it
    log.jsonl               the terms of the loss, one object an epoch
    learning_curves.png     the same as a picture
    generated.safetensors   generated images, where the run trained on some
    model.safetensors       the result; thresholds and figures are in its metadata
    samples.safetensors     held-out images for later checks, and codes of training images

Each file is complete or absent. No pickle: tensors are safetensors, everything else is JSON (in the files' metadata).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vae_edge.bundle_schema import check_classes, check_data, check_input
from vae_edge.errors import BundleError, CheckpointError, ConfigError
from vae_edge.files import open_regular, parse_json, read_bytes, read_json, write_bytes, write_json
from vae_edge.model import AngleVAE, ModelConfig
from vae_edge.model.config import rename_keys
from vae_edge.model.network import current_name
from vae_edge.preprocess import InputSpec
from vae_edge.spec import MAX_CHECKPOINT_BYTES, MAX_JSON_BYTES
from vae_edge.training.config import SCHEMA, RunConfig, TrainConfig, TrainingData

CONFIG, STATE, MODEL, LOG = "config.json", "state.safetensors", "model.safetensors", "log.jsonl"
SAMPLE_FILE, GENERATED, CURVES = "samples.safetensors", "generated.safetensors", "learning_curves.png"

SCHEMA_1_RESULT = {"threshold_light": "threshold_fast", "score_fitted_on": "score_fit_images"}
SCHEMA_1_TERMS = {"pose_classes": "orientation_classes", "watched_classes": "val_classes"}
"""Keys of the result and of the log in files of schema 1, and what they are called now."""


@dataclass(frozen=True)
class Calibration:
    """Cross-fitted expected calibration error in [0, 1], without and with a temperature, and that temperature."""

    before: float
    after: float
    temperature: float


@dataclass(frozen=True)
class TrainResult:
    """What training ended with, beside the weights.

    Attributes:
        step: steps taken.
        threshold: the largest accepted full score.
        threshold_fast: the largest accepted fast score.
        reject_rate: fraction of the held-out images beyond the thresholds.
        validation: figures of the held-out images, rotated as in training (`vae_edge.metrics.summarize`).
        score_fit_images: images that the anomaly score was fitted on.
        calibration: of the held-out images.
        validation_upright: figures of the held-out images as they are.
        symmetry: classes that look the same when rotated, with the order of their symmetry
            (`vae_edge.evaluation.symmetry`); None in runs of earlier versions, which did not look.
    """

    step: int
    threshold: float
    threshold_fast: float
    reject_rate: float
    validation: dict[str, Any]
    score_fit_images: int = 0
    calibration: Calibration | None = None
    validation_upright: dict[str, Any] = field(default_factory=dict)
    symmetry: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the metadata of `model.safetensors` and JSON output have it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainResult:
        """Read what `to_dict` gave, of schema 1 or 2. Unknown keys are skipped.

        Raises:
            ValueError: if a figure is missing or has the wrong type.
        """
        values = rename_keys(values, SCHEMA_1_RESULT)
        number = (int, float)
        kinds: dict[str, Any] = {
            "step": int,
            "threshold": number,
            "threshold_fast": number,
            "reject_rate": number,
            "validation": dict,
            "score_fit_images": int,
            "validation_upright": dict,
        }
        optional = ("score_fit_images", "validation_upright")
        for name, kind in kinds.items():
            if name in optional and name not in values:
                continue
            if not isinstance(values.get(name), kind) or isinstance(values[name], bool):
                raise ValueError(f"it says no {name}")
        calibration = values.get("calibration")
        if calibration is not None:
            names = [field.name for field in fields(Calibration)]
            if not isinstance(calibration, dict) or any(type(calibration.get(name)) not in number for name in names):
                raise ValueError("it says no calibration")
            calibration = Calibration(**{name: calibration[name] for name in names})
        symmetry = values.get("symmetry")
        if symmetry is not None and not (
            isinstance(symmetry, dict) and all(type(order) is int and order >= 0 for order in symmetry.values())
        ):
            raise ValueError("its symmetry is no order for each class")
        known = {name: values[name] for name in kinds if name in values}
        return cls(**known, calibration=calibration, symmetry=symmetry)


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, in evaluation mode, and what is known of it."""

    path: Path
    config: RunConfig
    model: AngleVAE
    result: TrainResult

    @property
    def ambiguous(self) -> Collection[str]:
        """The classes without a definite orientation: a mapping to the order of their symmetry where it was measured,
        else the names that an earlier version took from the pixels."""
        return self.config.data.ambiguous if self.result.symmetry is None else self.result.symmetry


@dataclass(frozen=True)
class RunSamples:
    """Images and codes that are stored with a run.

    Attributes:
        images: held-out images uint8 [N, S, S, C], rotated as in training.
        upright: the same images as they are.
        labels: their classes int64 [N].
        codes: codes of training images float32 [M, Z], from which new images are generated.
        code_labels: their classes int64 [M].
    """

    images: Tensor
    upright: Tensor
    labels: Tensor
    codes: Tensor
    code_labels: Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as one safetensors file, completely or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(contiguous, {"vae_edge": json.dumps(metadata)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and metadata that `write_tensors` wrote.

    Raises:
        CheckpointError: if the file is missing, truncated or not ours.
    """
    try:
        with open_regular(path) as opened:
            size = os.fstat(opened.fileno()).st_size
            if size > MAX_CHECKPOINT_BYTES:
                raise ValueError(f"it has {size} bytes; at most {MAX_CHECKPOINT_BYTES} may be")
            # by its descriptor, since PyTorch takes no name that is not UTF-8
            with safe_open(f"/proc/self/fd/{opened.fileno()}", "pt") as file:
                metadata = parse_json((file.metadata() or {}).get("vae_edge", "null"))
                if not isinstance(metadata, dict):
                    raise ValueError("it holds no metadata of ours")
                return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except Exception as error:  # safetensors and PyTorch raise many kinds for a damaged header
        raise CheckpointError(f"{path} is damaged or not a checkpoint of vae-edge: {error}") from error


def write_config(folder: Path, config: RunConfig) -> None:
    """Write `config.json`."""
    write_json(folder / CONFIG, config.to_dict())


def read_config(folder: Path) -> RunConfig:
    """Read `config.json` of schema 1 or 2.

    Raises:
        CheckpointError: if the folder is no training run, or its configuration is damaged or of another version.
    """
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(f"{folder} is not a training run: it has no {CONFIG}; make one with `vae-edge train`")
    try:
        stored = read_json(path)
        if not isinstance(stored, dict):
            raise ValueError(f"it holds a {type(stored).__name__}, not an object")
        schema = stored.get("schema")
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise CheckpointError(f"{path} has schema {schema!r}; this version reads schemas 1 to {SCHEMA}")
        return _parse_config(stored, path)
    except (OSError, ValueError, KeyError, ConfigError, BundleError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path} is damaged or of another version: {what}") from error


def _parse_config(stored: dict[str, Any], path: Path) -> RunConfig:
    check_classes(stored["classes"], str(path))
    check_input(stored["input"], f"{path}, input")
    if not isinstance(stored["data"], dict):
        raise ValueError("data is no object")
    check_data(stored["data"], f"{path}, data")
    config = RunConfig(
        ModelConfig.from_dict(stored["model"]),
        TrainConfig.from_dict(stored["training"]),
        tuple(stored["classes"]),
        InputSpec.from_json(stored["input"]),
        TrainingData.from_dict(stored["data"]),
    )
    model, spec = config.model, config.input
    if (model.classes, model.size, model.channels) != (len(config.classes), spec.size, spec.channels):
        raise ValueError("the model's classes, size or channels are not those of its images")
    return config


def check_folder_free(folder: str | Path, resume: bool) -> None:
    """Refuse a folder that a run cannot be written to. To be called before the images are read, which may take long.

    Raises:
        CheckpointError: if it holds a finished run, or an unfinished one without `resume`, or a part of one.
    """
    folder = Path(folder)
    if (folder / MODEL).exists():
        raise CheckpointError(f"{folder} holds a finished run; choose another --out or remove it first")
    if not (folder / CONFIG).exists():
        if (folder / STATE).exists():
            raise CheckpointError(f"{folder} holds the state of a run without its {CONFIG}; choose another --out")
    elif not resume:
        raise CheckpointError(
            f"{folder} holds an unfinished run; go on with `vae-edge train --resume`, or choose another --out"
        )


def check_folder(folder: Path, config: RunConfig, resume: bool) -> None:
    """Refuse a folder that this run cannot be written to, or resumed from.

    Raises:
        CheckpointError: as `check_folder_free`, or if the folder's run has other images or settings.
    """
    check_folder_free(folder, resume)
    if not (folder / CONFIG).exists():
        return
    stored = read_config(folder)
    if stored.data.fingerprint != config.data.fingerprint:
        raise CheckpointError(
            f"{folder} was trained on other images than the ones given: resuming would mix them; choose another --out"
        )
    before, now = stored.to_dict(), config.to_dict()
    changed = [
        f"{part}.{name}: {before[part].get(name)!r} then, {now[part].get(name)!r} now"
        for part in ("model", "training")
        for name in now[part]
        if before[part].get(name) != now[part].get(name)
    ]
    if changed:
        raise CheckpointError(
            f"{folder} was begun with other settings ({'; '.join(changed)}); use the same ones, or another --out"
        )


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read `log.jsonl`: one object an epoch.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    path = folder / LOG
    try:
        lines = [parse_json(line) for line in read_bytes(path, MAX_JSON_BYTES).splitlines()]
        if not all(isinstance(line, dict) and isinstance(line.get("seconds"), (int, float)) for line in lines):
            raise ValueError("a line of it is no epoch")
        return [rename_keys(line, SCHEMA_1_TERMS) for line in lines]
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): remove it, and the run has no figure of its losses"
        ) from error


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a module, under names of schema 1 or 2. What does not fit is a CheckpointError."""
    try:
        module.load_state_dict({current_name(name): tensor for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model that its {CONFIG} describes: {error}") from error


def write_result(folder: Path, model: AngleVAE, result: TrainResult) -> None:
    """Write `model.safetensors`, with which the run is finished."""
    write_tensors(folder / MODEL, model.state_dict(), {"schema": SCHEMA, **result.to_dict()})


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load the result of a finished run, in evaluation mode.

    Raises:
        CheckpointError: if the run is missing, unfinished or damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: expected a training run, made with `vae-edge train`")
    config = read_config(folder)
    if not (folder / MODEL).is_file():
        raise CheckpointError(f"the training run {folder} is not finished; go on with `vae-edge train --resume`")
    tensors, metadata = read_tensors(folder / MODEL)
    try:
        result = TrainResult.from_dict(metadata)
    except ValueError as error:
        raise CheckpointError(f"{folder / MODEL} is damaged: {error}; train again") from error
    _check_numbers(tensors, folder / MODEL)
    model = AngleVAE(config.model)
    load_state(model, tensors, folder / MODEL)
    model.eval()
    return Checkpoint(folder, config, model, result)


def _check_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN in a finished model. The state of a run may hold some: its score is not fitted yet."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise CheckpointError(f"{path} is damaged: {name!r} holds values that are not numbers (NaN)")


def check_images(path: Path, tensors: Mapping[str, Tensor], config: RunConfig) -> None:
    """Refuse a file of labelled images that the run's model does not take (CheckpointError)."""
    images, labels = tensors.get("images"), tensors.get("labels")
    spec = config.input
    if (
        images is None
        or labels is None
        or images.dtype != torch.uint8
        or labels.dtype != torch.int64
        or images.shape[1:] != spec.shape
        or labels.shape != images.shape[:1]
        or not bool(((labels >= 0) & (labels < len(config.classes))).all())
    ):
        raise CheckpointError(f"{path} is damaged: its images and labels are not those of this run")


def write_samples(folder: Path, samples: RunSamples) -> None:
    """Write `samples.safetensors`."""
    write_tensors(folder / SAMPLE_FILE, vars(samples), {})


def load_samples(path: str | Path) -> RunSamples:
    """Load the images and codes that are stored with a run.

    Raises:
        CheckpointError: if the run has none, or the file is damaged.
    """
    file = Path(path) / SAMPLE_FILE
    tensors = read_tensors(file)[0]
    ranks = {"images": 4, "upright": 4, "labels": 1, "codes": 2, "code_labels": 1}
    wrong = [name for name, rank in ranks.items() if name not in tensors or tensors[name].ndim != rank]
    pictures = [tensors[name] for name in ("images", "upright") if name not in wrong]
    if wrong or any(images.dtype != torch.uint8 for images in pictures):
        raise CheckpointError(f"{file} is damaged: {', '.join(wrong) or 'images'} is missing or of another form")
    samples = RunSamples(**{name: tensors[name] for name in ranks})
    counts = {len(samples.images), len(samples.upright), len(samples.labels)}
    if len(counts) > 1 or len(samples.codes) != len(samples.code_labels):
        raise CheckpointError(f"{file} is damaged: its images and labels are not equally many")
    return samples


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `<parameter index>.<name>`."""
    states = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, state in states.items() for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`.

    Raises:
        ValueError: if they belong to other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters) or (value.ndim and value.shape != parameters[int(index)].shape):
            raise ValueError(f"the optimizer's {name} of parameter {index} is of shape {list(value.shape)}")
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
