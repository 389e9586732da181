"""An ONNX file evaluated node by node: convolutions, matrix products and resampling are exact sums, rounded once.

A runtime adds thousands of float32 products in an order of its own, and a value near a tie is then quantized the other
way. Here products are summed in float64, so that nothing of a runtime is left in the answer. GridSample is PyTorch's;
the other nodes are those of ONNX's own reference evaluator, in the types of the file.

`Noise` stands for what a correct runtime may do otherwise: it says how far right answers lie apart.

Chooses a bundle's probe images, and computes what each of its model files says of them.

The images are held-out ones and variants unlike them (inverted, noise, even pages), so that every layer is driven to
its full range. Close calls are left out: images whose answers depend on how a correct runtime rounds.

How far a correct runtime may depart is measured for each model file: it is evaluated again with noise of the size that
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

from vae_edge.errors import ExportError
from vae_edge.export.onnx_file import open_session
from vae_edge.files import sha256
from vae_edge.probes import Expected, Probes, Tolerance, difference, fingerprint, save
from vae_edge.spec import output_name

BATCH = 32
Reduce = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True)
class Noise:
    """What is added while evaluating.

    Attributes:
        seed: of the noise.
        sums: standard deviation of an error of each float32 sum of products, as a share of the root mean square of its
            tensor.
        half_sums: the same where the sum is float16.
        rounding: largest error of a value before it is rounded to an integer, in quantization steps.
    """

    seed: int
    sums: float = 1e-5
    half_sums: float = 1e-3
    rounding: float = 0.0


def evaluate(
    model: onnx.ModelProto,
    images: NDArray[np.uint8],
    noise: Noise | None = None,
    inner: Mapping[str, Reduce] | None = None,
) -> dict[str, NDArray[Any]]:
    """Outputs, by their name of today, for images uint8 [N, H, W, C].

    Args:
        noise: what is added while evaluating; None for the exact answers.
        inner: for names of tensors inside the graph, each [N, ...], what is kept of them; they are returned as well.
    """
    evaluator = ReferenceEvaluator(model, new_ops=_operators(noise))
    outputs = [output_name(output.name) for output in model.graph.output]
    parts: list[dict[str, Any]] = []
    for start in range(0, len(images), BATCH):
        feeds = {model.graph.input[0].name: images[start : start + BATCH]}
        if inner is None:
            parts.append(dict(zip(outputs, evaluator.run(None, feeds), strict=True)))
        else:
            values = evaluator.run(None, feeds, intermediate=True)
            kept = {name: reduce(values[name]) for name, reduce in inner.items()}
            parts.append({**{output_name(output.name): values[output.name] for output in model.graph.output}, **kept})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def inner_names(model: onnx.ModelProto) -> list[str]:
    """Tensors inside a graph that show where it goes wrong, in the graph's order.

    Those that every engine keeps: the dequantized activations of a quantized graph, or else what comes out of ReLUs;
    resampled images; and what comes out of linear layers.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    outputs = {output.name for output in model.graph.output}

    def shows(node: onnx.NodeProto) -> bool:
        if node.op_type == "DequantizeLinear":
            return node.input[0] in made_by and made_by[node.input[0]].op_type == "QuantizeLinear"
        return node.op_type in ("GridSample", "Gemm") or (node.op_type == "Relu" and not quantized)

    return [node.output[0] for node in model.graph.node if shows(node) and node.output[0] not in outputs]


