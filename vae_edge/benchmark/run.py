"""A benchmark's result as a table for the terminal.

The benchmark: every candidate in turn in one process, so that whatever else the machine does falls on all alike.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

import vae_edge
from vae_edge.benchmark.measure import baseline_memory, describe_machine, peak_memory, time_in_turns
from vae_edge.bundle import Bundle, load_bundle
from vae_edge.bundle_schema import PRECISIONS
from vae_edge.errors import ConfigError, DataError, VerificationError
from vae_edge.runtime import Classifier, cpu_entries, installed_backends
from vae_edge.runtime.backends import check_installed
from vae_edge.runtime.classifier import find_entry


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


log = logging.getLogger(__name__)

SCHEMA = 1
WARM_CALLS = 3
LEAST_TIMED = 0.02  # share of the time below which a batch is not begun
MEMORY_IS = (
    "peak resident memory of one fresh process that imports, loads, and predicts batches of this size (nothing "
    "subtracted); the baseline is a process that imports NumPy and vae_edge and loads no bundle"
)


@dataclass
class Candidate:
    """One backend in one precision."""

    backend: str
    precision: str
    classifier: Classifier


def run_benchmark(
    bundle_path: str | os.PathLike[str],
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    *,
    batches: Sequence[int] = (1, 8, 64),
    threads: int = 1,
    seconds: float = 20.0,
    images: np.ndarray | None = None,
    memory: bool = True,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Time every backend x precision x batch of a bundle.

    Calls run in turns, A B C A B C. Each is timed alone with `time.perf_counter_ns` and is the whole way from a uint8
    array to predictions; the first call of a turn brings a candidate back into the caches and is not counted.

    Args:
        bundle_path: the bundle.
        backends: names; None is all that are installed.
        precisions: None is all in the bundle.
        batches: images a call.
        threads: for each call.
        seconds: the time that all of it may take. After loading, memory gets half of what is left, the smallest batches
            first, and timing the rest. What does not fit in is left out and named; the smallest batch is always timed,
            with five calls of each candidate at least.
        images: uint8 [N, S, S, C] to predict, repeated as needed; None is seeded noise.
        memory: whether to measure peak memory too, in a fresh process for each candidate and batch.
        progress: called with what is going on and the share done in 0..1.

    Returns:
        Plain values for JSON: `schema`, `machine`, `bundle`, `settings`, `memory`, and `results`, for each candidate
        and batch: `p50_us`, `p90_us`, `p99_us`, `mean_us`, `images_per_s` (at the median), `calls`,
        `peak_memory_bytes` (null where it was not measured); `wrong` names those whose answers are wrong here, and
        `left_out` has a sentence for what there was no time for.

    Raises:
        BundleError, BackendError: as `vae_edge.load`; wrong answers are an error where both backend and precision were
            named, or where there is nothing else.
        ConfigError, DataError: if an argument is out of range, or the images do not fit.
    """
    bundle = load_bundle(bundle_path)
    _check(batches, threads, seconds)
    batches = sorted(set(batches))
    pool = _images(bundle, images, batches[-1])
    pairs = _pairs(bundle, backends, precisions)
    tell = progress or _say_nothing
    started = time.perf_counter()
    deadline = started + seconds
    opened: list[Candidate] = []
    results: list[dict[str, Any]] = []
    left_out: list[str] = []
    try:
        by_name = backends is not None and precisions is not None
        wrong = _open(bundle, pairs, threads, opened, by_name, lambda what: tell(what, 0.0))
        kept = [(candidate.backend, candidate.precision) for candidate in opened]
        runs = [(*pair, batch) for batch in batches for pair in kept] if memory else []
        baseline, peaks = _memory(bundle, runs, threads, deadline, tell, left_out)
        for index, batch in enumerate(batches):
            left = deadline - time.perf_counter()
            if index and left < LEAST_TIMED * seconds:
                left_out.append(f"batch {batch} was not timed: there was no time left of {seconds:g} s.")
                continue
            tell(f"timing: batch {batch}", 0.5 + 0.5 * index / len(batches))
            results += _time_batch(opened, pool[:batch], left / (len(batches) - index), peaks)
    finally:
        for candidate in opened:
            candidate.classifier.close()
    tell("done", 1.0)
    settings = {
        "batches": batches,
        "threads": threads,
        "seconds": seconds,
        "images": "given" if images is not None else "seeded noise",
        "took_s": round(time.perf_counter() - started, 2),
    }
    return {
        "schema": SCHEMA,
        "machine": describe_machine(threads),
        "bundle": _about(bundle),
        "settings": settings,
        "memory": {"what": MEMORY_IS, "baseline_bytes": baseline},
        "results": results,
        "wrong": wrong,
        "left_out": left_out,
    }


