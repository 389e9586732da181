"""The bundle: what is verified, what is refused, and what stands after a crash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vae_edge
from vae_edge import files
from vae_edge.bundle import Bundle, ModelEntry, add_model, create_bundle, load_bundle
from vae_edge.bundle_schema import AUTO_FILE, MANIFEST_FILE
from vae_edge.errors import BundleError
from vae_edge.preprocess import InputSpec

FP32 = ModelEntry("classifier", "fp32", opset=20, accuracy={"accuracy": 0.97, "n": 1000})
INT8 = ModelEntry("classifier", "int8", opset=20)


def source(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def make(path: Path, content: bytes = b"fp32 model", **other: Any) -> Bundle:
    file = source(path.parent, "source.onnx", content)
    values: dict[str, Any] = {
        "name": "test",
        "classes": ("a", "b"),
        "input": InputSpec(size=28, channels=1, background="dark"),
        "threshold": 1.5,
        "reject_rate": 0.05,
        "rotation": "full",
        "data": {"name": "digits", "seed": 0},
        "models": [(file, FP32)],
    }
    return create_bundle(path, **{**values, **other})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make(tmp_path / "bundle")


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle.path / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_what_was_written_is_read_back(bundle: Bundle) -> None:
    again = load_bundle(bundle.path)
    assert again == bundle
    assert (again.name, again.classes, again.rotation) == ("test", ("a", "b"), "full")
    assert again.input == InputSpec(size=28, channels=1, background="dark")
    assert (again.threshold, again.reject_rate) == (1.5, 0.05)
    assert again.manifest["vae_edge"] == vae_edge.__version__
    entry = again.find("classifier", precision="fp32")
    assert again.file(entry).read_bytes() == b"fp32 model"
    assert (entry.bytes, entry.sha256) == (10, hashlib.sha256(b"fp32 model").hexdigest())
    assert entry.accuracy == {"accuracy": 0.97, "n": 1000}


@pytest.mark.parametrize(
    "spec",
    [InputSpec(28, 1, "light", 0.7, "foreground", 12), InputSpec(64, 3, "none"), InputSpec(64, 3, "dark", 0.5, "pad")],
    ids=["grey drawings of 12 bits", "photographs", "padded drawings"],
)
def test_how_files_are_prepared_comes_along(tmp_path: Path, spec: InputSpec) -> None:
    made = make(tmp_path / "bundle", input=spec)
    assert load_bundle(made.path).input == spec
    stored = json.loads((made.path / MANIFEST_FILE).read_text())["input"]
    assert stored.get("color_order") == ("rgb" if spec.channels == 3 else None)


@pytest.mark.parametrize(("ink", "fit"), [(0.7, "foreground"), (None, "pad")])
def test_bundles_of_before_prepare_files_as_they_did(bundle: Bundle, ink: float | None, fit: str) -> None:
    """They cropped to the foreground where they had its ratio, then called `ink`; 16-bit files had their full range."""
    edit(bundle, lambda m: m.update(input={"size": 28, "channels": 1, "background": "dark", "ink": ink}))
    assert load_bundle(bundle.path).input == InputSpec(28, 1, "dark", ink, fit, None)
    edit(bundle, lambda m: m["input"].pop("ink"))
    assert load_bundle(bundle.path).input == InputSpec(28, 1, "dark", None, "pad", None)


def test_the_manifest_has_the_documented_form(bundle: Bundle) -> None:
    manifest = json.loads((bundle.path / MANIFEST_FILE).read_text())
    assert list(manifest) == [
        "schema",
        "vae_edge",
        "created",
        "name",
        "classes",
        "input",
        "rotation",
        "score",
        "data",
        "models",
    ]
    assert manifest["created"].endswith("+00:00")
    assert set(manifest["models"][0]) == {
        "file", "role", "format", "precision", "target", "opset", "sha256", "bytes", "accuracy", "provenance"
    }  # fmt: skip


def test_models_are_added_replaced_and_found(bundle: Bundle, tmp_path: Path) -> None:
    added = add_model(bundle.path, source(tmp_path, "x", b"int8"), INT8)
    assert [m.precision for m in added.models] == ["fp32", "int8"]
    other = ModelEntry("classifier", "int8", format="tensorrt", target="sm_87")
    added = add_model(bundle.path, source(tmp_path, "x", b"engine"), other)
    assert added.find("classifier", "tensorrt", "int8", "sm_87").file == "classifier.int8.sm_87.engine"
    assert [m.format for m in added.select(precision="int8")] == ["onnx", "tensorrt"]
    for round_, content in enumerate([b"second", b"third", b"third", b"fourth"]):
        added = add_model(bundle.path, source(tmp_path, "x", content), dataclasses.replace(INT8, opset=round_))
        entry = added.find("classifier", precision="int8")
        assert (added.file(entry).read_bytes(), entry.opset) == (content, round_)
        kept = {m.file for m in added.models} | {MANIFEST_FILE}
        assert {p.name for p in bundle.path.iterdir()} == kept, "old files must go"
    with pytest.raises(BundleError, match=r"no model 'classifier onnx fp16 any'; it has: .*int8"):
        added.find(precision="fp16")


def test_unknown_fields_survive_an_addition(bundle: Bundle, tmp_path: Path) -> None:
    edit(bundle, lambda m: m.update(note="mine"))
    assert add_model(bundle.path, source(tmp_path, "x", b"int8"), INT8).manifest["note"] == "mine"


@pytest.mark.parametrize(("kind", "mode"), [("light", "fast"), ("full", "full"), (None, "full")])
def test_a_manifest_of_schema_1_is_read_as_schema_2_and_written_as_such(
    bundle: Bundle, tmp_path: Path, kind: str | None, mode: str
) -> None:
    def to_schema_1(manifest: dict[str, Any]) -> None:
        manifest["schema"] = 1
        del manifest["score"]["mode"]
        if kind is not None:
            manifest["score"]["kind"] = kind
        manifest["data"] |= {"watched": 3, "copies": 2, "also_tested": 1}
        manifest["models"][0]["accuracy"] |= {"angle_error_deg": {"median": 1.0, "by_concentration": {}}}

    edit(bundle, to_schema_1)
    opened = load_bundle(bundle.path)
    assert opened.manifest["data"] == {"name": "digits", "seed": 0, "val": 3, "duplicates": 2, "in_test": 1}
    (entry,) = opened.models
    assert entry.accuracy["angle_error_deg"] == {"median": 1.0, "by_angle_confidence": {}}
    assert opened.score_mode == mode and entry.sha256 == bundle.models[0].sha256
    assert opened.manifest["schema"] == 2 and "kind" not in opened.manifest["score"]
    assert json.loads((bundle.path / MANIFEST_FILE).read_text())["schema"] == 1, "reading changes nothing"
    added = add_model(bundle.path, source(tmp_path, "x", b"int8"), INT8)
    assert added.models[0] == entry and added.score_mode == mode
    stored = json.loads((bundle.path / MANIFEST_FILE).read_text())
    assert stored["schema"] == 2 and stored["score"] == {"threshold": 1.5, "reject_rate": 0.05, "mode": mode}
    edit(bundle, lambda m: m.update(schema=1))
    edit(bundle, lambda m: m["score"].update(kind="fast"))
    with pytest.raises(BundleError, match="'kind' should be one of full, light"):
        load_bundle(bundle.path)


def _set(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        place: Any = manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("schema", to=3), "schema 3.*reads schema 1 and 2"),
        (_set("schema", to="1"), "'schema' should be a whole number"),
        (_set("schema", to=True), "'schema' should be a whole number"),
        (lambda m: m.pop("schema"), "lacks the field 'schema'"),
        (lambda m: m.pop("classes"), "lacks the field 'classes'"),
        (lambda m: m.pop("models"), "lacks the field 'models'"),
        (lambda m: m.pop("rotation"), "lacks the field 'rotation'"),
        (lambda m: m["score"].pop("threshold"), "lacks the field 'threshold'"),
        (lambda m: m["models"][0].pop("sha256"), r"models\[0\] lacks the field 'sha256'"),
        (lambda m: m["models"][0].pop("opset"), "lacks the field 'opset'"),
        (_set("score", "threshold", to=float("nan")), "NaN is not a number"),
        (_set("score", "threshold", to=float("-inf")), "-Infinity is not a number"),
        (_set("score", "threshold", to="1"), "'threshold' should be a finite number"),
        (_set("score", "threshold", to=True), "'threshold' should be a finite number"),
        (_set("score", "reject_rate", to=2), "a fraction in 0..1"),
        (_set("score", "mode", to="heavy"), "full, fast"),
        (_set("classes", to=[]), "at least one name"),
        (_set("classes", to=["a", 1]), "at least one name"),
        (_set("classes", to=["a", "a"]), "same class twice"),
        (_set("classes", to="ab"), "should be a list"),
        (_set("input", "size", to=28.0), "'size' should be a whole number"),
        (_set("input", "size", to=0), "side of the image"),
        (_set("input", "channels", to=4), "1 or 3"),
        (_set("input", "background", to="blue"), "dark, light or none"),
        (_set("input", "fit", to="stretch"), "'fit' should be pad or foreground"),
        (_set("input", "fit", to=None), "'fit' should be pad or foreground"),
        (_set("input", "depth", to=11), "'depth' should be null or 8"),
        (_set("input", "depth", to=12.0), "'depth' should be null or 8"),
        (_set("input", "alpha_background", to="red"), "'alpha_background' should be null or white or black"),
        (_set("input", "color_order", to="bgr"), "'color_order' should be rgb"),
        (_set("rotation", to="some"), "none, full, or degrees"),
        (_set("rotation", to=270), "degrees in 0..180"),
        (_set("models", to={}), "'models' should be a list"),
        (_set("models", to=["x"]), "an object"),
        (_set("models", 0, "role", to="oracle"), "one of classifier, reconstruction"),
        (_set("models", 0, "format", to="pickle"), "one of onnx"),
        (_set("models", 0, "precision", to="int4"), "one of fp32"),
        (_set("models", 0, "target", to="../x"), "'target' should be"),
        (_set("models", 0, "bytes", to=-1), "a size in bytes"),
        (_set("models", 0, "bytes", to=11), "should have 11 bytes but has 10"),
        (_set("models", 0, "sha256", to="0" * 64), "should have the SHA-256 0000"),
        (_set("models", 0, "sha256", to="xyz"), "64 lower-case hexadecimal"),
        (_set("models", 0, "file", to="gone.onnx"), "names the file 'gone.onnx', which is not there"),
        (_set("models", 0, "file", to="/etc/passwd"), "plain name of a file"),
        (_set("models", 0, "file", to="../source.onnx"), "plain name of a file"),
        (_set("models", 0, "file", to="a/../classifier.fp32.onnx"), "plain name of a file"),
        (_set("models", 0, "file", to=".."), "plain name of a file"),
        (_set("models", 0, "file", to=""), "plain name of a file"),
        (_set("models", 0, "file", to="a\\b.onnx"), "plain name of a file"),
        (_set("models", 0, "file", to="C:x.onnx"), "plain name of a file"),
        (_set("models", 0, "file", to="a\0b"), "plain name of a file"),
        (_set("models", 0, "file", to=MANIFEST_FILE), "another name than"),
        (_set("models", 0, "file", to="verified.json"), "another name than"),
        (_set("models", 0, "accuracy", to=0.9), "'accuracy' should be an object"),
        (lambda m: m["models"].append(m["models"][0]), "same file twice"),
        (lambda m: m["models"].append({**m["models"][0], "file": "b.onnx"}), "same role, format, precision and target"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused(bundle: Bundle, change: Callable[[dict], object], says: str) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=says):
        load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a valid manifest"),
        (b"{", "not a valid manifest"),
        (b"[1]", "hold a JSON object but holds a list"),
        (b"\xff\xfe", "not a valid manifest"),
        (b'{"schema": 1, "schema": 1}', "'schema' stands twice"),
        (b"[" * 100_000, "not a valid manifest"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "not a valid manifest|schema 999"),
    ],
)
def test_damaged_json_is_refused(bundle: Bundle, content: bytes, says: str) -> None:
    (bundle.path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=says):
        load_bundle(bundle.path)


def test_one_changed_byte_is_found(bundle: Bundle) -> None:
    file = bundle.file(bundle.models[0])
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"SHA-256 .*damaged or was changed"):
        load_bundle(bundle.path)


def test_a_truncated_or_missing_file_is_found(bundle: Bundle) -> None:
    file = bundle.file(bundle.models[0])
    file.write_bytes(b"fp32")
    with pytest.raises(BundleError, match="should have 10 bytes but has 4"):
        load_bundle(bundle.path)
    file.unlink()
    with pytest.raises(BundleError, match="which is not there"):
        load_bundle(bundle.path)


def test_a_link_that_leaves_the_folder_is_refused_though_its_content_is_right(bundle: Bundle, tmp_path: Path) -> None:
    file = bundle.file(bundle.models[0])
    outside = source(tmp_path, "outside", file.read_bytes())
    file.unlink()
    file.symlink_to(outside)
    with pytest.raises(BundleError, match="a link that leaves the bundle"):
        load_bundle(bundle.path)
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(BundleError, match="not there"):
        load_bundle(bundle.path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(BundleError, match="not a regular file"):
        load_bundle(bundle.path)


def test_a_bundle_reached_through_a_link_is_read(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle.path)
    assert load_bundle(tmp_path / "link").models == bundle.models


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not there"):
        load_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match="not a bundle: it has no manifest"):
        load_bundle(tmp_path)
    with pytest.raises(BundleError, match="a file, not a folder"):
        load_bundle(source(tmp_path, "file", b""))
    with pytest.raises(BundleError, match="There is no bundle"):
        add_model(tmp_path / "none", tmp_path / "file", INT8)


def test_nothing_is_written_where_something_else_lies(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    source(folder, "classifier.fp32.onnx", b"precious")
    source(folder, "me.jpg", b"precious")
    with pytest.raises(BundleError, match="is not a bundle, so nothing is written"):
        make(folder)
    source(folder, MANIFEST_FILE, b'{"name": "a web app"}')
    with pytest.raises(BundleError, match="not one of ours"):
        make(folder)
    with pytest.raises(BundleError, match="exists and is a file"):
        make(source(tmp_path, "file", b"precious"))
    assert {p.name for p in folder.iterdir()} == {"classifier.fp32.onnx", "me.jpg", MANIFEST_FILE}
    assert (folder / "classifier.fp32.onnx").read_bytes() == (tmp_path / "file").read_bytes() == b"precious"


def test_an_empty_folder_and_a_damaged_bundle_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made = make(tmp_path / "empty")
    made.file(made.models[0]).write_bytes(b"damaged...")
    (made.path / AUTO_FILE).write_text("{}")
    again = make(tmp_path / "empty", b"another model", name="again")
    assert again.name == "again"
    assert {p.name for p in made.path.iterdir()} == {MANIFEST_FILE, again.models[0].file}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"threshold": float("nan")}, "'threshold' should be a finite number"),
        ({"classes": ["a", "a"]}, "same class twice"),
        ({"models": [("nowhere.onnx", FP32)]}, "not there or not a regular file"),
        ({"rotation": 999}, "degrees in 0..180"),
    ],
)
def test_a_creation_that_fails_leaves_nothing(tmp_path: Path, other: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleError, match=says):
        make(tmp_path / "bundle", **other)
    assert not (tmp_path / "bundle").exists()


def test_a_wrong_entry_leaves_the_bundle_as_it_was(bundle: Bundle, tmp_path: Path) -> None:
    file = source(tmp_path, "x", b"int8")
    with pytest.raises(BundleError, match="one of fp32"):
        add_model(bundle.path, file, ModelEntry("classifier", "int4"))
    with pytest.raises(BundleError, match="not there"):
        add_model(bundle.path, tmp_path / "none", INT8)
    assert load_bundle(bundle.path) == bundle


@pytest.mark.parametrize("step", ["copyfile", "write_json", "sha256"])
def test_when_a_step_raises_the_old_bundle_stands(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = source(tmp_path, "x", b"a new fp32 model")

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        module = vae_edge.bundle.shutil if step == "copyfile" else files
        real = getattr(module, step)
        patch.setattr(module, step, full_disk if step != "sha256" else lambda p: full_disk() if p == file else real(p))
        with pytest.raises(BundleError, match=r"No space left on device.*old state still stands"):
            add_model(bundle.path, file, FP32)
        with pytest.raises(BundleError, match="No space left on device"):
            make(bundle.path, b"quite another", models=[(file, FP32)])
    assert load_bundle(bundle.path) == bundle
    again = add_model(bundle.path, file, FP32)
    assert {p.name for p in bundle.path.iterdir()} == {MANIFEST_FILE, again.models[0].file}, "leftovers must go"


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from vae_edge import files
    from vae_edge.bundle import ModelEntry, add_model
    left = int(sys.argv[3])

    def trace(frame, event, arg):  # kill -9 at the n-th line that runs inside the writer
        global left
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace if frame.f_code.co_filename.endswith(("bundle.py", "files.py")) else None

    entry = ModelEntry("classifier", "fp32", opset=21)
    sys.settrace(lambda f, e, a: trace(f, e, a) if f.f_code.co_filename.endswith(("bundle.py", "files.py")) else None)
    add_model(sys.argv[1], sys.argv[2], entry)
    sys.settrace(None)
    print("finished")
"""


