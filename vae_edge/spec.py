"""What a model file is, stated once: its image, its outputs, its precisions, and which score it computes.

Export writes graphs by this, engines are built by it, the runtime checks files against it. It imports nothing, so that
every package may import it. The kernels do not import `vae_edge`: they return the same outputs in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ROLES = ("classifier", "reconstruction")
FORMATS = ("onnx", "tensorrt", "tensorrt_rtx")
PRECISIONS = ("fp32", "fp16", "int8", "fp8")
"""Of a model file, finest first."""
EXPORTED_PRECISIONS = ("fp32", "fp16", "int8")
"""Those that this version writes; fp8 files of others can be run."""
SCORE_MODES = ("full", "fast")
"""How the anomaly score is computed: with the reconstruction error, or without it and so without a decoder."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. The first dimension is the batch, N, and of any size.

    Attributes:
        dtype: `uint8` or `float32`.
        dims: the dimensions after N: "S" (side in pixels), "C" (channels) or "K" (classes).
        meaning: what the numbers are, with their unit.
    """

    dtype: str
    dims: tuple[str, ...]
    meaning: str

    def shape(self, size: int = 0, channels: int = 0, classes: int = 0) -> tuple[int, ...]:
        """The dimensions after N of a model with images of this size and so many classes."""
        known = {"S": size, "C": channels, "K": classes}
        return tuple(known[dim] for dim in self.dims)


TensorSpecs = Mapping[str, TensorSpec]
"""Inputs or outputs by name, in the order of the graph."""

INPUTS: TensorSpecs = {"image": TensorSpec("uint8", ("S", "S", "C"), "pixels 0..255, grey or RGB")}

CLASSIFIER_OUTPUTS: TensorSpecs = {
    "probabilities": TensorSpec("float32", ("K",), "probability of each class, 0..1"),
    "angle": TensorSpec("float32", (), "rotation of the object in radians, counter-clockwise; 0 is upright"),
    "score": TensorSpec("float32", (), "anomaly score; higher is more anomalous"),
}
"""Every classifier has these."""

UNCERTAINTY_OUTPUTS: TensorSpecs = {
    "angle_confidence": TensorSpec(
        "float32", (), "mean resultant length of the angle's distribution: 0 any, 1 certain"
    ),
    "second_angle": TensorSpec("float32", (), "the second most probable angle, in radians"),
    "second_angle_probability": TensorSpec("float32", (), "probability of the second angle, 0..1"),
}
"""A classifier that was trained on rotated images has these too, after the others: all of them or none."""

RECONSTRUCTION_OUTPUTS: TensorSpecs = {
    "reconstruction": TensorSpec("uint8", ("S", "S", "C"), "the image as decoded, rotated as the input is")
}

ANGLE_OUTPUTS = ("angle", "second_angle")
"""Outputs in radians: their differences are taken on the circle."""

SCHEMA_1_OUTPUTS = {"concentration": "angle_confidence", "second_share": "second_angle_probability"}
"""Outputs that files of schema 1 name otherwise. Such files keep their names; readers map them to today's."""
SCHEMA_1_SCORE_MODES = {"light": "fast"}


def output_name(name: str) -> str:
    """Today's name of an output, whatever the file calls it."""
    return SCHEMA_1_OUTPUTS.get(name, name)
