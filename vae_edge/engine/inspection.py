"""What an engine is, without a driver: the header of a TensorRT-RTX engine, and each layer's precision from the log.

The layout of the header is not documented. It was deduced from engines of TensorRT-RTX 1.7 whose targets were known;
the tests build such engines and compare. 64 bytes, little-endian:

    0   "vtrt"            4 bytes
    16  size of the file  u64
    24  version           4 bytes: major, minor, patch, build
    28  "vtrt"            4 bytes
    32  capability mask   u32: bit 0 is 7.5, 1 is 8.0, 2 is 8.6, 3 is 8.9, 4 is 12.0, 5 is 12.1, 6 is anything later

The builder's verbose log ends with a table "Layers:" of one line a layer. For a tensor TensorRT-RTX writes
`Datatype: Int8, Format: (NHWC) ...`, full TensorRT `Format/Datatype: Thirty-two wide channel vectorized row major Int8
format` or `Format/Datatype: Half`. (`IEngineInspector` would say the same in JSON, but it needs a GPU.)
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vae_edge import files
from vae_edge.errors import EngineError

# The header of a TensorRT-RTX engine

HEADER_BYTES = 64
MAGIC = b"vtrt"
CAPABILITY_BITS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
_FORWARD_COMPATIBLE = 1 << len(CAPABILITY_BITS)


@dataclass(frozen=True)
class EngineHeader:
    """What a TensorRT-RTX engine says of itself."""

    size: int
    version: str
    mask: int

    @property
    def targets(self) -> tuple[str, ...]:
        """The architectures that the engine claims to run on."""
        return tuple(name for bit, name in enumerate(CAPABILITY_BITS) if self.mask >> bit & 1)

    @property
    def forward_compatible(self) -> bool:
        """Whether it claims architectures later than those with a bit of their own."""
        return bool(self.mask & _FORWARD_COMPATIBLE)


@dataclass(frozen=True)
class EngineFile:
    """A TensorRT-RTX engine file: its path, SHA-256 and header."""

    file: str
    sha256: str
    header: EngineHeader

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge inspect` prints it."""
        return {
            "file": self.file,
            "kind": "tensorrt_rtx",
            "version": self.header.version,
            "bytes": self.header.size,
            "sha256": self.sha256,
            "capability_mask": self.header.mask,
            "targets": list(self.header.targets),
            "later": self.header.forward_compatible,
        }


def parse_header(start: bytes, size: int, name: str = "the engine") -> EngineHeader:
    """The header in the first bytes of an engine of `size` bytes.

    Raises:
        EngineError: the engine is too short, begins otherwise, is cut short, or claims bits that no known version sets.
    """
    if size < HEADER_BYTES or len(start) < HEADER_BYTES:
        raise EngineError(
            f"{name} has {size} bytes, fewer than the {HEADER_BYTES} of a TensorRT-RTX engine's header: it is cut "
            "short; build it again."
        )
    if start[:4] != MAGIC or start[28:32] != MAGIC:
        raise EngineError(
            f"{name} is no TensorRT-RTX engine: it should begin with {MAGIC!r} but begins with {start[:4]!r}. (An "
            "engine of full TensorRT can be read only by the TensorRT that built it.) Build it again."
        )
    (stated,) = struct.unpack_from("<Q", start, 16)
    if stated != size:
        raise EngineError(
            f"{name} should have {stated} bytes by its header but has {size}: it is cut short or damaged; build it "
            "again."
        )
    (mask,) = struct.unpack_from("<I", start, 32)
    if mask == 0 or mask >= _FORWARD_COMPATIBLE << 1:
        raise EngineError(
            f"{name} has the capability mask {mask:#x} in its header, which this version cannot read: it is damaged, "
            "or was built by a TensorRT-RTX whose header differs."
        )
    return EngineHeader(size=size, version=".".join(str(byte) for byte in start[24:28]), mask=mask)


def read_header(path: str | os.PathLike[str]) -> EngineHeader:
    """The header of the engine file at `path`.

    Raises:
        EngineError: the file cannot be read, or is not a complete TensorRT-RTX engine.
    """
    try:
        with files.open_regular(path) as file:
            return parse_header(file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size, str(path))
    except OSError as error:
        raise EngineError(f"The engine {path} cannot be read ({error.strerror}): check the path.") from error
    except ValueError as error:
        raise EngineError(f"The engine {path} cannot be read: {error}.") from error


