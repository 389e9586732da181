"""Training: from the splits of a data set to a run's folder, step by step. It can stop anywhere and resume.

Top to bottom: `train`; `Trainer` (set-up, epoch loop, step, validation, checkpoint, result); what a step moves
(`TrainState`) and how (`train_step`, `LossModule`, `update_ema`); interruption.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import signal
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

from vae_edge.errors import CheckpointError, VaeEdgeError
from vae_edge.files import write_text
from vae_edge.model import AngleVAE, compute_losses, mutual_information
from vae_edge.model.backbone import PretrainedBackbone, load_pretrained
from vae_edge.model.config import rename_keys
from vae_edge.model.network import current_name
from vae_edge.progress import Progress, phase
from vae_edge.training.checkpoint import (
    CONFIG,
    GENERATED,
    LOG,
    MODEL,
    SCHEMA_1_TERMS,
    STATE,
    check_folder,
    check_images,
    load_state,
    optimizer_tensors,
    read_log,
    read_tensors,
    restore_optimizer,
    write_config,
    write_tensors,
)
from vae_edge.training.config import SCHEMA, RunConfig, Schedule, TrainConfig
from vae_edge.training.data import GENERATED as GENERATED_STREAM
from vae_edge.training.data import (
    LABELLED,
    UNLABELLED,
    Batch,
    BatchComposition,
    DataSplits,
    InMemoryDataset,
    build_batch,
    compose_batch,
    to_float,
)
from vae_edge.training.distributed import (
    all_reduce_mean,
    convert_sync_batchnorm,
    keep_freed_memory,
    make_accelerator,
    mean_over_processes,
    use_threads,
)
from vae_edge.training.evaluate import calibrate_and_save, encode_training_images, rotate_like_training
from vae_edge.training.generate import MAX_TRIES, generate_available

log = logging.getLogger(__name__)

MIN_GENERATED, MAX_GENERATED = 100, 1000  # generated images of each class
VAL_ROTATION_SEED = 3  # added to the run's seed, for the angles of the validation images
VAL_BATCH = 500
MAX_VAL_IMAGES = 500  # held-out images whose accuracy is shown, and no more than
VAL_IMAGES_RATIO = 0.1  # of the images of an epoch: forward alone, this takes a thirtieth of the epoch's time
CHECKPOINT_INTERVAL_S = 20.0  # of training between two checkpoints, at least: epochs of a small set are shorter


def train(
    splits: DataSplits,
    config: RunConfig,
    out: str | Path,
    resume: bool = False,
    progress: Progress | None = None,
    tensorboard: bool = False,
    begun: Callable[[], None] | None = None,
) -> Path:
    """Train on the training images, fit the score on them, set temperature and thresholds on the held-out images.

    Under `accelerate launch` each process calls this with the same arguments; rank 0 writes.

    Args:
        splits: of `make_splits`.
        config: of `make_run_config`.
        out: the run's folder. A finished run is never overwritten.
        resume: resume from the folder's state where there is one.
        progress: called after each step with (step, steps, terms), on rank 0 (`vae_edge.progress.Progress`).
        tensorboard: write the terms of each epoch for TensorBoard as well, into the run's folder.
        begun: called on rank 0 when a new run begins, that is, when nothing was refused.

    Returns:
        The path of `model.safetensors`.

    Raises:
        CheckpointError: if the folder holds another run, its state does not fit, or TensorBoard is not installed.
        Interrupted: after Ctrl-C or SIGTERM; the state at that step is on disk.
    """
    folder = Path(out)
    use_threads()
    accelerator = make_accelerator()
    check_folder(folder, config, resume)
    writer = _summary_writer(folder, tensorboard, accelerator)
    accelerator.wait_for_everyone()

    trainer = Trainer(splits, config, folder, accelerator)
    if accelerator.is_main_process and not (folder / CONFIG).exists():
        if begun is not None:
            begun()
        write_config(folder, config)
    with graceful_shutdown() as stop_requested, keep_freed_memory():
        trainer.run(stop_requested, progress if accelerator.is_main_process else None, writer)
    if accelerator.is_main_process:
        with phase("fitting the anomaly score, measuring the held-out images"):
            calibrate_and_save(trainer.best_model(), splits, config, trainer.state.step, folder)
    accelerator.wait_for_everyone()
    return folder / MODEL


class Trainer:
    """A run in progress: its images, its state, and the loop over steps and epochs."""

    def __init__(
        self, splits: DataSplits, config: RunConfig, folder: Path, accelerator: Accelerator, pretrained: bool = True
    ) -> None:
        """Begin, or go on with the state in `folder`; `pretrained`: whether a backbone gets its pretrained weights."""
        self.splits, self.config, self.folder, self.accelerator = splits, config, folder, accelerator
        settings = config.training
        self.bf16 = settings.bf16 if settings.bf16 is not None else fast_bf16(accelerator.device)
        self.schedule = Schedule.from_config(settings, len(splits.train) + len(splits.unlabelled))
        self._compose(settings.synthetic_ratio)  # refuses a batch that is too small before the first step

        resumed = (folder / STATE).exists()
        self.state = init_state(config, accelerator, self.bf16, pretrained=pretrained and not resumed)
        if resumed:
            restore(self.state, folder)
        mean_step = mean_over_processes({"step": float(self.state.step)}, accelerator)["step"]
        if mean_step != self.state.step:
            raise CheckpointError(
                f"{folder}: the processes stand at different steps, this one at {self.state.step}: "
                "the run's folder must be one that all machines share"
            )

        seed, device = settings.seed, accelerator.device
        train = splits.train
        self.datasets = {
            "labelled": InMemoryDataset.from_arrays(
                train.images, train.labels, train.angles_deg, seed, LABELLED, device, settings.class_balance
            )
        }
        if len(splits.unlabelled):
            self.datasets["unlabelled"] = InMemoryDataset.from_arrays(
                splits.unlabelled, None, splits.unlabelled_angles_deg, seed, UNLABELLED, device
            )
        val = splits.val
        if val is None:
            shown = max(1, round(VAL_IMAGES_RATIO * self.schedule.per_epoch * self.schedule.batch))
            count = min(len(splits.held_out), MAX_VAL_IMAGES, shown)
            order = np.random.default_rng(seed).permutation(len(splits.held_out))
            val = splits.held_out.take(order[:count])
        val = rotate_like_training(val, config, seed + VAL_ROTATION_SEED)
        self.val_images = to_float(torch.from_numpy(val.in_memory().images).to(device))
        self.val_labels = torch.from_numpy(val.labels).to(device)

    def run(self, stop_requested: threading.Event, progress: Progress | None, writer: Any) -> None:
        """Take all remaining steps.

        Args:
            stop_requested: once set, on any process, the run stops after the step.
            progress: as of `train`.
            writer: TensorBoard's, or None.
        """
        state, schedule = self.state, self.schedule
        log = _read_log_lines(self.folder, state.step // schedule.per_epoch)
        began, saved = time.monotonic() - state.seconds, -math.inf
        while state.step < schedule.steps and not self._should_stop_early():
            terms = self.step()
            for name, value in terms.items():
                state.sums[name] = state.sums.get(name, 0.0) + value
            state.seconds = time.monotonic() - began
            epoch_ended = state.step % schedule.per_epoch == 0
            told = {**terms, "epoch": state.step / schedule.per_epoch}
            if epoch_ended:
                line = self._end_epoch(writer)
                told["val_accuracy"] = line["val_accuracy"]
                log.append(json.dumps(line))
            if progress is not None:
                progress(state.step, schedule.steps, told)
            stop = mean_over_processes({"stop": float(stop_requested.is_set())}, self.accelerator)["stop"] > 0

            last = stop or state.step == schedule.steps or self._should_stop_early()
            due = epoch_ended and state.seconds - saved >= CHECKPOINT_INTERVAL_S
            if self.accelerator.is_main_process and (last or due):
                write_text(self.folder / LOG, "".join(line + "\n" for line in log))
                save(state, self.folder)
                saved = state.seconds
            if stop:
                self.accelerator.wait_for_everyone()
                raise Interrupted(
                    f"training stopped at step {state.step} of {schedule.steps}; its state is in {self.folder}"
                )

    def step(self) -> dict[str, float]:
        """Build a batch and train on it. Among the terms, `data_seconds` is the time that the batch took."""
        state, schedule, accelerator = self.state, self.schedule, self.accelerator
        began = time.perf_counter()
        batch = build_batch(
            self.datasets,
            self._composition(),
            state.step,
            self.config,
            schedule.ramp_at(state.step),
            accelerator.process_index,
            accelerator.num_processes,
            lambda images: pseudo_labels(state.ema_model, images, self.bf16),
        )
        data_seconds = time.perf_counter() - began
        terms = train_step(state, batch, self.config, accelerator, schedule.lr_at(state.step))
        return {**terms, "data_seconds": data_seconds}

    def best_model(self) -> AngleVAE:
        """The EMA model; with early stopping, that of the best epoch."""
        model = self.state.ema_model
        if self.state.best:
            model.load_state_dict(self.state.best)
        return model

    def _composition(self) -> BatchComposition:
        """Composition of this step's batch. The first step that needs generated images makes or reads them."""
        late = self.config.training.synthetic_ratio > 0 and self.state.step >= self.schedule.boundary
        if late and "generated" not in self.datasets:
            self._add_generated_images()
        return self._compose(self.config.training.synthetic_ratio if late and len(self.datasets["generated"]) else 0.0)

    def _compose(self, synthetic_ratio: float) -> BatchComposition:
        labelled, unlabelled = len(self.splits.train), len(self.splits.unlabelled)
        return compose_batch(self.schedule.batch, labelled, unlabelled, synthetic_ratio, self.accelerator.num_processes)

    def _add_generated_images(self) -> None:
        """Generate images of each class with the EMA model of the boundary step; store them beside the state."""
        path, boundary = self.folder / GENERATED, self.schedule.boundary
        if self.state.step == boundary and self.accelerator.is_main_process:
            tensors = self._generate_images()
            write_tensors(path, tensors, {"step": self.state.step})
        self.accelerator.wait_for_everyone()

        tensors, metadata = read_tensors(path)
        if metadata.get("step") != boundary:
            raise CheckpointError(f"{path} holds images of step {metadata.get('step')}, not {boundary}")
        check_images(path, tensors, self.config)
        images, labels = tensors["images"].numpy(), tensors["labels"].numpy()
        seed, device = self.config.training.seed, self.accelerator.device
        self.datasets["generated"] = InMemoryDataset.from_arrays(images, labels, None, seed, GENERATED_STREAM, device)

    def _generate_images(self) -> dict[str, Tensor]:
        """Images of the classes that can be generated; what cannot be does not stop the run."""
        config, train, model = self.config, self.splits.train, self.state.ema_model
        absent, seed = config.data.absent, config.training.seed
        per_class = -(-len(train) // (len(config.classes) - len(absent)))
        codes, code_labels = encode_training_images(model, train, seed)
        with phase("generating images to train on"):
            found = generate_available(
                model,
                config.classes,
                min(MAX_GENERATED, max(MIN_GENERATED, per_class)),
                seed=seed,
                absent=absent,
                codes=codes,
                code_labels=code_labels,
                confidence=config.training.pseudo_label_threshold,
                method="interpolate",
                top_up=True,
                max_tries=MAX_TRIES,
            )
        for name, why in found.missing.items():
            log.info("fewer generated images of class %s are trained on: %s", name, why)
        return {"images": torch.from_numpy(found.images.images), "labels": torch.from_numpy(found.images.labels)}

    def _end_epoch(self, writer: Any) -> dict[str, float]:
        """The epoch's line of the log: means of the terms, and how the EMA model does on the validation images.

        These are with early stopping the validation images of the run, else a few of the held-out images, which decide
        nothing.
        """
        state, per_epoch = self.state, self.schedule.per_epoch
        means = {name: round(total / per_epoch, 5) for name, total in state.sums.items()}
        loss, accuracy = validate(state.ema_model, self.val_images, self.val_labels)
        means["val_accuracy"] = round(accuracy, 5)
        if self.config.training.patience is not None:
            means["val_classes"] = round(loss, 5)
            self._remember_best(means["val_classes"])
        state.sums = {}
        if writer is not None:
            for name, value in means.items():
                writer.add_scalar(name, value, state.step)
            writer.flush()
        return {"epoch": state.step // per_epoch, "seconds": round(state.seconds, 2), **means}

    def _remember_best(self, loss: float) -> None:
        """Keep the EMA model's weights where the validation loss is the lowest so far; else count the epoch."""
        state = self.state
        if loss < state.best_loss:
            state.best = {name: tensor.clone() for name, tensor in state.ema_model.state_dict().items()}
            state.best_loss, state.epochs_since_best = loss, 0
        else:
            state.epochs_since_best += 1

    def _should_stop_early(self) -> bool:
        patience = self.config.training.patience
        return patience is not None and self.state.epochs_since_best >= patience


@dataclass
class TrainState:
    """What changes while training.

    Attributes:
        model: the model that is trained.
        ema_model: exponential moving average of its weights and statistics: the model that is saved.
        optimizer: of the model.
        loss_module: batch and number of images seen to the terms of the loss; distributed, perhaps compiled.
        step: steps taken.
        sums: of the terms, over the epoch so far.
        seconds: of training.
        best: with early stopping, the weights of the EMA model's best epoch.
        best_loss: validation loss of that epoch.
        epochs_since_best: epochs since then.
    """

    model: AngleVAE
    ema_model: AngleVAE
    optimizer: torch.optim.AdamW
    loss_module: Callable[[Batch, int], dict[str, Tensor]]
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_loss: float = math.inf
    epochs_since_best: int = 0


def init_state(config: RunConfig, accelerator: Accelerator, bf16: bool, pretrained: bool = True) -> TrainState:
    """The state before the first step. Its weights are fixed by the seed, and by those of a pretrained backbone."""
    settings = config.training
    torch.manual_seed(settings.seed)
    model = AngleVAE(config.model)
    if pretrained and isinstance(model.encoder, PretrainedBackbone):
        load_pretrained(model.encoder, settings.backbone_weights)
    ema_model = copy.deepcopy(model)
    ema_model.requires_grad_(False)
    ema_model.eval().to(accelerator.device)

    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    model.to(accelerator.device)
    if accelerator.num_processes > 1 or not bf16:
        convert_sync_batchnorm(model)

    optimizer = torch.optim.AdamW(parameter_groups(model, settings), lr=settings.learning_rate, betas=(0.9, 0.99))
    module: Any = LossModule(model, config, bf16)
    loss_module = accelerator.prepare_model(module)
    if settings.compile:
        loss_module = torch.compile(loss_module)
    return TrainState(model, ema_model, optimizer, loss_module)


def parameter_groups(model: AngleVAE, settings: TrainConfig) -> list[dict[str, Any]]:
    """The optimizer's groups: weights that decay and others, those of a pretrained backbone apart. `lr_ratio` is by how
    much their learning rate differs."""
    pretrained = list(model.encoder.parameters()) if isinstance(model.encoder, PretrainedBackbone) else []
    apart = set(pretrained)
    own = [parameter for parameter in model.parameters() if parameter not in apart]
    groups: list[dict[str, Any]] = []
    for parameters, ratio in ((own, 1.0), (pretrained, settings.backbone_lr_ratio)):
        if parameters:
            decayed, plain = ([p for p in parameters if (p.ndim > 1) == wanted] for wanted in (True, False))
            groups.append({"params": decayed, "weight_decay": settings.weight_decay, "lr_ratio": ratio})
            groups.append({"params": plain, "weight_decay": 0.0, "lr_ratio": ratio})
    return groups


class LossModule(nn.Module):
    """A batch to the terms of its loss. DDP wraps this module, and `torch.compile` compiles it."""

    def __init__(self, model: AngleVAE, config: RunConfig, bf16: bool) -> None:
        super().__init__()
        self.model, self.config, self.bf16 = model, config, bf16

    def forward(self, batch: Batch, images_seen: int) -> dict[str, Tensor]:
        """The terms of `compute_losses`, and the accuracy on the images with labels.

        Args:
            batch: this process's shard.
            images_seen: images in the run's batches before this one. It gives every image noise of its own.
        """
        settings, latent = self.config.training, self.config.model.latent
        offsets = [(count, (images_seen + row) * latent) for count, row in batch.segments]
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model.forward_train(
                batch.images, batch.class_weights, settings.seed, offsets, batch.angle_noise
            )
        angles = batch.angles_rad if self.config.model.orientation else None
        terms = compute_losses(output, batch.labels, angles, settings.weights, batch.sample_weight)
        known = len(batch.labels) - batch.unlabelled  # the others' labels are pseudo-labels
        terms["accuracy"] = (output.logits[:known].argmax(1) == batch.labels[:known]).float().mean()

        if batch.unlabelled and settings.mutual_info_weight:
            predicted = output.logits[-batch.unlabelled :].float().softmax(1)
            pseudo = batch.class_weights[-batch.unlabelled :]
            joint, _ = all_reduce_mean(pseudo.T @ predicted / batch.unlabelled)  # of the full batch
            terms["mutual_information"] = mutual_information(joint)
            terms["total"] = terms["total"] - settings.mutual_info_weight * terms["mutual_information"]
        return terms


def train_step(
    state: TrainState, batch: Batch, config: RunConfig, accelerator: Accelerator, learning_rate: float
) -> dict[str, float]:
    """Forward, backward, optimizer, EMA.

    Returns:
        the terms of the loss, means over the full batch, and `learning_rate`.

    Raises:
        CheckpointError: if the gradient is not finite.
    """
    settings = config.training
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_ratio"]
    state.model.train()
    terms = state.loss_module(batch, state.step * len(batch.labels) * accelerator.num_processes)

    state.optimizer.zero_grad(set_to_none=True)
    accelerator.backward(terms["total"])
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), settings.gradient_clip)
    if not torch.isfinite(norm):
        raise CheckpointError(
            f"training diverged at step {state.step} (the gradient is not finite): "
            f"start again in another --out with a lower --learning-rate than {settings.learning_rate}"
        )
    state.optimizer.step()
    state.step += 1

    # the decay grows from 2/11, so that the first weights are soon forgotten
    update_ema(state.ema_model, state.model, min(settings.ema, (1 + state.step) / (10 + state.step)))
    values = torch.stack([value.detach().double() for value in terms.values()]).tolist()
    return mean_over_processes(dict(zip(terms, values, strict=True)), accelerator) | {"learning_rate": learning_rate}


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights and of the normalization's statistics.

    Our own: torch's AveragedModel copies the weights at its first update, and has one decay for all steps.
    """
    averages, values = list(ema_model.state_dict().values()), list(model.state_dict().values())
    moving = [index for index, tensor in enumerate(averages) if tensor.is_floating_point()]
    torch._foreach_lerp_([averages[index] for index in moving], [values[index] for index in moving], 1.0 - decay)


@torch.no_grad()
def pseudo_labels(ema_model: AngleVAE, images: Tensor, bf16: bool) -> Tensor:
    """Class probabilities [N, K] of images [N, C, S, S] by the EMA model, which is steadier than the model."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        return ema_model.classify(images).float().softmax(1)


