"""A run's folder: what it was told, where it stands, what came out, and a few held-out images.

`config.json` is written once; training goes on from `state.safetensors`; `model.safetensors` is the result;
`samples.safetensors` holds held-out images on which later steps check themselves, and codes of training images;
`generated.safetensors` the images that the run drew to train on, where it did.

Each file is whole or absent. No pickle: tensors are safetensors, everything else is JSON (in the files' own metadata).
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vae_edge.bundle_schema import check_classes, check_data, check_input
from vae_edge.errors import BundleError, CheckpointError, ConfigError
from vae_edge.files import open_regular, parse_json, read_bytes, read_json, write_bytes, write_json
from vae_edge.limits import MAX_CHECKPOINT_BYTES, MAX_JSON_BYTES
from vae_edge.model import AngleVAE, ModelConfig
from vae_edge.preprocess import InputSpec
from vae_edge.training.config import TrainConfig

SCHEMA = 1
CONFIG, STATE, MODEL, LOG = "config.json", "state.safetensors", "model.safetensors", "log.jsonl"
SAMPLE_FILE, GENERATED = "samples.safetensors", "generated.safetensors"


@dataclass(frozen=True)
class RunConfig:
    """Everything that is fixed when training begins."""

    model: ModelConfig
    training: TrainConfig
    classes: tuple[str, ...]
    input: InputSpec
    data: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As `config.json` holds it."""
        return {
            "schema": SCHEMA,
            "classes": list(self.classes),
            "input": self.input.to_json(),
            "model": asdict(self.model),
            "training": self.training.to_dict(),
            "data": self.data,
        }


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what is known of it: `result` holds the score's threshold and the validation figures."""

    path: Path
    config: RunConfig
    model: AngleVAE
    result: dict[str, Any]


def write_config(folder: Path, config: RunConfig) -> None:
    """Write `config.json`."""
    write_json(folder / CONFIG, config.to_dict())


def read_config(folder: Path) -> RunConfig:
    """Read `config.json`.

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
        if stored.get("schema") != SCHEMA:
            raise CheckpointError(f"{path} has schema {stored.get('schema')!r}; this version reads schema {SCHEMA}")
        return _run_config(stored, path)
    except (OSError, ValueError, KeyError, ConfigError, BundleError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path} is damaged or of another version: {what}") from error


_DATA = ("fingerprint", "trained_on", "unlabelled", "holdout_fraction", "seed", "ambiguous", "absent")
"""What every run says of its data, and readers rely on."""


def _run_config(stored: dict[str, Any], path: Path) -> RunConfig:
    check_classes(stored["classes"], str(path))
    check_input(stored["input"], f"{path}, input")
    if not isinstance(stored["data"], dict):
        raise ValueError("data is no object")
    check_data(stored["data"], f"{path}, data")
    lacking = [key for key in _DATA if key not in stored["data"]]
    if lacking:
        raise KeyError(f"data.{lacking[0]}")
    config = RunConfig(
        ModelConfig.from_dict(stored["model"]),
        TrainConfig.from_dict(stored["training"]),
        tuple(stored["classes"]),
        InputSpec.from_json(stored["input"]),
        stored["data"],
    )
    model, spec = config.model, config.input
    if (model.classes, model.size, model.channels) != (len(config.classes), spec.size, spec.channels):
        raise ValueError("the model's classes, size or channels are not those of its images")
    return config


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON metadata as one safetensors file, wholly or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(plain, {"vae_edge": json.dumps(metadata)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        CheckpointError: if the file is missing, truncated or not ours.
    """
    try:
        with open_regular(path) as opened:
            size = os.fstat(opened.fileno()).st_size
            if size > MAX_CHECKPOINT_BYTES:
                raise ValueError(f"it has {size} bytes; at most {MAX_CHECKPOINT_BYTES} may be")
            # By its descriptor, since PyTorch takes no name that is not UTF-8.
            with safe_open(f"/proc/self/fd/{opened.fileno()}", "pt") as file:
                metadata = parse_json((file.metadata() or {}).get("vae_edge", "null"))
                if not isinstance(metadata, dict):
                    raise ValueError("it holds no metadata of ours")
                return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except Exception as error:  # of a damaged header safetensors and PyTorch raise many kinds
        raise CheckpointError(f"{path} is damaged or not a checkpoint of vae-edge: {error}") from error


def check_images(path: Path, tensors: dict[str, Tensor], config: RunConfig) -> None:
    """Refuse a file of labelled images that are not what the run's model takes (CheckpointError)."""
    images, labels = tensors.get("images"), tensors.get("labels")
    spec = config.input
    if (
        images is None
        or labels is None
        or images.dtype != torch.uint8
        or labels.dtype != torch.int64
        or images.shape[1:] != (spec.size, spec.size, spec.channels)
        or labels.shape != images.shape[:1]
        or not bool(((labels >= 0) & (labels < len(config.classes))).all())
    ):
        raise CheckpointError(f"{path} is damaged: its images and labels are not those of this run")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run, as `log.jsonl` has them: one object a line.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    path = folder / LOG
    try:
        lines = [parse_json(line) for line in read_bytes(path, MAX_JSON_BYTES).splitlines()]
        if not all(isinstance(line, dict) and isinstance(line.get("seconds"), (int, float)) for line in lines):
            raise ValueError("a line of it is no epoch")
        return lines
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): remove it, and the run has no figure of its losses"
        ) from error


def load_state(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put tensors into a module; names or shapes that do not fit are a CheckpointError."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model that its {CONFIG} describes: {error}") from error


def load_checkpoint(path: str | Path) -> Checkpoint:
    """The result of a finished run, in evaluation mode.

    Raises:
        CheckpointError: if the run is missing, unfinished or damaged.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: expected a training run, made with `vae-edge train`")
    config = read_config(folder)
    if not (folder / MODEL).is_file():
        raise CheckpointError(f"the training run {folder} is not finished; go on with `vae-edge train --resume`")
    tensors, result = read_tensors(folder / MODEL)
    _check_result(result, folder / MODEL)
    _check_numbers(tensors, folder / MODEL)
    model = AngleVAE(config.model)
    load_state(model, tensors, folder / MODEL)
    model.eval()
    return Checkpoint(folder, config, model, result)


def _check_numbers(tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse NaN in a finished model; in the state of a run, a score that is not fitted yet may hold it."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise CheckpointError(f"{path} is damaged: {name!r} holds values that are not numbers (NaN)")


def _check_result(result: dict[str, Any], path: Path) -> None:
    """Refuse a result without the figures that export reads of it."""
    for name, kind in (
        ("threshold", (int, float)),
        ("threshold_light", (int, float)),
        ("reject_rate", (int, float)),
        ("step", int),
        ("validation", dict),
    ):
        if not isinstance(result.get(name), kind) or isinstance(result[name], bool):
            raise CheckpointError(f"{path} is damaged: it says no {name}; train again")


def load_samples(path: str | Path) -> dict[str, Tensor]:
    """What is kept with a run: held-out images, and codes of training images between which new ones are drawn.

    `images` uint8 [N, S, S, C] as trained (turned), `upright` and `labels` [N]; `codes` [M, Z] and `code_labels` [M].

    Raises:
        CheckpointError: if the run has none, or the file is damaged.
    """
    file = Path(path) / SAMPLE_FILE
    samples = read_tensors(file)[0]
    forms = {"images": 4, "upright": 4, "labels": 1, "codes": 2, "code_labels": 1}
    odd = [name for name, rank in forms.items() if name not in samples or samples[name].ndim != rank]
    pictures = [samples[name] for name in ("images", "upright") if name not in odd]
    if odd or any(images.dtype != torch.uint8 for images in pictures):
        raise CheckpointError(f"{file} is damaged: {', '.join(odd) or 'images'} is missing or of another form")
    if len({len(samples[name]) for name in ("images", "upright", "labels")}) > 1 or len(samples["codes"]) != len(
        samples["code_labels"]
    ):
        raise CheckpointError(f"{file} is damaged: its images and labels are not equally many")
    return samples


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `<parameter index>.<name>`."""
    states = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, state in states.items() for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`.

    Raises:
        ValueError: if they are of other parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters) or (value.ndim and value.shape != parameters[int(index)].shape):
            raise ValueError(f"the optimizer's {name} of parameter {index} is of shape {list(value.shape)}")
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
