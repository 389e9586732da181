"""`vae_edge.evaluate` and its command, on the stored run and bundle of letters: classes, unknown images, warnings."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import vae_edge
from vae_edge.bundle import load_bundle, update_bundle
from vae_edge.cli import main
from vae_edge.data import Dataset, load_dataset, rotate_dataset
from vae_edge.evaluation.figures import UNKNOWN_ROTATION_SEED
from vae_edge.thresholds import set_threshold

pytest.importorskip("onnxruntime")
FIXTURES = Path(__file__).parent / "fixtures" / "schema1"
LETTERS = FIXTURES / "data" / "three.npz"
OTHERS = FIXTURES / "data" / "photo.npz"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "bundle", tmp_path / "letters"))


def test_unknown_images_are_rotated_like_the_known_ones_and_counted_by_the_runtimes_own_answers(bundle: Path) -> None:
    found = vae_edge.evaluate(bundle, LETTERS, unknown=[OTHERS], precision="fp32", backend="onnxruntime").figures
    unknown = load_dataset(OTHERS)
    labels = np.zeros(120, np.int64)
    images = np.concatenate([unknown.train.images, unknown.test.images])
    rotated = rotate_dataset(replace(unknown.train, images=images, labels=labels), 180.0, UNKNOWN_ROTATION_SEED)
    known = rotate_dataset(load_dataset(LETTERS).test, 180.0, 1)
    with vae_edge.load(bundle, "onnxruntime", "fp32") as classify:
        of_known, of_unknown = classify(known.images), classify(rotated.images)
    told = found["rejection"]["unknown"]["photo"]
    assert told["n"] == 120 and told["accepted"] == round(float(of_unknown.accepted.mean()), 5)
    expected = roc_auc_score(np.repeat([0, 1], [60, 120]), np.concatenate([of_known.scores, of_unknown.scores]))
    assert told["auroc"] == pytest.approx(expected, abs=1e-5)
    assert found["rejection"]["known_rejected"] == round(1 - float(of_known.accepted.mean()), 5)
    assert found["accepted"] == pytest.approx(1 - found["rejection"]["known_rejected"])


def test_confusions_have_names_and_a_class_that_is_never_right_is_the_first_line(
    bundle: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What the model takes for an ell is labelled tee, and the other way round."""
    images = load_dataset(LETTERS).test.images
    with vae_edge.load(bundle, "onnxruntime", "fp32") as classify:
        labels = np.array([1, 0, 2])[classify(images).labels]
    np.savez(tmp_path / "odd.npz", images=images, labels=labels, classes=np.array(["ell", "tee", "wedge"]))
    command = ["evaluate", str(bundle), "--data", str(tmp_path / "odd.npz"), "--precision", "fp32"]
    command += ["--rotation", "none", "--split", "all"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("  NEVER RIGHT  ell (0 of ") and "tee (0 of " in lines[2]
    assert any(line.startswith("  confusions   ") and "ell taken for tee: " in line for line in lines)
    assert any(line.startswith("warning: `ell` (0 of") for line in lines)
    assert any("none were shown: --unknown DIR" in line for line in lines)

    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classes"] == ["ell", "tee", "wedge"] and np.array(told["confusion"]).shape == (3, 3)
    first = told["confusions"][0]
    assert {first["class"], first["predicted"]} == {"ell", "tee"} and 0 < first["count"] <= first["of"]
    assert told["confusion"][0][0] == told["confusion"][1][1] == 0


def test_a_run_and_its_bundle_say_the_same_of_unknown_images(bundle: Path) -> None:
    pytest.importorskip("torch")
    run = vae_edge.evaluate(FIXTURES / "rotated", LETTERS, unknown=[OTHERS]).figures["rejection"]
    of_bundle = vae_edge.evaluate(bundle, LETTERS, unknown=[OTHERS], precision="fp32").figures["rejection"]
    assert run["unknown"]["photo"]["auroc"] == pytest.approx(of_bundle["unknown"]["photo"]["auroc"], abs=2e-3)
    assert run["threshold"] == pytest.approx(of_bundle["threshold"], abs=1e-4)


def test_near_copies_are_looked_for_where_the_training_images_are_at_hand(bundle: Path) -> None:
    data = load_dataset(LETTERS)
    assert vae_edge.evaluate(bundle, data).figures["near_copies"]["compared"] == 60
    assert "near_copies" not in vae_edge.evaluate(bundle, data, split="all").figures
    other = Dataset("other", "other", data.train.take(np.arange(90)), data.test)
    assert "near_copies" not in vae_edge.evaluate(bundle, other).figures


def test_a_threshold_that_was_set_on_the_very_images_is_told(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(bundle), "--data", str(LETTERS), "--precision", "fp32"]
    assert main(command) == 0
    assert "held-out images of training)" in capsys.readouterr().out
    set_threshold(bundle, LETTERS, 0.05)
    assert main(command) == 0
    assert "(set to reject 5.00% of 60 images of three, these very ones)" in capsys.readouterr().out


def test_folders_named_like_known_classes_are_told(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tee/a.png", "gamma/b.png"):
        (tmp_path / "others" / name).parent.mkdir(parents=True)
        Image.new("L", (28, 28), 90).save(tmp_path / "others" / name)
    assert main(["evaluate", str(bundle), "--data", str(LETTERS), "--unknown", str(tmp_path / "others")]) == 0
    shown = capsys.readouterr()
    assert "others has folders named like known classes (tee)" in shown.err
    assert "unknown      others: " in shown.out and " of 2 accepted" in shown.out
    assert main(["evaluate", str(bundle), "--data", str(LETTERS), "--unknown", str(tmp_path / "nowhere")]) == 2


def test_two_unknown_folders_of_one_name_are_kept_apart(bundle: Path) -> None:
    found = vae_edge.evaluate(bundle, LETTERS, unknown=[OTHERS, OTHERS]).figures["rejection"]["unknown"]
    assert set(found) == {"photo", "photo (2)"} and found["photo"] == found["photo (2)"]


def test_a_bundle_is_evaluated_and_its_threshold_set_without_pytorch(bundle: Path) -> None:
    script = (
        "import sys, vae_edge;"
        f"vae_edge.evaluate({str(bundle)!r}, {str(LETTERS)!r}, unknown=[{str(OTHERS)!r}]);"
        f"vae_edge.set_threshold({str(bundle)!r}, {str(LETTERS)!r}, 0.05);"
        "sys.exit(len({'torch', 'onnx', 'triton'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# Groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The letters as files: those to train on of three makers, those to test on of two others, one of which is dim."""
    data, folder = load_dataset(LETTERS), tmp_path_factory.mktemp("letters")
    for split, makers in (("train", "ABC"), ("test", "DE")):
        images = getattr(data, split)
        for k, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
            maker = makers[k // 3 % len(makers)]
            pixels = image[..., 0] // 6 if maker == "E" else image[..., 0]
            path = folder / split / data.classes[label] / f"{maker}__{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


def test_the_worst_groups_are_named_and_those_that_were_not_trained_on_counted(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"precision": "fp32", "group_by": "{group}__*"}
    found = vae_edge.evaluate(bundle, folder, **options).figures["groups"]
    assert found["groups"] == 2 and found["unseen"] is None  # other images than training's
    assert found["worst_accuracy"]["name"] == found["most_rejected"]["name"] == "E"
    assert found["most_rejected"]["n"] == 30
    manifest = json.loads((bundle / "manifest.json").read_text())
    as_trained = load_dataset(folder, prepared_as=load_bundle(bundle).input)
    manifest["data"]["fingerprint"] = as_trained.fingerprint()
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    found = vae_edge.evaluate(bundle, folder, **options).figures["groups"]
    assert found["unseen"] == 2
    command = ["evaluate", str(bundle), "--data", str(folder), "--precision", "fp32"]
    assert main([*command, "--group-by", "{group}__*"]) == 0
    out = capsys.readouterr().out
    assert "groups       2 groups, 2 of them not trained on; right at least " in out and "(E, 30 images)" in out
    assert main(command) == 0 and "of groups (makers, cameras, days) nothing is known" in capsys.readouterr().out


def test_the_threshold_is_tried_on_each_group_that_it_is_not_set_on(
    bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = set_threshold(bundle, folder, 0.05, split="all", group_by="{group}__*")
    assert result.groups is not None and result.groups.groups == 5 and result.groups.worst_group == "E"
    assert result.groups.worst > 0.5 and result.rejected / result.images < 0.05
    assert load_bundle(bundle).manifest["score"]["set_on"]["groups"] == result.groups.to_json()
    command = ["threshold", str(bundle), "--data", str(folder), "--split", "all", "--group-by", "{group}__*"]
    assert main([*command, "--reject-rate", "0.05", "--dry-run"]) == 0
    assert f"over 5 groups, at most {result.groups.worst:.2%} (E)" in capsys.readouterr().out
    assert main(["evaluate", str(bundle), "--data", str(folder), "--split", "all", "--precision", "fp32"]) == 0
    assert "of 210 images of" in (out := capsys.readouterr().out) and "of 5 groups, these very ones)" in out


def test_groups_that_training_had_and_these_files_lack_are_a_remark(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vae_edge")
    with_data(bundle, group_by="{group}__*")
    assert "groups" not in vae_edge.evaluate(bundle, LETTERS, precision="fp32").figures
    assert "groups by {group}__*, as training had them, cannot be told here" in caplog.text


# Angles that are not to be relied on


def with_data(bundle: Path, **more: object) -> Path:
    """The bundle with other words on its training data in the manifest."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["data"].update(more)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_predict_leaves_angles_out_that_are_not_to_be_relied_on(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(load_dataset(LETTERS).test.images[0, ..., 0]).save(tmp_path / "letter.png")
    command = ["predict", str(bundle), str(tmp_path / "letter.png"), "--precision", "fp32"]
    assert main(command) == 0 and "rotated" in capsys.readouterr().out
    with_data(bundle, angle_is_reliable=False)
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "rotated" not in shown.out and "angles are left out of the text" in shown.err
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["angle_is_reliable"] is False and isinstance(told["predictions"][0]["angle_deg"], float)


def test_measured_symmetry_replaces_the_names_of_earlier_versions(bundle: Path) -> None:
    with_data(bundle, ambiguous=["tee"])
    assert load_bundle(bundle).ambiguous == ("tee",)
    old = vae_edge.evaluate(bundle, LETTERS, precision="fp32").figures["angle_error_deg"]
    assert old["without_ambiguous"]["ambiguous_classes"] == ["tee"] and "up_to_symmetry" not in old
    with_data(bundle, symmetry={"tee": 2, "wedge": 2})
    assert load_bundle(bundle).ambiguous == {"tee": 2, "wedge": 2}
    new = vae_edge.evaluate(bundle, LETTERS, precision="fp32").figures["angle_error_deg"]
    assert new["without_ambiguous"]["ambiguous_classes"] == ["tee", "wedge"]
    assert new["up_to_symmetry"]["mean"] < new["mean"]


@pytest.mark.parametrize(
    "data", [{"symmetry": ["tee"]}, {"symmetry": {"tee": "2"}}, {"symmetry": {"tee": -1}}, {"angle_is_reliable": "no"}]
)
def test_a_manifest_with_a_wrong_symmetry_is_refused(bundle: Path, data: dict) -> None:
    with_data(bundle, **data)
    with pytest.raises(vae_edge.VaeEdgeError, match=r"symmetry|angle_is_reliable"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    "set_on", [[], {"data": "x"}, {"data": "x", "split": "all", "date": 1, "images": 4}, {"data": 1, "split": "all"}]
)
def test_a_manifest_with_a_wrong_origin_of_its_threshold_is_refused(bundle: Path, set_on: object) -> None:
    opened = load_bundle(bundle)
    with pytest.raises(vae_edge.VaeEdgeError, match="set_on"):
        update_bundle(opened, {**opened.manifest["score"], "set_on": set_on}, [])
