"""From a row of the table to a trained model: its data, its images, its run. What is measured is next door."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import photographs
import torch
from model_rows import Row
from torch import nn

from vae_edge.data import Dataset, LabelledImages, check_apart, load_dataset, rotated
from vae_edge.data.splits import permutation
from vae_edge.errors import DataError
from vae_edge.experiments import baselines
from vae_edge.model import AngleVAE, create_config
from vae_edge.model.config import SCHEMA_1_MODEL, rename_keys
from vae_edge.preprocess import measure_input
from vae_edge.training.checkpoint import (
    LOG,
    MODEL,
    load_state,
    read_tensors,
    write_tensors,
)
from vae_edge.training.config import SCHEMA_1_TRAINING, RunConfig, Schedule, TrainConfig
from vae_edge.training.data import DataSplits, make_run_config, make_splits
from vae_edge.training.evaluate import rotate_like_training
from vae_edge.training.trainer import Progress, train

NETWORK = "network.safetensors"
TAKEN, ANGLES = 1 << 33, 5000  # the stream that images are drawn from; added to the seed of their fixed angles
FEW_EACH, FEW_TAKEN = 40, (200, 150)  # of a quick run
PHOTOGRAPHS, FEW_PHOTOGRAPHS, FEW_DIGITS = "photographs", "few photographs", "few digits"
PHOTOGRAPHS_EACH = {PHOTOGRAPHS: (300, 100), FEW_PHOTOGRAPHS: (10, 4)}  # of each class, to train on and to test


@dataclass(frozen=True)
class Ground:
    """The images of a row and a seed, and the plan of its training. `upright` are the judges before they were turned.

    `upright` is None where the judges are upright themselves, or come turned.
    """

    dataset: Dataset
    config: RunConfig
    material: DataSplits
    judges: LabelledImages
    upright: LabelledImages | None


def quickened(row: Row) -> Row:
    """The same row on a few images for one epoch: every line of its code runs, and what it reaches says nothing."""
    data = FEW_PHOTOGRAPHS if row.data == PHOTOGRAPHS else FEW_DIGITS
    labels = row.training.get("labels_per_class")
    fewer = {} if labels is None else {"labels_per_class": min(labels, 10)}
    return replace(
        row,
        what=f"{data} in place of: {row.what}",
        data=data,
        training={**row.training, **fewer, "epochs": 1, "batch": 32, "synthetic_ratio": 0.0},
        take=None if row.take is None else FEW_TAKEN,
    )


def load_data(name: str, runs: Path) -> Dataset:
    """A data set by the name that a row gives it; the folder of photographs is made where it is not there yet.

    Raises:
        DataError: it is not there, and cannot be made.
    """
    if name in PHOTOGRAPHS_EACH:
        folder = runs / name.replace(" ", "-")
        if not folder.is_dir():
            photographs.write(folder, *PHOTOGRAPHS_EACH[name], seed=0)
        return load_dataset(folder)
    if name == FEW_DIGITS:
        half = load_dataset("digits").train
        assert half is not None
        chosen = [np.flatnonzero(half.labels == k)[:FEW_EACH] for k in range(len(half.classes))]
        return Dataset(name, "the built-in digits", half.take(np.concatenate(chosen)), None)
    return load_dataset(name)


def settings_of(row: Row, seed: int) -> dict[str, Any]:
    """All that a row's figures depend on but the pixels, as JSON has it, under the names in the results' files."""
    model_names, training_names = (
        {new: old for old, new in names.items()} for names in (SCHEMA_1_MODEL, SCHEMA_1_TRAINING)
    )
    settings = {
        "data": row.data,
        "preset": row.preset,
        "model": rename_keys(asdict(create_config(row.preset, **row.model)), model_names),
        "training": rename_keys(TrainConfig(**{**row.training, "seed": seed}).to_dict(), training_names),
        "take": row.take,
        "control_of": row.control_of,
    }
    known: dict[str, Any] = json.loads(json.dumps(settings))
    return known


def run_folder(row: Row, seed: int, fingerprint: str, runs: Path) -> Path:
    """Where a row's run is: other settings or other images have another folder, so that none is taken for another."""
    told = json.dumps([settings_of(row, seed), fingerprint], sort_keys=True)
    return runs / f"{row.name}-{seed}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def prepare(row: Row, dataset: Dataset, seed: int) -> Ground:
    """Which images train and which judge.

    Raises:
        DataError: there are too few.
    """
    settings = TrainConfig(**{**row.training, "seed": seed})
    taken = None
    if row.take is not None:
        dataset, taken = turned_by_fixed_angles(dataset, row.take, seed)
    material = make_splits(dataset, settings)
    config = make_run_config(dataset, material, row.preset, settings, **row.model)
    if taken is not None:
        return Ground(dataset, config, material, taken, None)
    judges = rotate_like_training(
        material.held_out, config, seed + 1
    )  # by the angles that training's own validation has
    return Ground(dataset, config, material, judges, material.held_out if config.model.orientation else None)