def _operators(noise: Noise | None) -> list[type[OpRun]]:
    rng = np.random.default_rng(0 if noise is None else noise.seed)

    def finish(sums: NDArray[np.float64], like: np.dtype[Any]) -> NDArray[Any]:
        """Round exact sums to the graph's type, after noise where it is wanted."""
        if noise is not None and sums.size:
            size = float(np.sqrt(np.mean(np.square(sums))))
            share = noise.half_sums if like == np.float16 else noise.sums
            sums = sums + rng.normal(0.0, share * size, sums.shape)
        return sums.astype(like)

    class Conv(OpRun):
        op_domain = ""

        def _run(
            self, x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None = None, auto_pad: str = "NOTSET",
            dilations: Any = None, group: int = 1, kernel_shape: Any = None, pads: Any = None, strides: Any = None,
        ) -> tuple[NDArray[Any]]:  # fmt: skip
            if auto_pad not in ("NOTSET", None):
                raise ExportError(f"a Conv with auto_pad {auto_pad} is not evaluated exactly")
            top, left, bottom, right = pads or (0, 0, 0, 0)
            padded = F.pad(_doubles(x), (left, right, top, bottom))
            sums = F.conv2d(
                padded, _doubles(weight), None, list(strides or (1, 1)), 0, list(dilations or (1, 1)), group or 1
            ).numpy()
            return (finish(sums if bias is None else sums + bias.astype(np.float64)[None, :, None, None], x.dtype),)

    class Gemm(OpRun):
        op_domain = ""

        def _run(
            self, a: NDArray[Any], b: NDArray[Any], c: NDArray[Any] | None = None, alpha: float = 1.0,
            beta: float = 1.0, transA: int = 0, transB: int = 0,
        ) -> tuple[NDArray[Any]]:  # fmt: skip
            left, right = a.astype(np.float64), b.astype(np.float64)
            sums = (1.0 if alpha is None else alpha) * ((left.T if transA else left) @ (right.T if transB else right))
            return (finish(sums if c is None else sums + (1.0 if beta is None else beta) * c, a.dtype),)

    class MatMul(OpRun):
        op_domain = ""

        def _run(self, a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any]]:
            return (finish(a.astype(np.float64) @ b.astype(np.float64), a.dtype),)

    class GridSample(OpRun):
        op_domain = ""

        def _run(
            self, x: NDArray[Any], grid: NDArray[Any], mode: str = "linear", padding_mode: str = "zeros",
            align_corners: int = 0,
        ) -> tuple[NDArray[Any]]:  # fmt: skip
            if mode not in ("linear", "bilinear"):
                raise ExportError(f"a GridSample in mode {mode} is not evaluated exactly")
            sampled = F.grid_sample(
                _doubles(x), _doubles(grid), padding_mode=padding_mode, align_corners=bool(align_corners)
            )
            return (finish(sampled.numpy(), x.dtype),)

    class QuantizeLinear(OpRun):
        """Of a tensor to int8 or uint8 with one scale, rounding after noise."""

        op_domain = ""

        def _run(
            self, x: NDArray[Any], scale: NDArray[Any], zero: NDArray[Any] | None = None, axis: int = 1, **others: Any
        ) -> tuple[NDArray[Any]]:
            assert noise is not None and zero is not None
            limits = np.iinfo(zero.dtype)
            steps = x / scale + rng.uniform(-noise.rounding, noise.rounding, x.shape)
            return (np.clip(np.rint(steps) + zero.astype(np.float64), limits.min, limits.max).astype(zero.dtype),)

    operators: list[type[OpRun]] = [Conv, Gemm, MatMul, GridSample]
    return [*operators, QuantizeLinear] if noise is not None and noise.rounding else operators


def _doubles(values: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float64))


log = logging.getLogger(__name__)

PROBES = 64
MOST_IMAGES = 1024  # that are looked at
FURTHEST = 4  # images of each layer that drive it furthest, and
CANDIDATES = 96  # others, that probes are chosen from
MADE = 12  # of each kind of made images
INNER_PROBES = 8  # images whose inner tensors are kept
LEAST_CLEAR = 16  # images that are no close calls; where there are fewer, those with the widest margins are taken
LEAST_COMPARED = 8  # images that are compared for each output, even if noise moves them far
RUNS = 2  # evaluations with noise
SAFETY = 3.0  # times the departure that noise brings is allowed
CLOSE = 8.0  # an image that noise moves by so many times the median is a close call
LEAST_MARGIN = 0.1  # between the two most probable classes
CHOOSING = Noise(0, sums=1e-4)
FLOOR = {
    "probabilities": (2e-4, 2e-3),
    "angle": (5e-4, 5e-3),
    "score": (1e-3, 1e-2),
    "angle_confidence": (2e-4, 2e-3),
    "second_angle": (5e-4, 5e-3),
    "second_angle_probability": (2e-4, 2e-3),
    "reconstruction": (0.5, 1.5),
}
"""Allowed whatever the noise brings: in the mean, and for one image."""
DECIDING = ("probabilities", "score")


def _noise(precision: str, run: int) -> Noise:
    """int8: a runtime may round biases to whole products of two scales, which moves values towards a tie or from it."""
    return Noise(1 + run, rounding=0.02 if precision == "int8" else 0.0)


