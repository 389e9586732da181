"""Ctrl-C and SIGTERM while training: finish the step, save, then stop.

One step of training, and the state that it moves: in memory, and on disk so that it can go on.

Fitting: from a data set to a run's folder, step by step, so that it can be stopped anywhere and go on.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from vae_edge.data import Dataset
from vae_edge.errors import CheckpointError, VaeEdgeError
from vae_edge.files import write_text
from vae_edge.model import AngleVAE, losses, mutual_information
from vae_edge.training.checkpoint import (
    CONFIG,
    GENERATED,
    LOG,
    MODEL,
    STATE,
    RunConfig,
    check_images,
    load_state,
    optimizer_tensors,
    read_config,
    read_log,
    read_tensors,
    restore_optimizer,
    write_config,
    write_tensors,
)
from vae_edge.training.config import TrainConfig, learning_rate
from vae_edge.training.data import GENERATED as GENERATED_STREAM
from vae_edge.training.data import (
    LABELLED,
    RAMP,
    UNLABELLED,
    Batch,
    Material,
    Mixture,
    Pool,
    draw_batch,
    floats,
    mix,
    plan,
    sort_out,
)
from vae_edge.training.distributed import (
    mean_of_means,
    mean_over_processes,
    normalize_exactly,
    open_workers,
    use_threads,
)
from vae_edge.training.evaluate import as_trained, finish, training_codes
from vae_edge.training.generate import generate


class Interrupted(VaeEdgeError):
    """Training was stopped by the user; its state is on disk and `--resume` goes on from there."""


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
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


class TrainingPass(nn.Module):
    """A batch to the terms of its loss: what is shared out over processes, and what `torch.compile` sees."""

    def __init__(self, model: AngleVAE, config: RunConfig, bf16: bool) -> None:
        super().__init__()
        self.model, self.config, self.bf16 = model, config, bf16

    def forward(self, batch: Batch, first: int) -> dict[str, Tensor]:
        """The terms of `vae_edge.model.network`; `first` is the number of images that the run has seen before."""
        latent = self.config.model.latent
        places = [(count, (first + row) * latent) for count, row in batch.stretches]
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model.training_pass(
                batch.images, batch.class_weights, self.config.training.seed, places, batch.error_rad
            )
        settings = self.config.training
        angles = batch.angles_rad if self.config.model.pose else None
        terms = losses(output, batch.labels, angles, settings.weights, batch.trust)
        if batch.unlabelled and settings.mutual:
            said = output.logits[-batch.unlabelled :].float().softmax(1)
            guessed = batch.class_weights[-batch.unlabelled :]
            joint, _ = mean_of_means(guessed.T @ said / batch.unlabelled)  # of the batch of all processes
            terms["mutual_information"] = mutual_information(joint)
            terms["total"] = terms["total"] - settings.mutual * terms["mutual_information"]
        return terms


@dataclass
class State:
    """What moves while training: the model, its averaged copy, the optimizer and the number of steps taken."""

    model: AngleVAE
    average: AngleVAE
    optimizer: torch.optim.AdamW
    forward: Callable[[Batch, int], dict[str, Tensor]]
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the terms, over the epoch so far
    seconds: float = 0.0  # spent training
    best: dict[str, Tensor] = field(default_factory=dict)  # the average at its best epoch, where one is watched
    watched: dict[str, float] = field(default_factory=dict)  # `loss` of that epoch, `waited` epochs since


def begin(config: RunConfig, workers: Accelerator, bf16: bool) -> State:
    """A state before its first step, its weights fixed by the seed."""
    torch.manual_seed(config.training.seed)
    model, average = AngleVAE(config.model), AngleVAE(config.model)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    average.load_state_dict(model.state_dict())
    average.requires_grad_(False)
    average.eval().to(workers.device)
    model.to(workers.device)
    if workers.num_processes > 1 or not bf16:
        normalize_exactly(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.training.learning_rate, betas=(0.9, 0.99))
    one_pass: Any = TrainingPass(model, config, bf16)
    forward = workers.prepare_model(one_pass)
    if config.training.compile:
        forward = torch.compile(forward)
    return State(model, average, optimizer, forward)


def step(state: State, batch: Batch, config: RunConfig, workers: Accelerator, rate: float) -> dict[str, float]:
    """Take one step; the terms of the loss, means over the batch of all processes, and the learning rate.

    Raises:
        CheckpointError: if the gradient is not finite.
    """
    settings = config.training
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.model.train()
    terms = state.forward(batch, state.step * len(batch.labels) * workers.num_processes)
    state.optimizer.zero_grad(set_to_none=True)
    workers.backward(terms["total"])
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), settings.gradient_clip)
    if not torch.isfinite(norm):
        raise CheckpointError(
            f"training diverged at step {state.step} (the gradient is not finite): "
            f"start again in another --out with a lower --learning-rate than {settings.learning_rate}"
        )
    state.optimizer.step()
    state.step += 1
    _update_average(state, min(settings.ema, (1 + state.step) / (10 + state.step)))
    values = torch.stack([value.detach().double() for value in terms.values()]).tolist()
    return mean_over_processes(dict(zip(terms, values, strict=True)), workers) | {"learning_rate": rate}


@torch.no_grad()
def pseudo_labels(state: State, images: Tensor, bf16: bool) -> Tensor:
    """Class probabilities [N, K] of images [N, C, S, S] by the averaged model, the steadier one."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        return state.average.classify(images).float().softmax(1)


@torch.no_grad()
def watch(state: State, images: Tensor, labels: Tensor) -> float:
    """Cross-entropy of the averaged model on images float [N, C, S, S] with labels [N], in nats."""
    logits = torch.cat([state.average.classify(part).float() for part in images.split(500)])
    return float(F.cross_entropy(logits, labels))


@torch.no_grad()
def _update_average(state: State, decay: float) -> None:
    """Exponential moving average of the weights and of the normalization's statistics."""
    ours = list(state.average.state_dict().values())
    theirs = list(state.model.state_dict().values())
    floats = [i for i, tensor in enumerate(ours) if tensor.is_floating_point()]
    torch._foreach_lerp_([ours[i] for i in floats], [theirs[i] for i in floats], 1.0 - decay)


def save(state: State, folder: Path) -> None:
    """Write the state into a run's folder, wholly or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.state_dict().items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors(state.optimizer).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.best.items()}
    about = {"step": state.step, "sums": state.sums, "seconds": state.seconds, "watched": state.watched}
    write_tensors(folder / STATE, tensors, about)


def restore(state: State, folder: Path) -> None:
    """Put back what `save` wrote; a file that is missing, damaged or does not fit is a CheckpointError."""
    path = folder / STATE
    tensors, metadata = read_tensors(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    load_state(state.model, part("model."), path)
    load_state(state.average, part("average."), path)
    try:
        restore_optimizer(state.optimizer, part("optimizer."))
        state.step, state.sums = int(metadata["step"]), dict(metadata["sums"])
        state.seconds, state.watched = float(metadata["seconds"]), dict(metadata["watched"])
        state.best = part("best.")
        shapes = {name: tensor.shape for name, tensor in state.average.state_dict().items()}
        if state.step < 0 or (state.best and {name: tensor.shape for name, tensor in state.best.items()} != shapes):
            raise ValueError("its step, or its best model, is not one of this run's")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not the state of this run: {error}") from error


def fast_bf16(device: torch.device | None = None) -> bool:
    """Whether the GPU, or without one this processor, multiplies bfloat16 in hardware, so that autocast pays."""
    if device is not None and device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(torch.cpu._is_avx512_bf16_supported())


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
