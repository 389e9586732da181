"""An ONNX file evaluated node by node: convolutions and matrix products are the float32 nearest to their exact sums.

A runtime's float32 convolutions add thousands of products in an order of its own, and a sum near a tie is then
quantized the other way. Here they are summed in float64, so that nothing of a runtime is left in them. GridSample is
PyTorch's, the other nodes are those of ONNX's own evaluator, in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun


def evaluate(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """The file's outputs by name."""
    names = [output.name for output in model.graph.output]
    values = ReferenceEvaluator(model, new_ops=[Conv, Gemm, MatMul, GridSample]).run(None, {"image": images})
    return dict(zip(names, values, strict=True))


class Conv(OpRun):
    """A convolution, summed in float64."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, auto_pad: str = "NOTSET",
        dilations: Any = None, group: int = 1, kernel_shape: Any = None, pads: Any = None, strides: Any = None,
    ) -> tuple[np.ndarray]:  # fmt: skip
        top, left, bottom, right = pads or (0, 0, 0, 0)
        assert auto_pad in ("NOTSET", None) and (top, left) == (bottom, right)
        sums = F.conv2d(
            torch.from_numpy(x).double(), torch.from_numpy(weight).double(), None, list(strides or (1, 1)),
            (top, left), list(dilations or (1, 1)), group or 1,
        ).numpy()  # fmt: skip
        return ((sums if bias is None else sums + bias[None, :, None, None]).astype(np.float32),)


class Gemm(OpRun):
    """A matrix product with an addend, summed in float64."""

    op_domain = ""

    def _run(
        self, a: np.ndarray, b: np.ndarray, c: np.ndarray | None = None, alpha: float = 1.0, beta: float = 1.0,
        transA: int = 0, transB: int = 0,
    ) -> tuple[np.ndarray]:  # fmt: skip
        left, right = a.astype(np.float64), b.astype(np.float64)
        sums = (1.0 if alpha is None else alpha) * ((left.T if transA else left) @ (right.T if transB else right))
        return ((sums if c is None else sums + (1.0 if beta is None else beta) * c).astype(np.float32),)


class MatMul(OpRun):
    """A matrix product, summed in float64."""

    op_domain = ""

    def _run(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray]:
        return ((a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32),)


class GridSample(OpRun):
    """Bilinear sampling by PyTorch: the evaluator's own takes minutes."""

    op_domain = ""

    def _run(
        self, x: np.ndarray, grid: np.ndarray, mode: str = "linear", padding_mode: str = "zeros",
        align_corners: int = 0,
    ) -> tuple[np.ndarray]:  # fmt: skip
        assert mode in ("linear", "bilinear")
        given = (torch.from_numpy(np.ascontiguousarray(values)) for values in (x, grid))
        return (F.grid_sample(*given, padding_mode=padding_mode, align_corners=bool(align_corners)).numpy(),)
