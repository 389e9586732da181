"""Which backend and precision: times the candidates once on this machine at batch 1 and remembers the answer.

The memory is `auto.json` beside the manifest: a list of records, each with the key (machine, threads, versions, models)
that it holds for. It is no part of what the bundle verifies, and a bundle that cannot be written to works without it.
"""

from __future__ import annotations

import datetime
import json
import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge import files
from vae_edge.bundle import AUTO_FILE, Bundle, ModelEntry
from vae_edge.errors import BackendError, BundleError, VaeEdgeError
from vae_edge.runtime.backends import Backend, backend_version, installed_backends
from vae_edge.runtime.classifier import open_classifier
from vae_edge.runtime.machine import cpu_model

log = logging.getLogger(__name__)

ACCURACY_MARGIN = 0.005  # half a point
SPEED_MARGIN = 0.97  # a coarser precision must need at most this share of the finer one's time
OPENING_BUDGET_S = 1.0
TIMING_BUDGET_S = 0.4
RECORDS = 64
_PREFERENCE = ("fp32", "fp16", "int8")  # finest first; no CPU computes fp8, so it is never a candidate


@dataclass
class Candidate:
    """One backend with one precision, opened."""

    backend: str
    precision: str
    engine: Backend

    @property
    def name(self) -> str:
        """Such as "openvino int8"."""
        return f"{self.backend} {self.precision}"


def choose(bundle: Bundle, backend: str, precision: str, threads: int) -> tuple[str, str, int, Backend]:
    """The backend, precision, threads and opened engine for what was left open ("auto") by the caller.

    Raises:
        BundleError, BackendError: if there is no candidate, or none can be opened.
    """
    pairs = candidates(bundle, backend, precision)
    if len(pairs) == 1:
        return (*pairs[0], threads, open_classifier(bundle, *pairs[0], threads))
    key = _key(bundle, pairs, threads)
    path = bundle.path / AUTO_FILE
    records = _read(path)
    for record in records:
        choice = (record["backend"], record["precision"])
        if record["key"] == key and choice in pairs:
            try:
                return (*choice, threads, open_classifier(bundle, *choice, threads))
            except VaeEdgeError as error:
                log.warning("auto: the remembered %s %s cannot be loaded (%s): choosing again", *choice, error)
    best, median_us = _race(bundle, pairs, threads)
    record = {
        "key": key,
        "backend": best.backend,
        "precision": best.precision,
        "median_us": median_us,
        "not_timed": [f"{b} {p}" for b, p in pairs if f"{b} {p}" not in median_us],
        "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    _remember(path, [record, *(r for r in records if r["key"] != key)][:RECORDS])
    return best.backend, best.precision, threads, best.engine


def candidates(bundle: Bundle, backend: str, precision: str) -> list[tuple[str, str]]:
    """The (backend, precision) pairs that may be chosen, the most promising first."""
    backends = installed_backends() if backend == "auto" else (backend,)
    if precision != "auto":
        return [(b, precision) for b in backends]
    models = {m.precision: m for m in bundle.select("classifier", "onnx", target="any")}
    finest = next((p for p in ("fp32", "fp16", "int8", "fp8") if p in models), None)
    if finest is None:
        raise BundleError(
            f"The bundle {bundle.path} has no ONNX classifier: add it with `vae-edge export RUN --out {bundle.path}`."
        )
    good = [p for p in ("fp32", "int8", "fp16") if p in models and _is_accurate(models[p], models[finest])]
    return [(b, p) for p in dict.fromkeys([finest, *good]) for b in backends]


def _is_accurate(model: ModelEntry, reference: ModelEntry) -> bool:
    """Whether the manifest records an accuracy within the margin of fp32's; what is not recorded is not trusted.

    A quantized model's entry may record fp32's accuracy on the very images that its own was measured on.
    """
    have = model.accuracy.get("accuracy")
    want = model.accuracy.get("fp32_accuracy", reference.accuracy.get("accuracy"))
    if reference.precision != "fp32" or not isinstance(have, (int, float)) or not isinstance(want, (int, float)):
        return False
    return want - have <= ACCURACY_MARGIN + 1e-9


def _race(bundle: Bundle, pairs: list[tuple[str, str]], threads: int) -> tuple[Candidate, dict[str, float]]:
    """Open the candidates, time them in turn, close all but the best."""
    opened: list[Candidate] = []
    failure: VaeEdgeError | None = None
    deadline = time.perf_counter() + OPENING_BUDGET_S
    for backend, precision in pairs:
        if opened and time.perf_counter() > deadline:
            log.info("auto: no time left to try %s %s", backend, precision)
            continue
        try:
            opened.append(Candidate(backend, precision, open_classifier(bundle, backend, precision, threads)))
        except (BackendError, BundleError) as error:
            log.warning("auto: %s %s is left out: %s", backend, precision, error)
            failure = error
    if not opened:
        raise failure or BackendError(f"There is no candidate to run the bundle {bundle.path}.")
    median_us = _time(opened, bundle)
    best = _fastest(opened, median_us)
    for candidate in opened:
        if candidate is not best:
            candidate.engine.close()
    log.info("auto: %s of %s", best.name, median_us)
    return best, median_us


def _time(opened: list[Candidate], bundle: Bundle) -> dict[str, float]:
    """Median microseconds of one image for each candidate, measured in turns."""
    size, channels = bundle.input.size, bundle.input.channels
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, channels), dtype=np.uint8)
    for candidate in opened:
        for _ in range(5):
            candidate.engine.infer(image)
    taken: list[list[int]] = [[] for _ in opened]
    deadline = time.perf_counter() + TIMING_BUDGET_S
    while time.perf_counter() < deadline or len(taken[0]) < 3:
        for candidate, times in zip(opened, taken, strict=True):
            candidate.engine.infer(image)  # brings its weights back into the cache
            start = time.perf_counter_ns()
            candidate.engine.infer(image)
            times.append(time.perf_counter_ns() - start)
    return {c.name: round(statistics.median(t) / 1e3, 1) for c, t in zip(opened, taken, strict=True)}


