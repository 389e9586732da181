"""How fast a bundle is on this machine, and how much memory it takes. Imports the runtime alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["BenchmarkResult", "describe_machine", "format_table", "run_benchmark", "time_interleaved"]

if TYPE_CHECKING:
    from vae_edge.benchmarking.measure import describe_machine
    from vae_edge.benchmarking.run import BenchmarkResult, format_table, run_benchmark
    from vae_edge.runtime.autoselect import time_interleaved

_MODULES = {
    "BenchmarkResult": "vae_edge.benchmarking.run",
    "describe_machine": "vae_edge.benchmarking.measure",
    "format_table": "vae_edge.benchmarking.run",
    "run_benchmark": "vae_edge.benchmarking.run",
    "time_interleaved": "vae_edge.runtime.autoselect",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: a process whose memory is measured imports nothing else."""
    if name not in _MODULES:
        raise AttributeError(f"module 'vae_edge.benchmarking' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_MODULES[name]), name)
