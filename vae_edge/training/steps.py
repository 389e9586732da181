"""One step of training, and the state that it moves: in memory, and on disk so that it can go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vae_edge.data.augment import affine_augment
from vae_edge.errors import CheckpointError
from vae_edge.model import AngleVAE, losses
from vae_edge.training.checkpoint import (
    STATE,
    RunConfig,
    load_state,
    optimizer_tensors,
    read_tensors,
    restore_optimizer,
    write_tensors,
)
from vae_edge.training.config import learning_rate


@dataclass
class State:
    """What moves while training: the model, its averaged copy, the optimizer and the number of steps taken."""

    model: AngleVAE
    average: AngleVAE
    optimizer: torch.optim.AdamW
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the terms, over the epoch so far
    seconds: float = 0.0  # spent training


def begin(config: RunConfig) -> State:
    """A state before its first step, its weights fixed by the seed."""
    torch.manual_seed(config.training.seed)
    model, average = AngleVAE(config.model), AngleVAE(config.model)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    average.load_state_dict(model.state_dict())
    average.requires_grad_(False)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.training.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return State(model, average, torch.optim.AdamW(groups, lr=config.training.learning_rate, betas=(0.9, 0.99)))


def restore(state: State, folder: Path) -> None:
    """Put back what `save` wrote; a file that is missing, damaged or does not fit is a CheckpointError."""
    path = folder / STATE
    tensors, metadata = read_tensors(path)

    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    load_state(state.model, part("model."), path)
    load_state(state.average, part("average."), path)
    restore_optimizer(state.optimizer, part("optimizer."))
    state.step, state.sums, state.seconds = int(metadata["step"]), dict(metadata["sums"]), float(metadata["seconds"])


def save(state: State, folder: Path) -> None:
    """Write the state into a run's folder, wholly or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in state.average.state_dict().items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors(state.optimizer).items()}
    write_tensors(folder / STATE, tensors, {"step": state.step, "sums": state.sums, "seconds": state.seconds})


def step(
    state: State,
    images: Tensor,
    labels: Tensor,
    known_rad: Tensor | None,
    config: RunConfig,
    steps: int,
    bf16: bool,
) -> dict[str, float]:
    """Take one step on images uint8 [N, S, S, C] with labels [N]; the terms of the loss and the learning rate.

    `known_rad` [N] is how far the images are turned already, where that is known.

    Every random number comes from the seed and the number of the step.

    Raises:
        CheckpointError: if the gradient is not finite.
    """
    settings = config.training
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + state.step)
    pixels = images.permute(0, 3, 1, 2).float().div_(255.0)
    pixels, angle_rad = affine_augment(pixels, generator, **settings.augmentation(), fill=config.model.fill)
    if known_rad is not None:
        angle_rad = angle_rad + known_rad
    rate = learning_rate(state.step, steps, settings.learning_rate, settings.warmup)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        offset = state.step * config.model.latent * len(labels)
        output = state.model.training_pass(pixels, labels, settings.seed, offset)
    terms = losses(output, labels, angle_rad if config.model.pose else None, settings.weights)
    state.optimizer.zero_grad(set_to_none=True)
    terms["total"].backward()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), settings.gradient_clip)
    if not torch.isfinite(norm):
        raise CheckpointError(
            f"training diverged at step {state.step} (the gradient is not finite): "
            f"start again in another --out with a lower --learning-rate than {settings.learning_rate}"
        )
    state.optimizer.step()
    state.step += 1
    _update_average(state, min(settings.ema, (1 + state.step) / (10 + state.step)))
    return {name: float(value.detach()) for name, value in terms.items()} | {"learning_rate": rate}


@torch.no_grad()
def _update_average(state: State, decay: float) -> None:
    """Exponential moving average of the weights and of the normalization's statistics."""
    ours = list(state.average.state_dict().values())
    theirs = list(state.model.state_dict().values())
    floats = [i for i, tensor in enumerate(ours) if tensor.is_floating_point()]
    torch._foreach_lerp_([ours[i] for i in floats], [theirs[i] for i in floats], 1.0 - decay)


def fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, so that autocast pays."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and bool(torch.cpu._is_avx512_bf16_supported())
