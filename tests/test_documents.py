"""The documents hold what they promise: links lead somewhere, and figures are those of the files they name."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vae_edge.cli.parser import build_parser
from vae_edge.engine.devices import HEADINGS, table_rows
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.experiments.trials import read_comparison
from vae_edge.exporting.onnx_file import ClassifierGraph
from vae_edge.model import PRESETS, AngleVAE, create_config
from vae_edge.report.comparison import markdown

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for address in re.findall(r"\]\(([^)#]+?)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if "://" not in address:
            assert (document.parent / address).exists(), address
    assert not re.search(r"\b(TODO|TBD|FIXME)\b", text)
    if document.name != "CHANGELOG.md":  # which tells of files that are gone
        for path in re.findall(r"\b((?:bench|docs|kernels|tests|vae_edge)/[\w./-]+\.(?:py|json|md|h|c|sh))\b", text):
            assert (ROOT / path).exists(), path


def commands(text: str) -> list[str]:
    """The `vae-edge` commands of a document's indented lines, joined where a line goes on, without usage brackets."""
    lines = re.findall(r"^ {4,}(vae-edge .*)$", text.replace("\\\n", " "), re.MULTILINE)
    return [line for line in lines if "[" not in line]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_are_understood(document: Path) -> None:
    for line in commands(document.read_text(encoding="utf-8")):
        assert callable(build_parser().parse_args(shlex.split(line, comments=True)[1:]).run), line


def test_a_wrong_command_in_a_document_is_found() -> None:
    assert commands("x\n    vae-edge bench B --bacth 1  # why\n    make\nvae-edge no") == [
        "vae-edge bench B --bacth 1  # why"
    ]
    with pytest.raises(SystemExit):
        build_parser().parse_args(["bench", "B", "--bacth", "1"])


def test_the_table_of_the_model_is_what_was_measured() -> None:
    text = (ROOT / "docs/model_tables.md").read_text(encoding="utf-8")
    shown = subprocess.run(
        [sys.executable, ROOT / "bench/model.py", "--table"], capture_output=True, text=True, check=True
    ).stdout
    assert len(shown.splitlines()) > 10
    for line in shown.splitlines():
        assert line in text, line
    summary = (ROOT / "docs/model.md").read_text(encoding="utf-8").split("## What it reaches")[1].split("[All rows]")[0]
    rows = [line for line in summary.splitlines() if line.startswith("| ")]
    assert len(rows) > 10 and set(rows) <= set(text.splitlines())


def test_the_tables_of_real_pictures_are_what_was_measured() -> None:
    text = (ROOT / "docs/model_tables.md").read_text(encoding="utf-8")
    shown = subprocess.run(
        [sys.executable, ROOT / "bench/real.py", "--table"], capture_output=True, text=True, check=True
    ).stdout
    assert len(shown.splitlines()) > 10
    assert shown.strip() in text


def test_the_comparison_is_what_was_measured() -> None:
    text = (ROOT / "docs/model_tables.md").read_text(encoding="utf-8")
    result = read_comparison(ROOT / "bench/results/model-compare.json")
    lines = [line for line in markdown(result).splitlines() if line.startswith(("| ", "- ", "**"))]
    assert len(lines) > 20
    for line in lines:
        assert line in text, line


def test_what_generated_images_change_is_what_was_measured() -> None:
    text = (ROOT / "docs/model.md").read_text(encoding="utf-8")
    for labels, name in (("10", "ten"), ("100", "hundred"), ("1,000", "thousand")):
        without, drawn = (
            json.loads((ROOT / f"bench/results/model-{name}-alone{suffix}.json").read_text())["figures"]["accuracy"]
            for suffix in ("", "-generated")
        )
        pairs = zip(drawn["by_seed"], without["by_seed"], strict=True)
        changes = ", ".join(f"{100 * (one - other):+.2f}".replace("-", "−") for one, other in pairs)
        row = f"| {labels} | {100 * without['mean']:.2f}% | {100 * drawn['mean']:.2f}% | {changes} |"
        assert row in text, row


def test_the_parameters_of_the_presets_are_counted() -> None:
    text = (ROOT / "docs/model.md").read_text(encoding="utf-8")
    for name in PRESETS:
        model = AngleVAE(create_config(name))
        whole = sum(parameter.numel() for parameter in model.parameters())
        without = whole - sum(parameter.numel() for parameter in model.decoder.parameters())
        assert re.search(rf"^\| `{name}` .*\| {whole:,} \| {without:,} \|$", text, re.MULTILINE), (name, whole, without)


def test_the_costs_of_the_presets_at_each_size_are_counted() -> None:
    text = (ROOT / "docs/model.md").read_text(encoding="utf-8").split("### Large images")[1].split("\n## ")[0]
    sizes = [int(cell) for cell in re.search(r"^\| preset \|(.*)\|$", text, re.MULTILINE)[1].split("|")]
    assert sizes == [28, 32, 64, 96, 128, 224]
    for name in PRESETS:
        cells = []
        for size in sizes:
            config = create_config(name, size=size, channels=1 if size == 28 else 3)
            with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
                model = AngleVAE(config).eval()
                ClassifierGraph(model)(torch.zeros(1, size, size, config.channels, dtype=torch.uint8))
            parameters = sum(parameter.numel() for parameter in model.parameters())
            cells.append(f"{parameters / 1e6:.2f}, {counter.get_total_flops() / 2e6:.1f}")
        assert f"| `{name}` | {' | '.join(cells)} |" in text, (name, cells)


def test_the_table_of_devices_is_the_data() -> None:
    text = (ROOT / "docs/engines.md").read_text(encoding="utf-8")
    section = text.split("## Targets by name")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    expected = ["| " + " | ".join(cells) + " |" for cells in (HEADINGS, *table_rows())]
    assert [rows[0], *rows[2:]] == expected and len(expected) > 30


def test_the_table_of_build_options_names_each_option_and_field() -> None:
    text = (ROOT / "docs/engines.md").read_text(encoding="utf-8")
    section = text.split("## Options of a build")[1].split("\n## ")[0]
    fields = set(re.findall(r"^\| `--.*? \| `(\w+)` \|", section, re.MULTILINE))
    assert fields == {field.name for field in dataclasses.fields(BuildConfig)} - {"role", "targets", "kind"}
    options = set(re.findall(r"`(--\w[\w-]+)", section))
    known = set(build_parser().parse_args(["build", "b"]).parser._option_string_actions)
    assert len(options) > 12 and options <= known


def test_the_readme_gives_the_measured_figures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rotated, upright = (
        json.loads((ROOT / f"bench/results/model-{row}.json").read_text())["figures"] for row in ("rotated", "upright")
    )
    quick = json.loads((ROOT / "bench/results/quickstart.json").read_text())
    fastest = min(row["p50_us"] for row in quick["latency"] if row["batch"] == 1)
    for figure in (
        *(f"{100 * row['precisions']['int8']['accuracy']['mean']:.2f}%" for row in (rotated, upright)),
        *(f"{100 * row['accuracy']['mean']:.2f}%" for row in (rotated, upright)),
        f"{100 * rotated['upright']['accuracy']['mean']:.2f}%",
        f"{rotated['angle_error_deg']['median']['mean']:.1f}°",
        f"{100 * quick['accuracy']:.1f}%",
        f"{100 * quick['upright_accuracy']:.1f}%",
        f"{quick['angle_error_deg']['median']:.1f}°",
        f"{fastest:.0f} µs",
    ):
        assert figure in text, figure


def test_no_two_test_files_have_the_same_name() -> None:
    """pytest imports a file by its name alone: of two it would collect one."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []
