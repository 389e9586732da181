import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_edge.report import Calibration, ReportData, SampleSet, write_report
from vae_edge.report.galleries import learning_curves, write_png

EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Collects what a browser would load, and checks that what is opened is closed."""

    VOID = ("meta", "img", "br", "source")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.alternatives: list[str | None] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.loads += [given[name] for name in ("src", "href", "srcset") if name in given]
        if tag == "img":
            self.alternatives.append(given.get("alt"))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def samples(count: int, rng: np.random.Generator, channels: int) -> SampleSet:
    return SampleSet(
        rng.integers(0, 256, (count, 28, 28, channels), dtype=np.uint8),
        rng.integers(0, 256, (count, 28, 28, channels), dtype=np.uint8),
        ["cat"] * count,
        [EVIL] * count,
        rng.random(count),
        rng.uniform(-180, 180, count),
        rng.uniform(-180, 180, count),
        rng.normal(size=count),
        rng.random(count) > 0.5,
        rng.integers(0, 256, (count, 28, 28, channels), dtype=np.uint8),
        np.full(count, -147.0),
        np.full(count, 0.38),
    )


def certain(probability: float) -> np.ndarray:
    return np.tile([probability, 1 - probability], (10, 1))


@pytest.fixture
def data() -> ReportData:
    rng = np.random.default_rng(0)
    row = {"backend": "openvino", "precision": "fp32", "batch": 1, "p50_us": 90.0, "p90_us": 95.0, "p99_us": 99.0}
    row |= {"images_per_s": 11000.0, "peak_memory_bytes": 2**27}
    error = {"median": 3.0, "mean": 5.0, "p90": 9.0, "beyond_90": 0.01}
    upright = {"n": 20, "accuracy": 0.98}
    precision = {"precision": "fp32", "bytes": 10_000, "accuracy": 0.97, "upright_accuracy": 0.98, "accepted": 0.99}
    return ReportData(
        title="A report",
        classes=("cat", EVIL),
        evaluation={
            "n": 20,
            "accuracy": 0.97,
            "rotation": "full",
            "data": "pets",
            "split": "test",
            "upright": upright,
            "angle_error_deg": error,
            "confusion": [[9, 1], [0, 10]],
        },
        samples=samples(6, rng, 1),
        mistakes=samples(2, rng, 1),
        generated={"cat": rng.integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)},
        not_generated={EVIL: "too few were recognized"},
        calibration=Calibration(certain(0.95), certain(0.75), np.repeat([0, 1], [9, 1]), 0.4),
        angle_errors_deg=rng.exponential(5, 100),
        known_scores=rng.normal(size=100),
        unknown_scores={"noise": rng.normal(5, 1, 100)},
        auroc={"noise": 0.99},
        threshold=2.0,
        precisions=[precision, {**precision, "precision": "int8", "accuracy": 0.96}],
        benchmark={"results": [row], "machine": {"cpu": "a processor", "available_cpus": 2, "threads": 1}},
        training=[
            {"epoch": k, "reconstruction": 9.0 / k, "kl": 2.0, "classes": 1.0 / k, "angle": 2.0} for k in (1, 2, 3)
        ],
        facts={"model": "small"},
    )


def parsed(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == []
    return text, page


def test_the_page_is_whole_and_loads_nothing(data: ReportData, tmp_path: Path):
    text, page = parsed(write_report(data, tmp_path / "report.html"))
    assert page.loads and all(address.startswith("data:") for address in page.loads)
    assert all(page.alternatives)
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert "url(" not in text and "@import" not in text


def test_every_claim_has_its_figure(data: ReportData, tmp_path: Path):
    text, page = parsed(write_report(data, tmp_path / "report.html"))
    for words in (
        "97.0 %",
        "98.0 %",
        "3.0°",
        "0.9900",
        "-1.0",
        "90 µs",
        "Generated images",
        "too few were recognized",
        "error 5.00\u00a0%; 15.00\u00a0% without the temperature of 0.40",
        "<br>or -147°, 38\u00a0%",
        "Confusion",
        "a processor",
    ):
        assert words in text, words
    assert sum(address.startswith("data:image/svg") for address in page.loads) == 14  # seven plots, light and dark
    assert sum(address.startswith("data:image/png") for address in page.loads) == 3 * 8 + 1


def test_names_from_outside_stay_text(data: ReportData, tmp_path: Path):
    text, _ = parsed(write_report(data, tmp_path / "report.html"))
    assert "<script" not in text and "&lt;script&gt;" in text


def test_a_colour_model_without_angles_has_its_page_too(data: ReportData, tmp_path: Path):
    rng = np.random.default_rng(1)
    evaluation = {key: value for key, value in data.evaluation.items() if key not in ("angle_error_deg", "upright")}
    plain = replace(
        data,
        evaluation=evaluation,
        angle_errors_deg=None,
        samples=replace(samples(3, rng, 3), derotated=None, second_angles_deg=None, second_probabilities=None),
        generated={name: rng.integers(0, 256, (4, 28, 28, 3), dtype=np.uint8) for name in data.classes},
        not_generated={},
        mistakes=samples(0, rng, 3),
    )
    text, _ = parsed(write_report(plain, tmp_path / "report.html"))
    assert "<h2>Angle</h2>" not in text and "Where it was wrong" not in text
    assert "derotated" not in text and "have no row" not in text


def test_a_second_angle_of_small_probability_is_not_told(data: ReportData, tmp_path: Path):
    sure = replace(data.samples, second_probabilities=np.full(6, 0.05))
    text, _ = parsed(write_report(replace(data, samples=sure, mistakes=sure), tmp_path / "report.html"))
    assert "derotated" in text and "<br>or" not in text


def test_the_same_content_gives_the_same_page(data: ReportData, tmp_path: Path):
    first, second = write_report(data, tmp_path / "a.html"), write_report(data, tmp_path / "b.html")
    assert first.read_bytes() == second.read_bytes()


def test_a_class_that_is_found_less_often_has_a_card(data: ReportData, tmp_path: Path):
    by_class = {"accuracy_by_class": {"cat": 1.0, EVIL: 0.5}, "balanced_accuracy": 0.75}
    for counts, shown in (({"cat": 400, EVIL: 40}, True), (None, False)):
        more = {**by_class, "images_by_class": counts} if counts else {}
        page = replace(data, evaluation={**data.evaluation, **more})
        text, _ = parsed(write_report(page, tmp_path / "report.html"))
        assert ("mean over the classes (worst: " in text and "75.0 %" in text) == shown


def test_a_memory_that_was_not_measured_is_a_dash(data: ReportData, tmp_path: Path):
    for peak, cell in ((2**27, "<td>128</td>"), (None, "<td>–</td>")):
        rows = [{**data.benchmark["results"][0], "peak_memory_bytes": peak}]
        page = replace(data, benchmark={**data.benchmark, "results": rows})
        assert cell in write_report(page, tmp_path / "report.html").read_text(encoding="utf-8")


def many(data: ReportData, count: int) -> ReportData:
    """The same page for more classes, of long names, some images of which are confused."""
    classes = tuple(f"class_{k:03}_with_a_long_name_that_goes_on" for k in range(count))
    table = np.diag(np.full(count, 7)) + np.eye(count, k=1, dtype=int) * 3
    counts = dict(zip(classes, table.sum(1).tolist(), strict=True))
    right = {name: 7 / counts[name] for name in classes}
    confusions = [{"class": classes[0], "predicted": classes[1], "count": 3, "of": 10}]
    figures = {
        "classes": list(classes),
        "confusion": table.tolist(),
        "confusions": confusions,
        "accuracy_by_class": right,
        "images_by_class": counts,
        "balanced_accuracy": 0.7,
    }
    return replace(data, classes=classes, evaluation={**data.evaluation, **figures}, generated={}, not_generated={})


@pytest.mark.parametrize(("count", "counted"), [(2, True), (20, True), (21, False), (100, False)])
def test_confusions_of_two_to_a_hundred_classes_have_their_names(
    data: ReportData, tmp_path: Path, count: int, counted: bool
):
    content = many(data, count)
    text, _ = parsed(write_report(content, tmp_path / "report.html"))
    table = text.partition('<table class="confusion')[2].partition("</table>")[0]
    for name in content.classes:
        assert table.count(f">{name}<") == 2, name  # a row and a column
    assert table.count("<td ") == count * count and (">7</td>" in table) == counted
    if not counted:
        assert f'title="{content.classes[0]} taken for {content.classes[1]}: 3 of 10"' in table
        assert table.count("taken for") == 2 * count - 1  # one for each cell that is not empty
        assert f"{content.classes[0]} taken for {content.classes[1]}, 3 of 10" in text
    assert len(text) < 2_000_000


def test_what_was_not_measured_has_no_section(data: ReportData, tmp_path: Path):
    bare = replace(data, generated={}, not_generated={}, precisions=(), benchmark=None, training=(), unknown_scores={})
    bare = replace(bare, auroc={}, calibration=Calibration(certain(0.95), None, np.repeat([0, 1], [9, 1]), None))
    text, _ = parsed(write_report(bare, tmp_path / "report.html"))
    for heading in ("Generated images", "Precision", "Latency", "Training"):
        assert f"<h2>{heading}</h2>" not in text
    assert "None were shown" in text and "without the temperature" not in text


def test_sentences_and_warnings_stand_on_top_and_names_in_them_stay_text(data: ReportData, tmp_path: Path):
    page = replace(data, sentences=("91% right", "and more"), warnings=(f"`{EVIL}` is never right",), tried="little")
    text, _ = parsed(write_report(page, tmp_path / "report.html"))
    assert "<script" not in text
    warning = '<li class="warning"><code>&lt;script&gt;alert(1)&lt;/script&gt;</code> is never right</li>'
    assert text.index("<li>91% right</li>") < text.index(warning) < text.index("<li>and more</li>")
    assert text.index("<li>and more</li>") < text.index('class="cards"') and "Tried: little." in text


def test_wrong_images_have_their_files_and_large_ones_are_reduced(data: ReportData, tmp_path: Path):
    rng = np.random.default_rng(2)
    large = rng.integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    mistakes = replace(samples(2, rng, 3), images=large, reconstructions=None, derotated=None, files=["a/b.png", EVIL])
    text, page = parsed(write_report(replace(data, mistakes=mistakes), tmp_path / "report.html"))
    assert '<span class="file">a/b.png</span>' in text and "<script" not in text
    shown = [address for address in page.loads if address.startswith("data:image/jpeg")]
    assert len(shown) == 2
    for address in shown:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
            assert image.size == (128, 128)


def test_learning_curves_are_a_picture_of_any_log(tmp_path: Path):
    log = [{"epoch": k, "seconds": 1.0, "kl": 2.0, "classes": 1.0 / k, "learning_rate": 0.1} for k in (1, 2, 3)]
    for rows in (log, log[:1], [{**row, "val_accuracy": 0.5, "kl": 0.0} for row in log], []):
        path = write_png(learning_curves(rows), tmp_path / "curves.png")
        with Image.open(path) as image:
            assert image.width == 1350 and len(image.getcolors(256)) > 2
    titles = [axes.get_title() for axes in learning_curves([{**row, "val_accuracy": 0.5} for row in log]).axes]
    assert titles == ["terms of the loss", "accuracy"]
    assert [text.get_text() for text in learning_curves(log).axes[0].get_legend().get_texts()] == ["kl", "classes"]
