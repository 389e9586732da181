"""What a network file of the native library is, read without the library: architectures, precision, classes, sizes.

`vae_edge_kernels.aot.network_file` writes such files and describes them; the names of their tensors and keys are those
of the first version. This reader refuses what the library refuses, but for the machine code and the values of the
weights, which it does not look at.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_edge import files
from vae_edge.errors import EngineError
from vae_edge.spec import Size, as_size, height_and_width

FORMATS = ("vae-edge-network-3", "vae-edge-network-2")
"""What the library reads. In the second, that of before, the digest leaves the header out."""
MAX_FILE_BYTES = 256 << 20  # this and what follows: as vae_edge.h has it
MAX_HEADER_BYTES = 64 << 10
MAX_DESCRIPTION_BYTES = 8 << 20
MAX_CLASSES = 4096
MAX_CLASS_NAME_BYTES = 1024
MAX_SIDE = 1024
MAX_CHANNELS = 4
MAX_SCRATCH_BYTES = 16 << 20

_PREFIX = 8  # bytes that hold the header's length
_DTYPES = {"U8": 1, "I8": 1, "F16": 2, "F32": 4}
_PRECISIONS = {"F16": "fp16", "I8": "int8"}
_DIGEST = re.compile("[0-9a-f]{64}")
_BUFFERS = {"weights": ("F16", "I8"), "numbers": ("F32",), "whitenings": ("F16",)}
_CODE_TENSOR = re.compile(r"(cubin|spread)\.([1-9]\d{1,2})")
_CODE_LINE = re.compile(r"(kernel|spread)\.([1-9]\d{1,2})")
_CODE_VALUE = re.compile(r"[!-~]+ (\d{1,10}) (\d{1,10}) (\d{1,10})")
_CLASS_LINE = re.compile(r"class\.(0|[1-9]\d{0,3})")
_NUMBERS = {
    "side": (1, MAX_SIDE),
    "channels": (1, MAX_CHANNELS),
    "classes": (2, MAX_CLASSES),
    "has_angle": (0, 1),
    "threshold_bits": (0, 2**32 - 1),
    "area_bytes": (1, MAX_SCRATCH_BYTES),
    "floats": (1, MAX_SCRATCH_BYTES // 4),
    **{f"{name}_bytes": (1, MAX_FILE_BYTES) for name in _BUFFERS},
}
"""Numbers of the description, each of which stands once, and their limits. `side` is the height."""
_OPTIONAL_NUMBERS = {"width": (1, MAX_SIDE)}
"""Only where images are not square. A library that does not know it refuses the file."""


@dataclass(frozen=True)
class NetworkFile:
    """A network file.

    Attributes:
        file: its path.
        format: one of `FORMATS`.
        bytes, digest: of the file; the digest is the one that it carries, which was compared.
        precision: "fp16" or "int8".
        targets: architectures that it has machine code for, such as "sm_87".
        ctas_per_image: by architecture, how many CTAs work on an image where the file has machine code with several.
        size, channels: of the images; the size as in `vae_edge.spec`.
        classes: names.
        threshold: a score up to it is accepted.
        has_angle: whether the network estimates the orientation.
        tensors: sizes in bytes by name.
        slot_bytes: memory on the GPU for each image that is worked on at a time.
    """

    file: str
    format: str
    bytes: int
    digest: str
    precision: str
    targets: tuple[str, ...]
    ctas_per_image: Mapping[str, int]
    size: Size
    channels: int
    classes: tuple[str, ...]
    threshold: float
    has_angle: bool
    tensors: Mapping[str, int]
    slot_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge inspect` prints it."""
        return {
            "file": self.file,
            "format": self.format,
            "bytes": self.bytes,
            "digest": self.digest,
            "precision": self.precision,
            "targets": list(self.targets),
            "ctas_per_image": dict(self.ctas_per_image),
            "image": [*height_and_width(self.size), self.channels],
            "classes": list(self.classes),
            "threshold": self.threshold,
            "has_angle": self.has_angle,
            "tensors": dict(self.tensors),
            "slot_bytes": self.slot_bytes,
        }


class _Damaged(Exception):
    """Why a file is refused, as the end of a sentence."""


