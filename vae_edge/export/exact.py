"""An ONNX file evaluated node by node: convolutions, matrix products and resampling are exact sums, rounded once.

A runtime adds thousands of float32 products in an order of its own, and a value near a tie is then quantized the other
way. Here products are summed in float64, so that nothing of a runtime is left in the answer. GridSample is PyTorch's;
the other nodes are those of ONNX's own reference evaluator, in the types of the file.

`Noise` stands for what a correct runtime may do otherwise: it says how far right answers lie apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from vae_edge.errors import ExportError

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
    """Outputs by name for images uint8 [N, H, W, C].

    Args:
        noise: what is added while evaluating; None for the exact answers.
        inner: for names of tensors inside the graph, each [N, ...], what is kept of them; they are returned as well.
    """
    evaluator = ReferenceEvaluator(model, new_ops=_operators(noise))
    outputs = [output.name for output in model.graph.output]
    parts: list[dict[str, Any]] = []
    for start in range(0, len(images), BATCH):
        feeds = {model.graph.input[0].name: images[start : start + BATCH]}
        if inner is None:
            parts.append(dict(zip(outputs, evaluator.run(None, feeds), strict=True)))
        else:
            values = evaluator.run(None, feeds, intermediate=True)
            kept = {name: reduce(values[name]) for name, reduce in inner.items()}
            parts.append({**{name: values[name] for name in outputs}, **kept})
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