def inspect_engine(path: str | os.PathLike[str]) -> EngineFile:
    """What a TensorRT-RTX engine file says without a driver.

    Raises:
        EngineError: as `read_header`.
    """
    header = read_header(path)
    try:
        digest = files.sha256(path)
    except (OSError, ValueError) as error:
        raise EngineError(f"The engine {path} cannot be read ({error}): check the path.") from error
    return EngineFile(str(path), digest, header)


# The layers of an engine, from the builder's log

_TYPES = {
    "float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16", "int8": "int8",
    "fp8": "fp8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool", "int4": "int4", "fp4": "fp4",
}  # fmt: skip
BY_WIDTH = ("fp4", "int4", "fp8", "int8", "fp16", "bf16", "fp32")
"""Precisions of arithmetic, narrowest first."""
QUANTIZED = ("int8", "fp8", "int4", "fp4")

_TYPE_WORD = re.compile(r"\b(" + "|".join(_TYPES) + r")\b", re.IGNORECASE)
_DATATYPE = re.compile(r"(?:Format/)?Datatype: ([^}]*?)(?:, Format: |\s*[}\n]|$)")
_COMPUTE_TYPE = re.compile(r"conv|correlation|gemm|matmul|matrix_?multiply|fully_?connected", re.IGNORECASE)
_COMPUTE_FUSED = re.compile(r"__myl_\w*?(?:Fc|Corr|Conv|Gemm)(?=[A-Z_])")
_ROW = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<type>[^,]*)(?P<rest>,.*|$)")


