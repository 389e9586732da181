"""A run from its data set on: splits, configuration, number of epochs, `run.toml`, training."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vae_edge.data import Dataset
from vae_edge.progress import Progress, phase
from vae_edge.training.checkpoint import CONFIG, Checkpoint, load_checkpoint, read_config
from vae_edge.training.config import PRETRAINED_BATCH, RunConfig, TrainConfig
from vae_edge.training.data import describe_run, make_run_config, make_splits
from vae_edge.training.distributed import make_accelerator
from vae_edge.training.duration import choose_epochs
from vae_edge.training.run_file import write_run_file
from vae_edge.training.trainer import fast_bf16, train

log = logging.getLogger(__name__)


def train_dataset(
    dataset: Dataset,
    out: Path,
    training: TrainConfig,
    model: Mapping[str, Any],
    minutes: float | None,
    resume: bool,
    options: Mapping[str, Any],
    progress: Progress | None,
) -> Checkpoint:
    """Train on a data set; a run that is resumed keeps the number of epochs that was chosen when it began.

    Args:
        dataset: the images.
        out: the run's folder.
        training: settings. Where they have no epochs, their number is chosen by the time of a step.
        model: numbers of the network that differ from the preset.
        minutes: time for training.
        resume: whether the folder holds an unfinished run.
        options: the other arguments of `vae_edge.train`, for `run.toml`: `data`, `preset`, `strict`, ...
        progress: as `vae_edge.training.trainer.train`.

    Raises:
        as `vae_edge.train`.
    """
    if training.batch is None and model.get("backbone") is not None:
        training = replace(training, batch=PRETRAINED_BATCH)
    begun = read_config(out) if (out / CONFIG).exists() else None
    if begun is not None and "head" not in model and begun.model.backbone == model.get("backbone"):
        model = {**model, "head": begun.model.head}
    with phase("looking for duplicates"):
        splits = make_splits(dataset, training)
        config = make_run_config(dataset, splits, options["preset"], training, **model)
    duration = None
    if training.epochs is None and begun is not None:
        config = replace(config, training=replace(training, epochs=begun.training.epochs))
    elif training.epochs is None:
        with phase("measuring a training step"):
            duration = choose_epochs(splits, config, minutes)
        config = replace(config, training=replace(training, epochs=duration.epochs))

    for line in describe_run(dataset, config):
        log.info("%s", line)
    if duration is not None:
        log.info("%s", duration)

    def write() -> None:
        notes = [] if duration is None else [f"epochs: {duration.why}; a step took {1000 * duration.step_s:.0f} ms"]
        write_run_file(out, *repeatable(config, options), notes)

    train(splits, config, out, resume, progress, options["tensorboard"], write)
    return load_checkpoint(out)


def repeatable(config: RunConfig, options: Mapping[str, Any]) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration and the arguments of `vae_edge.train`, with what was chosen in place of None and `auto`."""
    training, labelled, unlabelled = config.training, config.data.trained_on, config.data.unlabelled
    chosen = replace(
        training,
        epochs=training.epochs_for(labelled + unlabelled),
        batch=training.batch_for(labelled + unlabelled),
        augment=training.augmentation_kind(labelled, unlabelled, config.input.background),
        bf16=fast_bf16(make_accelerator().device) if training.bf16 is None else training.bf16,
    )
    spec = config.input
    if training.backbone_weights is not None:
        chosen = replace(chosen, backbone_weights=_source(training.backbone_weights))
    image = {"size": spec.size, "channels": spec.channels, "fit": spec.fit, "alpha_background": spec.alpha_background}
    sources = {name: _source(options.get(name)) for name in ("data", "val")}
    return replace(config, training=chosen), {**options, **image, **sources, "backbone": config.model.backbone}


def _source(data: str | os.PathLike[str] | None) -> str | None:
    """A data set's name, or the absolute path of its files. None where it has none, or its path is no text."""
    if data is None:
        return None
    path = Path(data).expanduser()
    text = str(path.absolute()) if path.exists() else os.fspath(data)
    return text if text.isprintable() else None