def choose_probes(model: onnx.ModelProto, images: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """Up to 64 images of the fp32 model's candidates: for each layer the two that drive it furthest, then others.

    Args:
        model: the fp32 classifier.
        images: held-out images uint8 [N, S, S, C], as the device will see them.

    """
    everything = np.concatenate([images[:MOST_IMAGES], _made(images, seed)])
    reach = _reach(model, everything)
    furthest = np.argsort(-reach, axis=1, kind="stable")[:, :FURTHEST].ravel()
    chosen = np.unique(np.concatenate([furthest, np.arange(min(CANDIDATES, len(everything)))]))
    pool, reach = everything[chosen], reach[:, chosen]
    exact = evaluate(model, pool)
    best = np.partition(exact["probabilities"], -2, axis=1)
    margin = best[:, -1] - best[:, -2]
    noisy = evaluate(model, pool, CHOOSING)
    stable = np.ones(len(pool), bool)
    for name in DECIDING:
        stable &= ~_close_calls(difference(name, noisy[name], exact[name]), FLOOR[name][1])
    kept = np.flatnonzero(stable & (margin >= LEAST_MARGIN))
    if len(kept) < LEAST_CLEAR:  # a model that is sure of nothing
        kept = np.argsort(-margin, kind="stable")[:PROBES]
    first = np.argsort(-reach[:, kept], axis=1, kind="stable")[:, :2].T.ravel()
    order = dict.fromkeys([*first.tolist(), *range(len(kept))])
    return pool[kept[list(order)[:PROBES]]]


def write_probes(
    path: str | os.PathLike[str],
    images: NDArray[np.uint8],
    models: Iterable[tuple[Path, str]],
    known: Mapping[str, Expected] | None = None,
) -> None:
    """Write a file of probe images with the exact answers of model files.

    A file of a bundle that cannot be evaluated, since others made it, is left without answers.

    Args:
        images: the probe images.
        models: each file with its precision.
        known: answers that were computed before, by the SHA-256 of the file; they are not computed again.
    """
    found: dict[str, Expected] = {}
    for file, precision in models:
        digest = sha256(file)
        before = None if known is None else known.get(digest)
        try:
            found[digest] = before if before is not None else expect(onnx.load(file), precision, images)
        except ExportError as error:
            log.warning("%s gets no expected answers and will not be verified: %s", file.name, error)
    save(path, Probes(images, found))


def expect(model: onnx.ModelProto, precision: str, images: NDArray[np.uint8]) -> Expected:
    """The exact answers of a model file to the probe images, and how far a correct runtime may depart from them.

    Images whose answers are not finite, and close calls, are not compared.

    Raises:
        ExportError: if no image has finite answers, or the graph has an operator that is not evaluated exactly.
    """
    names = inner_names(model)
    exact = evaluate(model, images)
    runs = [evaluate(model, images, _noise(precision, k)) for k in range(RUNS)]
    outputs: dict[str, NDArray[Any]] = {}
    tolerance: dict[str, Tolerance] = {}
    for output in model.graph.output:
        name = output_name(output.name)
        want = exact[name]
        finite = np.isfinite(want.astype(np.float64)).reshape(len(want), -1).all(1)
        if not finite.any():
            raise ExportError(f"the {precision} model gives {name} that are not finite for every probe image")
        apart = np.stack([difference(name, run[name], want) for run in runs])
        apart = np.where(finite & np.isfinite(apart), apart, np.inf)
        floor = FLOOR[name]
        close = np.any([_close_calls(each, floor[1]) for each in apart], axis=0)
        least_moved = np.argsort(apart.max(0), kind="stable")[:LEAST_COMPARED]
        close[least_moved[np.isfinite(apart.max(0)[least_moved])]] = False
        kind = np.float16 if want.dtype == np.uint8 else np.float32  # float16 holds whole numbers up to 2048
        outputs[name] = np.where(_like(close, want), np.nan, want).astype(kind)
        left = apart[:, ~close]
        most = (float(left.mean(1).max()), float(left.max())) if left.size else (0.0, 0.0)
        tolerance[name] = Tolerance(*(SAFETY * seen + least for seen, least in zip(most, floor, strict=True)))
    some = images[:INNER_PROBES]
    prints = dict.fromkeys(names, fingerprint)
    inner = evaluate(model, some, inner=prints)
    moved = [evaluate(model, some, _noise(precision, k), prints) for k in range(RUNS)]
    limits = {
        name: SAFETY * max(float(np.nanmax(np.abs(run[name] - inner[name]), initial=0.0)) for run in moved)
        + 1e-3 * float(np.abs(inner[name]).max())
        for name in names
    }
    return Expected(outputs, tolerance, {name: inner[name] for name in names}, limits)


def _close_calls(apart: NDArray[np.float64], floor: float) -> NDArray[np.bool_]:
    """Images that noise moves far more than most, or whose answers are not finite."""
    finite = np.isfinite(apart)
    return ~finite | (apart > floor + CLOSE * (np.median(apart[finite]) if finite.any() else 0.0))


def _like(mask: NDArray[np.bool_], values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.broadcast_to(mask.reshape(-1, *[1] * (values.ndim - 1)), values.shape)


def _reach(model: onnx.ModelProto, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The largest magnitude in each image's tensor, [layers, N], by ONNX Runtime: it need not be exact."""
    names = inner_names(model)
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    del opened.graph.output[:]
    opened.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = open_session(opened)
    parts = []
    for start in range(0, len(images), BATCH):
        values = session.run(names, {session.get_inputs()[0].name: images[start : start + BATCH]})
        parts.append([np.abs(value.reshape(len(value), -1)).max(1) for value in values])
    return np.concatenate([np.stack(part) for part in parts], axis=1).astype(np.float64)


def _made(images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Images that go beyond what is seen: inverted, noise, noise of few colours, even pages."""
    rng = np.random.default_rng(seed)
    shape = (MADE, *images.shape[1:])
    even = np.linspace(0, 255, MADE).round().astype(np.uint8).reshape(-1, 1, 1, 1)
    return np.concatenate(
        [
            255 - images[:MADE],
            rng.integers(0, 256, shape, dtype=np.uint8),
            rng.integers(0, 2, shape, dtype=np.uint8) * np.uint8(255),
            np.broadcast_to(even, shape),
        ]
    )
