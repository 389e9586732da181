"""Fitting: from a data set to a run's folder, step by step, so that it can be stopped anywhere and go on."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from vae_edge.data import Dataset, LabelledImages, check_trainable, holdout, rotated, rotation_range
from vae_edge.errors import CheckpointError, DataError, VaeEdgeError
from vae_edge.files import write_text
from vae_edge.images import measure_input
from vae_edge.metrics import summarize
from vae_edge.model import AngleVAE, create_config
from vae_edge.training.checkpoint import (
    CONFIG,
    LOG,
    MODEL,
    SAMPLE_FILE,
    STATE,
    RunConfig,
    read_config,
    write_config,
    write_tensors,
)
from vae_edge.training.config import TrainConfig
from vae_edge.training.predict import predict
from vae_edge.training.steps import State, begin, fast_bf16, restore, save, step
from vae_edge.training.symmetry import ambiguous_classes

LEAST_IMAGES = 16
SAMPLES = 256  # held-out images kept with the run, on which later steps check themselves
Progress = Callable[[int, int, dict[str, float]], None]


class Interrupted(VaeEdgeError):
    """Training was stopped by the user; its state is on disk and `--resume` goes on from there."""


def plan(dataset: Dataset, preset: str, training: TrainConfig, **overrides: Any) -> RunConfig:
    """The configuration of a run on the training half of a data set.

    Raises:
        DataError: if there is nothing to train on.
        ConfigError: if the preset or an override is wrong.
    """
    if dataset.train is None:
        raise DataError(f"{dataset.source} has no training half; give a data set with training images to train on")
    check_trainable(dataset.train)
    size, channels = dataset.train.images.shape[1], dataset.train.images.shape[3]
    kept, held = holdout(dataset.train, training.holdout, training.seed)
    if len(kept) < LEAST_IMAGES:
        raise DataError(f"{len(kept)} images to train on (others are held out): at least {LEAST_IMAGES} are needed")
    spec = measure_input(kept.images)
    model = create_config(
        preset,
        **{
            "classes": len(dataset.classes),
            "size": size,
            "channels": channels,
            "pose": training.rotation != "none",
            "fill": spec.fill / 255,
            **overrides,
        },
    )
    data = {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint(),
        "trained_on": len(kept),
        "held_out": len(held),
        "holdout_fraction": training.holdout,
        "seed": training.seed,
        "ambiguous": ambiguous_classes(kept) if model.pose and kept.angles_deg is None else [],
        "absent": [name for k, name in enumerate(kept.classes) if not (kept.labels == k).any()],
    }
    return RunConfig(model, training, tuple(dataset.classes), spec, data)


def train(
    dataset: Dataset,
    config: RunConfig,
    out: str | Path,
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train on the kept part of the training half, fit the score, set its threshold on the held-out part.

    Args:
        dataset: its training half alone is used.
        config: from `plan`.
        out: the run's folder. A finished run is never written over.
        resume: go on from the folder's state where there is one.
        progress: called after each step with (step, steps, terms of the loss).

    Returns:
        The path of `model.safetensors`.

    Raises:
        CheckpointError: if the folder holds another run, or its state does not fit.
        Interrupted: after Ctrl-C or SIGTERM; the state at that step is on disk.
    """
    folder = Path(out)
    state = _open_run(folder, config, resume)
    assert dataset.train is not None
    kept, held = holdout(dataset.train, config.training.holdout, config.training.seed)
    with _stop_requested() as stopped:
        _fit(state, kept, config, folder, stopped, progress)
    return _finish(state, kept, held, config, folder)


def _open_run(folder: Path, config: RunConfig, resume: bool) -> State:
    if (folder / MODEL).exists():
        raise CheckpointError(f"{folder} holds a finished run; choose another --out or remove it first")
    if (folder / CONFIG).exists():
        _check_same(folder, config, resume)
    state = begin(config)
    if (folder / STATE).exists():
        restore(state, folder)
    elif not (folder / CONFIG).exists():
        write_config(folder, config)
    return state


def _check_same(folder: Path, config: RunConfig, resume: bool) -> None:
    if not resume:
        raise CheckpointError(
            f"{folder} holds an unfinished run; go on with `vae-edge train --resume`, or choose another --out"
        )
    before, now = read_config(folder).to_dict(), config.to_dict()
    if before["data"]["fingerprint"] != now["data"]["fingerprint"]:
        raise CheckpointError(
            f"{folder} was trained on other images than the ones given: resuming would mix them; choose another --out"
        )
    odd = [
        f"{part}.{name}: {before[part].get(name)!r} then, {now[part].get(name)!r} now"
        for part in ("model", "training")
        for name in now[part]
        if before[part].get(name) != now[part].get(name)
    ]
    if odd:
        raise CheckpointError(
            f"{folder} was begun with other settings ({'; '.join(odd)}); use the same ones, or another --out"
        )


