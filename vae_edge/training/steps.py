"""One step of training, and the state that it moves: in memory, and on disk so that it can go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from vae_edge.errors import CheckpointError
from vae_edge.model import AngleVAE, losses, mutual_information
from vae_edge.training.batches import Batch
from vae_edge.training.checkpoint import (
    STATE,
    RunConfig,
    load_state,
    optimizer_tensors,
    read_tensors,
    restore_optimizer,
    write_tensors,
)
from vae_edge.training.parallel import mean_of_means, mean_over_processes, normalize_exactly


class TrainingPass(nn.Module):
    """A batch to the terms of its loss: what is shared out over processes, and what `torch.compile` sees."""

    def __init__(self, model: AngleVAE, config: RunConfig, bf16: bool) -> None:
        super().__init__()
        self.model, self.config, self.bf16 = model, config, bf16

    def forward(self, batch: Batch, first: int) -> dict[str, Tensor]:
        """The terms of `vae_edge.model.losses`; `first` is the number of images that the run has seen before."""
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
