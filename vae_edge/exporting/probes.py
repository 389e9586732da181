"""A bundle's probe images: which are chosen, and what exactly each model file says of them.

A runtime adds thousands of float32 products in an order of its own, and a value near a tie is then quantized the other
way. Expected answers must hold nothing of a runtime. So the file is evaluated node by node: convolutions, matrix
products and resampling are summed in float64 and rounded once (GridSample by PyTorch); all other nodes by ONNX's
reference evaluator, in the types of the file.

How far a correct runtime may depart from that is measured: the file is evaluated again with noise of the size that
other orders of summation and other roundings of ties bring.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_average_pool import AveragePool_19

from vae_edge.errors import ExportError
from vae_edge.exporting.onnx_file import run_inner
from vae_edge.files import sha256
from vae_edge.probes import Expected, Probes, Tolerance, difference, fingerprint, save
from vae_edge.spec import output_name

log = logging.getLogger(__name__)

BATCH = 32

# Choosing the images

PROBES = 64
MAX_IMAGES = 1024  # that are looked at
TOP_PER_LAYER = 4  # images with the largest values of each layer, and
MAX_CANDIDATES = 96  # others, from which probes are chosen
SYNTHETIC_PER_KIND = 12
PROBES_PER_LAYER = 2
MIN_STABLE = 16  # images that are no close calls; where there are fewer, those with the widest margins are taken
MIN_MARGIN = 0.1  # between the two most probable classes
DECISIVE_OUTPUTS = ("probabilities", "score")

# What is expected of a runtime

INNER_PROBES = 8  # images whose inner tensors are kept
MIN_COMPARED = 8  # images that are compared for each output, even if noise moves them far
NOISY_RUNS = 2
NOISY_RUNS_INT8 = 6  # an argmax that ties by one step of one activation flips in about one run of three
SAFETY = 3.0  # times the departure that noise brings is allowed
CLOSE_CALL_FACTOR = 8.0  # times the median: an image that noise moves further is a close call
MIN_TOLERANCE = {
    "probabilities": (2e-4, 2e-3),
    "angle": (5e-4, 5e-3),
    "score": (1e-3, 1e-2),
    "angle_confidence": (2e-4, 2e-3),
    "second_angle": (5e-4, 5e-3),
    "second_angle_probability": (2e-4, 2e-3),
    "reconstruction": (0.5, 1.5),
}
"""Allowed whatever the noise brings: in the mean, and for one image."""

Array = NDArray[Any]
Reduce = Callable[[Array], Array]


@dataclass(frozen=True)
class Noise:
    """What is added while evaluating.

    Attributes:
        sums: standard deviation of the error of a float32 sum of products, relative to the root mean square of its
            tensor.
        fp16_sums: the same of a float16 sum.
        rounding: largest error of a value before it is rounded to an integer, in quantization steps.
    """

    seed: int
    sums: float = 1e-5
    fp16_sums: float = 1e-3
    rounding: float = 0.0


SELECTION_NOISE = Noise(0, sums=1e-4)


def _noise(precision: str, run: int) -> Noise:
    """int8: a runtime may round biases to multiples of the product of two scales, which moves values near a tie."""
    return Noise(1 + run, rounding=0.02 if precision == "int8" else 0.0)


def choose_probes(model: onnx.ModelProto, images: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """Up to 64 probe images: for each layer the two that give it the largest values, then others.

    The candidates are held-out images and synthetic ones unlike them, so that every layer is driven to its full range.
    Close calls are left out: images whose answers depend on how a correct runtime rounds.

    Args:
        model: the fp32 classifier.
        images: held-out images uint8 [N, S, S, C], as the device will see them.
    """
    all_images = np.concatenate([images[:MAX_IMAGES], _synthetic_images(images, seed)])
    peaks = _peak_activations(model, all_images)
    top = np.argsort(-peaks, axis=1, kind="stable")[:, :TOP_PER_LAYER].ravel()
    candidates = np.unique(np.concatenate([top, np.arange(min(MAX_CANDIDATES, len(all_images)))]))
    pool, peaks = all_images[candidates], peaks[:, candidates]

    exact = evaluate(model, pool)
    noisy = evaluate(model, pool, SELECTION_NOISE)
    stable = np.ones(len(pool), bool)
    for name in DECISIVE_OUTPUTS:
        stable &= ~_close_calls(difference(name, noisy[name], exact[name]), MIN_TOLERANCE[name][1])
    best = np.partition(exact["probabilities"], -2, axis=1)
    margin = best[:, -1] - best[:, -2]
    kept = np.flatnonzero(stable & (margin >= MIN_MARGIN))
    if len(kept) < MIN_STABLE:  # a model that is sure of nothing
        kept = np.argsort(-margin, kind="stable")[:PROBES]

    first = np.argsort(-peaks[:, kept], axis=1, kind="stable")[:, :PROBES_PER_LAYER].T.ravel()
    order = dict.fromkeys([*first.tolist(), *range(len(kept))])
    return pool[kept[list(order)[:PROBES]]]


def _synthetic_images(images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Images beyond what is seen in use: inverted, grey noise, black and white noise, and uniform ones."""
    rng = np.random.default_rng(seed)
    shape = (SYNTHETIC_PER_KIND, *images.shape[1:])
    uniform = np.linspace(0, 255, SYNTHETIC_PER_KIND).round().astype(np.uint8).reshape(-1, 1, 1, 1)
    return np.concatenate(
        [
            255 - images[:SYNTHETIC_PER_KIND],
            rng.integers(0, 256, shape, dtype=np.uint8),
            rng.integers(0, 2, shape, dtype=np.uint8) * np.uint8(255),
            np.broadcast_to(uniform, shape),
        ]
    )


