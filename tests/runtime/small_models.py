"""Small ONNX classifiers of the same make as the exported ones, built node by node: no training is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import vae_edge
from vae_edge.bundle import Bundle, ModelEntry, create_bundle
from vae_edge.exporting.onnx_file import to_fp16
from vae_edge.exporting.quantize import with_reduced_range, with_unsigned_activations
from vae_edge.preprocess import InputSpec
from vae_edge.spec import output_name

TARGETS = {"int8": ("any", "cpu", "cpu_reduced_range")}
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Graph:
    """Nodes and weights in the order in which they are written down."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(seed)

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        out = out or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"n_{out}", **attributes))
        return out

    def conv(self, x: str, inputs: int, outputs: int, stride: int = 1) -> str:
        weight = self.rng.normal(0, (2 / (9 * inputs)) ** 0.5, (outputs, inputs, 3, 3))
        bias = self.constant(self.rng.normal(0, 0.05, outputs))
        y = self.add("Conv", x, self.constant(weight), bias, kernel_shape=[3, 3], pads=[1] * 4, strides=[stride] * 2)
        return self.add("Relu", y)

    def gemm(self, x: str, inputs: int, outputs: int, scale: float = 1.0, bias: tuple[float, ...] = ()) -> str:
        weight = self.constant(self.rng.normal(0, scale / inputs**0.5, (outputs, inputs)))
        return self.add("Gemm", x, weight, self.constant(bias or np.zeros(outputs)), transB=1)

    def trunk(self, x: str, channels: int, widths: tuple[int, ...], size: int) -> tuple[str, int]:
        for i, width in enumerate(widths):
            x = self.conv(x, channels, width, stride=1 if i == 0 else 2)
            channels, size = width, size if i == 0 else (size + 1) // 2
        return self.add("Flatten", x), channels * size * size


