"""A run's folder: what it was told, where it stands, what came out, and a few held-out images.

`config.json` is written once; training goes on from `state.safetensors`; `model.safetensors` is the result;
`samples.safetensors` holds held-out images on which later steps check themselves, and codes of training images;
`generated.safetensors` the images that the run drew to train on, where it did.

Each file is whole or absent. No pickle: tensors are safetensors, everything else is JSON (in the files' own metadata).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vae_edge.errors import CheckpointError, ConfigError
from vae_edge.files import atomic_path, open_regular, write_json
from vae_edge.images import InputSpec
from vae_edge.model import AngleVAE, ModelConfig
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
    if not path.is_file():
        raise CheckpointError(f"{folder} is not a training run: it has no {CONFIG}; make one with `vae-edge train`")
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.get("schema") != SCHEMA:
            raise CheckpointError(f"{path} has schema {stored.get('schema')!r}; this version reads schema {SCHEMA}")
        return RunConfig(
            ModelConfig.from_dict(stored["model"]),
            TrainConfig.from_dict(stored["training"]),
            tuple(stored["classes"]),
            InputSpec.from_json(stored["input"]),
            stored["data"],
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"{path} is damaged or of another version: {error}") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and JSON metadata as one safetensors file, wholly or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(plain, temporary, {"vae_edge": json.dumps(metadata)})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        CheckpointError: if the file is missing, truncated or not ours.
    """
    try:
        # By its descriptor, since PyTorch takes no name that is not UTF-8.
        with open_regular(path) as opened, safe_open(f"/proc/self/fd/{opened.fileno()}", "pt") as file:
            metadata = json.loads((file.metadata() or {})["vae_edge"])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a checkpoint of vae-edge: {error}") from error


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
    model = AngleVAE(config.model)
    load_state(model, tensors, folder / MODEL)
    model.eval()
    return Checkpoint(folder, config, model, result)


def load_samples(path: str | Path) -> dict[str, Tensor]:
    """What is kept with a run: held-out images, and codes of training images between which new ones are drawn.

    `images` uint8 [N, S, S, C] as trained (turned), `upright` and `labels` [N]; `codes` [M, Z] and `code_labels` [M].

    Raises:
        CheckpointError: if the run has none, or the file is damaged.
    """
    return read_tensors(Path(path) / SAMPLE_FILE)[0]


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