def _peak_activations(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The largest magnitude in each inner tensor of each image, [tensors, N], by ONNX Runtime: it need not be exact."""
    parts = [
        np.stack([np.abs(value.reshape(len(value), -1)).max(1) for value in values])
        for values in run_inner(model, inner_tensor_names(model), images, BATCH)
    ]
    return np.concatenate(parts, axis=1).astype(np.float64)


def _close_calls(distance: NDArray[np.float64], floor: float) -> NDArray[np.bool_]:
    """Images that noise moves far more than most, or whose answers are not finite."""
    finite = np.isfinite(distance)
    return ~finite | (distance > floor + CLOSE_CALL_FACTOR * (np.median(distance[finite]) if finite.any() else 0.0))


def write_probes(
    path: str | os.PathLike[str],
    images: NDArray[np.uint8],
    models: Iterable[tuple[Path, str]],
    known: Mapping[str, Expected] | None = None,
) -> None:
    """Write a file of probe images with the exact answers of model files.

    A file that cannot be evaluated, since others made it, gets no answers.

    Args:
        images: the probe images.
        models: each file with its precision.
        known: answers that were computed before, by the file's SHA-256; they are not computed again.
    """
    answers: dict[str, Expected] = {}
    for file, precision in models:
        digest = sha256(file)
        before = None if known is None else known.get(digest)
        try:
            answers[digest] = before if before is not None else expect(onnx.load(file), precision, images)
        except ExportError as error:
            log.warning("%s gets no expected answers and will not be verified: %s", file.name, error)
    save(path, Probes(images, answers))


def expect(model: onnx.ModelProto, precision: str, images: NDArray[np.uint8]) -> Expected:
    """The exact answers of a model file to the probe images, and how far a correct runtime may depart from them.

    Close calls, and images whose answers are not finite, are not compared.

    Raises:
        ExportError: no image has finite answers, or the graph has an operator that is not evaluated exactly.
    """
    exact = evaluate(model, images)
    runs = NOISY_RUNS_INT8 if precision == "int8" else NOISY_RUNS
    noisy = [evaluate(model, images, _noise(precision, k)) for k in range(runs)]
    outputs: dict[str, Array] = {}
    tolerance: dict[str, Tolerance] = {}
    for name, want in exact.items():
        finite = np.isfinite(want.astype(np.float64)).reshape(len(want), -1).all(1)
        if not finite.any():
            raise ExportError(f"the {precision} model gives {name} that are not finite for every probe image")
        distance = np.stack([difference(name, run[name], want) for run in noisy])
        distance = np.where(finite & np.isfinite(distance), distance, np.inf)

        close = np.any([_close_calls(each, MIN_TOLERANCE[name][1]) for each in distance], axis=0)
        least_moved = np.argsort(distance.max(0), kind="stable")[:MIN_COMPARED]
        close[least_moved[np.isfinite(distance.max(0)[least_moved])]] = False
        dtype = np.float16 if want.dtype == np.uint8 else np.float32  # float16 holds whole numbers up to 2048
        outputs[name] = np.where(_expand(close, want.ndim), np.nan, want).astype(dtype)
        tolerance[name] = _tolerance(name, distance[:, ~close])

    inner, inner_tolerance = _inner_fingerprints(model, precision, images[:INNER_PROBES])
    return Expected(outputs, tolerance, inner, inner_tolerance)


def _expand(mask: NDArray[np.bool_], ndim: int) -> NDArray[np.bool_]:
    """A mask [N] with further axes, so that it broadcasts to values [N, ...] of `ndim` axes."""
    return mask.reshape(-1, *[1] * (ndim - 1))


def _tolerance(name: str, distance: NDArray[np.float64]) -> Tolerance:
    """Tolerance of an output from the distances [runs, N] by which noise moved it."""
    mean, largest = (float(distance.mean(1).max()), float(distance.max())) if distance.size else (0.0, 0.0)
    mean_floor, largest_floor = MIN_TOLERANCE[name]
    return Tolerance(SAFETY * mean + mean_floor, SAFETY * largest + largest_floor)


def _inner_fingerprints(
    model: onnx.ModelProto, precision: str, images: NDArray[np.uint8]
) -> tuple[dict[str, Array], dict[str, float]]:
    """Fingerprints of the inner tensors, by name, and how far a correct runtime's may lie from them."""
    names = inner_tensor_names(model)
    reduce = dict.fromkeys(names, fingerprint)
    exact = evaluate(model, images, inner=reduce)
    noisy = [evaluate(model, images, _noise(precision, k), reduce) for k in range(NOISY_RUNS)]
    tolerance = {}
    for name in names:
        moved = max(float(np.nanmax(np.abs(run[name] - exact[name]), initial=0.0)) for run in noisy)
        tolerance[name] = SAFETY * moved + 1e-3 * float(np.abs(exact[name]).max())
    return {name: exact[name] for name in names}, tolerance


# Exact evaluation


def evaluate(
    model: onnx.ModelProto,
    images: NDArray[np.uint8],
    noise: Noise | None = None,
    inner: Mapping[str, Reduce] | None = None,
) -> dict[str, Array]:
    """Outputs for images uint8 [N, H, W, C], by today's name.

    Args:
        noise: what is added while evaluating; None for the exact answers.
        inner: names of tensors inside the graph, each [N, ...], and what is kept of them; they are returned as well.
    """
    evaluator = ReferenceEvaluator(model, new_ops=_operators(noise))
    outputs = [output.name for output in model.graph.output]
    parts: list[dict[str, Any]] = []
    for start in range(0, len(images), BATCH):
        feeds = {model.graph.input[0].name: images[start : start + BATCH]}
        if inner is None:
            values = dict(zip(outputs, evaluator.run(None, feeds), strict=True))
        else:
            values = evaluator.run(None, feeds, intermediate=True)
        part = {output_name(name): values[name] for name in outputs}
        part.update({name: reduce(values[name]) for name, reduce in (inner or {}).items()})
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def inner_tensor_names(model: onnx.ModelProto) -> list[str]:
    """Tensors inside a graph, in its order, that show where an engine goes wrong.

    Those that every engine keeps: the dequantized activations of a quantized graph, or else the outputs of ReLUs and
    Clips;
    resampled images; and the outputs of linear layers.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    outputs = {output.name for output in model.graph.output}

    def is_kept(node: onnx.NodeProto) -> bool:
        if node.op_type == "DequantizeLinear":
            return node.input[0] in producers and producers[node.input[0]].op_type == "QuantizeLinear"
        return node.op_type in ("GridSample", "Gemm") or (node.op_type in ("Relu", "Clip") and not quantized)

    return [node.output[0] for node in model.graph.node if is_kept(node) and node.output[0] not in outputs]


def _operators(noise: Noise | None) -> list[type[OpRun]]:
    """Exact implementations of the operators that sum, and of QuantizeLinear if rounding gets noise."""
    rng = np.random.default_rng(0 if noise is None else noise.seed)

    def finish(sums: NDArray[np.float64], dtype: np.dtype[Any]) -> Array:
        """Round exact sums to the graph's type, after adding noise."""
        if noise is not None and sums.size:
            rms = float(np.sqrt(np.mean(np.square(sums))))
            relative = noise.fp16_sums if dtype == np.float16 else noise.sums
            sums = sums + rng.normal(0.0, relative * rms, sums.shape)
        return sums.astype(dtype)

    class Conv(OpRun):
        op_domain = ""

        def _run(
            self, x: Array, weight: Array, bias: Array | None = None, auto_pad: str = "NOTSET", dilations: Any = None,
            group: int = 1, kernel_shape: Any = None, pads: Any = None, strides: Any = None,
        ) -> tuple[Array]:  # fmt: skip
            if auto_pad not in ("NOTSET", None):
                raise ExportError(f"a Conv with auto_pad {auto_pad} is not evaluated exactly")
            top, left, bottom, right = pads or (0, 0, 0, 0)
            padded = F.pad(_float64(x), (left, right, top, bottom))
            step, spread = list(strides or (1, 1)), list(dilations or (1, 1))
            if group == x.shape[1] == weight.shape[0] > 1:
                sums = _depthwise(padded, _float64(weight), step, spread).numpy()
            else:
                sums = F.conv2d(padded, _float64(weight), None, step, 0, spread, group or 1).numpy()
            return (finish(sums if bias is None else sums + bias.astype(np.float64)[None, :, None, None], x.dtype),)

    class Gemm(OpRun):
        op_domain = ""

        def _run(
            self, a: Array, b: Array, c: Array | None = None, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
            transB: int = 0,
        ) -> tuple[Array]:  # fmt: skip
            left, right = a.astype(np.float64), b.astype(np.float64)
            sums = (1.0 if alpha is None else alpha) * ((left.T if transA else left) @ (right.T if transB else right))
            return (finish(sums if c is None else sums + (1.0 if beta is None else beta) * c, a.dtype),)

    class MatMul(OpRun):
        op_domain = ""

        def _run(self, a: Array, b: Array) -> tuple[Array]:
            return (finish(a.astype(np.float64) @ b.astype(np.float64), a.dtype),)

    class GridSample(OpRun):
        op_domain = ""

        def _run(
            self, x: Array, grid: Array, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
        ) -> tuple[Array]:
            if mode not in ("linear", "bilinear"):
                raise ExportError(f"a GridSample in mode {mode} is not evaluated exactly")
            sampled = F.grid_sample(
                _float64(x), _float64(grid), padding_mode=padding_mode, align_corners=bool(align_corners)
            )
            return (finish(sampled.numpy(), x.dtype),)

    class AveragePool(AveragePool_19):
        """Without padding by PyTorch: `onnx` goes pixel by pixel in Python."""

        op_domain = ""

        def _run(self, x: Array, **given: Any) -> tuple[Array]:
            kernel, padded = list(given.get("kernel_shape") or ()), any(given.get("pads") or ())
            if padded or given.get("ceil_mode") or not set(given.get("dilations") or ()) <= {1} or len(kernel) != 2:
                return super()._run(x, **given)
            pooled = F.avg_pool2d(_float64(x), kernel, list(given.get("strides") or (1, 1)))
            return (finish(pooled.numpy(), x.dtype),)

    class QuantizeLinear(OpRun):
        """To int8 or uint8 with one scale, rounding after noise."""

        op_domain = ""

        def _run(self, x: Array, scale: Array, zero: Array | None = None, axis: int = 1, **others: Any) -> tuple[Array]:
            assert noise is not None and zero is not None
            limits = np.iinfo(zero.dtype)
            steps = x / scale + rng.uniform(-noise.rounding, noise.rounding, x.shape)
            return (np.clip(np.rint(steps) + zero.astype(np.float64), limits.min, limits.max).astype(zero.dtype),)

    operators: list[type[OpRun]] = [Conv, Gemm, MatMul, GridSample, AveragePool]
    return [*operators, QuantizeLinear] if noise is not None and noise.rounding else operators


def _depthwise(x: torch.Tensor, weight: torch.Tensor, strides: list[int], dilations: list[int]) -> torch.Tensor:
    """A depthwise convolution of x [N, C, H, W], already padded, with weight [C, 1, R, S], tap by tap.

    PyTorch's own in float64 goes channel by channel, which takes many times as long.
    """
    rows, columns = weight.shape[2:]
    height = (x.shape[2] - dilations[0] * (rows - 1) - 1) // strides[0] + 1
    width = (x.shape[3] - dilations[1] * (columns - 1) - 1) // strides[1] + 1
    sums = x.new_zeros(x.shape[0], x.shape[1], height, width)
    for r in range(rows):
        for s in range(columns):
            top, left = r * dilations[0], s * dilations[1]
            seen = x[:, :, top :: strides[0], left :: strides[1]][:, :, :height, :width]
            sums.addcmul_(seen, weight[:, 0, r, s][:, None, None])
    return sums


def _float64(values: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float64))
