"""Limits on what comes from outside. A reader refuses what exceeds them before it spends time or memory on it.

`docs/limits.md` lists the same numbers for users. Readers import them from here.
"""

from __future__ import annotations

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
"""Side in pixels of a model's input. The networks of `vae_edge.model` take `MIN_SIZE` to `MAX_SIZE`."""
MIN_SIZE = 28
MAX_SIZE = 64
"""Sides in pixels of the images that `vae_edge.data` loads and the networks of `vae_edge.model` take."""
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

# `vae-edge verify`, which runs each model in a process of its own
MAX_VERIFY_SECONDS = 300.0
MAX_VERIFY_BYTES = 16 << 30
"""Of address space, of which inference engines reserve far more than they use."""
