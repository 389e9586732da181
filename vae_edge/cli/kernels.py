"""`vae-edge kernels`: the kernels' machine code against its budgets, and the roofline of networks."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from vae_edge.cli.console import emit, say
from vae_edge.environment import available_cpus

HEADINGS = ("kernel", "sm", "registers", "shared", "spills", "occupancy", "matrix", "loop", "16-byte", "code", "")


def check(arguments: argparse.Namespace) -> int:
    """`vae-edge kernels check`: 0 when every kernel is within its budget, else 2."""
    from vae_edge_kernels import aot
    from vae_edge_kernels.analysis import sass

    architectures = aot.parse_architectures(",".join(arguments.arch or ["87", "90"]))
    networks = _networks(",".join(arguments.networks or ["small"]))
    reports = sass.collect_reports(architectures, arguments.only, networks, say, available_cpus())
    result = [asdict(report) for report in reports]
    emit(result, arguments.json, lambda: _lines(reports))
    faults = [report for report in reports if report.fault]
    for report in faults:
        say(f"sm_{report.architecture}: {report.fault}")
    if faults:
        say(f"{len(faults)} of {len(reports)} are over their budget")
    return 2 if faults else 0


def roofline(arguments: argparse.Namespace) -> int:
    """`vae-edge kernels roofline`: the lower bound of each launch's time, on paper."""
    from vae_edge_kernels.analysis import roofline as paper

    layouts = _layouts(",".join(arguments.networks or ["tiny", "small", "base"]))
    emit(
        {name: [asdict(step) for step in paper.layer_costs(layout)] for name, layout in layouts.items()},
        arguments.json,
        lambda: _tables(layouts),
    )
    return 0


def _tables(layouts: dict[str, Any]) -> Iterator[str]:
    from vae_edge_kernels.analysis import roofline as paper

    for name, layout in layouts.items():
        yield f"{name}: microseconds at batch {' and '.join(map(str, paper.BATCHES))}"
        yield ""
        yield from paper.table(layout).splitlines()
        yield ""
    yield from paper.savings(layouts).splitlines()


def _layouts(names: str) -> dict[str, Any]:
    """Layouts of presets, in fp16 and int8, by name."""
    if names == "none":
        return {}
    from vae_edge.exporting.native import layout_for_preset

    return {
        f"{name}_{'int8' if int8 else 'fp16'}": layout_for_preset(name, int8=int8)
        for name in map(str.strip, names.split(","))
        for int8 in (False, True)
    }


def _networks(names: str) -> dict[str, str]:
    """The same layouts as JSON."""
    from vae_edge_kernels.layout import to_json

    return {name: to_json(layout) for name, layout in _layouts(names).items()}


def _lines(reports: Sequence[Any]) -> Iterator[str]:
    rows = [HEADINGS, *map(_row, reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    for row in rows:
        first, *others = (cell.ljust(width) if i in (0, 6, 10) else cell.rjust(width)
                          for i, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        yield "  ".join((first, *others)).rstrip()


def _row(report: Any) -> tuple[str, ...]:
    code = report.code
    wide = f"{code.load_bits.get(128, 0)} + {code.store_bits.get(128, 0)}"
    return (
        report.kernel,
        str(report.architecture),
        str(code.registers),
        f"{code.shared_bytes:,}",
        str(code.spill_store_bytes),
        f"{code.occupancy:.0%}",
        " ".join(f"{count} {name}" for name, count in code.matrix.items()) or "–",
        f"{code.loop_matrix} of {code.loop}" if code.loop else "–",
        wide,
        f"{code.code_bytes:,}",
        "" if report.fault is None else "over",
    )
