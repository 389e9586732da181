from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from vae_edge.report import Calibration, Content, SampleSet, write_report

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
def content() -> Content:
    rng = np.random.default_rng(0)
    row = {"backend": "openvino", "precision": "fp32", "batch": 1, "p50_us": 90.0, "p90_us": 95.0, "p99_us": 99.0}
    row |= {"images_per_s": 11000.0, "peak_memory_bytes": 2**27}
    error = {"median": 3.0, "mean": 5.0, "p90": 9.0, "beyond_90": 0.01}
    upright = {"n": 20, "accuracy": 0.98}
    precision = {"precision": "fp32", "bytes": 10_000, "accuracy": 0.97, "upright_accuracy": 0.98, "accepted": 0.99}
    return Content(
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


def test_the_page_is_whole_and_loads_nothing(content: Content, tmp_path: Path):
    text, page = parsed(write_report(content, tmp_path / "report.html"))
    assert page.loads and all(address.startswith("data:") for address in page.loads)
    assert all(page.alternatives)
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert "url(" not in text and "@import" not in text


def test_every_claim_has_its_figure(content: Content, tmp_path: Path):
    text, page = parsed(write_report(content, tmp_path / "report.html"))
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


def test_names_from_outside_stay_text(content: Content, tmp_path: Path):
    text, _ = parsed(write_report(content, tmp_path / "report.html"))
    assert "<script" not in text and "&lt;script&gt;" in text


def test_a_colour_model_without_angles_has_its_page_too(content: Content, tmp_path: Path):
    rng = np.random.default_rng(1)
    evaluation = {key: value for key, value in content.evaluation.items() if key not in ("angle_error_deg", "upright")}
    plain = replace(
        content,
        evaluation=evaluation,
        angle_errors_deg=None,
        samples=replace(samples(3, rng, 3), turned_back=None, second_deg=None, second_angle_probs=None),
        generated={name: rng.integers(0, 256, (4, 28, 28, 3), dtype=np.uint8) for name in content.classes},
        not_generated={},
        mistakes=samples(0, rng, 3),
    )
    text, _ = parsed(write_report(plain, tmp_path / "report.html"))
    assert "Which way up" not in text and "Where it was wrong" not in text
    assert "turned back" not in text and "have no row" not in text


def test_a_second_angle_of_small_probability_is_not_told(content: Content, tmp_path: Path):
    sure = replace(content.samples, second_angle_probs=np.full(6, 0.05))
    text, _ = parsed(write_report(replace(content, samples=sure, mistakes=sure), tmp_path / "report.html"))
    assert "turned back" in text and "<br>or" not in text


def test_the_same_content_gives_the_same_page(content: Content, tmp_path: Path):
    first, second = write_report(content, tmp_path / "a.html"), write_report(content, tmp_path / "b.html")
    assert first.read_bytes() == second.read_bytes()


def test_a_class_that_is_found_less_often_has_a_card(content: Content, tmp_path: Path):
    by_class = {"accuracy_by_class": {"cat": 1.0, EVIL: 0.5}, "balanced_accuracy": 0.75}
    for counts, shown in (({"cat": 400, EVIL: 40}, True), (None, False)):
        more = {**by_class, "images_by_class": counts} if counts else {}
        page = replace(content, evaluation={**content.evaluation, **more})
        text, _ = parsed(write_report(page, tmp_path / "report.html"))
        assert ("mean over the classes (worst: " in text and "75.0 %" in text) == shown


def test_a_memory_that_was_not_measured_is_a_dash(content: Content, tmp_path: Path):
    for peak, cell in ((2**27, "<td>128</td>"), (None, "<td>–</td>")):
        rows = [{**content.benchmark["results"][0], "peak_memory_bytes": peak}]
        page = replace(content, benchmark={**content.benchmark, "results": rows})
        assert cell in write_report(page, tmp_path / "report.html").read_text(encoding="utf-8")