@dataclass(frozen=True)
class LayerInfo:
    """One layer of an engine.

    Attributes:
        precision: of the data that its arithmetic reads.
        inputs, outputs: the types of its tensors.
        is_compute: whether it is a convolution or matrix product, in which the arithmetic is.
    """

    name: str
    type: str
    precision: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    is_compute: bool = False

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge build` prints it."""
        return {
            "name": self.name,
            "type": self.type,
            "precision": self.precision,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "heavy": self.is_compute,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LayerInfo:
        """The inverse of `to_json`."""
        return cls(
            name=value["name"],
            type=value["type"],
            precision=value["precision"],
            inputs=tuple(value["inputs"]),
            outputs=tuple(value["outputs"]),
            is_compute=value["heavy"],
        )


def parse_layers(messages: Iterable[str]) -> tuple[LayerInfo, ...]:
    """The layers of the last table "Layers:" among the builder's messages; empty if there is none."""
    layers: tuple[LayerInfo, ...] = ()
    for message in messages:
        _, mark, table = message.partition("Layers:\n")
        if mark:
            rows = (_parse_row(line) for line in table.split("\n\n")[0].splitlines())
            layers = tuple(row for row in rows if row is not None) or layers
    return layers


def _parse_row(line: str) -> LayerInfo | None:
    row = _ROW.match(line.strip())
    if row is None:
        return None
    name, kind, rest = row["name"], row["type"], row["rest"]
    inputs, outputs = _types(_section(rest, "Inputs")), _types(_section(rest, "Outputs"))
    is_compute = bool(_COMPUTE_TYPE.search(kind) or _COMPUTE_FUSED.search(name))
    return LayerInfo(name, kind, _precision(inputs, outputs, is_compute), inputs, outputs, is_compute)


def _section(rest: str, title: str) -> str:
    """The text between "Inputs: [" and the "]" that closes it; names inside may hold brackets of their own."""
    match = re.search(rf", {title}: \[(?:\]|(.*?\}})\])(?=, [A-Z]\w*: |$)", rest)
    return (match[1] or "") if match else ""


def _types(section: str) -> tuple[str, ...]:
    words = (_TYPE_WORD.search(match[1]) for match in _DATATYPE.finditer(section))
    return tuple(_TYPES[word[1].lower()] for word in words if word is not None)


def _precision(inputs: tuple[str, ...], outputs: tuple[str, ...], is_compute: bool) -> str:
    """Of a compute layer that of its narrowest input, of another the type of its first tensor."""
    if is_compute:
        for precision in BY_WIDTH:
            if precision in inputs:
                return precision
    return next(iter(inputs or outputs), "none")


def fraction_at(layers: Iterable[LayerInfo], precision: str) -> float | None:
    """The fraction 0..1 of the compute layers that run in `precision`; None where the table has none."""
    compute = [layer for layer in layers if layer.is_compute]
    return sum(layer.precision == precision for layer in compute) / len(compute) if compute else None


# The precision that the ONNX file asks for


def requested_precisions(network: Any) -> dict[str, str]:
    """The precision of each convolution and matrix product of a parsed network, by name.

    "int8" or "fp8" needs a Q/DQ pair on both inputs; a pair on only one is written "int8 on one input".
    """
    producers = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for slot in range(layer.num_outputs):
            producers[layer.get_output(slot).name] = layer

    requested = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name in ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"):
            tensors = [layer.get_input(slot) for slot in range(min(layer.num_inputs, 2))]
            types = [_source_type(tensor, producers) for tensor in tensors if tensor is not None]
            requested[layer.name] = _requested(types)
    return requested


def _requested(types: list[str]) -> str:
    quantized = [name for name in types if name in QUANTIZED]
    if quantized and len(quantized) < len(types):
        return f"{quantized[0]} on one input"
    return quantized[0] if quantized else types[0]


def _source_type(tensor: Any, producers: Mapping[str, Any]) -> str:
    """The type of a tensor, or of what was dequantized into it (seen through shuffles)."""
    current = tensor
    for _ in range(8):
        producer = producers.get(current.name)
        if producer is None:
            break
        if producer.type.name == "DEQUANTIZE":
            current = producer.get_input(0)
            break
        if producer.type.name not in ("SHUFFLE", "IDENTITY"):
            break
        current = producer.get_input(0)
    name = current.dtype.name.lower() if current is not None else "float"
    precision = _TYPES.get(name, name)
    return precision if precision in BY_WIDTH else _TYPES.get(tensor.dtype.name.lower(), "fp32")


def explain_precision(layers: Iterable[LayerInfo], precision: str, requested: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences: which compute layers do not run in `precision`, and why, as far as the log tells.

    Args:
        requested: the precision that the ONNX file asks for, by node (`requested_precisions`).
    """
    table = list(layers)
    compute = [layer for layer in table if layer.is_compute]
    if not table:
        return ("The builder's log holds no table of layers: which precision runs is unknown.",)

    sentences = [_explain(layer, precision, requested) for layer in compute if layer.precision != precision]
    if precision in ("int8", "fp8"):
        wide = [x for x in compute if x.precision == precision and x.outputs and precision not in x.outputs]
        if wide:
            written = " or ".join(sorted({name for layer in wide for name in layer.outputs}))
            sentences.append(
                f"{len(wide)} of {len(compute)} convolutions and matrix products read {precision} but write {written}: "
                "bias, activation and quantization run in a layer of their own after them."
            )
    reformats = [layer for layer in table if "reformat" in layer.type.lower()]
    if reformats:
        sentences.append(
            f"{len(reformats)} of {len(table)} layers only change the type or the order of a tensor (Reformat)."
        )
    return tuple(sentences)


def _explain(layer: LayerInfo, precision: str, requested: Mapping[str, str]) -> str:
    nodes = {re.sub(r"_myl\d+_\d+$", "", part.strip()) for part in layer.name.split("+")}
    wanted = sorted({value for name, value in requested.items() if name in nodes})
    what = f"'{layer.name}' runs in {layer.precision}"
    if not wanted:
        return f"{what}: it is not one node of the ONNX file, so what was asked of it is unknown."
    if precision in wanted:
        return (
            f"{what} though the ONNX file asks for {precision}: the builder chose so, or could not fuse its Q/DQ pair."
        )
    if precision in ("int8", "fp8"):
        return f"{what}: the ONNX file has no {precision} Q/DQ pairs on both of its inputs (it asks for {wanted[0]})."
    return f"{what} because the ONNX file asks for {wanted[0]} there."
