"""Fitting: from a data set to a run's folder, step by step, so that it can be stopped anywhere and go on."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from vae_edge.data import Dataset
from vae_edge.errors import CheckpointError
from vae_edge.files import write_text
from vae_edge.model.threads import use_threads
from vae_edge.training.batches import RAMP, Mixture, draw_batch, mix
from vae_edge.training.checkpoint import (
    CONFIG,
    GENERATED,
    LOG,
    MODEL,
    STATE,
    RunConfig,
    check_images,
    read_config,
    read_log,
    read_tensors,
    write_config,
    write_tensors,
)
from vae_edge.training.config import TrainConfig, learning_rate
from vae_edge.training.finish import as_trained, finish, training_codes
from vae_edge.training.generate import generate
from vae_edge.training.interrupt import Interrupted, stop_requested
from vae_edge.training.parallel import mean_over_processes, open_workers
from vae_edge.training.planning import Material, plan, sort_out
from vae_edge.training.pools import GENERATED as GENERATED_STREAM
from vae_edge.training.pools import LABELLED, UNLABELLED, Pool
from vae_edge.training.predict import floats
from vae_edge.training.steps import begin, fast_bf16, pseudo_labels, restore, save, step, watch

__all__ = ["Interrupted", "measure_step", "plan", "train"]

GENERATED_LEAST, GENERATED_MOST = 100, 1000  # generated images of each class
WATCHED_TURNS = 3  # added to the seed, for the angles of what early stopping watches
WARM_STEPS, MEASURED_STEPS = 3, 10
SAVED_SECONDS = 20.0  # of training between two savings, at least: the epochs of a small set take less
Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Schedule:
    """How many steps there are, where the images are generated, and how fast the weights move.

    With generated images there are two cycles of the learning rate, one before and one after.
    """

    settings: TrainConfig
    batch: int
    per_epoch: int
    steps: int
    boundary: int  # the first step that sees generated images; `steps` where none does

    @classmethod
    def of(cls, settings: TrainConfig, images: int) -> Schedule:
        """The schedule of a run over so many images."""
        batch = settings.batch_for(images)
        per_epoch = max(1, images // batch)
        steps = per_epoch * settings.epochs_for(images)
        boundary = max(1, round(settings.pretrain * steps)) if settings.generated else steps
        return cls(settings, batch, per_epoch, steps, boundary)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        settings = self.settings
        if step < self.boundary:
            return learning_rate(step, self.boundary, settings.learning_rate, settings.warmup)
        return learning_rate(step - self.boundary, self.steps - self.boundary, settings.learning_rate, settings.warmup)

    def ramp(self, step: int) -> float:
        """How much pseudo-labels count at a step, from 0 to 1."""
        return min(1.0, step / max(1.0, RAMP * self.steps))


def train(
    dataset: Dataset,
    config: RunConfig,
    out: str | Path,
    resume: bool = False,
    progress: Progress | None = None,
    tensorboard: bool = False,
) -> Path:
    """Train on the kept part of the training half, fit the score, set its threshold on the held-out part.

    Under `accelerate launch` each process calls this with the same arguments; the first one writes.

    Args:
        dataset: its training half and its unlabelled images are used.
        config: from `plan`.
        out: the run's folder. A finished run is never written over.
        resume: go on from the folder's state where there is one.
        progress: called after each step with (step, steps, terms of the loss), on the first process.
        tensorboard: write the terms of each epoch for TensorBoard as well, into the run's folder.

    Returns:
        The path of `model.safetensors`.

    Raises:
        CheckpointError: if the folder holds another run, its state does not fit, or TensorBoard is not installed.
        Interrupted: after Ctrl-C or SIGTERM; the state at that step is on disk.
    """
    folder = Path(out)
    use_threads()
    workers = open_workers()
    _check_folder(folder, config, resume)
    board = _board(folder, tensorboard, workers)
    workers.wait_for_everyone()
    fitting = Fitting(config, sort_out(dataset, config.training), folder, workers)
    if workers.is_main_process and not (folder / CONFIG).exists():
        write_config(folder, config)
    with stop_requested() as stopped:
        fitting.run(stopped, progress if workers.is_main_process else None, board)
    if workers.is_main_process:
        model = fitting.result()
        finish(model, fitting.material, config, fitting.state.step, folder)
    workers.wait_for_everyone()
    return folder / MODEL


def measure_step(dataset: Dataset, config: RunConfig, steps: int = MEASURED_STEPS) -> float:
    """Seconds that a training step takes on this machine: the median over some, which are thrown away.

    Args:
        config: from `plan`.

    Raises:
        as `train`.
    """
    use_threads()
    with tempfile.TemporaryDirectory(prefix="vae-edge-measure-") as folder:
        fitting = Fitting(config, sort_out(dataset, config.training), Path(folder), open_workers())
        taken = []
        for _ in range(WARM_STEPS + steps):
            began = time.perf_counter()
            fitting.one_step()
            taken.append(time.perf_counter() - began)
    return statistics.median(taken[WARM_STEPS:])


class Fitting:
    """A run under way: its images, its state, and what moves it."""

    def __init__(self, config: RunConfig, material: Material, folder: Path, workers: Accelerator) -> None:
        self.config, self.material, self.folder, self.workers = config, material, folder, workers
        settings = config.training
        self.bf16 = settings.bf16 if settings.bf16 is not None else fast_bf16(workers.device)
        self.schedule = Schedule.of(settings, len(material.labelled) + len(material.unlabelled))
        self._mix(settings.generated)  # or refuse
        self.state = begin(config, workers, self.bf16)
        if (folder / STATE).exists():
            restore(self.state, folder)
        steps = mean_over_processes({"first": float(self.state.step)}, workers)["first"]
        if steps != self.state.step:
            raise CheckpointError(
                f"{folder}: the processes stand at different steps, this one at {self.state.step}: "
                "the run's folder must be one that all machines share"
            )
        seed, device = settings.seed, workers.device
        self.pools = {"labelled": Pool.labelled(material.labelled, seed, LABELLED, device)}
        if len(material.unlabelled):
            angles = material.unlabelled_angles_deg
            self.pools["unlabelled"] = Pool.of(material.unlabelled, None, angles, seed, UNLABELLED, device)
        if material.watched is not None:
            watched = as_trained(material.watched, config, seed + WATCHED_TURNS)
            self.watched = floats(torch.from_numpy(watched.images).to(device))
            self.watched_labels = torch.from_numpy(watched.labels).to(device)

    def run(self, stopped: threading.Event, progress: Progress | None, board: Any) -> None:
        """All steps that are left."""
        state, schedule, settings = self.state, self.schedule, self.config.training
        log = _open_log(self.folder, state.step // schedule.per_epoch)
        began, saved = time.monotonic() - state.seconds, -math.inf
        while state.step < schedule.steps and not self._had_enough():
            terms = self.one_step()
            for name, value in terms.items():
                state.sums[name] = state.sums.get(name, 0.0) + value
            state.seconds = time.monotonic() - began
            if progress is not None:
                progress(state.step, schedule.steps, terms)
            stop = mean_over_processes({"stop": float(stopped.is_set())}, self.workers)["stop"] > 0
            ended = state.step % schedule.per_epoch == 0
            if ended:
                epoch = state.step // schedule.per_epoch
                means = {name: round(total / schedule.per_epoch, 5) for name, total in state.sums.items()}
                if settings.patience is not None:
                    means["watched_classes"] = self._watch()
                log.append(json.dumps({"epoch": epoch, "seconds": round(state.seconds, 2), **means}))
                state.sums = {}
                if board is not None:
                    for name, value in means.items():
                        board.add_scalar(name, value, state.step)
                    board.flush()
            done = stop or state.step == schedule.steps or self._had_enough()
            if self.workers.is_main_process and (done or (ended and state.seconds - saved >= SAVED_SECONDS)):
                write_text(self.folder / LOG, "".join(line + "\n" for line in log))
                save(state, self.folder)
                saved = state.seconds
            if stop:
                self.workers.wait_for_everyone()
                raise Interrupted(
                    f"training stopped at step {state.step} of {schedule.steps}; its state is in {self.folder}"
                )

    def one_step(self) -> dict[str, float]:
        """Draw a batch, and take a step on it; `data_seconds` among the terms is what the drawing took."""
        state, schedule, workers = self.state, self.schedule, self.workers
        began = time.perf_counter()
        batch = draw_batch(
            self.pools,
            self._mixture(),
            state.step,
            self.config,
            schedule.ramp(state.step),
            workers.process_index,
            workers.num_processes,
            lambda images: pseudo_labels(state, images, self.bf16),
        )
        drawn = time.perf_counter() - began
        terms = step(state, batch, self.config, workers, schedule.rate(state.step))
        return {**terms, "data_seconds": drawn}

    def _mixture(self) -> Mixture:
        """What a step takes now; the generated images are made, or read again, when the first step needs them."""
        late = self.state.step >= self.schedule.boundary
        if late and "generated" not in self.pools:
            self._generate()
        share = self.config.training.generated if late else 0.0
        return self._mix(share)

    def _mix(self, generated: float) -> Mixture:
        labelled, unlabelled = len(self.material.labelled), len(self.material.unlabelled)
        return mix(self.schedule.batch, labelled, unlabelled, generated, self.workers.num_processes)

    def _generate(self) -> None:
        """New images of each class, of the averaged model as it stands at the boundary; written beside the state."""
        path, config, kept = self.folder / GENERATED, self.config, self.material.labelled
        if self.state.step == self.schedule.boundary and self.workers.is_main_process:
            absent = config.data["absent"]
            present = len(config.classes) - len(absent)
            per_class = min(GENERATED_MOST, max(GENERATED_LEAST, -(-len(kept) // present)))
            model, seed = self.state.average, config.training.seed
            known = training_codes(model, kept, seed)
            codes, labels = known["codes"], known["code_labels"]
            drawn = generate(
                model,
                config.classes,
                per_class,
                seed=seed,
                absent=absent,
                codes=codes,
                code_labels=labels,
                confidence=config.training.confidence,
                how="between",
                fill_up=True,
            )
            tensors = {"images": torch.from_numpy(drawn.images), "labels": torch.from_numpy(drawn.labels)}
            write_tensors(path, tensors, {"step": self.state.step})
        self.workers.wait_for_everyone()
        tensors, about = read_tensors(path)
        if about.get("step") != self.schedule.boundary:
            raise CheckpointError(f"{path} holds images of step {about.get('step')}, not {self.schedule.boundary}")
        check_images(path, tensors, config)
        drawn_images, drawn_labels = tensors["images"].numpy(), tensors["labels"].numpy()
        seed, device = config.training.seed, self.workers.device
        self.pools["generated"] = Pool.of(drawn_images, drawn_labels, None, seed, GENERATED_STREAM, device)

    def _watch(self) -> float:
        """The loss on what is watched; remembers the best average and how long ago it was."""
        state = self.state
        loss = round(watch(state, self.watched, self.watched_labels), 5)
        if loss < state.watched.get("loss", np.inf):
            state.best = {name: tensor.clone() for name, tensor in state.average.state_dict().items()}
            state.watched = {"loss": loss, "waited": 0}
        else:
            state.watched["waited"] += 1
        return loss

    def _had_enough(self) -> bool:
        patience = self.config.training.patience
        return patience is not None and self.state.watched.get("waited", 0) >= patience

    def result(self) -> Any:
        """The averaged model, as it was at its best where that was watched."""
        model = self.state.average
        if self.state.best:
            model.load_state_dict(self.state.best)
        return model


def check_folder_free(folder: str | Path, resume: bool) -> None:
    """Refuse a folder that a run cannot be written to; before the images are read, which may take long.

    Raises:
        CheckpointError: if it holds a finished run, or an unfinished one that shall not go on, or a part of one.
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


def _check_folder(folder: Path, config: RunConfig, resume: bool) -> None:
    check_folder_free(folder, resume)
    if not (folder / CONFIG).exists():
        return
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


def _open_log(folder: Path, epochs: int) -> list[str]:
    """The lines of the epochs that the state has behind it; later ones, from a run that was killed, are dropped."""
    path = folder / LOG
    return [json.dumps(line) for line in read_log(folder)[:epochs]] if path.exists() else []


def _board(folder: Path, wanted: bool, workers: Accelerator) -> Any:
    """TensorBoard's writer, on the first process, where it is wanted.

    Raises:
        CheckpointError: if TensorBoard is not installed.
    """
    if not wanted or not workers.is_main_process:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise CheckpointError(
            f"--tensorboard needs the package tensorboard ({error}): pip install 'vae-edge[tensorboard]'"
        ) from error
    return SummaryWriter(folder / "tensorboard")
