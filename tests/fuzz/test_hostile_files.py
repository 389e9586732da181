"""Files that are no files, that change meanwhile, or that ask for too much: each a sentence, at once."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

import vae_edge
from vae_edge import probes
from vae_edge.bundle import ModelEntry, add_model, create_bundle, load_bundle
from vae_edge.cli import main
from vae_edge.data.arrays import load_npz, read_idx
from vae_edge.engine.inspection import inspect_engine
from vae_edge.errors import BackendError, BundleError, DataError, VaeEdgeError
from vae_edge.preprocess import InputSpec, open_image
from vae_edge.runtime import verification
from vae_edge.runtime.backends import LoadOptions
from vae_edge.runtime.entries import open_classifier

pytestmark = pytest.mark.timeout(120)

KINDS = ("pipe", "zero", "folder", "socket", "link to nothing", "link to itself")


def make_special(path: Path, kind: str) -> None:
    """Put something that is no regular file at `path`."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        import socket

        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path may have a hundred bytes
        socket.socket(socket.AF_UNIX).bind(path.name)
        os.chdir(here)
    else:
        path.symlink_to({"zero": "/dev/zero", "link to nothing": "nothing", "link to itself": path.name}[kind])


def device_readers() -> dict[str, Callable[[Path], Any]]:
    return {
        "image": open_image,
        "npz": load_npz,
        "idx": lambda path: read_idx(path, (3,)),
        "probes": probes.load,
        "engine": inspect_engine,
    }


def training_readers() -> dict[str, Callable[[Path], Any]]:
    pytest.importorskip("torch")
    from vae_edge.experiments.comparison import read_trial
    from vae_edge.exporting.bundle import load_onnx
    from vae_edge.training.checkpoint import read_tensors

    return {"onnx": load_onnx, "tensors": read_tensors, "trial": read_trial}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("readers", [device_readers, training_readers])
def test_what_is_no_file_is_a_sentence_that_names_it(
    tmp_path: Path, kind: str, readers: Callable[[], dict[str, Callable[[Path], Any]]]
) -> None:
    path = tmp_path / "x"
    make_special(path, kind)
    for read in readers().values():
        with pytest.raises(VaeEdgeError, match=str(path)):
            read(path)


