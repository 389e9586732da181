"""The benchmark: times every backend and precision of a bundle interleaved in one process, and shows a table."""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_edge.benchmarking.measure import baseline_memory, describe_machine, peak_memory
from vae_edge.bundle import Bundle, load_bundle
from vae_edge.errors import ConfigError, DataError, VerificationError
from vae_edge.runtime import Classifier, find_entries, installed_backends, load
from vae_edge.runtime.autoselect import Candidate, time_interleaved
from vae_edge.runtime.backends import LoadOptions, check_installed
from vae_edge.runtime.entries import find_entry
from vae_edge.spec import PRECISIONS

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

SCHEMA = 1
WARM_UP_CALLS = 3
MIN_TIME_FRACTION = 0.02  # of the time; with less left, a batch is not begun
MEMORY_IS = (
    "peak resident memory of one fresh process that imports, loads, and predicts batches of this size (nothing "
    "subtracted); the baseline is a process that imports NumPy and vae_edge and loads no bundle"
)

Progress = Callable[[str, float], None]
"""Called with what is going on, and the fraction done in 0..1."""


@dataclass(frozen=True)
class BenchmarkSettings:
    """What was asked of a benchmark.

    Attributes:
        batches: images per call.
        threads: of each call.
        seconds: the time that all of it may take.
        images: "given" or "seeded noise".
        took_s: the time that it took.
    """

    batches: tuple[int, ...]
    threads: int
    seconds: float
    images: str
    took_s: float


