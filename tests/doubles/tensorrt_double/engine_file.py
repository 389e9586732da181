"""The double's engines: a file of a real engine's outer form, then JSON and the ONNX file that it was built from.

0    64 bytes   header: magic, size of the file at 16, version at 24, and of TensorRT-RTX the magic at 28 and the
                mask of capabilities at 32, as `vae_edge/engine/inspection.py` describes it
64   32 bytes   SHA-256 of everything else
96   8 bytes    length of the JSON
104             JSON (see `Description`), then the ONNX file
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import Any

HEADER_BYTES = 64
START = HEADER_BYTES + 40
MAGIC = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}
RTX_CAPABILITIES = (75, 80, 86, 89, 120, 121)  # bits of the mask; the next one is "anything later"


class NotAnEngine(ValueError):
    """The bytes are no engine, or no whole one; the text says which: "magic", "size" or "content"."""


@dataclass(frozen=True)
class Description:
    """What an engine of the double says of itself.

    Attributes:
        version, flavour: of the TensorRT that built it.
        tag: number of the serialization format.
        capabilities: compute capabilities that it was built for, such as [87].
        io: for each input and output {"name", "mode", "dtype", "shape"}, -1 for a free dimension.
        profiles: for each profile {input: [min, opt, max]} with shapes.
        precision: of the ONNX file.
        options: what it was built with ("version_compatible", "hardware_compatibility", "dla_core", "layers", ...).
        plants: what is wrong with it on purpose (see `doubles.plant`).
    """

    version: str
    flavour: str
    tag: int
    capabilities: list[int]
    io: list[dict[str, Any]]
    profiles: list[dict[str, list[list[int]]]]
    precision: str = "fp32"
    options: dict[str, Any] = field(default_factory=dict)
    plants: list[str] = field(default_factory=list)


def pack(description: Description, onnx_model: bytes, version_bytes: bytes) -> bytes:
    """The engine as a file."""
    text = json.dumps(dataclasses.asdict(description), sort_keys=True).encode()
    content = struct.pack("<Q", len(text)) + text + onnx_model
    header = bytearray(HEADER_BYTES)
    magic = MAGIC[description.flavour]
    header[0:4] = magic
    struct.pack_into("<Q", header, 16, HEADER_BYTES + 32 + len(content))
    header[24:28] = version_bytes
    if description.flavour == "tensorrt_rtx":
        header[28:32] = magic
        struct.pack_into("<I", header, 32, capability_mask(description.capabilities))
    return bytes(header) + hashlib.sha256(bytes(header) + content).digest() + content


def unpack(engine: bytes, flavour: str) -> tuple[Description, bytes]:
    """The description and the ONNX file of an engine of this flavour.

    Raises:
        NotAnEngine: it begins otherwise, is cut short, or has a byte that was changed.
    """
    if engine[:4] != MAGIC[flavour]:
        raise NotAnEngine("magic")
    if len(engine) < START or struct.unpack_from("<Q", engine, 16)[0] != len(engine):
        raise NotAnEngine("size")
    header, digest, content = engine[:HEADER_BYTES], engine[HEADER_BYTES : START - 8], engine[START - 8 :]
    if hashlib.sha256(header + content).digest() != digest:
        raise NotAnEngine("content")
    (length,) = struct.unpack_from("<Q", content)
    return Description(**json.loads(content[8 : 8 + length])), content[8 + length :]


def version_bytes(engine: bytes) -> bytes:
    """The version in the header."""
    return engine[24:28]


def capability_mask(capabilities: list[int]) -> int:
    """The mask of TensorRT-RTX's header. No capability means all of them, and later ones."""
    if not capabilities:
        return (1 << (len(RTX_CAPABILITIES) + 1)) - 2
    return sum(1 << RTX_CAPABILITIES.index(capability) for capability in capabilities)


def runs_on(description: Description, capability: int) -> bool:
    """Whether an engine was built for a device of this capability."""
    if not description.capabilities:
        return capability >= 80
    level = description.options.get("hardware_compatibility", "NONE")
    if level == "AMPERE_PLUS":
        return capability >= 80 and capability not in (87, 101, 110)
    return capability in description.capabilities
