"""The header of a TensorRT-RTX engine: 64 bytes that tell its size, version and architectures, without a driver.

The layout is not documented. It was deduced from engines of TensorRT-RTX 1.7 whose targets were known; the tests build
such engines and compare. Little-endian:

    0   "vtrt"            4 bytes
    16  size of the file  u64
    24  version           4 bytes: major, minor, patch, build
    28  "vtrt"            4 bytes
    32  capability mask   u32: bit 0 is 7.5, 1 is 8.0, 2 is 8.6, 3 is 8.9, 4 is 12.0, 5 is 12.1, 6 is anything later

Which precision each layer of an engine runs in, read from the builder's verbose log, and why not the one asked for.

The log's table "Layers:" has one line a layer. For a tensor TensorRT-RTX writes `Datatype: Int8, Format: (NHWC) ...`,
full TensorRT `Format/Datatype: Thirty-two wide channel vectorized row major Int8 format` or `Format/Datatype: Half`.
Only convolutions and matrix products ("heavy" layers) count for the share: there the arithmetic is.
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

HEADER_BYTES = 64
MAGIC = b"vtrt"
CAPABILITY_BITS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
_LATER = 1 << len(CAPABILITY_BITS)


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
        """Whether it claims architectures later than those that have a bit of their own."""
        return bool(self.mask & _LATER)


def parse_header(start: bytes, size: int, name: str = "the engine") -> EngineHeader:
    """Read the header from the first bytes of an engine of `size` bytes.

    Raises:
        EngineError: if it is too short, begins otherwise, is cut short, or claims bits that no known version sets.
    """
    if size < HEADER_BYTES or len(start) < HEADER_BYTES:
        raise EngineError(
            f"{name} has {size} bytes, fewer than the {HEADER_BYTES} of a TensorRT-RTX engine's header: it is cut "
            "short; build it again."
        )
    if start[:4] != MAGIC or start[28:32] != MAGIC:
        raise EngineError(
            f"{name} is no TensorRT-RTX engine: it should begin with {MAGIC!r} but begins with {start[:4]!r}. (An "
            "engine of full TensorRT can be read only by the TensorRT that built it.)"
        )
    (stated,) = struct.unpack_from("<Q", start, 16)
    if stated != size:
        raise EngineError(
            f"{name} should have {stated} bytes by its header but has {size}: it is cut short or damaged; build it "
            "again."
        )
    (mask,) = struct.unpack_from("<I", start, 32)
    if mask == 0 or mask >= _LATER << 1:
        raise EngineError(
            f"{name} has the capability mask {mask:#x} in its header, which this version cannot read: it is damaged, "
            "or was built by a TensorRT-RTX whose header differs."
        )
    return EngineHeader(size=size, version=".".join(str(byte) for byte in start[24:28]), mask=mask)


def read_header(path: str | os.PathLike[str]) -> EngineHeader:
    """Read the header of the engine file at `path`.

    Raises:
        EngineError: if the file cannot be read or is no whole TensorRT-RTX engine.
    """
    try:
        with files.open_regular(path) as file:
            return parse_header(file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size, str(path))
    except OSError as error:
        raise EngineError(f"The engine {path} cannot be read ({error.strerror}): check the path.") from error
    except ValueError as error:
        raise EngineError(f"The engine {path} cannot be read: {error}.") from error


def inspect_engine(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a TensorRT-RTX engine file says without a driver: a dict fit for JSON.

    Raises:
        EngineError: as `read_header`.
    """
    header = read_header(path)
    try:
        digest = files.sha256(path)
    except (OSError, ValueError) as error:
        raise EngineError(f"The engine {path} cannot be read ({error}): check the path.") from error
    return {
        "file": str(path),
        "kind": "tensorrt_rtx",
        "version": header.version,
        "bytes": header.size,
        "sha256": digest,
        "capability_mask": header.mask,
        "targets": list(header.targets),
        "later": header.forward_compatible,
    }


_TYPES = {
    "float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16", "int8": "int8",
    "fp8": "fp8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool", "int4": "int4", "fp4": "fp4",
}  # fmt: skip
_TYPE_WORD = re.compile(r"\b(" + "|".join(_TYPES) + r")\b", re.IGNORECASE)
_DATATYPE = re.compile(r"(?:Format/)?Datatype: ([^}]*?)(?:, Format: |\s*[}\n]|$)")
_HEAVY_TYPE = re.compile(r"conv|correlation|gemm|matmul|matrix_?multiply|fully_?connected", re.IGNORECASE)
_HEAVY_FUSED = re.compile(r"__myl_\w*?(?:Fc|Corr|Conv|Gemm)(?=[A-Z_])")
_ROW = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<type>[^,]*)(?P<rest>,.*|$)")
_NARROW = ("fp4", "int4", "fp8", "int8", "fp16", "bf16", "fp32")


@dataclass(frozen=True)
class LayerInfo:
    """One layer of an engine. `precision` is what its arithmetic reads; `inputs`, `outputs` are its tensors' types."""

    name: str
    type: str
    precision: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    is_compute: bool = False

    def to_json(self) -> dict[str, Any]:
        """The layer as a dict fit for JSON."""
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
        return cls(**{**value, "inputs": tuple(value["inputs"]), "outputs": tuple(value["outputs"])})


