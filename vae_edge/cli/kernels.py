"""The command that compiles the GPU kernels and says what the compiler made of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from vae_edge.cli.console import emit, say

HEADINGS = ("kernel", "sm", "registers", "shared", "spills", "occupancy", "matrix", "16-byte", "code", "")


def check(arguments: argparse.Namespace) -> int:
    """`vae-edge kernels check`: 0 when every kernel is within its budget, else 2."""
    from vae_edge_kernels import aot, evidence

    architectures = aot.parse_architectures(arguments.arch)
    findings = evidence.gather(architectures, arguments.only, _networks(arguments.networks), say)
    result = [asdict(finding) for finding in findings]
    emit(result, arguments.json, lambda: _lines(findings))
    faults = [finding for finding in findings if finding.fault]
    for finding in faults:
        say(f"sm_{finding.architecture}: {finding.fault}")
    if faults:
        say(f"{len(faults)} of {len(findings)} are over their budget")
    return 2 if faults else 0


def _networks(names: str) -> dict[str, str]:
    """Plans of presets, fp16 and int8, as texts by name."""
    if names == "none":
        return {}
    from vae_edge_kernels.plan import to_text

    from vae_edge.model import AngleVAE, create_config
    from vae_edge.ops.packing import plan_of

    plans = {}
    for name in names.split(","):
        model = AngleVAE(create_config(name.strip()))
        for int8 in (False, True):
            plans[f"{name.strip()}_{'int8' if int8 else 'fp16'}"] = to_text(plan_of(model, int8=int8))
    return plans


def _lines(findings: Sequence[Any]) -> Iterator[str]:
    rows = [HEADINGS, *map(_row, findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        first, *others = (cell.ljust(width) if i in (0, 6, 9) else cell.rjust(width)
                          for i, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        yield "  ".join((first, *others)).rstrip()


def _row(finding: Any) -> tuple[str, ...]:
    code = finding.code
    wide = f"{code.load_bits.get(128, 0)} + {code.store_bits.get(128, 0)}"
    return (
        finding.kernel,
        str(finding.architecture),
        str(code.registers),
        f"{code.shared_bytes:,}",
        str(code.spill_store_bytes),
        f"{code.occupancy:.0%}",
        " ".join(f"{count} {name}" for name, count in code.matrix.items()) or "–",
        wide,
        f"{code.code_bytes:,}",
        "" if finding.fault is None else "over",
    )
