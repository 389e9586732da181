"""The document about limits says what the code refuses."""

from __future__ import annotations

import re
from pathlib import Path

from vae_edge import limits

DOCUMENT = (Path(__file__).parents[1] / "docs" / "limits.md").read_text(encoding="utf-8")
_UNITS = {"MiB": 20, "GiB": 30}


def row(beginning: str) -> str:
    """What stands in the second column of the row that begins so."""
    found = re.search(rf"^\| {re.escape(beginning)}[^|]*\|([^|]*)\|", DOCUMENT, re.MULTILINE)
    assert found is not None, beginning
    return found[1]


def test_sizes_in_the_document_are_those_of_the_code() -> None:
    sizes = {
        "manifest": limits.MAX_MANIFEST_BYTES,
        "`auto.json`": limits.MAX_RECORD_BYTES,
        "other JSON": limits.MAX_JSON_BYTES,
        "ONNX file": limits.MAX_MODEL_BYTES,
        "checkpoint": limits.MAX_CHECKPOINT_BYTES,
        "image file": limits.MAX_IMAGE_BYTES,
        "arrays": limits.MAX_ARRAY_BYTES,
        "probe images": limits.MAX_PROBE_BYTES,
        "`vae-edge verify`": limits.MAX_VERIFY_BYTES,
    }
    for name, size in sizes.items():
        number, unit = re.search(r"(\d+) (MiB|GiB)", row(name)).groups()  # type: ignore[union-attr]
        assert int(number) << _UNITS[unit] == size, name
    assert limits.MAX_TEXT_BYTES == limits.MAX_MANIFEST_BYTES


def test_numbers_in_the_document_are_those_of_the_code() -> None:
    numbers = {
        "classes": [limits.MAX_CLASSES],
        "name of a class": [limits.MAX_NAME],
        "models": [limits.MAX_MODELS],
        "side": [limits.MAX_INPUT_SIZE],
        "`widths`": [limits.MAX_BLOCKS, limits.MAX_WIDTH],
        "latent": [limits.MAX_WIDTH, limits.MAX_HIDDEN, limits.MAX_ANGLE_BINS],
        "ONNX file": [limits.MAX_NODES, limits.MAX_TENSORS, limits.MAX_RANK],
        "image": [limits.MAX_IMAGE_BYTES >> 30],
        "probe images": [limits.MAX_PROBES],
        "`vae-edge verify`": [int(limits.MAX_VERIFY_SECONDS)],
    }
    for name, values in numbers.items():
        for value in values:
            assert re.search(rf"(?<![\d,]){value:,}(?![\d,]*\d)", row(name)), (name, value)
    for name, value in {
        "a tensor": limits.MAX_ELEMENTS,
        "all tensors": limits.MAX_TOTAL_ELEMENTS,
        "multiplications": limits.MAX_OPERATIONS,
    }.items():
        assert f"2^{value.bit_length() - 1}" in row(name) and value & (value - 1) == 0
    assert f"{limits.MAX_PIXELS // 10**6} million pixels, {limits.MAX_LINES // 10**6} million lines" in DOCUMENT
    assert f"nested {limits.MAX_JSON_DEPTH} deep" in DOCUMENT
