"""`vae-edge report` on the stored run and bundle of letters: one page, without a display, that loads nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vae_edge
from vae_edge.cli import main
from vae_edge.data import LabelledImages, load_dataset
from vae_edge.evaluation.figures import Measured
from vae_edge.reporting import MISTAKES, MISTAKES_PER_CONFUSION, _shown_mistakes, rotate_by

pytest.importorskip("matplotlib")
FIXTURES = Path(__file__).parent / "fixtures" / "schema1"
LETTERS = FIXTURES / "data" / "three.npz"
OTHERS = FIXTURES / "data" / "photo.npz"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy: loading writes beside the manifest what it found out of this machine."""
    return Path(shutil.copytree(FIXTURES / "bundle", tmp_path / "letters"))


class Text(HTMLParser):
    """The headings and the words of a page, and what it would load."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.words, self.headings, self.loads = "", [""], list[str]()
        self._in_heading = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self._in_heading = tag == "h2"
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data):
        self.words += data
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


def test_a_run_has_its_page_without_a_display(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    bare = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    command = [sys.executable, "-m", "vae_edge", "report", str(FIXTURES / "rotated"), "--data", str(LETTERS)]
    command += ["--unknown", str(OTHERS), "--out", "page.html"]
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Of the unknown images `photo`, " in done.stdout and done.stdout.endswith("report: page.html\n")
    page = Text(tmp_path / "page.html")
    for heading in ("Classes", "Confusion", "How sure it is", "Angle", "Unknown images", "Training"):
        assert heading in page.headings
    assert not {"Precision", "Latency", "Generated images"} & set(page.headings)
    assert page.loads and all(address.startswith("data:") for address in page.loads)
    for name in ("ell", "tee", "wedge", "photo"):
        assert name in page.words


def test_a_bundle_shows_its_precisions_and_the_terminal_says_what_the_page_says(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    command = ["report", str(bundle), "--data", str(LETTERS), "--out", str(out), "--precision", "fp32"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    page = Text(out)
    assert "Precision" in page.headings and "Training" not in page.headings
    for line in lines[:-1]:
        assert line.removeprefix("warning: ").replace("`", "") in page.words, line
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["precision"] for row in told["precisions"]] == ["fp32", "fp16", "int8"]
    fp32 = told["precisions"][0]
    assert (fp32["accuracy"], fp32["accepted"]) == (told["accuracy"], told["accepted"])
    assert told["report"] == str(out) and told["sentences"][0] == lines[0]


def test_wrong_images_are_shown_with_their_files(bundle: Path, tmp_path: Path) -> None:
    data = load_dataset(LETTERS)
    for k, image in enumerate(data.test.images[:12]):  # each in the folder of another class
        path = tmp_path / "odd" / data.classes[(data.test.labels[k] + 1) % 3] / f"picture-{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    options = {"precision": "fp32", "rotation": "none", "split": "all"}
    found = vae_edge.write_report(bundle, tmp_path / "odd", tmp_path / "page.html", **options)
    page = Text(tmp_path / "page.html")
    assert found.evaluation.figures["accuracy"] < 0.5 and page.words.count("picture-") >= 6
    assert "tee/picture-" in page.words


def test_images_of_other_things_that_were_not_shown_are_told(bundle: Path, tmp_path: Path) -> None:
    vae_edge.write_report(bundle, LETTERS, tmp_path / "page.html", precision="fp32")
    page = Text(tmp_path / "page.html")
    assert "None were shown" in page.words and "of groups (makers, cameras, days) nothing is known" in page.words


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(vae_edge.VaeEdgeError):
        vae_edge.write_report(tmp_path / "nowhere", "nothing", tmp_path)
    assert main(["report", str(bundle), "--data", str(LETTERS), "--out", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == [bundle]


def test_the_most_confident_mistakes_are_shown_and_no_confusion_fills_the_gallery() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    probabilities = rng.dirichlet(np.ones(5), 400)
    images = LabelledImages(np.zeros((400, 28, 28, 1), np.uint8), labels, tuple("abcde"))
    measured = Measured(images, (probabilities, np.zeros(400), np.zeros(400)))
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    shown = _shown_mistakes(measured, wrong)
    assert len(shown) == MISTAKES and set(shown) <= set(wrong)
    confidence = probabilities[shown].max(1)
    assert (np.diff(confidence) <= 0).all()
    pairs = [(labels[k], probabilities[k].argmax()) for k in shown]
    assert max(pairs.count(pair) for pair in pairs) <= MISTAKES_PER_CONFUSION
    assert len(_shown_mistakes(measured, wrong[:0])) == 0


def test_images_are_rotated_counter_clockwise_by_their_angles() -> None:
    image = load_dataset(LETTERS).test.images[:1]
    for images in (image, np.repeat(image, 3, axis=3)):
        turned = rotate_by(np.repeat(images, 2, axis=0), np.array([0.0, 90.0]), 0)
        np.testing.assert_array_equal(turned[0], images[0])
        np.testing.assert_array_equal(turned[1], np.rot90(images[0]))