def _fit(
    state: State,
    kept: LabelledImages,
    config: RunConfig,
    folder: Path,
    stopped: threading.Event,
    progress: Progress | None,
) -> None:
    """All steps that are left. Every random number comes from the seed and the step alone."""
    settings = config.training
    images, labels = torch.from_numpy(kept.images), torch.from_numpy(kept.labels)
    batch = settings.batch_for(len(labels))
    per_epoch = len(labels) // batch
    steps = per_epoch * settings.epochs_for(len(labels))
    bf16 = settings.bf16 if settings.bf16 is not None else fast_bf16()
    known = None if kept.angles_deg is None else torch.from_numpy(kept.angles_deg).deg2rad()
    log = _open_log(folder, state.step // per_epoch)
    began = time.monotonic() - state.seconds
    order, ordered = np.empty(0, np.int64), -1
    while state.step < steps:
        epoch, index = divmod(state.step, per_epoch)
        if epoch != ordered:
            order, ordered = np.random.default_rng([settings.seed, epoch]).permutation(len(labels)), epoch
        chosen = torch.from_numpy(order[index * batch : (index + 1) * batch])
        angles = None if known is None else known[chosen]
        terms = step(state, images[chosen], labels[chosen], angles, config, steps, bf16)
        for name, value in terms.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        state.seconds = time.monotonic() - began
        if progress is not None:
            progress(state.step, steps, terms)
        if index + 1 == per_epoch:
            means = {name: round(total / per_epoch, 5) for name, total in state.sums.items()}
            log.append(json.dumps({"epoch": epoch + 1, "seconds": round(state.seconds, 2), **means}))
            write_text(folder / LOG, "\n".join(log) + "\n")
            state.sums = {}
        if stopped.is_set() or index + 1 == per_epoch:
            save(state, folder)
        if stopped.is_set():
            raise Interrupted(f"training stopped at step {state.step} of {steps}; its state is in {folder}")


def _finish(state: State, kept: LabelledImages, held: LabelledImages, config: RunConfig, folder: Path) -> Path:
    """Fit the score on training images, set its threshold on held-out ones, measure these, write the model."""
    settings, model = config.training, state.average
    seen = fit_score(model, kept, config)
    turned = _as_trained(held, config, settings.seed + 1)
    outputs = predict(model, turned.images)
    threshold = float(np.quantile(outputs.scores, 1.0 - settings.reject_rate))
    if not np.isfinite(threshold):
        raise CheckpointError(f"the scores of the held-out images are not finite: training in {folder} came to nothing")
    upright = predict(model, held.images)
    figures = summarize(
        outputs.probabilities,
        turned.labels,
        config.classes,
        outputs.angles_deg if config.model.pose else None,
        turned.angles_deg,
        outputs.scores,
        threshold,
        config.data["ambiguous"],
    )
    result = {
        "step": state.step,
        "threshold": threshold,
        "reject_rate": settings.reject_rate,
        "score_fitted_on": seen,
        "validation": {**figures, "rotation": settings.rotation},
        "validation_upright": summarize(upright.probabilities, held.labels, config.classes),
    }
    chosen = np.random.default_rng(settings.seed).permutation(len(held))[:SAMPLES]
    samples = {"images": torch.from_numpy(turned.images[chosen]), "upright": torch.from_numpy(held.images[chosen])}
    write_tensors(folder / SAMPLE_FILE, {**samples, "labels": torch.from_numpy(held.labels[chosen])}, {})
    write_tensors(folder / MODEL, model.state_dict(), result)
    return folder / MODEL


def _as_trained(images: LabelledImages, config: RunConfig, seed: int) -> LabelledImages:
    """Images turned as far as training turned them."""
    if not config.model.pose:
        return images
    return rotated(images, rotation_range(config.training.rotation), seed, config.input.fill)


def fit_score(model: AngleVAE, kept: LabelledImages, config: RunConfig, limit: int = 10_000) -> int:
    """Fit the rejection score on (up to `limit`) training images, turned as in training. Returns how many."""
    settings = config.training
    chosen = np.random.default_rng(settings.seed).permutation(len(kept))[:limit]
    missing = set(range(len(kept.classes))) - set(kept.labels[chosen].tolist())
    firsts = [int(np.flatnonzero(kept.labels == k)[0]) for k in missing if (kept.labels == k).any()]
    sample = kept.take(np.concatenate([chosen, np.array(firsts, dtype=np.int64)]))
    sample = _as_trained(sample, config, settings.seed + 2)
    outputs = predict(model, sample.images)
    model.score.fit_codes(outputs.codes, torch.from_numpy(sample.labels))
    model.score.fit_scale(predict(model, sample.images).parts)
    return len(sample)


def _open_log(folder: Path, epochs: int) -> list[str]:
    """The lines of the epochs that the state has behind it; later ones, from a run that was killed, are dropped."""
    path = folder / LOG
    return path.read_text(encoding="utf-8").splitlines()[:epochs] if path.is_file() else []


@contextmanager
def _stop_requested() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second one interrupts at once.

    What the process ignores stays ignored, as in a shell's background job. Outside the main thread it stays unset.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, request) for number in heard}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