def _memory(
    bundle: Bundle,
    runs: list[tuple[str, str, int]],
    threads: int,
    deadline: float,
    tell: Callable[[str, float], None],
    left_out: list[str],
) -> tuple[int | None, dict[tuple[str, str, int], int]]:
    """The baseline's peak memory and that of each run that fits into half of the time left; None without runs.

    What does not fit in is added to `left_out`. A run is taken to need as long as the slowest before it.
    """
    if not runs:
        return None, {}
    now = time.perf_counter()
    end, slowest = (now + deadline) / 2, 0.0
    peaks: dict[tuple[str, str, int], int] = {}
    tell("memory: without a bundle", 0.0)
    baseline = baseline_memory()
    for index, run in enumerate(runs):
        before, now = now, time.perf_counter()
        slowest = max(slowest, now - before)
        if now + slowest > end:
            missing = len(runs) - index
            left_out.append(
                f"the memory of {missing} of {len(runs)} rows was not measured: one takes {slowest:.1f} s, and half "
                "of the seconds are for the timing; give more of them."
            )
            break
        tell(f"memory: {run[0]} {run[1]}, batch {run[2]}", 0.5 * index / len(runs))
        peaks[run] = peak_memory(bundle.path, *run, threads)
    return baseline, peaks


def _open(
    bundle: Bundle,
    pairs: list[tuple[str, str]],
    threads: int,
    opened: list[Candidate],
    by_name: bool,
    tell: Callable[[str], None],
) -> list[str]:
    """Add the candidates to `opened` whose answers are right here; the names of the others.

    Raises:
        VerificationError: one is wrong that was asked for by name, or all are.
    """
    wrong = []
    for backend, precision in pairs:
        tell(f"loading: {backend} {precision}")
        try:
            opened.append(Candidate(backend, precision, vae_edge.load(bundle.path, backend, precision, threads)))
        except VerificationError as error:
            if by_name:
                raise
            log.warning("not measured: %s", error)
            wrong.append(f"{backend} {precision}")
    if not opened:
        raise VerificationError(f"Every backend gives wrong answers with {bundle.path} here: nothing is measured.")
    return wrong


def _about(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": bundle.name,
        "input": {"size": bundle.input.size, "channels": bundle.input.channels},
        "models": [entry.to_json() for entry in bundle.models],
    }


def _time_batch(
    opened: list[Candidate], image: np.ndarray, seconds: float, peaks: dict[tuple[str, str, int], int]
) -> list[dict[str, Any]]:
    """Time one batch with every candidate, warming up included, for about so many seconds."""
    started = time.perf_counter()
    for candidate in opened:
        candidate.classifier.warmup(len(image))
        for _ in range(WARM_CALLS):
            candidate.classifier(image, color="rgb")
    calls = [partial(candidate.classifier, image, color="rgb") for candidate in opened]
    left = seconds - (time.perf_counter() - started)
    times = time_in_turns(calls, left, burst=4 if len(image) < 32 else 1)
    return [_summary(candidate, taken, len(image), peaks) for candidate, taken in zip(opened, times, strict=True)]


def _summary(
    candidate: Candidate, times_ns: list[int], batch: int, peaks: dict[tuple[str, str, int], int]
) -> dict[str, Any]:
    times_us = np.asarray(times_ns, np.float64) / 1e3
    p50, p90, p99 = (float(v) for v in np.percentile(times_us, [50, 90, 99]))
    return {
        "backend": candidate.backend,
        "precision": candidate.precision,
        "batch": batch,
        "p50_us": round(p50, 2),
        "p90_us": round(p90, 2),
        "p99_us": round(p99, 2),
        "mean_us": round(statistics.fmean(times_us), 2),
        "images_per_s": round(batch / p50 * 1e6, 1),
        "calls": len(times_us),
        "peak_memory_bytes": peaks.get((candidate.backend, candidate.precision, batch)),
    }


def _pairs(bundle: Bundle, backends: Sequence[str] | None, precisions: Sequence[str] | None) -> list[tuple[str, str]]:
    """The candidates; what was asked for by name and is not there is refused, as `vae_edge.load` does, not skipped."""
    there = list(cpu_entries(bundle))
    chosen = there if precisions is None else list(precisions)
    names = installed_backends() if backends is None else tuple(backends)
    for backend in names:
        if backend != "auto":
            check_installed(backend)
    for precision in chosen:
        if precision not in ("auto", *PRECISIONS):
            raise ConfigError(f"precision is auto, {', '.join(PRECISIONS)}, but {precision!r} came.")
        if precision != "auto":
            find_entry(bundle, precision)
    pairs = [(backend, precision) for precision in dict.fromkeys(chosen) for backend in dict.fromkeys(names)]
    if not pairs:
        raise ConfigError(
            f"There is nothing to measure in {bundle.path}: "
            f"the backends are {list(names) or 'none'}, the precisions {chosen or 'none'}."
        )
    return pairs


def _images(bundle: Bundle, images: np.ndarray | None, count: int) -> np.ndarray:
    spec = bundle.input
    shape = (spec.size, spec.size, spec.channels)
    if images is None:
        return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise DataError(
            f"The benchmark's images should be uint8 [N, {', '.join(map(str, shape))}], "
            f"but are {images.dtype} {list(images.shape)}."
        )
    return np.ascontiguousarray(np.resize(images, (count, *shape)))


def _check(batches: Sequence[int], threads: int, seconds: float) -> None:
    if not batches or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in batches):
        raise ConfigError(f"batches is a list of whole numbers of at least 1, but {list(batches)} came.")
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"threads is a whole number of at least 1, but {threads!r} came.")
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"seconds is a time above 0, but {seconds!r} came.")


def _say_nothing(what: str, share: float) -> None:
    """The progress of who did not ask for it."""
