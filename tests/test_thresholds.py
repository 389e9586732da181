"""`set_threshold` and `vae-edge threshold`, on the stored bundle of letters: every file, and where it comes from."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vae_edge
from vae_edge.bundle import ModelEntry, add_model, load_bundle, update_bundle
from vae_edge.cli import main
from vae_edge.data import load_dataset, rotate_dataset
from vae_edge.engine.network_file import read_network_file, with_threshold
from vae_edge.errors import BackendError, BundleError, ConfigError, DataError
from vae_edge.evaluation.rejection import choose_threshold
from vae_edge.thresholds import ROTATION_SEED, set_threshold

pytest.importorskip("onnxruntime")
FIXTURES = Path(__file__).parent / "fixtures" / "schema1"
LETTERS = FIXTURES / "data" / "three.npz"
OTHERS = FIXTURES / "data" / "photo.npz"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "bundle", tmp_path / "letters"))


def all_scores(bundle: Path, precision: str, seed: int = 0) -> np.ndarray:
    """Scores of all 210 letters, rotated as `set_threshold` does, by the runtime."""
    data = load_dataset(LETTERS)
    images = np.concatenate([data.train.images, data.test.images])
    labels = np.concatenate([data.train.labels, data.test.labels])
    rotated = rotate_dataset(replace(data.train, images=images, labels=labels), 180.0, seed + ROTATION_SEED)
    with vae_edge.load(bundle, "onnxruntime", precision) as classify:
        return classify(rotated.images, color="rgb").scores


def test_each_file_gets_the_threshold_that_its_own_scores_set(bundle: Path) -> None:
    result = set_threshold(bundle, LETTERS, 0.05, split="all")
    assert result.images == 210 and result.written and len(result.files) == 5
    for precision in ("fp32", "fp16", "int8"):
        scores = all_scores(bundle, precision)
        expected = choose_threshold(scores, 0.05).threshold
        with vae_edge.load(bundle, "onnxruntime", precision) as classify:
            assert classify.threshold == pytest.approx(expected, abs=1e-5)
            assert (scores > np.float32(classify.threshold)).sum() == result.rejected == 9
    rows = {row.file: row for row in result.files}
    stored = load_bundle(bundle)
    assert all(stored.threshold_of(entry) == rows[entry.file].after for entry in stored.select("classifier"))
    assert stored.reject_rate == 0.05
    assert all(entry.accuracy["accepted"] == round(1 - 9 / 210, 5) for entry in stored.select("classifier"))


def test_the_manifest_says_what_the_threshold_was_set_on_and_the_probes_stay_right(bundle: Path) -> None:
    before = load_bundle(bundle)
    result = set_threshold(bundle, LETTERS, 0.05, split="all")
    set_on = load_bundle(bundle).manifest["score"]["set_on"]
    assert {key: set_on[key] for key in ("data", "split", "rotation", "images", "rejected", "balanced")} == {
        "data": "three",
        "split": "all",
        "rotation": "full",
        "images": 210,
        "rejected": 9,
        "balanced": False,
    }
    assert set_on["fingerprint"] == load_dataset(LETTERS).fingerprint()
    assert set_on["interval"] == [round(end, 5) for end in result.interval] and set_on["date"][:2] == "20"
    assert load_bundle(bundle).probes == before.probes
    assert [entry.sha256 for entry in load_bundle(bundle).models] == [entry.sha256 for entry in before.models]
    verified = vae_edge.verify(bundle, ["onnxruntime"])
    assert {model.precision for model in verified.models if model.right} >= {"fp32", "fp16", "int8"}


def test_a_dry_run_writes_nothing(bundle: Path) -> None:
    files = {path: path.read_bytes() for path in bundle.glob("[cmp]*")}
    result = set_threshold(bundle, LETTERS, 0.1, split="all", dry_run=True)
    assert not result.written and result.files[0].after != result.files[0].before
    assert {path: path.read_bytes() for path in bundle.glob("[cmp]*")} == files


def test_unknown_images_are_counted_and_balance_weighs_them_against_known_ones(bundle: Path) -> None:
    plain = set_threshold(bundle, LETTERS, 0.01, split="all", unknown=[OTHERS], dry_run=True)
    assert set(plain.unknown) == {"photo"} and plain.unknown["photo"]["n"] == 120
    balanced = set_threshold(bundle, LETTERS, split="all", unknown=[OTHERS], balance=True)
    rejected, accepted = balanced.rejected / balanced.images, balanced.unknown["photo"]["accepted"]
    assert abs(rejected - accepted) <= 1 / 120 and balanced.reject_rate is None
    stored = load_bundle(bundle)
    assert stored.reject_rate == rejected and stored.manifest["score"]["set_on"]["balanced"]


def test_of_the_trainings_own_data_auto_takes_the_test_split_and_of_other_data_all_of_it(bundle: Path) -> None:
    own = set_threshold(bundle, LETTERS, 0.05, dry_run=True)
    assert (own.split, own.images) == ("test", 60)
    data = load_dataset(LETTERS)
    other = replace(data, train=data.train.take(np.arange(100)))
    assert (result := set_threshold(bundle, other, 0.05, dry_run=True)).split == "all" and result.images == 160


def test_an_engine_for_another_gpu_gets_the_threshold_of_the_file_that_it_was_built_from(
    bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "engine").write_bytes(b"an engine")
    opened = load_bundle(bundle)
    onnx = opened.find(precision="int8")
    made_from = {"onnx": {"file": onnx.file, "sha256": onnx.sha256}}
    engines = {
        "sm_87": ModelEntry("classifier", "int8", "tensorrt", "sm_87", provenance=made_from, threshold=onnx.threshold),
        "sm_90": ModelEntry("classifier", "fp8", "tensorrt", "sm_90", threshold=3.0),
    }
    for entry in engines.values():
        add_model(bundle, tmp_path / "engine", entry)
    rows = {(row.precision, row.target): row for row in set_threshold(bundle, LETTERS, 0.05, split="all").files}
    built = rows["int8", "sm_87"]
    assert built.after == rows["int8", "any"].after and "which it was built from" in built.how
    moved, fp32 = rows["fp8", "sm_90"], rows["fp32", "any"]
    assert moved.after == pytest.approx(3.0 + fp32.after - fp32.before) and "moved by as much as" in moved.how


def test_a_network_file_carries_its_new_threshold(bundle: Path, tmp_path: Path) -> None:
    source = FIXTURES / "network.ve"
    assert read_network_file(source).threshold < 0
    entry = ModelEntry("classifier", "fp16", "native", "sm_87", threshold=read_network_file(source).threshold)
    added = add_model(bundle, source, entry).find(format="native", precision="fp16", target="sm_87")
    result = set_threshold(bundle, LETTERS, 0.05, split="all")
    row = next(row for row in result.files if row.file == added.file)
    stored = load_bundle(bundle).find(format="native", precision="fp16", target="sm_87")
    found = read_network_file(bundle / stored.file)  # verifies its digest
    assert found.threshold == np.float32(row.after) == np.float32(stored.threshold)
    assert hashlib.sha256((bundle / stored.file).read_bytes()).hexdigest() == stored.sha256 != added.sha256
    assert stored.file == added.file or not (bundle / added.file).exists()


@pytest.mark.parametrize("threshold", [3.25, -7.5, 1e-30, 0.0, 3e38])
def test_a_network_file_differs_in_threshold_and_digest_alone(threshold: float, tmp_path: Path) -> None:
    source = FIXTURES / "network.ve"
    content = with_threshold(source, threshold)
    assert content is not None
    (tmp_path / "changed.ve").write_bytes(content)
    before, after = read_network_file(source), read_network_file(tmp_path / "changed.ve")
    assert after.threshold == np.float32(threshold)
    assert replace(after, file=before.file, threshold=before.threshold, digest=before.digest) == before
    (tmp_path / "back.ve").write_bytes(with_threshold(tmp_path / "changed.ve", before.threshold) or b"")
    assert (tmp_path / "back.ve").read_bytes() == source.read_bytes()


def test_a_threshold_without_room_in_a_network_file_is_none(tmp_path: Path) -> None:
    content = with_threshold(FIXTURES / "network.ve", 0.0) or b""
    digits = len(content.partition(b"threshold_bits=")[2].partition(b"\n")[0])
    assert digits == 10
    short = content.replace(b"threshold_bits=" + b"0" * 10, b"threshold_bits=" + b"0" * 9, 1)
    assert len(short) == len(content) - 1  # a file of another length is damaged, and refused as such
    (tmp_path / "short.ve").write_bytes(short)
    with pytest.raises(vae_edge.VaeEdgeError, match="not a whole network file"):
        with_threshold(tmp_path / "short.ve", 1.0)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reject_rate": 0.0}, ConfigError, "above 0 and below 0.5"),
        ({"reject_rate": 0.5}, ConfigError, "above 0 and below 0.5"),
        ({"reject_rate": float("nan")}, ConfigError, "above 0 and below 0.5"),
        ({"balance": True}, ConfigError, "give --unknown"),
        ({"reject_rate": 0.1, "balance": True, "unknown": [OTHERS]}, ConfigError, "do not go together"),
        ({"split": "some"}, ConfigError, "expected one of"),
        ({"rotation": "sideways"}, ConfigError, "expected none, full, or degrees"),
        ({"reject_rate": 0.001}, DataError, "60 known images cannot set a threshold"),
        ({"reject_rate": 0.1, "unknown": [FIXTURES / "rotated"]}, DataError, "holds no images"),
    ],
)
def test_nonsense_is_refused_and_the_bundle_stays(
    bundle: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    manifest = (bundle / "manifest.json").read_bytes()
    with pytest.raises(error, match=words):
        set_threshold(bundle, LETTERS, **options)
    assert (bundle / "manifest.json").read_bytes() == manifest


def test_too_few_images_can_be_insisted_on(bundle: Path) -> None:
    result = set_threshold(bundle, LETTERS, 0.001, force=True)
    assert result.rejected == 0 and result.files[0].after == pytest.approx(float(_test_scores(bundle).max()), abs=1e-5)


def _test_scores(bundle: Path) -> np.ndarray:
    rotated = rotate_dataset(load_dataset(LETTERS).test, 180.0, ROTATION_SEED)
    with vae_edge.load(bundle, "onnxruntime", "fp32") as classify:
        return classify(rotated.images, color="rgb").scores


def test_a_bundle_that_changes_meanwhile_is_left_as_it_is(bundle: Path) -> None:
    opened = load_bundle(bundle)
    update_bundle(opened, {**opened.manifest["score"], "threshold": 1.0}, [])
    with pytest.raises(BundleError, match="was changed while it was measured"):
        update_bundle(opened, {**opened.manifest["score"], "threshold": 2.0}, [])
    assert load_bundle(bundle).threshold == 1.0
    with pytest.raises(BundleError, match="'threshold' should be a finite number"):
        update_bundle(load_bundle(bundle), {**opened.manifest["score"], "threshold": float("inf")}, [])


def test_a_bundle_of_which_nothing_runs_here_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_edge.runtime.backends.installed_backends", lambda: ())
    with pytest.raises(BackendError, match=r"No model of .* can be measured on this machine: no backend"):
        set_threshold(bundle, LETTERS, 0.1)


def test_a_file_whose_answers_are_wrong_here_is_moved_like_another_of_its_precision(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vae_edge.runtime import probing

    right = probing.verdict

    def verdict(opened: Any, model: Any) -> Any:
        found = right(opened, model)
        return replace(found, right=False) if model.entry.target == "cpu" else found

    monkeypatch.setattr(probing, "verdict", verdict)
    rows = {(row.precision, row.target): row for row in set_threshold(bundle, LETTERS, 0.05, split="all").files}
    moved, like = rows["int8", "cpu"], rows["int8", "any"]
    if "measured" in like.how:  # on a processor with int8 dot products, or where it is right without
        assert moved.after - moved.before == pytest.approx(like.after - like.before)
    assert moved.how.startswith("moved by as much as classifier.int8") and "wrong on this machine" in moved.how


def test_the_command_says_how_many_images_the_interval_and_every_file(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(LETTERS), "--unknown", str(OTHERS), "--split", "all"]
    assert main(["threshold", str(bundle), *options, "--reject-rate", "0.05", "--dry-run"]) == 0
    out = capsys.readouterr().out
    for words in (
        "thresholds on 210 known images of three (all)",
        "rejected     9 (4.29%)",
        "between 2.31% and 7.98% (95% interval)",
        "nothing is known",
        "unknown      photo:",
        "classifier.int8.cpu_reduced_range.onnx",
        "not written: a dry run",
    ):
        assert words in out, words
    assert main(["threshold", str(bundle), *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["written"] and told["images"] == 210 and len(told["files"]) == 5 and told["reject_rate"] == 0.01
    assert main(["threshold", str(bundle), "--data", str(LETTERS), "--reject-rate", "0.001"]) == 2
    assert "999 images" in capsys.readouterr().err
