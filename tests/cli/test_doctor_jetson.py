"""`vae-edge doctor` on a Jetson: its table, its findings, its JSON; on another machine nothing of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jetson_trees import TREES, read_tree

from vae_edge import jetson as jetson_module
from vae_edge.cli import main
from vae_edge.jetson import Jetson, findings

NANO, CONTAINER = "orin-nano-super-jetpack-6.2", "container-jetpack-7.2"


def become(monkeypatch: pytest.MonkeyPatch, jetson: Jetson | None) -> None:
    """Let every caller read this Jetson instead of this machine's files."""
    monkeypatch.setattr(jetson_module, "read_jetson", lambda *arguments, **options: jetson)


@pytest.mark.parametrize("name", TREES)
def test_every_finding_is_printed_with_its_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    jetson = read_tree(name)
    become(monkeypatch, jetson)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert jetson.name in shown and f"JetPack {jetson.jetpack} (L4T {jetson.l4t})" in shown
    for finding in findings(jetson):
        assert f"{'✓' if finding.works else '✗'} {finding.subject}: {finding.detail}\n" in shown
        assert not finding.remedy or f"    {finding.remedy}\n" in shown
    assert "TensorRT: none is installed" not in shown


def test_the_json_has_the_jetson_and_its_findings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    become(monkeypatch, read_tree(NANO))
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    jetson = told["jetson"]
    assert (jetson["name"], jetson["capability"], jetson["dla_cores"]) == ("Jetson Orin Nano 8 GB", "8.7", 0)
    assert jetson["power_mode"] == {"number": 0, "name": "15W"}
    assert jetson["strongest_power_mode"] == {"number": 2, "name": "MAXN_SUPER"}
    assert [mode["name"] for mode in jetson["power_modes"]] == ["15W", "25W", "MAXN_SUPER", "7W"]
    assert jetson["clocks"]["pinned"] is False and jetson["container"] is None
    remedies = {finding["subject"]: finding["remedy"] for finding in jetson["findings"] if not finding["works"]}
    assert remedies == {"Power mode": "sudo nvpmodel -m 2", "Clocks": "sudo jetson_clocks"}
    assert told["machine"]["jetson"]["power_mode"] == "15W"
    assert "serial" not in json.dumps(told).lower()


def test_on_another_machine_nothing_of_it_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    become(monkeypatch, None)
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["jetson"] is None and "jetson" not in told["machine"]
    assert main(["doctor"]) == 0
    assert "Jetson" not in capsys.readouterr().out


def test_a_terminal_without_the_signs_still_gets_the_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    become(monkeypatch, read_tree(NANO))
    monkeypatch.setattr("vae_edge.cli.device.can_print", lambda characters: False)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "FAIL Power mode: 15W, while MAXN_SUPER (number 2) is the strongest\n    sudo nvpmodel -m 2\n" in shown


def test_a_hostile_model_name_does_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson \x1b]0;own\x07 [red]\xff Orin\0")
    become(monkeypatch, jetson_module.read_jetson(tmp_path))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and "\\x1b]0;own\\x07" in shown
