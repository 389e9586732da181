"""The documents hold what they promise: links lead somewhere, and figures are those of the files they name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vae_edge.model import PRESETS, AngleVAE, create_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for address in re.findall(r"\]\(([^)#]+?)\)", text):
        if "://" not in address:
            assert (document.parent / address).exists(), address
    assert not re.search(r"\b(TODO|TBD|FIXME)\b", text)


def test_the_parameters_of_the_presets_are_counted() -> None:
    text = (ROOT / "docs/model.md").read_text(encoding="utf-8")
    for name in PRESETS:
        model = AngleVAE(create_config(name))
        whole = sum(parameter.numel() for parameter in model.parameters())
        without = whole - sum(parameter.numel() for parameter in model.decoder.parameters())
        assert re.search(rf"^\| `{name}` .*\| {whole:,} \| {without:,} \|$", text, re.MULTILINE), (name, whole, without)


def test_the_readme_gives_the_measured_figures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = json.loads((ROOT / "bench/results/accuracy.json").read_text())["rows"]
    quick = json.loads((ROOT / "bench/results/quickstart.json").read_text())
    turned, upright = rows["MNIST, turned"], rows["MNIST, upright"]
    fastest = min(row["p50_us"] for row in quick["latency"] if row["batch"] == 1)
    for figure in (
        f"{100 * turned['fp32']['accuracy']:.2f}%",
        f"{100 * turned['fp32']['upright']['accuracy']:.2f}%",
        f"{turned['fp32']['angle_error_deg']['median']:.1f}°",
        f"{100 * turned['int8']['accuracy']:.2f}%",
        f"{100 * upright['fp32']['accuracy']:.2f}%",
        f"{100 * upright['int8']['accuracy']:.2f}%",
        f"{100 * quick['accuracy']:.1f}%",
        f"{100 * quick['upright_accuracy']:.1f}%",
        f"{quick['angle_error_deg']['median']:.1f}°",
        f"{fastest:.0f} µs",
    ):
        assert figure in text, figure
