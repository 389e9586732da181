"""A result on its way home: what belongs to the bundle and is right is added; everything else is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vae_edge
from vae_edge.bundle import Bundle, ModelEntry, add_model, load_bundle
from vae_edge.cli import main
from vae_edge.errors import BundleError, ConfigError
from vae_edge.kit import archive
from vae_edge.kit.archive import write_archive, write_sums
from vae_edge.kit.write import Kit
from vae_edge.runtime.autoselect import recorded_accuracy

ROW = {
    **{"backend": "tensorrt", "precision": "int8", "batch": 1, "p50_us": 91.5, "p90_us": 95.0, "p99_us": 120.0},
    **{"mean_us": 92.0, "images_per_s": 10929.0, "calls": 1000, "peak_memory_bytes": None},
}
FIGURES = {"n": 100, "accuracy": 0.79, "angle_error_deg": {"median": 3.5}, "accepted": 0.97}


@pytest.fixture
def bundle(home: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home.path, tmp_path / "home"))


class Result:
    """An unpacked result, made by hand; `pack` writes it."""

    def __init__(self, kit: Kit, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(kit.path / "bundle", folder / "bundle")
        self.add_engine("int8")
        self.about: dict[str, Any] = {
            "schema": 1,
            "device": "orin-nano",
            "date": "2026-11-26T12:00:00+00:00",
            "failed": {},
            "problems": [],
            "machine": {"cpu": "Cortex"},
            "gpu": {"name": "Orin"},
        }
        self.verdict: dict[str, Any] = {"file": "classifier.int8.sm_87.engine", "right": True, "sentence": "right"}
        self.accuracy = {"here": {"int8": FIGURES}, "at_home": {"fp32": {"accuracy": 0.8}, "int8": {"accuracy": 0.8}}}
        self.benchmark = {"results": [ROW]}

    def add_engine(self, precision: str, **changes: Any) -> None:
        source = load_bundle(self.folder / "bundle").find("classifier", "onnx", precision, "any")
        onnx = {"file": source.file, "sha256": source.sha256, "accuracy": dict(source.accuracy), **changes}
        entry = ModelEntry(
            "classifier", precision, "tensorrt", "sm_87", provenance={"onnx": onnx, "settings": {"tf32": True}}
        )
        (self.folder / "engine").write_bytes(b"an engine of " + precision.encode())
        add_model(self.folder / "bundle", self.folder / "engine", entry)
        (self.folder / "engine").unlink()

    def pack(self, path: Path) -> Path:
        values = {
            "result.json": self.about,
            "verification.json": {"models": [self.verdict]},
            "benchmark.json": self.benchmark,
            "accuracy.json": self.accuracy,
        }
        for name, value in values.items():
            (self.folder / name).write_text(json.dumps(value))
        names = [p.relative_to(self.folder).as_posix() for p in sorted(self.folder.rglob("*")) if p.is_file()]
        write_sums(self.folder, [name for name in names if name != "SHA256SUMS"], "SHA256SUMS")
        write_archive(path, self.folder, "result")
        return path


@pytest.fixture
def result(kit: Kit, tmp_path: Path) -> Result:
    return Result(kit, tmp_path / "unpacked")


def test_the_engine_comes_with_what_was_measured_on_the_device(result: Result, bundle: Path, tmp_path: Path) -> None:
    added = vae_edge.add_result(result.pack(tmp_path / "r.tar.gz"), bundle)
    loaded = load_bundle(bundle)
    entry = loaded.find("classifier", "tensorrt", "int8", "sm_87")
    assert added.files == {"int8": entry.file} and added.verified == {"int8": True}
    assert loaded.file(entry).read_bytes() == b"an engine of int8"
    assert entry.accuracy == {**FIGURES, "fp32_accuracy": 0.8} == recorded_accuracy(entry)
    measured = entry.provenance["measured"]
    assert measured["device"] == "orin-nano" and measured["latency"] == [ROW] and measured["verified"] is True
    assert entry.provenance["settings"] == {"tf32": True}
    assert {m.key for m in loaded.models} == {*(m.key for m in load_bundle(bundle).models)}


def test_adding_twice_changes_nothing_more(result: Result, bundle: Path, tmp_path: Path) -> None:
    path = result.pack(tmp_path / "r.tar.gz")
    vae_edge.add_result(path, bundle)
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    vae_edge.add_result(path, bundle)
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before


def test_without_images_the_accuracy_stays_that_of_the_onnx_file(result: Result, bundle: Path, tmp_path: Path) -> None:
    result.accuracy = {}
    vae_edge.add_result(result.pack(tmp_path / "r.tar.gz"), bundle)
    entry = load_bundle(bundle).find("classifier", "tensorrt", "int8", "sm_87")
    source = load_bundle(bundle).find("classifier", "onnx", "int8", "any")
    assert entry.accuracy == {} and recorded_accuracy(entry) == source.accuracy


def wrong_answers(result: Result) -> None:
    result.verdict |= {"right": False, "sentence": "tensorrt gives wrong answers: score is off"}


def not_verified(result: Result) -> None:
    result.verdict["file"] = "classifier.fp32.sm_87.engine"


def of_another_bundle(result: Result) -> None:
    result.add_engine("int8", sha256="0" * 64)


def no_engine(result: Result) -> None:
    (result.folder / "bundle").rename(result.folder / "was")
    shutil.copytree(result.folder.parent / "kit bundle", result.folder / "bundle")
    shutil.rmtree(result.folder / "was")


def another_schema(result: Result) -> None:
    result.about["schema"] = 2


def no_date(result: Result) -> None:
    del result.about["date"]


def damaged_manifest(result: Result) -> None:
    (result.folder / "bundle" / "manifest.json").write_text("{}")


def swapped_engine(result: Result) -> None:
    (result.folder / "bundle" / "classifier.int8.sm_87.engine").write_bytes(b"another engine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrong_answers, "is not added: tensorrt gives wrong answers: score is off"),
        (not_verified, "its int8 engine was not verified on the device"),
        (of_another_bundle, "is of another bundle: its int8 engine was built from an ONNX file with the SHA-256 0000"),
        (no_engine, "holds no engine: nothing was built"),
        (another_schema, "not a result that this version reads"),
        (no_date, r"lacks \['date'\]"),
        (damaged_manifest, "damaged"),
        (swapped_engine, "should have"),
    ],
)
def test_what_is_wrong_is_refused_and_the_bundle_stays(
    change: Callable[[Result], None], words: str, result: Result, kit: Kit, bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(kit.path / "bundle", tmp_path / "kit bundle")
    change(result)
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    with pytest.raises(BundleError, match=words):
        vae_edge.add_result(result.pack(tmp_path / "r.tar.gz"), bundle)
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before


def test_a_file_that_was_changed_after_packing_is_named(result: Result, bundle: Path, tmp_path: Path) -> None:
    result.pack(tmp_path / "r.tar.gz")
    (result.folder / "benchmark.json").write_text(json.dumps({"results": []}))
    write_archive(tmp_path / "changed.tar.gz", result.folder, "result")
    with pytest.raises(BundleError, match=r"its benchmark\.json was changed or is missing"):
        vae_edge.add_result(tmp_path / "changed.tar.gz", bundle)


def test_a_full_disk_is_a_sentence_and_the_bundle_stays(
    result: Result, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = result.pack(tmp_path / "r.tar.gz")
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/x")

    monkeypatch.setattr(archive, "_copy", full)
    with pytest.raises(BundleError, match=r"cannot be unpacked \(/tmp/x: No space left on device\): nothing was added"):
        vae_edge.add_result(path, bundle)
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before


def test_a_path_that_is_no_result_or_no_bundle_is_a_sentence(result: Result, bundle: Path, tmp_path: Path) -> None:
    path = result.pack(tmp_path / "r.tar.gz")
    with pytest.raises(BundleError, match="There is no result of a kit at"):
        vae_edge.add_result(tmp_path / "none.tar.gz", bundle)
    with pytest.raises(BundleError, match="is not there"):
        vae_edge.add_result(path, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="is a file: give a folder"):
        vae_edge.add_result(path, path)


def test_the_command_prints_where_the_engine_is_and_what_was_measured(
    result: Result, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = result.pack(tmp_path / "r.tar.gz")
    assert main(["kit", str(path), "--into", str(bundle)]) == 0
    shown = capsys.readouterr().out
    for words in ("classifier.int8.sm_87.engine: built and verified on orin-nano", "91.5", "79.00%", "3.5 deg"):
        assert words in shown
    result.about["failed"] = {"fp16": "TensorRT ran out of memory."}
    assert main(["kit", str(result.pack(path)), "--into", str(bundle), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failed"] == {"fp16": "TensorRT ran out of memory."}
    assert main(["kit", str(tmp_path / "none"), "--into", str(bundle)]) == 2
    assert "There is no result of a kit" in capsys.readouterr().err