def turned_by_fixed_angles(dataset: Dataset, take: tuple[int, int], seed: int) -> tuple[Dataset, LabelledImages]:
    """So many images to train with and so many others to judge, each turned once by an angle of its own.

    Raises:
        DataError: the training half has fewer, or an image to judge with is a copy of one to train with.
    """
    half = dataset.train
    if half is None or len(half) < sum(take):
        have = 0 if half is None else len(half)
        raise DataError(f"{dataset.source}: {sum(take)} training images are needed, but there are {have}.")
    order = permutation(len(half), seed, stream=TAKEN)
    fill = measure_input(half.images).fill
    first, others = half.take(order[: take[0]]), half.take(order[take[0] : sum(take)])
    check_apart(first, others)
    name = f"{take[0]} of {dataset.name}, turned"
    turned = rotated(first, 180.0, seed + ANGLES, fill)
    return Dataset(name, dataset.source, turned, None), rotated(others, 180.0, seed + ANGLES + 1, fill)


def fit_ours(ground: Ground, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Train as `vae-edge train` does, going on with what is in the folder; a finished run is taken as it is.

    Returns:
        what it took: `training_seconds` (of all steps, over all parts of a run that was stopped) and `epochs`.
    """
    if not (folder / MODEL).is_file():
        train(ground.material, ground.config, folder, resume=True, progress=progress)
    log = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    return {"training_seconds": log[-1]["seconds"], "epochs": len(log)}


def fit_control(ground: Ground, folder: Path, progress: Progress | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The plain network of the planned one's size, trained for as many multiply-accumulates on the same images.

    It has as many parameters as the class depends on in ours, and the same recipe but for the number of steps.

    Returns:
        the network, and what it took.
    """
    config, settings, kept = ground.config.model, ground.config.training, ground.material.train
    ours = AngleVAE(config)
    pixels = torch.zeros(1, config.channels, config.size, config.size)
    torch.manual_seed(settings.seed)
    network: nn.Module = baselines.cnn_of_size(
        config, baselines.inference_cost(baselines.Decision(ours), pixels).parameters
    )
    if (folder / NETWORK).is_file():
        tensors, about = read_tensors(folder / NETWORK)
        load_state(network, tensors, folder / NETWORK)
        return network.eval(), about
    shape = (config.size, config.channels)
    macs = baselines.training_macs(network, baselines.cross_entropy_of_anything, *shape)
    schedule = Schedule.from_config(settings, len(kept) + len(ground.material.unlabelled))
    seen = schedule.steps * schedule.batch
    budget = seen * baselines.training_macs(ours, baselines.our_loss, *shape)
    steps = max(1, round(budget / macs / schedule.batch))
    began = time.perf_counter()
    network = baselines.fit_network(network, kept, settings, steps, config.fill, progress)
    about = {
        "training_seconds": round(time.perf_counter() - began, 2),
        "epochs": round(steps * schedule.batch / len(kept), 2),
        "training_macs": macs * steps * schedule.batch,
        "training_macs_of_ours": budget,
    }
    write_tensors(folder / NETWORK, network.state_dict(), about)
    return network, about