def test_after_kill_9_at_any_line_the_bundle_is_the_old_or_the_new_one(bundle: Bundle, tmp_path: Path) -> None:
    script = source(tmp_path, "killed.py", textwrap.dedent(KILLED).encode())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    seen = []
    for line in range(0, 2000, 17):
        content = b"model %d" % line
        before = load_bundle(bundle.path)
        command = [sys.executable, script, bundle.path, source(tmp_path, "x", content), str(line)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        after = load_bundle(bundle.path)
        new = after.file(after.find()).read_bytes() == content
        assert new or after == before
        seen.append(new)
        if done.returncode == 0:
            break
    assert seen[-1] and "finished" in done.stdout
    assert seen.count(False) > 3, "some kills must have come before the manifest was replaced"
    again = add_model(bundle.path, source(tmp_path, "x", b"last"), FP32)
    assert {p.name for p in bundle.path.iterdir()} == {MANIFEST_FILE, again.models[0].file}


def test_several_writers_at_once_lose_nothing(bundle: Bundle, tmp_path: Path) -> None:
    targets = [f"sm_{n}" for n in range(80, 88)]

    def add(target: str) -> None:
        file = source(tmp_path, target, target.encode())
        add_model(bundle.path, file, ModelEntry("classifier", "int8", format="tensorrt", target=target))

    threads = [threading.Thread(target=add, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(m.target for m in load_bundle(bundle.path).models) == sorted(["any", *targets])
