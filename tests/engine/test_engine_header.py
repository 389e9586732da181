"""The header of TensorRT-RTX engines: known ones read, foreign and damaged ones refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_edge.engine.inspection import HEADER_BYTES, inspect_engine, parse_header, read_header
from vae_edge.errors import EngineError

# The first 64 bytes of an engine that TensorRT-RTX 1.7.1.116 built for 8.0, 8.6, 8.9 and 12.0; it had 1,024,476 bytes.
KNOWN = bytes.fromhex(
    "76747274 00000000 02000000 00000000 dca10f00 00000000 01070174 76747274"
    "1e000000 00000000 00000000 00000000 00000000 00000000 88460000 00000000"
)
SIZE = 1_024_476


def changed(offset: int, content: bytes) -> bytes:
    return KNOWN[:offset] + content + KNOWN[offset + len(content) :]


def test_a_known_header_says_its_size_version_and_targets() -> None:
    header = parse_header(KNOWN, SIZE)
    assert (header.size, header.version, header.mask) == (SIZE, "1.7.1.116", 0x1E)
    assert header.targets == ("sm_80", "sm_86", "sm_89", "sm_120")
    assert not header.forward_compatible


@pytest.mark.parametrize(
    ("mask", "targets", "later"),
    [(0x01, ("sm_75",), False), (0x38, ("sm_89", "sm_120", "sm_121"), False), (0x60, ("sm_121",), True)],
)
def test_each_bit_is_one_architecture(mask: int, targets: tuple[str, ...], forward_compatible: bool) -> None:
    header = parse_header(changed(32, struct.pack("<I", mask)), SIZE)
    assert header.targets == targets
    assert header.forward_compatible == forward_compatible


@pytest.mark.parametrize(
    ("start", "size", "words"),
    [
        (b"", 0, "has 0 bytes, fewer than the 64"),
        (KNOWN[:63], 63, "has 63 bytes, fewer than the 64"),
        (changed(0, b"ONNX"), SIZE, "is no TensorRT-RTX engine"),
        (changed(28, b"\0\0\0\0"), SIZE, "is no TensorRT-RTX engine"),
        (KNOWN, SIZE - 1, "cut short or damaged"),
        (KNOWN, SIZE + 1, "cut short or damaged"),
        (changed(32, b"\0\0\0\0"), SIZE, "capability mask 0x0"),
        (changed(32, b"\xff\xff\0\0"), SIZE, "capability mask 0xffff"),
    ],
)
def test_short_foreign_and_damaged_headers_are_refused(start: bytes, size: int, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        parse_header(start, size, "x.rtx")


def test_files_are_inspected_and_missing_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "classifier.int8.sm_86.rtx"
    path.write_bytes(changed(16, struct.pack("<Q", 100)) + bytes(36))
    assert read_header(path).size == 100
    told = inspect_engine(path)
    assert told["targets"] == ["sm_80", "sm_86", "sm_89", "sm_120"]
    assert told["kind"] == "tensorrt_rtx"
    assert told["bytes"] == 100
    with pytest.raises(EngineError, match=r"missing\.rtx cannot be read \(No such file"):
        read_header(tmp_path / "missing.rtx")
    with pytest.raises(EngineError, match="it is a folder"):
        read_header(tmp_path)


@given(st.binary(max_size=96))
@settings(max_examples=300, deadline=None)
def test_random_bytes_never_pass_for_an_engine(content: bytes) -> None:
    with pytest.raises(EngineError):
        parse_header(content[:HEADER_BYTES], len(content))
