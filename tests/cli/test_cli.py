import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vae_edge.cli import main
from vae_edge.cli.predict import angle_words
from vae_edge.runtime import Predictions

COMMANDS = (
    *("quickstart", "data", "train", "evaluate", "generate", "compare", "export", "quantize"),
    *("build", "predict", "bench", "inspect", "doctor"),
)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def result(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.fixture(scope="session")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seven as an image editor saves it: black ink on white, 200×300, RGBA."""
    page = Image.new("RGBA", (200, 300), (255, 255, 255, 255))
    pen = ImageDraw.Draw(page)
    pen.line([(45, 80), (155, 80), (90, 230)], fill=(0, 0, 0, 255), width=20, joint="curve")
    path = tmp_path_factory.mktemp("drawings") / "seven.png"
    page.save(path)
    return path


def test_help_lists_every_step(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^\s+{name}\s", text, re.MULTILINE) for name in COMMANDS)


def test_a_run_and_its_bundle_are_measured_alike(run: Path, bundle: Path, capsys: pytest.CaptureFixture[str]):
    of_run = result(capsys, "evaluate", run, "--data", "digits")
    of_bundle = result(
        capsys, "evaluate", bundle, "--data", "digits", "--precision", "fp32", "--backend", "onnxruntime"
    )
    assert of_run["n"] == 1000 and of_run["split"] == "test" and of_run["rotation"] == "full"
    assert of_run["kind"] == "checkpoint" and of_bundle["kind"] == "bundle"
    assert abs(of_run["accuracy"] - of_bundle["accuracy"]) <= 0.002
    assert {"median", "mean", "beyond_90"} <= of_run["angle_error_deg"].keys()
    upright = result(capsys, "evaluate", run, "--data", "digits", "--rotation", "none")
    assert upright["accuracy"] == of_run["upright"]["accuracy"]


def test_the_validation_part_is_the_one_that_training_held_out(run: Path, capsys: pytest.CaptureFixture[str]):
    measured = result(capsys, "evaluate", run, "--data", "digits", "--split", "validation")
    told = result(capsys, "inspect", run)["result"]["validation"]
    assert measured["n"] == told["n"] == 400
    assert measured["accuracy"] == told["accuracy"]


@pytest.mark.parametrize(
    ("doubt", "words"),
    [
        ((0.95, 170.0, 0.03), "+12°"),
        ((0.2, -168.4, 0.34), "+12° (or -168°, 34%)"),
        ((0.4, 100.0, 0.1), "+12° (vague)"),
        ((None, None, None), "+12°"),
    ],
)
def test_an_angle_in_doubt_is_said_to_be(doubt: tuple[float | None, ...], words: str):
    sure, second, share = (None if value is None else np.array([value], np.float32) for value in doubt)
    angle = np.radians([12.3]).astype(np.float32)
    second = None if second is None else np.radians(second)
    about = {"classes": ("a",), "threshold": 0.0, "preprocess_info": lambda count: []}
    assert angle_words(Predictions(np.ones((1, 1)), angle, angle, sure, second, share, **about), 0) == words


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_drawing_is_understood_and_said_how(
    bundle: Path, drawing: Path, backend: str, capsys: pytest.CaptureFixture[str]
):
    code, out, _ = call(capsys, "predict", bundle, drawing, "--invert", "auto", "--backend", backend)
    assert code == 0
    assert ": 7 (" in out
    for word in ("200×300", "RGBA", "inverted", "cropped to its foreground"):
        assert word in out, out
    code, out, _ = call(capsys, "predict", bundle, drawing, "--backend", backend)
    assert code == 0 and "--invert auto" in out


def test_predictions_come_as_json_too(bundle: Path, drawing: Path, capsys: pytest.CaptureFixture[str]):
    predictions = result(capsys, "predict", bundle, drawing, drawing, "--invert", "auto")["predictions"]
    assert [row.pop("image") for row in predictions] == [str(drawing)] * 2
    assert predictions[0] == predictions[1]
    assert predictions[0]["name"] == "7" and isinstance(predictions[0]["accepted"], bool)
    assert all(0 <= predictions[0][name] <= 1 for name in ("angle_confidence", "second_angle_probability"))


def test_a_letter_is_scored_stranger_than_digits(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = Image.new("L", (28, 28))
    ImageDraw.Draw(page).text((14, 14), "W", fill=255, font=ImageFont.load_default(size=20), anchor="mm")
    page.save(tmp_path / "w.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8)).save(tmp_path / "noise.png")
    predictions = result(capsys, "predict", bundle, tmp_path / "w.png", tmp_path / "noise.png")["predictions"]
    assert not predictions[1]["accepted"]


def test_generate_writes_images_and_a_sheet(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = result(
        capsys,
        "generate",
        run,
        "--out",
        tmp_path / "new",
        "--per-class",
        3,
        "--class",
        1,
        "--class",
        4,
        "--angles",
        "0,90,180",
    )
    assert made["images"] == 6
    assert len(list((tmp_path / "new" / "4").glob("*.png"))) == 3
    assert Path(made["contact_sheet"]).is_file()


def test_generate_writes_what_is_good_and_says_what_is_missing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from vae_edge.training.checkpoint import load_samples, write_samples

    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    samples = load_samples(mine)
    samples.codes[samples.code_labels == 8] = 50.0  # far from anything that decodes to an 8
    write_samples(mine, samples)
    asked = ("generate", mine, "--per-class", 2, "--out")
    code, text, err = call(capsys, *asked, tmp_path / "some")
    assert code == 1 and "missing of class 8: none of 2; of 64 decoded images" in text and "--top-up" in text, (
        text,
        err,
    )
    there = {path.name for path in (tmp_path / "some").iterdir() if path.is_dir()}
    assert "8" not in there and len(there) >= 8
    assert call(capsys, *asked, tmp_path / "none", "--class", 8)[0] == 2 and not (tmp_path / "none").exists()
    told = result(capsys, *asked, tmp_path / "all", "--top-up")
    assert told["images"] == 20 and told["missing"] == {} and told["unrecognized"] >= 2


def test_bench_measures_every_candidate_and_writes_it(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "bench.json"
    code, text, _ = call(capsys, "bench", bundle, "--batch", 1, "--precision", "int8", "--seconds", 4, "--out", out)
    assert code == 0 and "openvino" in text and "onnxruntime" in text
    rows = json.loads(out.read_text())["results"]
    assert {row["backend"] for row in rows} == {"openvino", "onnxruntime"}
    assert all(0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"] for row in rows)


def test_inspect_knows_runs_bundles_and_onnx_files(run: Path, bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert result(capsys, "inspect", run)["finished"] is True
    assert len(result(capsys, "inspect", bundle)["models"]) == 6
    onnx = result(capsys, "inspect", bundle / "classifier.int8.onnx")
    assert onnx["inputs"] == {"image": "uint8 [batch, 28, 28, 1]"} and onnx["operators"]["Conv"] >= 13


def test_doctor_says_what_is_here(capsys: pytest.CaptureFixture[str]):
    told = result(capsys, "doctor")
    assert told["packages"]["numpy"]["version"] == np.__version__
    assert told["can"]["quickstart"] == "yes"
    code, text, _ = call(capsys, "doctor")
    assert code == 0 and "CUDA" in text


def test_data_show_counts_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    told = result(capsys, "data", "show", "digits", "--contact-sheet", tmp_path / "sheet.png")
    assert told["train"]["images"] == 4000 and told["test"]["images"] == 1000
    assert set(told["train"]["by_class"].values()) == {400}
    assert Image.open(tmp_path / "sheet.png").width > 300


def nonsense(run: Path, bundle: Path, tmp: Path) -> list[tuple[tuple[object, ...], str]]:
    (tmp / "text.png").write_text("no picture")
    (tmp / "empty").mkdir()
    (tmp / "foreign.onnx").write_bytes(b"\x08\x07")
    new = tmp / "new"
    return [
        (("train", "--data", "digits", "--preset", "huge", "--out", new), "tiny, small, base"),
        (("train", "--data", tmp / "nowhere", "--out", new), "nowhere"),
        (("train", "--data", tmp / "empty", "--out", new), "empty"),
        (("train", "--data", "digits", "--rotation", "sideways", "--out", new), "sideways"),
        (("train", "--data", "digits", "--size", 300, "--out", new), "300"),
        (("train", "--data", "digits", "--out", run), "finished run"),
        (("evaluate", tmp / "empty", "--data", "digits"), "empty"),
        (("evaluate", run, "--data", "digits", "--precision", "int8"), "int8"),
        (("evaluate", bundle, "--data", "digits", "--backend", "abacus"), "abacus"),
        (("generate", run, "--out", new, "--class", "eleven"), "eleven"),
        (("export", tmp / "nowhere", "--out", new), "nowhere"),
        (("export", run, "--out", tmp), "not a bundle"),
        (("quantize", tmp / "empty", "--data", "digits"), "manifest.json"),
        (("predict", bundle, tmp / "missing.png"), "missing.png"),
        (("predict", bundle, tmp / "text.png"), "text.png"),
        (("predict", tmp / "nowhere", tmp / "text.png"), "nowhere"),
        (("predict", bundle, tmp / "text.png", "--precision", "fp8"), "fp8"),
        (("bench", bundle, "--batch", 1, "--backend", "abacus"), "abacus"),
        (("build", bundle, "--target", "sm_101"), "101"),
        (("build", bundle, "--batch", "1,2"), "1,2"),
        (("inspect", tmp / "nowhere"), "nowhere"),
        (("inspect", tmp / "foreign.onnx"), "foreign.onnx"),
    ]


def test_nonsense_gets_a_sentence_and_exit_code_2(
    run: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for arguments, word in nonsense(run, bundle, tmp_path):
        code, out, err = call(capsys, *arguments)
        assert code == 2, (arguments, out, err)
        assert word in err and err.splitlines()[-1].startswith("vae-edge: "), (arguments, err)
        assert "Traceback" not in err and len(err.strip().splitlines()) <= 4, (arguments, err)
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("damage", ["byte", "missing", "schema", "dots"])
def test_a_damaged_bundle_is_refused_by_every_command(
    bundle: Path, drawing: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
):
    mine = tmp_path / "bundle"
    shutil.copytree(bundle, mine)
    manifest = json.loads((mine / "manifest.json").read_text())
    file = mine / manifest["models"][0]["file"]
    if damage == "byte":
        content = bytearray(file.read_bytes())
        content[1000] ^= 1
        file.write_bytes(content)
    elif damage == "missing":
        file.unlink()
    elif damage == "schema":
        manifest["schema"] = 99
    else:
        manifest["models"][0]["file"] = "../outside.onnx"
    (mine / "manifest.json").write_text(json.dumps(manifest))
    for command in (
        ("predict", mine, drawing),
        ("bench", mine),
        ("quantize", mine, "--data", "digits"),
        ("inspect", mine),
    ):
        code, _, err = call(capsys, *command)
        assert code == 2 and "Traceback" not in err, command


def test_a_reader_that_goes_away_is_no_error(bundle: Path):
    command = f"{sys.executable} -m vae_edge inspect {bundle} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and done.returncode in (0, 141)


@pytest.mark.slow
def test_quickstart_goes_the_whole_way_and_then_knows_that_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "quick"
    first = result(capsys, "quickstart", "--preset", "tiny", "--epochs", 6, "--out", out)
    page = (out / "report.html").read_text()
    assert Path(first["report"]).is_file() and first["accuracy"] > 0.6
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "<script" not in page
    assert page.count("data:image/png") > 40 and page.count("data:image/svg+xml") >= 6
    stamp = (out / "report.html").stat().st_mtime_ns
    again = result(capsys, "quickstart", "--preset", "tiny", "--epochs", 6, "--out", out)
    assert again == first and (out / "report.html").stat().st_mtime_ns == stamp
    code, _, err = call(capsys, "quickstart", "--preset", "tiny", "--epochs", 7, "--out", out)
    assert code == 2 and "other settings" in err


@pytest.fixture(scope="session")
def signs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of colour pictures of odd sizes: arrows and rings on light grey, as a user might have them."""
    folder = tmp_path_factory.mktemp("signs")
    rng = np.random.default_rng(0)
    for name in ("arrow, blue", "ring"):
        (folder / name).mkdir()
        for index in range(60):
            page = Image.new("RGB", (90, 90), (235, 235, 230))
            pen = ImageDraw.Draw(page)
            x, y = rng.integers(35, 55, 2)
            if name == "ring":
                pen.ellipse([x - 25, y - 25, x + 25, y + 25], outline=(200, 30, 30), width=8)
            else:
                pen.polygon([(x, y - 28), (x - 20, y + 8), (x + 20, y + 8)], fill=(30, 60, 200))
                pen.rectangle([x - 6, y + 8, x + 6, y + 28], fill=(30, 60, 200))
            page.save(folder / name / f"{index}.{('png', 'jpg', 'webp')[index % 3]}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rotation", ["full", "30", "none"])
def test_a_folder_of_colour_pictures_goes_the_whole_way(
    signs: Path, tmp_path: Path, rotation: str, capsys: pytest.CaptureFixture[str]
):
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    settings = ("--preset", "tiny", "--rotation", rotation, "--epochs", 30, "--batch", 32)
    told = result(capsys, "train", "--data", signs, *settings, "--out", run)
    assert told["validation"]["accuracy"] > 0.9
    result(capsys, "export", run, "--out", bundle)
    assert result(capsys, "quantize", bundle, "--data", signs)["after"]["accuracy"] > 0.9
    measured = result(capsys, "evaluate", bundle, "--data", signs, "--split", "all", "--precision", "int8")
    assert (
        measured["n"] == 120 and measured["accuracy"] > 0.9 and ("angle_error_deg" in measured) == (rotation != "none")
    )
    fine = result(capsys, "evaluate", bundle, "--data", signs, "--split", "all", "--precision", "fp32")
    assert fine["accepted"] > 0.8 and abs(measured["accepted"] - fine["accepted"]) < 0.06, "rounding moves scores"
    (row,) = result(capsys, "predict", bundle, signs / "arrow, blue" / "1.jpg")["predictions"]
    assert row["name"] == "arrow, blue" and (row["angle_deg"] is None) == (rotation == "none")


@pytest.mark.slow
def test_quickstart_takes_a_folder_too(signs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "quick"
    told = result(capsys, "quickstart", "--data", signs, "--preset", "tiny", "--epochs", 20, "--out", out)
    page = (out / "report.html").read_text()
    assert told["accuracy"] > 0.8 and "held out of its training split" in page and "arrow, blue" in page


def test_images_with_known_angles_are_measured_as_they_are(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = tmp_path / "turned.npz"
    result(capsys, "generate", run, "--out", made, "--per-class", 4, "--angles", "90", "--temperature", "0.2")
    measured = result(capsys, "evaluate", run, "--data", made, "--split", "all")
    assert measured["rotation"] == "as given" and "upright" not in measured
    assert measured["angle_error_deg"]["median"] < 45
    code, _, err = call(capsys, "evaluate", run, "--data", made, "--split", "all", "--rotation", "full")
    assert code == 2 and "come with their angles" in err
