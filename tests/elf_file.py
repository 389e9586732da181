"""A shared library of some hundred bytes, with nothing in it but the names of the libraries that it needs."""

from __future__ import annotations

import struct

AARCH64 = 183
ADDRESS = 0x10000  # where the file is loaded


def shared_library(needed: tuple[str, ...]) -> bytes:
    """An ELF-64 file for aarch64 with one loaded segment and a dynamic section."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    offsets = [strings.index(b"\0" + name.encode() + b"\0") + 1 for name in needed]
    start = 64 + 2 * 56
    dynamic = b"".join(struct.pack("<QQ", 1, offset) for offset in offsets)
    size = len(dynamic) + 3 * 16
    dynamic += struct.pack("<QQQQQQ", 5, ADDRESS + start + size, 10, len(strings), 0, 0)
    total = start + size + len(strings)

    identity = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    header = struct.pack("<HHIQQQIHHHHHH", 3, AARCH64, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 4, 0, ADDRESS, ADDRESS, total, total, 0x10000)
    section = struct.pack("<IIQQQQQQ", 2, 4, start, ADDRESS + start, ADDRESS + start, size, size, 8)
    return identity + header + load + section + dynamic + strings
