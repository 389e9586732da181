"""How long a comparison will take, from a few steps of each network and small fits of the others on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from vae_edge.data import LabelledImages
from vae_edge.model import AngleVAE
from vae_edge.training import baselines
from vae_edge.training.compare_ground import Ground
from vae_edge.training.compare_settings import ESTIMATORS, INNER, POSE, Cell
from vae_edge.training.effort import our_loss
from vae_edge.training.steps import fast_bf16

TRIED_IMAGES = 1000  # for the fits whose time is then scaled: by the square of the number for a kernel machine
TRIED_STEPS = 3
AROUND_A_STEP = 1.3  # augmentation, optimizer and average, as a part of forward and backward
AROUND_A_CELL = 6.0  # seconds: tracing, ONNX, judging


def estimate(ground: Ground, cells: Sequence[Cell]) -> dict[str, float]:
    """Seconds that these cells will take, by model: rough, for a person to decide whether to wait."""
    seconds: dict[str, float] = {}
    known: dict[str, Callable[[int, int], float]] = {}
    for cell in cells:
        if cell.model not in known:
            known[cell.model] = _by_fit(ground, cell) if cell.model in ESTIMATORS else _by_steps(ground, cell)
        pool, held = ground.parts(cells[0].seed)
        images = round((1 - INNER) * len(pool) / (1 - (ground.settings.generated if cell.generated else 0.0)))
        first = Cell(cell.model, cell.images, cell.generated, cells[0].seed)
        steps = ground.steps(first, images)
        seconds[cell.model] = seconds.get(cell.model, 0.0) + known[cell.model](
            images if cell.model in ESTIMATORS else steps, len(held)
        )
    return seconds


def _by_steps(ground: Ground, cell: Cell) -> Callable[[int, int], float]:
    """Seconds of a number of steps of the angle VAE's, from a few timed ones of this network."""
    config = ground.config(pose=POSE.get(cell.model, True))
    network = AngleVAE(config) if cell.model in POSE else ground.network(cell.model, 0)
    loss = our_loss if cell.model in POSE else baselines.cross_entropy_of_anything
    settings = ground.training_config(cell, round((1 - INNER) * len(ground.parts(cell.seed)[0])))
    device = baselines.training_device()
    pixels = torch.zeros(settings.batch or 1, config.channels, config.size, config.size, device=device)
    bf16 = settings.bf16 if settings.bf16 is not None else fast_bf16(device)
    longer = ground.angle_vae_macs / ground.training_macs(network) if cell.model == "cnn-equal" else 1.0
    network.to(device).train()
    times = []
    for _ in range(TRIED_STEPS):
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value = loss(network, pixels)
        value.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return lambda steps, held: AROUND_A_CELL + AROUND_A_STEP * min(times) * steps * longer


def _by_fit(ground: Ground, cell: Cell) -> Callable[[int, int], float]:
    """Seconds for a number of training images and of judged ones, from a fit on at most a thousand."""
    pool, held = ground.parts(cell.seed)
    baselines.import_estimators()
    tried, judged = _spread(pool, TRIED_IMAGES), _spread(held, TRIED_IMAGES // 2)
    began = time.perf_counter()
    estimator = ESTIMATORS[cell.model](tried)
    fitted = time.perf_counter()
    estimator.predict(baselines.flat(judged.images))
    fit_s, judge_s = fitted - began, time.perf_counter() - fitted
    power = 2 if cell.model == "svm" else 1

    def scaled(images: int, held_images: int) -> float:
        more = images / len(tried)
        return fit_s * more**power + judge_s * held_images / len(judged) * more ** (power - 1)

    return scaled


def _spread(data: LabelledImages, count: int) -> LabelledImages:
    """At most so many images, from all over."""
    return data.take(torch.linspace(0, len(data) - 1, min(count, len(data))).long().unique().numpy())