def parse_layers(messages: Iterable[str]) -> tuple[LayerInfo, ...]:
    """The layers of the last table "Layers:" among the builder's messages; empty if there is none."""
    discover: tuple[LayerInfo, ...] = ()
    for message in messages:
        _, mark, table = message.partition("Layers:\n")
        if mark:
            rows = (_layer(line) for line in table.split("\n\n")[0].splitlines())
            discover = tuple(row for row in rows if row is not None) or discover
    return discover


def _layer(line: str) -> LayerInfo | None:
    row = _ROW.match(line.strip())
    if row is None:
        return None
    name, kind, rest = row["name"], row["type"], row["rest"]
    inputs, outputs = _types(_section(rest, "Inputs")), _types(_section(rest, "Outputs"))
    is_compute = bool(_HEAVY_TYPE.search(kind) or _HEAVY_FUSED.search(name))
    return LayerInfo(name, kind, _precision(inputs, outputs, is_compute), inputs, outputs, is_compute)


def _section(rest: str, title: str) -> str:
    """What stands between "Inputs: [" and the "]" that closes it; names inside may hold brackets of their own."""
    discover = re.search(rf", {title}: \[(?:\]|(.*?\}})\])(?=, [A-Z]\w*: |$)", rest)
    return (discover[1] or "") if discover else ""


def _types(section: str) -> tuple[str, ...]:
    words = (_TYPE_WORD.search(discover[1]) for discover in _DATATYPE.finditer(section))
    return tuple(_TYPES[word[1].lower()] for word in words if word is not None)


def _precision(inputs: tuple[str, ...], outputs: tuple[str, ...], is_compute: bool) -> str:
    """Arithmetic of a heavy layer is as narrow as its narrowest input; of another, what its first tensor is."""
    if is_compute:
        for kind in _NARROW:
            if kind in inputs:
                return kind
    return next(iter(inputs or outputs), "none")


def fraction_at(layers: Iterable[LayerInfo], precision: str) -> float | None:
    """The share of the heavy layers that run in `precision`, in 0..1; None where the table has no heavy layer."""
    is_compute = [layer for layer in layers if layer.is_compute]
    return sum(layer.precision == precision for layer in is_compute) / len(is_compute) if is_compute else None


def requested_precisions(network: Any) -> dict[str, str]:
    """What the ONNX file asks for: each convolution and matrix product of a parsed network by name, and its precision.

    "int8" or "fp8" needs a Q/DQ pair on both inputs; a pair on one alone is written "int8 on one input".
    """
    makers = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for slot in range(layer.num_outputs):
            makers[layer.get_output(slot).name] = layer
    requested = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name in ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"):
            tensors = [layer.get_input(slot) for slot in range(min(layer.num_inputs, 2))]
            requested[layer.name] = _asked([_source_type(tensor, makers) for tensor in tensors if tensor is not None])
    return requested


def _asked(kinds: list[str]) -> str:
    quantized = [kind for kind in kinds if kind in ("int8", "fp8", "int4", "fp4")]
    if quantized and len(quantized) < len(kinds):
        return f"{quantized[0]} on one input"
    return quantized[0] if quantized else kinds[0]


def _source_type(tensor: Any, makers: Mapping[str, Any]) -> str:
    """The type of a tensor, or of what was dequantized into it (seen through shuffles)."""
    current = tensor
    for _ in range(8):
        maker = makers.get(current.name)
        if maker is None:
            break
        if maker.type.name == "DEQUANTIZE":
            current = maker.get_input(0)
            break
        if maker.type.name not in ("SHUFFLE", "IDENTITY"):
            break
        current = maker.get_input(0)
    name = current.dtype.name.lower() if current is not None else "float"
    kind = _TYPES.get(name, name)
    return kind if kind in _NARROW else _TYPES.get(tensor.dtype.name.lower(), "fp32")


def explain_precision(layers: Iterable[LayerInfo], precision: str, requested: Mapping[str, str]) -> tuple[str, ...]:
    """Sentences that say where the engine does not run in `precision`, and why, as far as the log tells.

    `asked` is what the ONNX file asks for (`network_precisions`).
    """
    table = list(layers)
    is_compute = [layer for layer in table if layer.is_compute]
    if not table:
        return ("The builder's log holds no table of layers: which precision runs is unknown.",)
    said = [_reason(layer, precision, requested) for layer in is_compute if layer.precision != precision]
    if precision in ("int8", "fp8"):
        wide = [x for x in is_compute if x.precision == precision and x.outputs and precision not in x.outputs]
        if wide:
            written = " or ".join(sorted({kind for layer in wide for kind in layer.outputs}))
            said.append(
                f"{len(wide)} of {len(is_compute)} convolutions and matrix products read {precision} but write {written}: "
                "bias, activation and quantization run in a layer of their own after them."
            )
    reformats = [layer for layer in table if "reformat" in layer.type.lower()]
    if reformats:
        said.append(
            f"{len(reformats)} of {len(table)} layers only change the type or the order of a tensor (Reformat)."
        )
    return tuple(said)


def _reason(layer: LayerInfo, precision: str, requested: Mapping[str, str]) -> str:
    names = {re.sub(r"_myl\d+_\d+$", "", part.strip()) for part in layer.name.split("+")}
    wanted = sorted({kind for name, kind in requested.items() if name in names})
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
