"""How far the fused network's outputs are from those of the exported files of the same model, on real images.

    python bench/fused.py runs/quickstart/run runs/quickstart/bundle [--data digits] [--images 1000]

fp16 is compared with the fp32 file under ONNX Runtime; int8 with the quantized file, evaluated with exact sums
(`vae_edge.exporting.probes`) and under ONNX Runtime without rewriting, which changes int8 roundings. Both on images as
they are and rotated by any angle. The step of the logits is the scale that they would have in int8: the largest, less
their mean, over 127. Runs on the CPU, by the kernels' references. Probabilities below 1e-37 count as that.
Exit codes: 0 done; 2 the bundle lacks a file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from vae_edge.data import load_dataset, rotate_dataset
from vae_edge.exporting.probes import evaluate
from vae_edge.exporting.quantize import read_qdq_layers
from vae_edge.model import AngleVAE
from vae_edge.ops.network import fuse
from vae_edge.training.checkpoint import load_checkpoint

Outputs = dict[str, NDArray[np.float32]]  # of a model, by the names of the exported graph
SAME = 1e-4  # logits nearer than this come from the same integers


@dataclass(frozen=True)
class Difference:
    """Outputs for some images against the expected ones.

    Attributes:
        labels: how many images have the same label.
        probabilities, logits, angles (radians), scores: the largest difference for each image. Logits are taken less
            their mean.
        step: scale that the expected logits would have as int8.
        score_range: of the expected scores, from the 10th to the 90th percentile.
    """

    labels: int
    probabilities: NDArray[np.float64]
    logits: NDArray[np.float64]
    angles: NDArray[np.float64]
    scores: NDArray[np.float64]
    step: float
    score_range: float

    def __str__(self) -> str:
        within = [int((self.logits <= limit).sum()) for limit in (SAME, self.step)]
        return (
            f"{self.labels} of {len(self.logits)} labels the same; "
            f"probabilities within {self.probabilities.max():.2g}; "
            f"logits within {SAME} for {within[0]}, "
            f"within a step of {self.step:.2g} for {within[1]}, all within {self.logits.max():.2g}"
        )


def difference(found: Outputs, expected: Outputs, temperature: float) -> Difference:
    """How far one model's outputs are from another's."""
    logits, expected_logits = (_logits(outputs["probabilities"], temperature) for outputs in (found, expected))
    angle_error = found["angle"] - expected["angle"]
    return Difference(
        labels=int((logits.argmax(1) == expected_logits.argmax(1)).sum()),
        probabilities=np.abs(found["probabilities"] - expected["probabilities"]).max(1).astype(np.float64),
        logits=np.abs(logits - expected_logits).max(1),
        angles=np.abs((angle_error + np.pi) % (2 * np.pi) - np.pi).astype(np.float64),
        scores=np.abs(found["score"] - expected["score"]).astype(np.float64),
        step=float(np.abs(expected_logits).max() / 127),
        score_range=float(np.ptp(np.quantile(expected["score"], [0.1, 0.9]))),
    )


def _logits(probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """The logits of probabilities, less their mean."""
    logits = temperature * np.log(np.maximum(probabilities.astype(np.float64), 1e-37))
    return np.asarray(logits - logits.mean(1, keepdims=True))


def fused(model: AngleVAE, images: NDArray[np.uint8], quantized: onnx.ModelProto | None = None) -> Outputs:
    """The fused network's outputs, in fp16 or on the int8 layers of a file."""
    network = fuse(model, None if quantized is None else read_qdq_layers(quantized))
    probabilities, angle, score, uncertainty = (tensor.numpy() for tensor in network(torch.from_numpy(images)))
    return {
        "probabilities": probabilities, "angle": angle, "score": score,
        "angle_confidence": uncertainty[:, 0], "second_angle": uncertainty[:, 1],
        "second_angle_probability": uncertainty[:, 2],
    }  # fmt: skip


def run(file: Path, images: NDArray[np.uint8]) -> Outputs:
    """ONNX Runtime's outputs, without graph optimization."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


def main() -> int:
    """Compare and print; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the training run")
    parser.add_argument("bundle", type=Path, help="folder of its bundle, with fp32 and int8")
    parser.add_argument("--data", default="digits", help="data set, by name or path (default: digits)")
    parser.add_argument("--images", type=int, default=1000, help="how many images (default: 1000)")
    arguments = parser.parse_args()
    files = {precision: arguments.bundle / f"classifier.{precision}.onnx" for precision in ("fp32", "int8")}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        print(f"The bundle has to have fp32 and int8; missing: {', '.join(missing)}.", file=sys.stderr)
        return 2
    model = load_checkpoint(arguments.run).model
    data = load_dataset(arguments.data)
    held = data.train if data.test is None else data.test
    some = held.take(np.arange(min(arguments.images, len(held))))
    quantized, temperature = onnx.load(files["int8"]), float(model.temperature)
    for name, images in (("upright", some.images), ("rotated", rotate_dataset(some).images)):
        in_int8 = fused(model, images, quantized)
        by_runtime = {precision: run(file, images) for precision, file in files.items()}
        for what, found, expected in (
            ("fp16 against the fp32 file", fused(model, images), by_runtime["fp32"]),
            ("int8 against the int8 file, exact", in_int8, evaluate(quantized, images)),
            ("int8 against the int8 file under ONNX Runtime", in_int8, by_runtime["int8"]),
        ):
            print(f"{name}: {what}: {difference(found, expected, temperature)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
