"""What a command cannot do it refuses first: no image is read, nothing is computed, no child process runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vae_edge.bundle import load_bundle
from vae_edge.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from small_models import make_bundle

sys.path.pop(0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with fp32 and int8."""
    folder = tmp_path_factory.mktemp("refused")
    return make_bundle(folder / "bundle", folder / "work", widths=(16,), precisions=("fp32", "int8")).path


@pytest.fixture
def nothing_expensive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever takes long fails the test at once."""
    import subprocess

    import vae_edge.data
    import vae_edge.engine.build
    import vae_edge.exporting
    import vae_edge.runtime.verification

    def never(what: str) -> Callable[..., None]:
        def fail(*arguments: object, **options: object) -> None:
            raise AssertionError(f"{what} was begun before the refusal")

        return fail

    monkeypatch.setattr(vae_edge.data, "load_dataset", never("reading images"))
    monkeypatch.setattr(vae_edge.exporting, "export_bundle", never("exporting"))
    monkeypatch.setattr(vae_edge.engine.build, "build_engine", never("building"))
    monkeypatch.setattr(vae_edge.runtime.verification, "_report", never("verifying"))
    monkeypatch.setattr(subprocess, "run", never("a child process"))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code = main([str(word) for word in words])
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err, err
    return err


@pytest.mark.usefixtures("nothing_expensive")
def test_training_refuses_before_it_reads_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    finished, begun = tmp_path / "finished", tmp_path / "begun"
    for folder, name in ((finished, "model.safetensors"), (begun, "config.json")):
        folder.mkdir()
        (folder / name).write_text("{}")
    new = tmp_path / "new"
    for words, says in (
        (("--out", finished), "holds a finished run"),
        (("--out", begun), "holds an unfinished run; go on with"),
        (("--out", tmp_path / "file"), "is a file: give a folder"),
        (("--out", tmp_path / "file" / "run"), f"cannot be written, since {tmp_path / 'file'} is a file"),
        (("--out", new, "--preset", "huge"), "expected one of tiny, small, base"),
        (("--out", new, "--rotation", "sideways"), "sideways"),
        (("--out", new, "--size", 300), "300"),
        (("--out", new, "--learning-rate", 7), "learning_rate 7"),
    ):
        assert says in refused(capsys, "train", "--data", "digits", *words), words
    assert not new.exists()


@pytest.mark.usefixtures("nothing_expensive")
def test_other_commands_refuse_before_they_begin(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for words, says in (
        (("quickstart", "--out", file), "is a file: give a folder"),
        (("quickstart", "--out", tmp_path / "q", "--preset", "huge"), "tiny, small, base"),
        (("compare", "--data", "digits", "--out", file), "is a file: give a folder"),
        (("compare", "--data", "digits", "--out", tmp_path / "c", "--preset", "huge"), "tiny, small, base"),
        (("generate", tmp_path, "--out", tmp_path), "exists already"),
        (("generate", tmp_path, "--out", file / "new"), f"since {file} is a file"),
        (("export", tmp_path, "--out", tmp_path), "is not a bundle"),
        (("export", tmp_path, "--out", file / "new"), f"since {file} is a file"),
        (("quantize", tmp_path / "nowhere", "--data", "digits"), "nowhere"),
        (("build", small, "--batch", "1,8"), "--batch 1,8: expected three whole numbers such as 1,8,64"),
        (("evaluate", small, "--data", "digits", "--rotation", "sideways"), "sideways"),
        (("verify", small, "--out", file), "is a file: give a folder"),
        (("bench", small, "--out", tmp_path), "is a folder: give the name of a file"),
        (("bench", small, "--out", file / "x.json"), f"since {file} is a file"),
        (("bench", small, "--backend", "foo"), "vae-edge: There is no backend 'foo'; there are auto, onnxruntime"),
        (("bench", small, "--precision", "foo"), "vae-edge: precision is auto, fp32, fp16, int8, fp8, but 'foo' came"),
        (("bench", small, "--precision", "fp16"), "no fp16 classifier"),
    ):
        assert says in refused(capsys, *words), words


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
@pytest.mark.usefixtures("nothing_expensive")
def test_a_folder_that_may_not_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    says = refused(capsys, "train", "--data", "digits", "--out", tmp_path / "run")
    tmp_path.chmod(0o700)
    assert f"{tmp_path} does not allow it" in says


@pytest.mark.usefixtures("nothing_expensive")
def test_exporting_over_a_quantized_bundle_names_what_would_be_lost(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in small.iterdir()}
    says = refused(capsys, "export", tmp_path / "run", "--out", small)
    for entry in load_bundle(small).models:
        assert (entry.file in says) == (entry.precision == "int8"), says
    assert "give --force and quantize and build again, or choose another --out" in says
    assert {path.name: path.read_bytes() for path in small.iterdir()} == before
    forced = refused(capsys, "export", tmp_path / "run", "--out", small, "--force")
    assert "would" not in forced and str(tmp_path / "run") in forced  # it goes on, and finds no run there


def test_a_bundle_with_fp32_alone_is_replaced_without_being_asked(tmp_path: Path) -> None:
    from vae_edge.bundle import check_replaceable

    path = make_bundle(tmp_path / "bundle", tmp_path / "work", widths=(16,), precisions=("fp32",)).path
    check_replaceable(path, force=False)
    check_replaceable(tmp_path / "new", force=False)
    (tmp_path / "empty").mkdir()
    check_replaceable(tmp_path / "empty", force=False)