def classifier(
    size: int = 28,
    channels: int = 1,
    classes: int = 10,
    widths: tuple[int, ...] = (16, 32, 64),
    seed: int = 0,
    uncertainty: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """`image` uint8 [N, S, S, C] to probabilities, angle, score: pose, image turned back, encoder, classes, energy.

    `uncertainty` are further outputs, of those that a model has that estimates the rotation.
    """
    g = Graph(seed)
    x = g.add("Cast", "image", to=TensorProto.FLOAT)
    x = g.add("Mul", g.add("Transpose", x, perm=[0, 3, 1, 2]), g.constant(1 / 255))
    features, count = g.trunk(x, channels, widths, size)
    pose = g.gemm(features, count, 2, 1.0, bias=(2.0, 1.0))  # away from 0, where the angle would be noise
    length = g.add("Sqrt", g.add("ReduceSum", g.add("Mul", pose, pose), g.constant([1], np.int64), keepdims=1))
    unit = g.add("Div", pose, g.add("Add", length, g.constant(1e-6)))
    cos = g.add("Gather", unit, g.constant([0], np.int64), axis=1)
    sin = g.add("Gather", unit, g.constant([1], np.int64), axis=1)
    half = g.add("Atan", g.add("Div", sin, g.add("Add", cos, g.constant(1.0001))))
    g.add("Reshape", g.add("Mul", half, g.constant(2.0)), g.constant([-1], np.int64), out="angle")
    zero = g.add("Mul", cos, g.constant(0.0))
    rows = g.add("Concat", cos, g.add("Neg", sin), zero, sin, cos, zero, axis=1)
    theta = g.add("Reshape", rows, g.constant([-1, 2, 3], np.int64))
    shape = g.add("Concat", g.add("Shape", x, start=0, end=1), g.constant([channels, size, size], np.int64), axis=0)
    x = g.add("GridSample", x, g.add("AffineGrid", theta, shape), mode="linear")
    features, count = g.trunk(x, channels, widths, size)
    logits = g.gemm(g.add("Relu", g.gemm(features, count, 32)), 32, classes, 4.0)
    g.add("Softmax", logits, axis=1, out="probabilities")
    g.add("Neg", g.add("ReduceLogSumExp", logits, g.constant([1], np.int64), keepdims=0), out="score")
    further = {
        "angle_confidence": ("Sigmoid", "score"),
        "second_angle": ("Neg", "angle"),
        "second_angle_probability": ("Sigmoid", "angle"),
    }
    for name in uncertainty:
        op, given = further[output_name(name)]
        g.add(op, given, out=name)
    outputs = {"probabilities": ["batch", classes], **{name: ["batch"] for name in ("angle", "score", *uncertainty)}}
    return _model(g, [size, size, channels], {k: (TensorProto.FLOAT, v) for k, v in outputs.items()})


def reconstruction(size: int = 28, channels: int = 1) -> onnx.ModelProto:
    """`image` to `reconstruction`, both uint8 [N, S, S, C]: here the negative of the image."""
    g = Graph()
    x = g.add("Sub", g.constant(255), g.add("Cast", "image", to=TensorProto.FLOAT))
    g.add("Cast", x, to=TensorProto.UINT8, out="reconstruction")
    return _model(g, [size, size, channels], {"reconstruction": (TensorProto.UINT8, ["batch", size, size, channels])})


def _model(g: Graph, image: list[int], outputs: dict[str, tuple[int, list[Any]]]) -> onnx.ModelProto:
    graph = helper.make_graph(
        g.nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *image])],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        g.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def quantize_int8(source: Path, target: Path, images: np.ndarray) -> None:
    """Static calibration in the style that TensorRT takes: symmetric int8 Q/DQ, none between Conv and Relu."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"image": images}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    ops = ["Conv", "ConvTranspose", "Gemm", "Add"]
    q.quantize_static(
        str(source),
        str(target),
        Reader(),
        op_types_to_quantize=ops,
        per_channel=True,
        activation_type=q.QuantType.QInt8,
        weight_type=q.QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": [*ops, "Relu", "Reshape", "Sigmoid"],
        },
    )


def noise(n: int, size: int = 28, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Blurred noise, uint8 [N, S, S, C]: every image another one, none constant."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, -(-size // 4), -(-size // 4), channels), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(4, 1).repeat(4, 2)[:, :size, :size])


def make_bundle(
    folder: Path,
    work: Path,
    *,
    size: int = 28,
    channels: int = 1,
    widths: tuple[int, ...] = (16, 32, 64),
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8"),
    accuracy: dict[str, float] | None = None,
    threshold: float = -3.5,
    uncertainty: tuple[str, ...] = (),
    proving: bool = False,
) -> Bundle:
    """A bundle with the classifier in the given precisions and a reconstruction, and with probe images if `proving`."""
    work.mkdir(parents=True, exist_ok=True)
    fp32 = work / "fp32.onnx"
    onnx.save(classifier(size, channels, widths=widths, uncertainty=uncertainty), fp32)
    if "fp16" in precisions:
        onnx.save(to_fp16(onnx.load(fp32)), work / "fp16.onnx")
    if "int8" in precisions:
        quantize_int8(fp32, work / "int8.onnx", noise(32, size, channels, seed=7))
        signed = onnx.load(work / "int8.onnx")
        onnx.save(with_unsigned_activations(signed), work / "int8.cpu.onnx")
        onnx.save(with_unsigned_activations(with_reduced_range(signed)), work / "int8.cpu_reduced_range.onnx")
    onnx.save(reconstruction(size, channels), work / "reconstruction.onnx")
    accuracy = {"fp32": 0.97, "fp16": 0.97, "int8": 0.968} if accuracy is None else accuracy
    models = []
    for precision in precisions:
        for target in TARGETS.get(precision, ("any",)):
            file = work / f"{precision}{'' if target == 'any' else f'.{target}'}.onnx"
            figures = {"accuracy": accuracy[precision], "n": 1000}
            models.append((file, ModelEntry("classifier", precision, target=target, opset=20, accuracy=figures)))
    models.append((work / "reconstruction.onnx", ModelEntry("reconstruction", "fp32", opset=20)))
    probes = work / "probes.npz" if proving else None
    if probes is not None:
        from vae_edge.exporting.probes import choose_probes, write_probes  # needs PyTorch, which a device lacks

        chosen = choose_probes(onnx.load(fp32), noise(64, size, channels, seed=7))
        write_probes(probes, chosen, [(file, entry.precision) for file, entry in models])
    return create_bundle(
        folder,
        name=f"small {vae_edge.__version__}",
        classes=CLASSES,
        input=InputSpec(size=size, channels=channels, background="dark"),
        threshold=threshold,
        reject_rate=0.05,
        rotation="full",
        models=models,
        probes=probes,
    )
