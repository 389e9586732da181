"""The header of a TensorRT-RTX engine: 64 bytes that tell its size, version and architectures, without a driver.

The layout is not documented. It was deduced from engines of TensorRT-RTX 1.7 whose targets were known; the tests build
such engines and compare. Little-endian:

    0   "vtrt"            4 bytes
    16  size of the file  u64
    24  version           4 bytes: major, minor, patch, build
    28  "vtrt"            4 bytes
    32  capability mask   u32: bit 0 is 7.5, 1 is 8.0, 2 is 8.6, 3 is 8.9, 4 is 12.0, 5 is 12.1, 6 is anything later
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

from vae_edge import files
from vae_edge.errors import EngineError

HEADER_BYTES = 64
MAGIC = b"vtrt"
CAPABILITY_BITS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
_LATER = 1 << len(CAPABILITY_BITS)


@dataclass(frozen=True)
class Header:
    """What a TensorRT-RTX engine says of itself."""

    size: int
    version: str
    mask: int

    @property
    def targets(self) -> tuple[str, ...]:
        """The architectures that the engine claims to run on."""
        return tuple(name for bit, name in enumerate(CAPABILITY_BITS) if self.mask >> bit & 1)

    @property
    def later(self) -> bool:
        """Whether it claims architectures later than those that have a bit of their own."""
        return bool(self.mask & _LATER)


def parse_header(start: bytes, size: int, name: str = "the engine") -> Header:
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
    return Header(size=size, version=".".join(str(byte) for byte in start[24:28]), mask=mask)


def read_header(path: str | os.PathLike[str]) -> Header:
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
        "later": header.later,
    }