@torch.no_grad()
def validate(ema_model: AngleVAE, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Cross-entropy, in nats, and accuracy of the EMA model on images float [N, C, S, S] with labels [N]."""
    logits = torch.cat([ema_model.classify(part).float() for part in images.split(VAL_BATCH)])
    return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).double().mean())


def save(state: TrainState, folder: Path) -> None:
    """Write the state into a run's folder, completely or not at all."""
    parts = {
        "model": state.model.state_dict(),
        "ema_model": state.ema_model.state_dict(),
        "optimizer": optimizer_tensors(state.optimizer),
        "best": state.best,
    }
    tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
    metadata = {"schema": SCHEMA, "step": state.step, "sums": state.sums, "seconds": state.seconds}
    if state.best:
        metadata["early_stopping"] = {"best_loss": state.best_loss, "epochs_since_best": state.epochs_since_best}
    write_tensors(folder / STATE, tensors, metadata)


def restore(state: TrainState, folder: Path) -> None:
    """Read the state that `save` wrote, or schema 1's. A missing, damaged or foreign file is a CheckpointError."""
    path = folder / STATE
    tensors, metadata = read_tensors(path)
    old = "schema" not in metadata

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    load_state(state.model, part("model."), path)
    load_state(state.ema_model, part("average." if old else "ema_model."), path)
    try:
        restore_optimizer(state.optimizer, part("optimizer."))
        state.step, state.seconds = int(metadata["step"]), float(metadata["seconds"])
        state.sums = dict(rename_keys(metadata["sums"], SCHEMA_1_TERMS))
        state.best = {current_name(name): tensor for name, tensor in part("best.").items()}
        stopping = dict(metadata["watched"] if old else metadata.get("early_stopping", {}))
        if stopping:
            loss, epochs = ("loss", "waited") if old else ("best_loss", "epochs_since_best")
            state.best_loss, state.epochs_since_best = float(stopping[loss]), int(stopping[epochs])
        shapes = {name: tensor.shape for name, tensor in state.ema_model.state_dict().items()}
        if state.step < 0 or (state.best and {name: tensor.shape for name, tensor in state.best.items()} != shapes):
            raise ValueError("its step, or its best model, is not one of this run's")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not the state of this run: {error}") from error


def fast_bf16(device: torch.device | None = None) -> bool:
    """Whether bfloat16 is fast, so that autocast pays: the GPU, or without one the CPU, has it in hardware."""
    if device is not None and device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(torch.cpu._is_avx512_bf16_supported())


def _read_log_lines(folder: Path, epochs: int) -> list[str]:
    """The log's lines of the epochs before the state. Later ones, of a run that was killed, are dropped."""
    path = folder / LOG
    return [json.dumps(line) for line in read_log(folder)[:epochs]] if path.exists() else []


def _summary_writer(folder: Path, wanted: bool, accelerator: Accelerator) -> Any:
    """TensorBoard's writer on rank 0, where it is wanted; else None.

    Raises:
        CheckpointError: if TensorBoard is not installed.
    """
    if not wanted or not accelerator.is_main_process:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise CheckpointError(
            f"--tensorboard needs the package tensorboard ({error}): pip install 'vae-edge[tensorboard]'"
        ) from error
    return SummaryWriter(folder / "tensorboard")


class Interrupted(VaeEdgeError):
    """Training was stopped by the user. Its state is on disk, and `--resume` resumes it."""


@contextmanager
def graceful_shutdown() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that the step is finished and saved. A second one interrupts at once.

    Signals that the process ignores stay ignored, as in a shell's background job. Outside the main thread the event
    stays unset.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def request(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    handled = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, request) for number in handled}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
