"""A kit as it is written: everything in it, its sums, its page, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vae_edge import deployment
from vae_edge.bundle import Bundle, load_bundle
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.errors import BundleError, ConfigError, EngineError
from vae_edge.kit import write as writing
from vae_edge.kit.description import HeldOut, KitDescription, read_description, read_held_out, write_held_out
from vae_edge.kit.script import build_script, readme
from vae_edge.kit.wheel import wheel_name
from vae_edge.kit.write import Kit, kit_device, write
from vae_edge.runtime import load

INT8 = BuildConfig("int8")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_it_holds_what_a_device_needs_and_the_sum_of_each_file(kit: Kit, home: Bundle) -> None:
    bundle = load_bundle(kit.path / "bundle")
    files = {f"bundle/{part.file}" for part in (*bundle.models, *filter(None, [bundle.probes]))}
    files |= {"bundle/manifest.json", "README.txt", "build.sh", "data.npz", "kit.json", wheel_name()}
    assert names(kit.path) == files | {"SHA256SUMS"}
    lines = (kit.path / "SHA256SUMS").read_text().splitlines()
    assert {line[66:] for line in lines} == files
    for line in lines:
        assert hashlib.sha256((kit.path / line[66:]).read_bytes()).hexdigest() == line[:64]
    assert [(m.precision, m.target) for m in bundle.models] == [("int8", "any"), ("fp32", "any")]
    for entry in bundle.models:
        assert entry.sha256 == home.find("classifier", "onnx", entry.precision, "any").sha256
    assert (bundle.classes, bundle.threshold, bundle.rotation) == (home.classes, home.threshold, home.rotation)
    assert bundle.probes is not None and home.probes is not None and bundle.probes.sha256 == home.probes.sha256


def test_sha256sum_agrees(kit: Kit) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum")
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=kit.path, check=True)


def test_the_expected_accuracy_is_that_of_the_manifest_and_the_measured_one_that_of_the_onnx_files(
    kit: Kit, home: Bundle, held_out: HeldOut
) -> None:
    about = read_description(kit.path)
    assert (about.device, about.target, about.jetson, about.bundle) == ("orin-nano", "sm_87", True, home.name)
    assert [config.precision for config in about.configs] == ["int8", "fp32"]
    assert about.expected["int8"] == home.find("classifier", "onnx", "int8", "any").accuracy
    with load(home.path, "onnxruntime", "fp32", verify="off") as classifier:
        right = (classifier(held_out.images, color="rgb").labels == held_out.labels).mean()
    assert right == pytest.approx(0.8)
    assert about.measured["fp32"]["accuracy"] == pytest.approx(float(right))
    assert about.measured["fp32"]["n"] == len(held_out) and "int8" in about.measured


def test_the_images_come_back_as_they_went_in_and_the_same_bytes_each_time(held_out: HeldOut, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_held_out(tmp_path / name, held_out)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    back = read_held_out(tmp_path / "a.npz", {"name": "noise", "split": "test"})
    for name in ("images", "labels", "angles_deg"):
        np.testing.assert_array_equal(getattr(back, name), getattr(held_out, name))
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(BundleError, match="does not hold labelled images"):
        read_held_out(tmp_path / "a.npz", {"name": "noise", "split": "test"})


def test_an_archive_is_the_folder_under_its_own_name(home: Bundle, tmp_path: Path) -> None:
    made = write(home, kit_device("thor"), [INT8], tmp_path / "my kit.tar.gz")
    assert made.bytes == made.path.stat().st_size and made.images == 0
    with tarfile.open(made.path) as archive:
        members = archive.getmembers()
    assert all(member.name.startswith("my-kit/") and member.isreg() for member in members)
    assert next(m for m in members if m.name.endswith("build.sh")).mode == 0o755
    assert "my-kit/data.npz" not in [m.name for m in members]
    assert [path.name for path in tmp_path.iterdir()] == ["my kit.tar.gz"]


def test_a_kit_that_is_there_is_replaced_and_anything_else_is_not(home: Bundle, tmp_path: Path) -> None:
    place = tmp_path / "kit"
    write(home, kit_device("thor"), [INT8], place)
    write(home, kit_device("orin-nano"), [INT8], place)
    assert read_description(place).device == "orin-nano"
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").write_bytes(b"x")
    for path, words in ((other, "no kit: name another place"), (other / "cat.png", "is a file: give a folder")):
        with pytest.raises(ConfigError, match=words):
            write(home, kit_device("thor"), [INT8], path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kit", "photos"]


def test_a_failure_leaves_what_was_there(home: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "kit"
    write(home, kit_device("thor"), [INT8], place)
    before = {name: (place / name).read_bytes() for name in names(place)}

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "write_sums", full)
    for target in (place, tmp_path / "x.tar.gz"):
        with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
            write(home, kit_device("orin-nano"), [INT8], target)
    assert {name: (place / name).read_bytes() for name in names(place)} == before
    assert [path.name for path in tmp_path.iterdir()] == ["kit"]


@pytest.mark.parametrize(
    ("device", "config", "words"),
    [
        ("orin-nano", BuildConfig("int8", batch=(1, 1, 1), dla_core=0), "has no DLA cores"),
        ("orin-nx-8gb", BuildConfig("int8", batch=(1, 1, 1), dla_core=1), "has 1 DLA cores, and core 1"),
        ("orin-nano", BuildConfig("fp8"), "no fp8 arithmetic"),
        ("orin-nano", BuildConfig("int8", timing_cache="x"), "leave it out of a kit"),
        ("orin-nano", BuildConfig("int8", device=1), "--device N"),
    ],
)
def test_what_the_device_cannot_do_is_refused_at_home(
    home: Bundle, tmp_path: Path, device: str, config: BuildConfig, words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        write(home, kit_device(device), [config], tmp_path / "kit")
    assert not any(tmp_path.iterdir())


def test_precisions_are_named_once_and_must_be_there(home: Bundle, tmp_path: Path) -> None:
    for configs, error, words in (
        ([], ConfigError, "at least one precision"),
        ([INT8, BuildConfig("int8", optimization_level=1)], ConfigError, "each precision once"),
        ([BuildConfig("fp8")], BundleError, r"no fp8 ONNX classifier to put into a kit \(it has: fp32, "),
    ):
        with pytest.raises(error, match=words):
            write(home, kit_device("thor"), configs, tmp_path / "kit")


def test_a_kit_is_for_one_device() -> None:
    assert kit_device("agx-orin").dla_cores == 2
    assert kit_device("sm_110").jetson and not kit_device("sm_90").jetson
    assert kit_device("sm_121").capability == (12, 1)
    for name in ("this", "orin-nano,thor", ""):
        with pytest.raises(EngineError, match="A kit is for one device"):
            kit_device(name)


def test_the_api_takes_held_out_images_turned_as_in_training(home: Bundle, tmp_path: Path) -> None:
    from vae_edge.data import Dataset, LabelledImages

    rng = np.random.default_rng(0)
    shape = (1200, home.input.size, home.input.size, home.input.channels)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    data = Dataset("made", "made", None, LabelledImages(images, np.arange(1200) % len(home.classes), home.classes))
    made = deployment.write_kit(home.path, "orin-nano", ["int8"], tmp_path / "kit", data=data, optimization_level=1)
    about = read_description(made.path)
    kept = read_held_out(made.path / "data.npz", about.data or {})
    assert made.images == len(kept) == 1000 and (kept.name, kept.split) == ("made", "test")
    assert kept.angles_deg is not None and kept.angles_deg.std() > 90, "the model was trained on any rotation"
    assert about.configs[0].optimization_level == 1


DESCRIPTION = KitDescription(
    "orin-nano",
    "Jetson Orin Nano",
    "sm_87",
    True,
    'a "b" $(rm -rf ~)\n`id`',
    "2026-11-26T00:00:00+00:00",
    "0.1.0",
    (INT8,),
)


def test_no_name_can_put_a_command_into_the_script(tmp_path: Path) -> None:
    text = build_script(DESCRIPTION, "w.whl")
    lines = [line for line in text.splitlines() if "rm -rf" in line]
    assert len(lines) == 1 and lines[0].startswith("# ")
    assert "`id`" not in text.replace(lines[0], "")
    (tmp_path / "build.sh").write_text(text)
    subprocess.run(["sh", "-n", str(tmp_path / "build.sh")], check=True)


def test_the_page_is_short_and_names_the_commands() -> None:
    page = readme(DESCRIPTION)
    assert len(page.splitlines()) <= 12 and all(len(line) <= 120 for line in page.splitlines())
    for words in ("sh build.sh", "vae-edge kit result-orin-nano-DATE.tar.gz --into BUNDLE", "python3-libnvinfer"):
        assert words in page


def test_a_damaged_description_is_a_sentence(kit: Kit, tmp_path: Path) -> None:
    for text in ("{}", "[]", "no json", json.dumps({"schema": 1, "configs": [{"precision": "int9"}]})):
        (tmp_path / "kit.json").write_text(text)
        with pytest.raises(EngineError):
            read_description(tmp_path)
