"""Copies of what Jetsons have in /etc, /proc, /sys, /usr and /var, below tests/fixtures/jetson: one folder a machine.

The facts are from public reports of such machines, shortened; which power modes allow which clocks is partly invented.
`about.json` says what no file tells: the GPU as CUDA names it, and the Python that asks.

    python tests/jetson_trees.py [NAME ...]    # prints what `vae-edge doctor` says of each
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vae_edge.cli.console import emit, print_table
from vae_edge.cli.device import finding_lines, jetson_table
from vae_edge.jetson import Interpreter, Jetson, findings, read_jetson

FOLDER = Path(__file__).parent / "fixtures" / "jetson"
TREES = tuple(sorted(path.name for path in FOLDER.iterdir()))


def about(name: str) -> dict[str, Any]:
    """What the tree's files do not tell."""
    return json.loads((FOLDER / name / "about.json").read_text(encoding="utf-8"))


def read_tree(name: str, root: Path | None = None) -> Jetson:
    """The Jetson of a tree; `root`: of a copy of it."""
    told = about(name)
    jetson = read_jetson(
        root or FOLDER / name,
        told["gpu"]["name"],
        tuple(told["gpu"]["capability"]),
        Interpreter(**told["interpreter"]),
    )
    assert jetson is not None
    return jetson


def main(names: list[str]) -> None:
    """Print the table and the findings of each tree."""
    for name in names or TREES:
        jetson = read_tree(name)
        print(f"==== {name}: {about(name)['about']}")
        print_table(jetson_table(jetson))
        emit(None, False, lambda jetson=jetson: finding_lines(findings(jetson)))
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