@pytest.mark.parametrize("name", ["manifest.json", "classifier.fp32.onnx"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_with_what_is_no_file_is_a_sentence(small_bundle: Path, name: str, kind: str) -> None:
    (small_bundle / name).unlink()
    make_special(small_bundle / name, kind)
    with pytest.raises(BundleError, match="bundle"):
        vae_edge.load(small_bundle)
    assert main(["inspect", str(small_bundle)]) == 2


RECORDS = {
    "NaN": b'{"schema": 1, "records": [{"key": {}, "backend": NaN, "precision": 1}]}',
    "a lone surrogate": b'{"schema": 1, "records": [{"key": {}, "backend": "\\ud800", "precision": ""}]}',
    "a key that is no object": b'{"schema": 1, "records": [{"key": 5, "backend": [], "precision": {}, "right": ""}]}',
    "no records": b'{"schema": 1, "records": 7}',
    "a list": b"[[[]]]",
    "nesting": b"[" * 100_000,
    "no UTF-8": b"\xff\xfe\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("what", [*RECORDS, *KINDS])
@pytest.mark.parametrize("name", ["auto.json", "verified.json"])
def test_records_that_are_damaged_are_healed_by_the_next_load(small_bundle: Path, name: str, what: str) -> None:
    path = small_bundle / name
    if what in RECORDS:
        path.write_bytes(RECORDS[what])
    else:
        make_special(path, what)
    with vae_edge.load(small_bundle) as classifier:
        assert len(classifier(np.zeros((1, 28, 28, 1), np.uint8))) == 1
    if name == "auto.json" and what != "folder":
        assert path.is_file() and not path.is_symlink() and json.loads(path.read_bytes())["records"][0]["backend"]


REWRITE = """
    import sys, time
    from vae_edge.bundle import ModelEntry, create_bundle
    from vae_edge.preprocess import InputSpec
    folder, models = sys.argv[1], sys.argv[2:]
    end, turn = time.monotonic() + 60, 0
    while time.monotonic() < end:
        turn += 1
        create_bundle(folder, name=f"turn {turn % 2}", classes=[str(k) for k in range(10)], input=InputSpec(28, 1),
                      threshold=float(turn % 2), reject_rate=0.01,
                      models=[(models[turn % 2], ModelEntry("classifier", "fp32", opset=20))])
"""


def test_a_load_during_a_rewrite_sees_the_old_or_the_new_bundle(
    small_bundle: Path, tmp_path: Path, model_file: Path
) -> None:
    other = onnx.load(model_file)
    other.producer_name = "another"
    onnx.save(other, tmp_path / "other.onnx")
    create_bundle(
        small_bundle, name="turn 0", classes=[str(k) for k in range(10)], input=InputSpec(28, 1), threshold=0.0,
        reject_rate=0.01, models=[(model_file, ModelEntry("classifier", "fp32", opset=20))],
    )  # fmt: skip
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(REWRITE),
        str(small_bundle),
        str(model_file),
        str(tmp_path / "other.onnx"),
    ]
    writer = subprocess.Popen(command)
    seen = set()
    try:
        began = time.monotonic()
        loads = 0
        while loads < 3000 and time.monotonic() - began < 8:
            bundle = load_bundle(small_bundle)
            seen.add((bundle.name, bundle.threshold))
            if loads % 10 == 0:
                vae_edge.load(small_bundle, "onnxruntime", "fp32", verify="off").close()
            loads += 1
    finally:
        writer.kill()
        writer.wait()
    assert loads > 50
    assert seen == {("turn 0", 0.0), ("turn 1", 1.0)}


def test_a_model_that_was_changed_after_it_was_verified_is_not_run(small_bundle: Path) -> None:
    bundle = load_bundle(small_bundle)
    path = bundle.file(bundle.find())
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Relu", b"Tanh"))
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(BundleError, match="was changed while it was loaded"):
            open_classifier(bundle, backend, "fp32", LoadOptions())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_an_error(
    small_bundle: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float
) -> None:
    model = onnx.load(model_file)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(4, value, np.float32), "bias"))
    onnx.save(model, tmp_path / "nan.onnx")
    add_model(small_bundle, tmp_path / "nan.onnx", ModelEntry("classifier", "fp32", opset=20))
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "a.png")
    with vae_edge.load(small_bundle, "onnxruntime", "fp32") as classifier, pytest.raises(BackendError, match="NaN or"):
        classifier(np.zeros((2, 28, 28, 1), np.uint8))
    for more in ([], ["--json"]):
        command = [
            "predict",
            str(small_bundle),
            str(tmp_path / "a.png"),
            "--backend",
            "onnxruntime",
            "--precision",
            "fp32",
        ]
        assert main([*command, *more]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and "NaN or infinite" in printed.err.replace("\n", " ")


def test_verifying_ends_in_bounded_time_and_memory(small_bundle: Path) -> None:
    found = verification.verify_in_subprocess(small_bundle, ["onnxruntime"])
    assert found.models == vae_edge.verify(small_bundle, ["onnxruntime"]).models
    with pytest.raises(BackendError, match=r"ended after 0\.05 s"):
        verification.verify_in_subprocess(small_bundle, ["onnxruntime"], seconds=0.05)
    with pytest.raises(BackendError, match="MiB"):
        verification.verify_in_subprocess(small_bundle, ["onnxruntime"], max_bytes=1 << 20)
    with pytest.raises(BundleError, match="is not there"):
        verification.verify_in_subprocess(small_bundle / "no", ["onnxruntime"])


def test_many_classes_are_checked_quickly_and_too_many_refused(small_bundle: Path) -> None:
    path = small_bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    manifest["classes"] = [f"class {k}" for k in range(60_000)]
    path.write_text(json.dumps(manifest))
    began = time.monotonic()
    assert len(load_bundle(small_bundle).classes) == 60_000
    assert time.monotonic() - began < 5
    for classes, says in (
        ([str(k) for k in range(70_000)], "at most 65536 names"),
        (["x" * 2000, "y"], "at most 1024 characters"),
        (["a", "b", "a"], "the same class twice"),
    ):
        path.write_text(json.dumps({**manifest, "classes": classes}))
        with pytest.raises(BundleError, match=says):
            load_bundle(small_bundle)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("input", "size"), 513, "from 1 to 512"),
        (("input", "size"), 10**6, "from 1 to 512"),
        (("name",), "x" * 2000, "at most 1024"),
        (("models", 0, "opset"), 10**6, "0 to 1000"),
        (("score", "threshold"), 10**400, "64 bits"),
        (("data",), [[]], "an object"),
        (("data", "absent"), 5, "a list of names"),
        (("data", "brightness"), {"mean": [1, 2], "largest": [1, 2, 3]}, "three numbers"),
        (("data", "holdout_fraction"), 7, "a fraction"),
    ],
)
def test_a_manifest_beyond_the_limits_is_refused(
    small_bundle: Path, place: tuple[Any, ...], value: object, says: str
) -> None:
    path = small_bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    part = manifest
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=says):
        load_bundle(small_bundle)


