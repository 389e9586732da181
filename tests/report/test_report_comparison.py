from pathlib import Path
from xml.etree import ElementTree

import pytest

from vae_edge.report.comparison import markdown, write_comparison


def row(model: str, images: str, generated: bool, mean: float, std: float | None) -> dict:
    decision = {"parameters": 12_345, "macs": 678, "bytes": 4096, "latency_us": 99.6}
    return {
        "model": model,
        "images": images,
        "generated": generated,
        "accuracy": {"mean": mean, "std": std, "by_seed": [mean]},
        "tested_on": 100,
        "wall_seconds": 12.34,
        "processor_seconds": 23.45,
        "images_seen": 1000.0,
        "training_macs": None if model == "svm" else 1.5e12,
        "decision": decision,
    }


@pytest.fixture
def result() -> dict:
    rows = [
        row("svm", "upright", False, 0.5, None),
        row("cnn", "rotated", False, 0.981, 0.002),
        row("cnn", "rotated", True, 1.0, 0.0),
        {
            **row("vae", "rotated", True, 0.9, 0.1),
            "full": {"parameters": 9, "macs": 8, "bytes": None, "latency_us": None},
        },
    ]
    return {
        "data": {"name": "things"},
        "settings": {"preset": "small"},
        "seeds": [4, 5],
        "machine": {"cpu": "a processor", "threads": 2, "date": "a day"},
        "versions": {"torch": "9.9", "openvino": None},
        "rows": rows,
        "trials": [{"where": {"cpu": "a processor", "threads": 2, "code": "abc"}} for _ in rows],
        "generated_helps": [{"images": "rotated", "model": "cnn", "points": {"mean": 1.9, "std": 0.2}}],
        "generators": [{"training": {"wall_seconds": 30.0}, "sampling": {"wall_seconds": 2.0}}],
        "sentence": "It is so.",
    }


def test_trials_on_several_machines_are_named(result: dict):
    assert "circumstances" not in markdown(result)
    result["trials"][1]["where"]["threads"] = 1
    assert "2 different circumstances" in markdown(result) and "threads 1" in markdown(result)


def test_a_line_holds_the_figures_of_real_images_and_the_accuracy_of_both(result: dict):
    text = markdown(result)
    cnn = next(line for line in text.splitlines() if line.startswith("| cnn |"))
    cells = [cell.strip() for cell in cnn.strip("|").split("|")]
    assert cells == [
        "cnn",
        "98.10 ± 0.20%",
        "100.00 ± 0.00%",
        "12.3",
        "23.4",
        "1,000",
        "1.5e+12",
        "12,345",
        "678",
        "4",
        "100",
    ]
    assert "| svm | 50.00% |  |" in text and "seeds 4, 5" in text and "cnn +1.90 ± 0.20" in text
    assert "**It is so.**" in text and "torch 9.9" in text and "openvino" not in text
    assert text.index("## Rotated") < text.index("## Upright")


def test_nothing_is_said_of_what_was_not_compared(result: dict):
    result["rows"] = [r for r in result["rows"] if r["images"] == "upright"]
    result["generated_helps"], result["generators"] = [], []
    text = markdown(result)
    assert "## Rotated" not in text and "enerated images change" not in text and "one generator" not in text


def test_the_plot_is_drawn_for_perfect_models_and_single_seeds(result: dict, tmp_path: Path):
    paths = write_comparison(result, tmp_path / "out")
    assert [path.name for path in paths] == ["compare.md", "compare.png", "compare.svg"]
    assert ElementTree.parse(paths[2]).getroot().tag.endswith("svg")
    first = paths[1].read_bytes()
    assert first.startswith(b"\x89PNG")
    write_comparison(result, tmp_path / "out")
    assert paths[1].read_bytes() == first