def read_network_file(path: str | os.PathLike[str]) -> NetworkFile:
    """Read a network file and verify its digest, its header and its description.

    Raises:
        EngineError: it cannot be read, is no network file, of another version, or damaged.
    """
    try:
        content = files.read_bytes(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise EngineError(f"The network file {path} cannot be read ({error}): check the path.") from error
    try:
        return _read(str(path), content)
    except (_Damaged, UnicodeDecodeError) as error:
        raise EngineError(
            f"{path} is not a whole network file: {error}; build it again, with `vae-edge build BUNDLE --kind native`."
        ) from error


def _read(name: str, content: bytes) -> NetworkFile:
    if len(content) < _PREFIX:
        raise _Damaged(f"it has {len(content)} bytes")
    (length,) = struct.unpack_from("<Q", content)
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(content) - _PREFIX):
        raise _Damaged(f"its header would have {length} bytes")
    start = _PREFIX + length
    try:
        header = files.parse_json(content[_PREFIX:start])
    except ValueError as error:
        raise _Damaged(f"its header is not JSON ({error})") from error
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or "format" not in metadata:
        raise _Damaged("its header says no format")
    if metadata["format"] not in FORMATS:
        raise _Damaged(
            f"its format is {str(metadata['format'])[:40]!r}, and this version reads {' and '.join(FORMATS)}"
        )
    if set(metadata) != {"format", "sha256"}:
        raise _Damaged("its metadata are not a format and a SHA-256")
    tensors = _tensors(header, len(content) - start)
    _check_digest(content, start, metadata["format"], metadata["sha256"])

    about = tensors.get("about", ("", 0, 0))
    if about[0] != "U8" or about[2] - about[1] > MAX_DESCRIPTION_BYTES:
        raise _Damaged("its description is missing, of another type, or too long")
    numbers, classes, lines = _description(content[start + about[1] : start + about[2]].decode())
    for buffer, dtypes in _BUFFERS.items():
        dtype, first, end = tensors.get(buffer, ("", 0, 0))
        if dtype not in dtypes or end - first != numbers[f"{buffer}_bytes"]:
            raise _Damaged(f"its tensor {buffer} is missing, of another type or of another size")
    single, multi_cta = _machine_code(tensors, lines)
    return NetworkFile(
        file=name,
        format=metadata["format"],
        bytes=len(content),
        digest=metadata["sha256"],
        precision=_PRECISIONS[tensors["weights"][0]],
        targets=tuple(f"sm_{number}" for number in sorted(single)),
        ctas_per_image={f"sm_{number}": multi_cta[number] for number in sorted(multi_cta)},
        size=as_size(numbers["side"], numbers.get("width", numbers["side"])),
        channels=numbers["channels"],
        classes=classes,
        threshold=_threshold(numbers["threshold_bits"]),
        has_angle=bool(numbers["has_angle"]),
        tensors={tensor: end - first for tensor, (_, first, end) in tensors.items()},
        slot_bytes=numbers["area_bytes"] + 4 * numbers["floats"],
    )


def _tensors(header: Mapping[str, Any], size: int) -> dict[str, tuple[str, int, int]]:
    """Dtype, start and end of each tensor, one behind the other and without gaps."""
    found: dict[str, tuple[str, int, int]] = {}
    at = 0
    for name, entry in header.items():
        if name not in (*_BUFFERS, "about") and not _CODE_TENSOR.fullmatch(name):
            raise _Damaged(f"it has a tensor {name[:40]!r}, which the format does not know")
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise _Damaged(f"its tensor {name} has other keys than dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in _DTYPES or not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
            raise _Damaged(f"its tensor {name} has a dtype, shape or offsets that there cannot be")
        if offsets[0] != at or offsets[1] - at != math.prod(shape) * _DTYPES[dtype] or offsets[1] > size:
            raise _Damaged(f"its tensor {name} does not lie right behind the one before it, inside the file")
        at = offsets[1]
        found[name] = (dtype, offsets[0], offsets[1])
    if at != size:
        raise _Damaged(f"its tensors have {at} bytes, and {size} are there")
    return found


def _is_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_FILE_BYTES for value in values)


