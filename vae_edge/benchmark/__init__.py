"""How fast the runtime is on this machine: scenarios, clocks and memory; results as data. It sees the runtime alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["describe_machine", "format_table", "run_benchmark", "time_in_turns"]

if TYPE_CHECKING:
    from vae_edge.benchmark.measure import describe_machine, time_in_turns
    from vae_edge.benchmark.run import format_table, run_benchmark

_HOME = {"describe_machine": "measure", "run_benchmark": "run", "format_table": "run", "time_in_turns": "measure"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: a process whose memory is measured has nothing else in it."""
    if name not in _HOME:
        raise AttributeError(f"module 'vae_edge.benchmark' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"vae_edge.benchmark.{_HOME[name]}"), name)
