"""Whole networks in the kernels' benchmark, and their baseline: inference as one would write it in PyTorch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from benchmark_case import BATCHES, DEVICE, MULTIPROCESSORS, PRESETS, SCALE, Case, Run, max_error, poison
from synthetic_models import blotches, quantized, untrained
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval
from vae_edge_kernels import network as network_kernel

from vae_edge.model import AngleVAE
from vae_edge.ops.network import forward_layerwise
from vae_edge.ops.packing import pack

CTAS_PER_IMAGE = (4, 8, 16)


def network_cases() -> Iterator[Case]:
    """Each preset in one launch, and one image on several CTAs."""
    for name in PRESETS:
        for int8 in (False, True):
            kernel = f"network_{'int8' if int8 else 'fp16'}"
            for batch in BATCHES:
                yield Case(kernel, name, batch, lambda p=name, n=batch, q=int8: whole(p, n, q, 1))
            for ctas in CTAS_PER_IMAGE if DEVICE == "cuda" else ():  # the interpreter runs one program after the other
                if ctas > MULTIPROCESSORS:
                    continue
                yield Case(f"{kernel}_ctas_{ctas}", name, 1, lambda p=name, k=ctas, q=int8: whole(p, 1, q, k))


def whole(name: str, batch: int, int8: bool, ctas_per_image: int) -> Run:
    """A whole network in one launch; the baselines are the exported graph in float16, and our operators one by one."""
    model = untrained(name)
    packed = pack(model, quantized(model) if int8 else None)
    net = packed.layout
    images = blotches(batch, net.height, net.channels)
    there = [tensor.to(DEVICE) for tensor in (images, packed.weights, packed.params, packed.whitening)]
    slots = 1 if ctas_per_image > 1 else min(batch, 2 * MULTIPROCESSORS)
    activations = torch.zeros((slots, net.activation_size), dtype=packed.weights.dtype, device=DEVICE)
    workspace = torch.zeros((slots, net.workspace_size), device=DEVICE)
    barrier = torch.zeros(slots, dtype=torch.int32, device=DEVICE)
    shapes = ((batch, net.classes), (batch,), (batch,), (batch, 3))
    made = [torch.full(shape, float("nan"), device=DEVICE) for shape in shapes]

    def ours() -> Tensor:
        network_kernel.forward(net, *there, activations, workspace, barrier, *made, ctas_per_image=ctas_per_image)
        return made[0]

    def check() -> float:
        some = torch.tensor(sorted({*range(min(batch, 8)), *range(max(0, batch - 8), batch)}))
        expected = forward_layerwise(net, images[some], packed.weights, packed.params, packed.whitening)
        poison(*made, activations, workspace)
        ours()
        got = [tensor.cpu()[some] for tensor in made]
        angle_error = torch.remainder(got[1] - expected[1] + math.pi, 2 * math.pi) - math.pi
        score = (got[2] - expected[2]) / (1.0 + expected[2].abs())
        errors = ((got[0] - expected[0]).abs().amax(1), angle_error.abs(), score.abs())
        # where two classes or angles are as good as each other roundings decide: one image of the sixteen may be such
        return max_error(*(float(error.sort().values[: max(1, len(some) - 1)].max()) for error in errors))

    params_on_cpu, image, inference = packed.params, there[0], as_inference(model)
    baselines: dict[str, Callable[[], Any]] = {
        "layer by layer": lambda: forward_layerwise(net, *there, params_on_cpu),
        "eager": lambda: inference(image),
    }
    bytes_moved = image.nbytes + there[1].nbytes
    return Run(ours, check, 5e-3, baselines, bytes_moved, 0, baselines["eager"])


def as_inference(model: AngleVAE, device: str = DEVICE) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A model's inference as one would write it in PyTorch: layers in float16 and channels-last, normalization folded,
    the decoded angle and the score in float32, rotation by grid_sample. Made of a copy."""
    model = fuse_conv_bn(copy.deepcopy(model)).half().to(device, memory_format=torch.channels_last)
    orientation_encoder = model.orientation
    assert orientation_encoder is not None
    for module in (orientation_encoder, model.score):
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point() and name != "cluster_whitening":
                setattr(module, name, buffer.float())

    given = model.score.coefficients()  # else copied from the host at each call, which no CUDA graph takes
    model.score.coefficients = lambda: given  # type: ignore[method-assign]

    @torch.no_grad()
    def infer(image: Tensor) -> tuple[Tensor, ...]:
        seen = (image.permute(0, 3, 1, 2).float() * SCALE).half()
        logits, bins, orientation_maps = orientation_encoder(seen)
        cos, sin, uncertainty = orientation_encoder.decode_angle(bins.float())
        zero = torch.zeros_like(cos)
        matrix = torch.stack([cos, sin, zero, -sin, cos, zero], 1).view(-1, 2, 3)
        grid = F.affine_grid(matrix, list(seen.shape), align_corners=False).half()
        upright = F.grid_sample(seen, grid, align_corners=False)
        encoded, maps = model.encoder(upright)
        mu = model.mu(encoded)
        logits = model.class_logits(encoded, maps.mean((2, 3)), mu, logits)[0].float()
        weights = logits.softmax(1)
        decoded = model.decoder(mu, weights.half()).float().sigmoid()
        unsure = (1.001 - uncertainty.confidence).log()[:, None]
        features = torch.cat(
            [orientation_maps.float().mean((2, 3)), maps.float().mean((2, 3)), mu.float(), weights, unsure], 1
        )
        score = model.score(upright.float(), decoded, features, logits)
        return (logits / model.temperature.float()).softmax(1), torch.atan2(sin, cos), score

    return infer


def fuse_conv_bn(model: AngleVAE) -> AngleVAE:
    """Each batch normalization folded into the convolution before it."""
    for module in model.modules():
        if isinstance(module, torch.nn.Sequential):
            for number in range(len(module) - 1):
                first, second = module[number], module[number + 1]
                if isinstance(first, torch.nn.Conv2d) and isinstance(second, torch.nn.BatchNorm2d):
                    module[number] = fuse_conv_bn_eval(first, second)
                    module[number + 1] = torch.nn.Identity()
    return model