def _check_digest(content: bytes, start: int, version: str, digest: object) -> None:
    """The digest is of the file with 64 zeros in the digest's place; before, of what is behind the header."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise _Damaged("its header has no SHA-256")
    computed = hashlib.sha256()
    if version == FORMATS[0]:
        computed.update(content[:start].replace(digest.encode(), b"0" * 64))
    computed.update(memoryview(content)[start:])
    if digest != computed.hexdigest():
        raise _Damaged(f"its SHA-256 is {computed.hexdigest()}, and its header says {digest}")


def _description(text: str) -> tuple[dict[str, int], tuple[str, ...], dict[str, str]]:
    """Numbers by key, class names, and the lines about machine code by key."""
    numbers: dict[str, int] = {}
    names: dict[int, str] = {}
    codes: dict[str, str] = {}
    if not text.endswith("\n") or "\0" in text:
        raise _Damaged("its description has a zero byte, or does not end with a line break")
    for line in text[:-1].split("\n"):
        key, equals, value = line.partition("=")
        if not equals:
            raise _Damaged(f"a line of its description is not key=value: {line[:40]!r}")
        if key in _NUMBERS or key in _OPTIONAL_NUMBERS:
            _put(numbers, key, key, _number(key, value))
        elif match := _CLASS_LINE.fullmatch(key):
            if not 1 <= len(value.encode()) <= MAX_CLASS_NAME_BYTES:
                raise _Damaged(f"the name of class {match[1]} is empty or too long")
            _put(names, int(match[1]), key, value)
        elif _CODE_LINE.fullmatch(key):
            _put(codes, key, key, value)
        else:
            raise _Damaged(f"its description has a key that the format does not know: {key[:40]!r}")
    missing = _NUMBERS.keys() - numbers.keys()
    if missing:
        raise _Damaged(f"its description lacks {', '.join(sorted(missing))}")
    if set(names) != set(range(numbers["classes"])):
        raise _Damaged(f"it names {len(names)} classes and says that it has {numbers['classes']}")
    return numbers, tuple(names[k] for k in sorted(names)), codes


def _put(values: dict[Any, Any], index: Any, key: str, value: Any) -> None:
    if index in values:
        raise _Damaged(f"a key of its description stands twice: {key!r}")
    values[index] = value


def _number(key: str, value: str) -> int:
    low, high = _NUMBERS[key] if key in _NUMBERS else _OPTIONAL_NUMBERS[key]
    if not re.fullmatch(r"[0-9]{1,10}", value) or not low <= int(value) <= high:
        raise _Damaged(f"{key!r} must be a number from {low} to {high}, and is {value[:40]!r}")
    return int(value)


def _threshold(bits: int) -> float:
    threshold = float(np.uint32(bits).view(np.float32))
    if not math.isfinite(threshold):
        raise _Damaged("its threshold is not a finite number")
    return threshold


def _machine_code(
    tensors: Mapping[str, tuple[str, int, int]], lines: Mapping[str, str]
) -> tuple[dict[int, int], dict[int, int]]:
    """CTAs an image by architecture: of the machine code with one, and of that with several."""
    found: dict[str, dict[int, int]] = {"kernel": {}, "spread": {}}
    limits: dict[str, Callable[[int], bool]] = {
        "kernel": lambda ctas: ctas == 1,
        "spread": lambda ctas: ctas in (2, 4, 8, 16, 32),
    }
    for key, value in lines.items():
        kind, number = key.split(".")
        match = _CODE_VALUE.fullmatch(value)
        if match is None or not 1 <= int(match[1]) <= 32 or not limits[kind](int(match[3])):
            raise _Damaged(f"{key!r} should be an entry, warps, bytes and CTAs, and is {value[:40]!r}")
        tensor = tensors.get(f"{'cubin' if kind == 'kernel' else kind}.{number}")
        if tensor is None or tensor[0] != "U8":
            raise _Damaged(f"the machine code of {key!r} is missing")
        found[kind][int(number)] = int(match[3])
    if sum(map(len, found.values())) != sum(_CODE_TENSOR.fullmatch(name) is not None for name in tensors):
        raise _Damaged("it has machine code that no line describes")
    if not found["kernel"]:
        raise _Damaged("it has machine code for no architecture")
    return found["kernel"], found["spread"]


def with_threshold(path: str | os.PathLike[str], threshold: float) -> bytes | None:
    """The bytes of a network file with another threshold; None if its digits have no room for that.

    Leading zeros keep the length of the file. All but a threshold below 0.0047 has ten digits.

    Raises:
        EngineError: as `read_network_file`.
    """
    found = read_network_file(path)
    content = bytearray(files.read_bytes(path, MAX_FILE_BYTES))
    start = _PREFIX + struct.unpack_from("<Q", content)[0]
    names = list(found.tensors)
    about = start + sum(found.tensors[name] for name in names[: names.index("about")])
    line = re.compile(rb"(?:\A|(?<=\n))threshold_bits=([0-9]+)\n")
    digits = line.search(bytes(content[about : about + found.tensors["about"]]))
    assert digits is not None  # as read_network_file saw
    new = b"%d" % int(np.float32(threshold).view(np.uint32))
    first, end = about + digits.start(1), about + digits.end(1)
    if len(new) > end - first:
        return None
    content[first:end] = new.rjust(end - first, b"0")

    at = content.index(found.digest.encode())
    content[at : at + 64] = b"0" * 64
    hashed = content if found.format == FORMATS[0] else memoryview(content)[start:]
    content[at : at + 64] = hashlib.sha256(hashed).hexdigest().encode()
    return bytes(content)