def png(width: int, height: int, rows: bytes, interlaced: bool = False) -> bytes:
    """A grey PNG of these (filtered) rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def early_jpeg() -> bytes:
    """A JPEG whose end marker comes after a third of its data."""
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(buffer, "JPEG")
    content = buffer.getvalue()
    start = content.index(b"\xff\xda")
    return content[: start + (len(content) - start) // 3] + b"\xff\xd9"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (png(28, 28, bytes(29 * 10)), "290 of the 812 bytes"),
        (png(8, 8, bytes(78), interlaced=True), "does not decode"),
        (early_jpeg(), "ends before its last row"),
        (png(1, 60_000_000, bytes(10)), "million lines"),
        (png(60_000_000, 2, bytes(10)), "million pixels"),
    ],
    ids=["rows", "interlaced", "jpeg", "tall", "wide"],
)
def test_images_that_are_not_all_there_or_too_large_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=says):
        open_image(tmp_path / "a")


def test_images_that_are_all_there_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(png(8, 8, bytes(79), interlaced=True))
    assert np.asarray(open_image(path)).sum() == 0
    path.write_bytes(png(28, 28, bytes(29 * 28)))
    assert open_image(path).size == (28, 28)
    for size in ((28, 28), (33, 17), (5, 64)):
        for options in ({}, {"progressive": True}, {"quality": 5}):
            flat = np.full((size[1], size[0], 3), 200, np.uint8)
            Image.fromarray(flat).save(path, "JPEG", **options)
            assert np.ptp(np.asarray(open_image(path))) == 0


def test_an_archive_that_unpacks_to_more_than_there_is_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, images=np.zeros((5000, 28, 28), np.uint8), labels=np.zeros(5000, np.int64))
    assert len(load_npz(path).train) == 5000
    monkeypatch.setattr("vae_edge.data.arrays.max_read_bytes", lambda: 1 << 20)
    with pytest.raises(DataError, match=r"promises 392\d+ bytes"):
        load_npz(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("images.npy", b"x")
    with pytest.raises(DataError, match="only stored and deflated"):
        load_npz(path)


def test_a_full_disk_under_standard_output_is_one_sentence(small_bundle: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "vae_edge", "inspect", str(small_bundle), "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("vae-edge: standard output") and "No space left" in done.stderr
    assert len(done.stderr.splitlines()) == 1