@dataclass(frozen=True)
class BenchmarkRow:
    """The figures of one candidate at one batch size: times of a call in microseconds, and peak memory in bytes.

    `images_per_s` is at the median. `peak_memory_bytes` is None if it was not measured.
    """

    backend: str
    precision: str
    batch: int
    p50_us: float
    p90_us: float
    p99_us: float
    mean_us: float
    images_per_s: float
    calls: int
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class BenchmarkResult:
    """What `run_benchmark` measured.

    Attributes:
        machine: as `describe_machine` gives it.
        bundle: the bundle.
        settings: what was asked.
        baseline_bytes: the peak memory of a process without a bundle; None if memory was not measured.
        rows: one for each candidate and batch size.
        wrong: names of the candidates whose answers are wrong here; they are not timed.
        left_out: a sentence for each thing that there was no time for.
    """

    machine: Mapping[str, Any]
    bundle: Bundle
    settings: BenchmarkSettings
    baseline_bytes: int | None
    rows: tuple[BenchmarkRow, ...]
    wrong: tuple[str, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `vae-edge bench --json` prints them."""
        return {
            "schema": SCHEMA,
            "machine": dict(self.machine),
            "bundle": {
                "name": self.bundle.name,
                "input": {"size": self.bundle.input.size, "channels": self.bundle.input.channels},
                "models": [entry.to_json() for entry in self.bundle.models],
            },
            "settings": {**asdict(self.settings), "batches": list(self.settings.batches)},
            "memory": {"what": MEMORY_IS, "baseline_bytes": self.baseline_bytes},
            "results": [asdict(row) for row in self.rows],
            "wrong": list(self.wrong),
            "left_out": list(self.left_out),
        }


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
    progress: Progress | None = None,
    device: int = 0,
    trusted: bool = False,
) -> BenchmarkResult:
    """Time every backend x precision x batch of a bundle.

    Calls are interleaved, A B C A B C. Each is timed alone with `time.perf_counter_ns`, from a uint8 array to
    predictions; the first call of a round brings a model back into the CPU's caches and is not timed.

    Args:
        bundle_path: the bundle.
        backends: names; None is all that are installed.
        precisions: None is all in the bundle.
        batches: images per call.
        threads: how many threads one call may use.
        seconds: the time that all of it may take. After loading, memory gets half of what is left, the smallest
            batches first, and timing the rest. What there is no time for is left out and named; the smallest batch is
            always timed, with at least five calls of each candidate.
        images: uint8 [N, S, S, C] to predict, repeated as needed; None is seeded noise.
        memory: whether to measure peak memory too, in a fresh process for each candidate and batch.
        progress: called with what is going on and the fraction done.
        device, trusted: as `vae_edge.load`.

    Raises:
        BundleError, BackendError: as `vae_edge.load`; wrong answers are an error if both backend and precision were
            named, or if there is nothing else.
        ConfigError, DataError: if an argument is out of range, or the images do not fit.
    """
    bundle = load_bundle(bundle_path)
    _check(batches, threads, seconds)
    sizes = tuple(sorted(set(batches)))
    pool = _images(bundle, images, sizes[-1])
    found = _candidates(bundle, backends, precisions, device)

    started = time.perf_counter()
    options = LoadOptions(threads, device=device, trusted=trusted)
    session = _Session(bundle, options, seconds, started + seconds, progress or _no_progress)
    try:
        session.open(found, by_name=backends is not None and precisions is not None)
        if memory:
            session.measure_memory(sizes)
        session.time_batches(sizes, pool)
    finally:
        session.close()
    session.progress("done", 1.0)

    took_s = round(time.perf_counter() - started, 2)
    kind = "given" if images is not None else "seeded noise"
    return BenchmarkResult(
        machine=describe_machine(threads),
        bundle=bundle,
        settings=BenchmarkSettings(sizes, threads, seconds, kind, took_s),
        baseline_bytes=session.baseline_bytes,
        rows=tuple(session.rows),
        wrong=tuple(session.wrong),
        left_out=tuple(session.left_out),
    )


@dataclass
class _Session:
    """A benchmark that is running: the opened candidates, and what was measured so far."""

    bundle: Bundle
    options: LoadOptions
    seconds: float
    deadline: float
    progress: Progress
    opened: dict[Candidate, Classifier] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    baseline_bytes: int | None = None
    peaks: dict[tuple[Candidate, int], int] = field(default_factory=dict)
    rows: list[BenchmarkRow] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def open(self, found: Sequence[Candidate], by_name: bool) -> None:
        """Open the candidates whose answers are right here.

        Raises:
            VerificationError: one is wrong that was asked for by name, or all are.
        """
        for candidate in found:
            self.progress(f"loading: {candidate.name}", 0.0)
            try:
                backend, precision = candidate.backend, candidate.precision
                self.opened[candidate] = load(
                    self.bundle.path,
                    backend,
                    precision,
                    self.options.threads,
                    device=self.options.device,
                    trusted=self.options.trusted,
                )
            except VerificationError as error:
                if by_name:
                    raise
                log.warning("not measured: %s", error)
                self.wrong.append(candidate.name)
        if not self.opened:
            raise VerificationError(
                f"Every backend gives wrong answers with {self.bundle.path} here: nothing is measured."
            )

    def measure_memory(self, sizes: Sequence[int]) -> None:
        """The peak memory of a process without a bundle, and of each candidate at each batch size.

        It stops at half of the time left. A process is expected to take as long as the slowest before it.
        """
        runs = [(candidate, batch) for batch in sizes for candidate in self.opened]
        now = time.perf_counter()
        end, slowest = (now + self.deadline) / 2, 0.0
        self.progress("memory: without a bundle", 0.0)
        self.baseline_bytes = baseline_memory()
        for index, (candidate, batch) in enumerate(runs):
            before, now = now, time.perf_counter()
            slowest = max(slowest, now - before)
            if now + slowest > end:
                missing = len(runs) - index
                self.left_out.append(
                    f"the memory of {missing} of {len(runs)} rows was not measured: one takes {slowest:.1f} s, and "
                    "half of the seconds are for the timing; give more of them."
                )
                return
            self.progress(f"memory: {candidate.name}, batch {batch}", 0.5 * index / len(runs))
            backend, precision = candidate.backend, candidate.precision
            how = (self.options.threads, self.options.device, self.options.trusted)
            self.peaks[candidate, batch] = peak_memory(self.bundle.path, backend, precision, batch, *how)

    def time_batches(self, sizes: Sequence[int], pool: np.ndarray) -> None:
        """Time each batch size with every candidate; each size gets an equal part of the time that is left."""
        for index, batch in enumerate(sizes):
            left = self.deadline - time.perf_counter()
            if index and left < MIN_TIME_FRACTION * self.seconds:
                self.left_out.append(f"batch {batch} was not timed: there was no time left of {self.seconds:g} s.")
                continue
            self.progress(f"timing: batch {batch}", 0.5 + 0.5 * index / len(sizes))
            self._time_batch(pool[:batch], left / (len(sizes) - index))

    def _time_batch(self, images: np.ndarray, seconds: float) -> None:
        """Time one batch with every candidate for about so many seconds, warming up included."""
        started, batch = time.perf_counter(), len(images)
        for classifier in self.opened.values():
            classifier.warmup(batch)
            for _ in range(WARM_UP_CALLS):
                classifier(images, color="rgb")
        calls = [partial(classifier, images, color="rgb") for classifier in self.opened.values()]
        left = seconds - (time.perf_counter() - started)
        times = time_interleaved(calls, left, calls_per_round=4 if batch < 32 else 1)
        for candidate, times_ns in zip(self.opened, times, strict=True):
            self.rows.append(_row(candidate, batch, times_ns, self.peaks.get((candidate, batch))))

    def close(self) -> None:
        """Close all candidates."""
        for classifier in self.opened.values():
            classifier.close()


def _row(candidate: Candidate, batch: int, times_ns: Sequence[int], peak: int | None) -> BenchmarkRow:
    times_us = np.asarray(times_ns, np.float64) / 1e3
    p50, p90, p99 = (float(v) for v in np.percentile(times_us, [50, 90, 99]))
    return BenchmarkRow(
        backend=candidate.backend,
        precision=candidate.precision,
        batch=batch,
        p50_us=round(p50, 2),
        p90_us=round(p90, 2),
        p99_us=round(p99, 2),
        mean_us=round(statistics.fmean(times_us), 2),
        images_per_s=round(batch / p50 * 1e6, 1),
        calls=len(times_us),
        peak_memory_bytes=peak,
    )


def _candidates(
    bundle: Bundle, backends: Sequence[str] | None, precisions: Sequence[str] | None, device: int = 0
) -> list[Candidate]:
    """What to measure. What was named and is not there is refused, as `vae_edge.load` does, and not skipped."""
    names = installed_backends() if backends is None else tuple(dict.fromkeys(backends))
    for backend in names:
        if backend != "auto":
            check_installed(backend)
    for precision in precisions or ():
        if precision not in ("auto", *PRECISIONS):
            raise ConfigError(f"precision is auto, {', '.join(PRECISIONS)}, but {precision!r} came.")

    by_name = {
        name: list(find_entries(bundle, "onnxruntime" if name == "auto" else name, device=device)) for name in names
    }
    there = list(dict.fromkeys(precision for found in by_name.values() for precision in found))
    chosen = there if precisions is None else list(dict.fromkeys(precisions))
    found = []
    for precision in chosen:
        having = [name for name in names if precision in by_name[name] or "auto" in (name, precision)]
        if not having or (backends is not None and len(having) < len(names)):
            lacking = next((name for name in names if name not in having), "onnxruntime")
            find_entry(bundle, precision, lacking, device)  # says what is there
        found += [Candidate(name, precision) for name in having]
    if not found:
        raise ConfigError(
            f"There is nothing to measure in {bundle.path}: "
            f"the backends are {list(names) or 'none'}, the precisions {chosen or 'none'}."
        )
    return found


def _images(bundle: Bundle, images: np.ndarray | None, count: int) -> np.ndarray:
    spec = bundle.input
    shape = spec.shape
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


def _no_progress(what: str, fraction: float) -> None:
    """The progress of a caller who did not ask for it."""


def format_table(result: BenchmarkResult) -> Table:
    """A table for the terminal, the fastest first within each batch size; its title says where it was measured."""
    from rich.table import Table  # a kit measures on devices that have no rich
    from rich.text import Text

    machine = result.machine
    title = f"{result.bundle.name} on {machine['cpu']}, {machine['threads']} thread(s)"
    if machine.get("cpu_quota") is not None:
        title += f", quota of {machine['cpu_quota']:g} processors"
    caption = "time of one call in microseconds, from a uint8 array to predictions"
    if result.baseline_bytes is not None:
        baseline = f"{result.baseline_bytes / 1e6:.0f} MB"
        caption += f"; memory is the whole process's peak, of which Python with NumPy is {baseline}"

    table = Table(title=Text(title, style="table.title"), caption=caption)
    table.add_column("batch", justify="right")
    table.add_column("backend")
    table.add_column("precision")
    for name in ("p50", "p90", "p99", "images/s", "memory MB", "calls"):
        table.add_column(name, justify="right")

    rows = sorted(result.rows, key=lambda row: (row.batch, row.p50_us))
    for index, row in enumerate(rows):
        table.add_row(
            str(row.batch),
            row.backend,
            row.precision,
            *(f"{value:,.1f}" for value in (row.p50_us, row.p90_us, row.p99_us)),
            f"{row.images_per_s:,.0f}",
            "–" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:.0f}",
            str(row.calls),
            end_section=index + 1 == len(rows) or rows[index + 1].batch != row.batch,
        )
    return table
