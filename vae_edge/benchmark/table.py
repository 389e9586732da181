"""A benchmark's result as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text


def format_table(result: dict[str, Any]) -> Table:
    """What `run_benchmark` returned, fastest first within each batch; the title says where it was measured."""
    machine = result["machine"]
    title = f"{result['bundle']['name']} on {machine['cpu']}, {machine['threads']} thread(s)"
    if machine.get("cpu_quota") is not None:
        title += f", quota of {machine['cpu_quota']:g} processors"
    baseline = result["memory"]["baseline_bytes"]
    caption = "time of one call in microseconds, from a uint8 array to predictions"
    if baseline is not None:
        caption += f"; memory is the whole process's peak, of which Python with NumPy is {baseline / 1e6:.0f} MB"
    table = Table(title=Text(title, style="table.title"), caption=caption)
    table.add_column("batch", justify="right")
    table.add_column("backend")
    table.add_column("precision")
    for name in ("p50", "p90", "p99", "images/s", "memory MB", "calls"):
        table.add_column(name, justify="right")
    rows = sorted(result["results"], key=lambda row: (row["batch"], row["p50_us"]))
    for index, row in enumerate(rows):
        last = index + 1 == len(rows) or rows[index + 1]["batch"] != row["batch"]
        peak = row["peak_memory_bytes"]
        table.add_row(
            str(row["batch"]),
            row["backend"],
            row["precision"],
            *(f"{row[key]:,.1f}" for key in ("p50_us", "p90_us", "p99_us")),
            f"{row['images_per_s']:,.0f}",
            "–" if peak is None else f"{peak / 1e6:.0f}",
            str(row["calls"]),
            end_section=last,
        )
    return table
