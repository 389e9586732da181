"""The document about limits says what the code refuses."""

from __future__ import annotations

import re
from pathlib import Path

from vae_edge import spec

DOCUMENT = (Path(__file__).parents[1] / "docs" / "limits.md").read_text(encoding="utf-8")
_UNITS = {"MiB": 20, "GiB": 30}


def row(beginning: str) -> str:
    """What stands in the second column of the row that begins so."""
    found = re.search(rf"^\| {re.escape(beginning)}[^|]*\|([^|]*)\|", DOCUMENT, re.MULTILINE)
    assert found is not None, beginning
    return found[1]


def test_sizes_in_the_document_are_those_of_the_code() -> None:
    sizes = {
        "manifest": spec.MAX_MANIFEST_BYTES,
        "`auto.json`": spec.MAX_RECORD_BYTES,
        "other JSON": spec.MAX_JSON_BYTES,
        "ONNX file": spec.MAX_MODEL_BYTES,
        "checkpoint": spec.MAX_CHECKPOINT_BYTES,
        "image file": spec.MAX_IMAGE_BYTES,
        "arrays": spec.MAX_ARRAY_BYTES,
        "table of groups": spec.MAX_TABLE_BYTES,
        "probe images": spec.MAX_PROBE_BYTES,
        "result of a kit": spec.MAX_RESULT_BYTES,
        "`vae-edge verify`": spec.MAX_VERIFY_BYTES,
    }
    for name, size in sizes.items():
        number, unit = re.search(r"(\d+) (MiB|GiB)", row(name)).groups()  # type: ignore[union-attr]
        assert int(number) << _UNITS[unit] == size, name
    assert spec.MAX_TEXT_BYTES == spec.MAX_MANIFEST_BYTES


def test_numbers_in_the_document_are_those_of_the_code() -> None:
    numbers = {
        "classes": [spec.MAX_CLASSES],
        "name of a class": [spec.MAX_NAME],
        "models": [spec.MAX_MODELS],
        "height and width": [spec.MAX_INPUT_SIZE, spec.MIN_SIZE, spec.MAX_SIZE],
        "`widths`": [spec.MAX_BLOCKS, spec.MAX_WIDTH],
        "latent": [spec.MAX_WIDTH, spec.MAX_HIDDEN, spec.MAX_ANGLE_BINS],
        "ONNX file": [spec.MAX_NODES, spec.MAX_TENSORS, spec.MAX_RANK],
        "image": [spec.MAX_IMAGE_BYTES >> 30],
        "probe images": [spec.MAX_PROBES],
        "result of a kit": [spec.MAX_RESULT_FILES],
        "`vae-edge verify`": [int(spec.MAX_VERIFY_SECONDS)],
    }
    for name, values in numbers.items():
        for value in values:
            assert re.search(rf"(?<![\d,]){value:,}(?![\d,]*\d)", row(name)), (name, value)
    for name, value in {
        "a tensor": spec.MAX_ELEMENTS,
        "all tensors": spec.MAX_TOTAL_ELEMENTS,
        "multiplications": spec.MAX_OPERATIONS,
    }.items():
        assert f"2^{value.bit_length() - 1}" in row(name) and value & (value - 1) == 0
    assert f"{spec.MAX_PIXELS // 10**6} million pixels, {spec.MAX_LINES // 10**6} million lines" in DOCUMENT
    assert f"nested {spec.MAX_JSON_DEPTH} deep" in DOCUMENT