def _fastest(opened: list[Candidate], median_us: dict[str, float]) -> Candidate:
    """The fastest, where a coarser precision must be clearly faster than a finer one."""
    best: Candidate | None = None
    for precision in (*_PREFERENCE, "fp8"):
        same = [c for c in opened if c.precision == precision]
        if same:
            fastest = min(same, key=lambda c: median_us[c.name])
            if best is None or median_us[fastest.name] < SPEED_MARGIN * median_us[best.name]:
                best = fastest
    assert best is not None
    return best


def _key(bundle: Bundle, pairs: list[tuple[str, str]], threads: int) -> dict[str, Any]:
    used = {model.precision: model.sha256 for model in bundle.select("classifier", "onnx", target="any")}
    return {
        "cpu": cpu_model(),
        "threads": threads,
        "versions": {name: backend_version(name) for name in sorted({backend for backend, _ in pairs})},
        "models": {precision: used.get(precision) for precision in sorted({precision for _, precision in pairs})},
    }


def _read(path: Path) -> list[dict[str, Any]]:
    """The records, or none where the file is missing or damaged: then the race is simply run again."""
    if not path.exists():
        return []
    try:
        records = json.loads(path.read_text("utf-8"))["records"]
        if all({"key", "backend", "precision"} <= record.keys() for record in records):
            return list(records)
        log.warning("%s is damaged and will be written anew.", path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("%s cannot be read (%s) and will be written anew.", path, error)
    return []


def _remember(path: Path, records: list[dict[str, Any]]) -> None:
    try:
        files.write_json(path, {"schema": 1, "records": records})
    except OSError as error:
        log.warning("The choice cannot be remembered in %s (%s): it will be timed again at the next load.", path, error)
