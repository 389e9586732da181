"""What a model file is, and the limits on what comes from outside: contracts that every package imports.

Export writes graphs by this, engines are built by it, the runtime checks files against it, and readers refuse what
exceeds a limit before they spend time or memory on it (`docs/limits.md` lists the same numbers for users). It imports
nothing of ours. The kernels do not import `vae_edge`: they return the same outputs in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

ROLES = ("classifier", "reconstruction")
FORMATS = ("onnx", "tensorrt", "tensorrt_rtx", "native")
"""Of a model file: an ONNX graph, an engine of TensorRT or TensorRT-RTX, or a network file of the native library."""
PRECISIONS = ("fp32", "fp16", "int8", "fp8")
"""Of a model file, finest first."""
EXPORTED_PRECISIONS = ("fp32", "fp16", "int8")
"""Those that this version writes; fp8 files of others can be run."""
SCORE_MODES = ("full", "fast")
"""How the anomaly score is computed: with the reconstruction error, or without it and so without a decoder."""


Size = int | tuple[int, int]
"""Of an image in pixels: the side of a square, or (height, width) where these differ."""
_SIZE = re.compile(r"([1-9]\d{0,4})(?:[xX×]([1-9]\d{0,4}))?", re.ASCII)


def height_and_width(size: Size) -> tuple[int, int]:
    """A size as (height, width) in pixels."""
    return (size, size) if isinstance(size, int) else size


def as_size(height: int, width: int) -> Size:
    """The size of this height and width, in pixels: one number where they are equal."""
    return height if height == width else (height, width)


def parse_size(text: str) -> Size:
    """The size that a text says: the side of a square, such as `96`, or `HEIGHTxWIDTH`, such as `96x64`.

    Raises:
        ValueError: it is neither.
    """
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"{text}: expected pixels, such as 96, or HEIGHTxWIDTH, such as 96x64")
    return as_size(int(found[1]), int(found[2] or found[1]))


def size_text(size: Size) -> str:
    """A size for messages: `64×64`, or `96×64 (height × width)`."""
    height, width = height_and_width(size)
    return f"{height}×{width}" + (" (height × width)" if height != width else "")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. The first dimension is the batch, N, and of any size.

    Attributes:
        dtype: `uint8` or `float32`.
        dims: the dimensions after N: "H" (height), "W" (width), "C" (channels) or "K" (classes).
        meaning: what the numbers are, with their unit.
    """

    dtype: str
    dims: tuple[str, ...]
    meaning: str

    def shape(self, size: Size = 0, channels: int = 0, classes: int = 0) -> tuple[int, ...]:
        """The dimensions after N of a model with images of this size and so many classes."""
        height, width = height_and_width(size)
        known = {"H": height, "W": width, "C": channels, "K": classes}
        return tuple(known[dim] for dim in self.dims)


TensorSpecs = Mapping[str, TensorSpec]
"""Inputs or outputs by name, in the order of the graph."""

INPUTS: TensorSpecs = {"image": TensorSpec("uint8", ("H", "W", "C"), "pixels 0..255, grey or RGB")}

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
    "reconstruction": TensorSpec("uint8", ("H", "W", "C"), "the image as decoded, rotated as the input is")
}

ANGLE_OUTPUTS = ("angle", "second_angle")
"""Outputs in radians: their differences are taken on the circle."""

SCHEMA_1_OUTPUTS = {"concentration": "angle_confidence", "second_share": "second_angle_probability"}
"""Outputs that files of schema 1 name otherwise. Such files keep their names; readers map them to today's."""
SCHEMA_1_SCORE_MODES = {"light": "fast"}


def output_name(name: str) -> str:
    """Today's name of an output, whatever the file calls it."""
    return SCHEMA_1_OUTPUTS.get(name, name)


# JSON: manifests, configurations, records, metadata
MAX_JSON_BYTES = 16 << 20
MAX_MANIFEST_BYTES = 8 << 20
MAX_RECORD_BYTES = 1 << 20
"""Of `auto.json` and `verified.json`."""
MAX_JSON_DEPTH = 32

# What a bundle or a training run states about its model
MAX_CLASSES = 65_536
MAX_NAME = 1_024
"""Characters in the name of a class, a bundle or a model file, or in another short text."""
MAX_MODELS = 256
MAX_INPUT_SIZE = 512
"""Height and width in pixels of a model's input. The networks of `vae_edge.model` take `MIN_SIZE` to `MAX_SIZE`."""
MIN_SIZE = 28
MAX_SIZE = 224
"""Height and width in pixels of the images that `vae_edge.data` loads and the networks of `vae_edge.model` take."""
MAX_WIDTH = 1_024
"""Channels of a feature map, or dimensions of a code."""
MAX_BLOCKS = 16
MAX_HIDDEN = 16_384
MAX_ANGLE_BINS = 3_600

# Model files
MAX_MODEL_BYTES = 1 << 30
MAX_NODES = 20_000
MAX_TENSORS = 100_000
MAX_RANK = 8
MAX_ELEMENTS = 1 << 24
"""Of a tensor that an ONNX graph computes, for one image: 64 MiB as float32."""
MAX_TOTAL_ELEMENTS = 1 << 27
"""Of all tensors that an ONNX graph computes, for one image."""
MAX_OPERATIONS = 1 << 34
"""Multiplications and additions of an ONNX graph for one image."""
MAX_CHECKPOINT_BYTES = 4 << 30

# The result of a kit, unpacked
MAX_RESULT_FILES = 256
MAX_RESULT_BYTES = 2 << 30

# Images
MAX_IMAGE_BYTES = 1 << 30
MAX_PIXELS = 64_000_000
MAX_LINES = 4_000_000
"""Pillow keeps a pointer for each line, so that an image one pixel wide costs twelve bytes a pixel."""

# Arrays of images
MAX_ARRAY_BYTES = 8 << 30
MAX_MEMBERS = 65_536
"""Arrays in an archive."""
MAX_NUMBERED_CLASSES = 4_096
"""Classes of labels without class names. A higher label is taken for damage."""
MAX_PROBE_BYTES = 256 << 20
MAX_PROBES = 4_096
MAX_TEXT_BYTES = 8 << 20
"""Of a file of class names."""
MAX_TABLE_BYTES = 64 << 20
"""Of a table of the groups that images belong to."""

# `vae-edge verify`, which runs each model in a process of its own
MAX_VERIFY_SECONDS = 300.0
MAX_VERIFY_BYTES = 16 << 30
"""Of address space, of which inference engines reserve far more than they use."""
