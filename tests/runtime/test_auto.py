"""The choice left to the runtime: what may be chosen, how it is remembered, what happens when it cannot be."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest
from small_models import TARGETS, make_bundle, noise

import vae_edge
from vae_edge.bundle import Bundle, ModelEntry, add_model, add_models, load_bundle
from vae_edge.bundle_schema import AUTO_FILE
from vae_edge.engine import gpus
from vae_edge.errors import BackendError, BundleError
from vae_edge.runtime import autoselect
from vae_edge.runtime.backends import LoadOptions
from vae_edge.runtime.classifier import Classifier
from vae_edge.runtime.entries import find_entry, open_classifier


def remembered(bundle: Bundle) -> list[dict]:
    return json.loads((bundle.path / AUTO_FILE).read_text())["records"]


def spoil_int8(bundle: Bundle, file: Path) -> None:
    """Put a file in place of each int8 model, whose accuracy is recorded as good."""
    figures = {"accuracy": 0.97, "n": 1000}
    add_models(
        bundle.path,
        [(file, ModelEntry("classifier", "int8", target=target, accuracy=figures)) for target in TARGETS["int8"]],
    )


@pytest.mark.alone
def test_it_times_all_candidates_once_and_remembers_the_fastest(own_bundle: Bundle) -> None:
    import onnx  # noqa: F401  (importing the engines is not what is timed here)
    import onnxruntime  # noqa: F401
    import openvino  # noqa: F401

    start = time.perf_counter()
    with vae_edge.load(own_bundle.path) as classifier:
        took = time.perf_counter() - start
        first = (classifier.backend, classifier.precision)
        assert len(classifier(noise(2))) == 2
    assert took < 3, "about 1.5 s on an idle machine"
    (record,) = remembered(own_bundle)
    assert (record["backend"], record["precision"]) == first
    assert [*record["median_us"]] == [*record["by_batch"]] == ["1", "8", "64"]
    for batch, median_us in record["median_us"].items():
        timed = {*median_us, *record["not_timed"]}
        assert timed == {f"{b} {p}" for b in ("onnxruntime", "openvino") for p in ("fp32", "int8")}, "no CPU has fp16"
        chosen = median_us[" ".join(record["by_batch"][batch])]
        assert chosen <= min(median_us.values()) / autoselect.MAX_TIME_RATIO + 0.1
    assert record["key"]["threads"] == 1 and set(record["key"]["versions"]) == {"onnxruntime", "openvino"}
    before = (own_bundle.path / AUTO_FILE).read_bytes()
    with vae_edge.load(own_bundle.path) as again:
        assert (again.backend, again.precision) == first
    assert (own_bundle.path / AUTO_FILE).read_bytes() == before, "the second load asks the memory"
    assert load_bundle(own_bundle.path) == own_bundle, "the memory is no part of what is verified"


def test_what_is_remembered_is_obeyed_and_only_for_the_same_question(own_bundle: Bundle) -> None:
    vae_edge.load(own_bundle.path).close()
    path = own_bundle.path / AUTO_FILE
    memory = json.loads(path.read_text())
    of_batch = {"1": ["openvino", "fp32"], "8": ["openvino", "fp32"], "64": ["onnxruntime", "int8"]}
    memory["records"][0].update(by_batch=of_batch)
    path.write_text(json.dumps(memory))
    with vae_edge.load(own_bundle.path) as classifier:
        assert (classifier.backend, classifier.precision) == ("openvino", "fp32")
        assert classifier.choices[64] == ("onnxruntime", "int8")
    vae_edge.load(own_bundle.path, threads=2).close()
    vae_edge.load(own_bundle.path, precision="int8").close()
    assert len(remembered(own_bundle)) == 3
    entry = find_entry(own_bundle, "int8")
    add_model(own_bundle.path, own_bundle.file(own_bundle.find()), dataclasses.replace(entry, file=""))
    vae_edge.load(own_bundle.path).close()
    assert len(remembered(own_bundle)) == 4, "another model file is another question"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"records": 3}', b'{"records": [1]}', b'{"records": [{}]}', b"\xff"])
def test_a_damaged_memory_is_written_anew(own_bundle: Bundle, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (own_bundle.path / AUTO_FILE).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        vae_edge.load(own_bundle.path, precision="fp32").close()
    assert "anew" in caplog.text
    assert len(remembered(own_bundle)) == 1


def test_where_it_cannot_be_remembered_that_is_said_and_it_works(
    own_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    (own_bundle.path / AUTO_FILE).mkdir()  # unlike a read-only folder, this stops root too
    with caplog.at_level(logging.WARNING), vae_edge.load(own_bundle.path, precision="fp32") as classifier:
        assert len(classifier(noise(1))) == 1
    assert "cannot be remembered" in caplog.text


def test_only_what_is_accurate_enough_is_a_candidate(tmp_path: Path) -> None:
    def candidates(name: str, **accuracy: float | None) -> set[str]:
        bundle = make_bundle(
            tmp_path / name,
            tmp_path / "work",
            widths=(16,),
            accuracy={"fp32": 0.97, "fp16": 0.97, "int8": 0.97, **accuracy},  # type: ignore[dict-item]
        )
        return {candidate.precision for candidate in autoselect.candidates(bundle, "auto", "auto")}

    assert candidates("all", int8=0.965) == {"fp32", "int8"}, "CPUs compute fp16 as fp32, only slower"
    assert candidates("half", int8=0.9649) == {"fp32"}
    assert candidates("unknown", fp32=None) == {"fp32"}
    assert candidates("unrecorded", int8=None) == {"fp32"}


def test_accuracies_are_compared_on_the_same_images_where_the_entry_has_both(own_bundle: Bundle) -> None:
    def candidates(**accuracy: float) -> set[str]:
        entry = find_entry(own_bundle, "int8")
        changed = add_model(
            own_bundle.path, own_bundle.file(entry), dataclasses.replace(entry, accuracy={"n": 1000, **accuracy})
        )
        return {candidate.precision for candidate in autoselect.candidates(changed, "auto", "auto")}

    assert "int8" in candidates(accuracy=0.90, fp32_accuracy=0.904), "fp32's 0.97 is of other images"
    assert "int8" not in candidates(accuracy=0.97, fp32_accuracy=0.98)
    assert "int8" not in candidates(accuracy=0.97, fp32_accuracy=0.97, n=49), "49 images say little"
    assert "int8" in candidates(accuracy=0.97, fp32_accuracy=0.97, n=50)


def test_without_fp32_the_finest_is_taken(tmp_path: Path, own_bundle: Bundle) -> None:
    manifest = json.loads((own_bundle.path / "manifest.json").read_text())
    manifest["models"] = [m for m in manifest["models"] if m["precision"] == "int8"]
    (own_bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with vae_edge.load(own_bundle.path, "onnxruntime") as classifier:
        assert classifier.precision == "int8"
    manifest["models"] = []
    (own_bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="has no ONNX classifier"):
        vae_edge.load(own_bundle.path)


def test_a_coarser_precision_must_be_clearly_faster() -> None:
    def pick(**median_us: float) -> str:
        names = [name.split("_") for name in median_us]
        found = [autoselect.Candidate(b, p) for b, p in names]
        times = {name.replace("_", " "): value for name, value in median_us.items()}
        return autoselect._fastest(found, times, taken).name

    taken: list[autoselect.Candidate] = []
    assert pick(a_fp32=100, b_fp32=90, a_int8=95, b_int8=89) == "b fp32"
    assert pick(a_fp32=100, b_fp32=90, a_int8=95, b_int8=60) == "b int8"
    assert pick(a_fp32=100, a_fp16=99.5, a_int8=99.6) == "a fp32"
    assert pick(a_int8=10) == "a int8"
    taken = [autoselect.Candidate("a", "int8")]  # chosen for another batch size: noise must not bring a second model
    assert pick(a_fp32=100, b_fp32=90, a_int8=92, b_int8=91) == "a int8"
    assert pick(a_int8=100, b_int8=94) == "b int8"


def test_a_batch_takes_the_nearest_size_that_was_timed() -> None:
    sizes = (1, 2, 3, 8, 22, 23, 64, 256)
    assert [autoselect.bucket_of(batch) for batch in sizes] == [1, 1, 8, 8, 8, 64, 64, 64]
    assert autoselect.bucket_of(64, [1]) == 1


def test_each_batch_size_runs_in_the_model_that_was_chosen_for_it(own_bundle: Bundle) -> None:
    images = noise(64)
    with (
        vae_edge.load(own_bundle.path, "onnxruntime", "int8") as small,
        vae_edge.load(own_bundle.path, "openvino", "fp32") as large,
    ):
        options = LoadOptions()
        opened = {
            1: open_classifier(own_bundle, "onnxruntime", "int8", options),
            64: open_classifier(own_bundle, "openvino", "fp32", options),
        }
        with Classifier(own_bundle, opened) as both:
            for batch, alone in ((1, small), (8, small), (9, large), (64, large)):
                np.testing.assert_array_equal(both(images[:batch]).scores, alone(images[:batch]).scores)
                assert both(images[:batch]).threshold == alone.threshold
        with pytest.raises(BackendError, match="was closed"):
            both(images)


@pytest.mark.alone
def test_large_batches_are_timed_too(tmp_path: Path) -> None:
    """int8 is far faster than fp32 for many images, whatever is faster for one."""
    bundle = make_bundle(tmp_path / "bundle", tmp_path / "work", widths=(32, 64, 64))
    vae_edge.load(bundle.path).close()
    (record,) = remembered(bundle)
    median_us = record["median_us"]["64"]
    assert median_us[" ".join(record["by_batch"]["64"])] <= min(median_us.values()) / autoselect.MAX_TIME_RATIO + 0.1
    assert record["by_batch"]["64"][1] == "int8"


def test_a_candidate_that_cannot_be_loaded_is_left_out(
    own_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    spoil_int8(own_bundle, tmp_path / "bad.onnx")
    with caplog.at_level(logging.WARNING), vae_edge.load(own_bundle.path) as classifier:
        assert classifier.precision != "int8"
    assert "onnxruntime int8 is left out" in caplog.text
    add_model(own_bundle.path, tmp_path / "bad.onnx", ModelEntry("classifier", "fp32"))
    with pytest.raises(BundleError, match="is not a model that"):
        vae_edge.load(own_bundle.path, precision="fp32")


def test_a_remembered_choice_that_no_longer_loads_is_chosen_again(
    own_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    spoil_int8(own_bundle, tmp_path / "bad.onnx")
    vae_edge.load(own_bundle.path).close()
    path = own_bundle.path / AUTO_FILE
    memory = json.loads(path.read_text())
    memory["records"][0]["by_batch"]["8"] = ["openvino", "int8"]
    path.write_text(json.dumps(memory))
    with caplog.at_level(logging.WARNING), vae_edge.load(own_bundle.path) as classifier:
        assert classifier.precision != "int8"
    assert "remembered openvino int8 cannot be loaded" in caplog.text
    assert remembered(own_bundle)[0]["precision"] == classifier.precision


def test_what_builds_while_it_loads_is_taken_only_by_name(
    session_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("onnxruntime", "onnxruntime-tensorrt", "onnxruntime-cuda")
    monkeypatch.setattr(autoselect, "installed_backends", lambda: names)
    monkeypatch.setattr(
        gpus, "probe", lambda: gpus.Driver((13, 0), (gpus.Device(0, "T4", (7, 5), 40, 16 << 30, False),))
    )
    found = [candidate.backend for candidate in autoselect.candidates(session_bundle, "auto", "auto")]
    assert list(dict.fromkeys(found)) == ["onnxruntime-cuda", "onnxruntime"]
    named = autoselect.candidates(session_bundle, "onnxruntime-tensorrt", "auto")
    assert {candidate.backend for candidate in named} == {"onnxruntime-tensorrt"}
