"""Which backend and precision: times the candidates once on this machine at batch 1 and remembers the answer.

The fastest is taken whose answers to the bundle's probe images are right here; precisions whose accuracy is not known
well enough are no candidates. The memory is `auto.json` beside the manifest, under a key of machine, threads, versions
and models.
Processes that load at the same time wait for each other, so that all choose alike.
"""

from __future__ import annotations

import datetime
import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.bundle import Bundle, ModelEntry
from vae_edge.bundle_schema import AUTO_FILE
from vae_edge.environment import cpu_identity, cpu_model, shadows
from vae_edge.errors import BackendError, BundleError, VaeEdgeError, VerificationError
from vae_edge.runtime import probing
from vae_edge.runtime.backends import BACKENDS, Backend, backend_version, installed_backends
from vae_edge.runtime.classifier import (
    Classifier,
    cpu_entries,
    cpu_entry,
    find_entry,
    open_classifier,
    open_verified,
)

log = logging.getLogger(__name__)

ACCURACY_MARGIN = 0.005  # half a point
SPEED_MARGIN = 0.97  # a coarser precision must need at most this share of the finer one's time
OPENING_BUDGET_S = 1.0
TIMING_BUDGET_S = 0.4
LEAST_MEASURED = 50  # images; an accuracy that was measured on fewer is not trusted
_FIELDS = {"backend", "precision"}
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


def choose(bundle: Bundle, backend: str, precision: str, threads: int, verify: str) -> Classifier:
    """The classifier for what was left open ("auto") by the caller.

    Raises:
        BundleError, BackendError: if there is no candidate, or none can be opened.
        VerificationError: if all candidates give wrong answers here.
    """
    pairs = candidates(bundle, backend, precision)
    if len(pairs) == 1:
        return open_verified(bundle, *pairs[0], threads, verify)
    key = _key(bundle, pairs, threads, verify)
    path = probing.records_path(bundle.path, AUTO_FILE)
    known = _remembered(bundle, path, key, pairs, threads, verify)
    if known is not None:
        return known
    with probing.locked(bundle.path):
        known = _remembered(bundle, path, key, pairs, threads, verify)  # another process may have been first
        if known is not None:
            return known
        opened = _open(bundle, pairs, threads)
        median_us = _time(opened, bundle)
        best, wrong = _fastest_right(bundle, opened, median_us, threads, verify)
        log.info("auto: %s of %s", best.name, median_us)
        record = {
            "key": key,
            "backend": best.backend,
            "precision": best.precision,
            "median_us": median_us,
            "wrong": wrong,
            "not_timed": [name for b, p in pairs if (name := f"{b} {p}") not in median_us],
            "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        probing.save_record(path, record, _FIELDS)
    return Classifier(bundle, best.backend, best.precision, threads, best.engine, verify)


def _remembered(
    bundle: Bundle, path: Path, key: dict[str, Any], pairs: list[tuple[str, str]], threads: int, verify: str
) -> Classifier | None:
    """The classifier that was chosen before under this key, if it can still be opened."""
    record = probing.find_record(path, key, _FIELDS)
    if record is None or (record["backend"], record["precision"]) not in pairs:
        return None
    try:
        return open_verified(bundle, record["backend"], record["precision"], threads, verify)
    except VaeEdgeError as error:
        log.warning(
            "auto: the remembered %s %s cannot be loaded (%s): choosing again",
            record["backend"],
            record["precision"],
            error,
        )
        return None


def candidates(bundle: Bundle, backend: str, precision: str) -> list[tuple[str, str]]:
    """The (backend, precision) pairs that may be chosen, the most promising first."""
    backends = installed_backends() if backend == "auto" else (backend,)
    for name, sentence in shadows(BACKENDS).items() if backend == "auto" else ():
        log.warning("auto: %s is left out: %s.", name, sentence)
    if precision != "auto":
        return [(b, precision) for b in backends]
    models = cpu_entries(bundle)
    finest = next((p for p in ("fp32", "fp16", "int8", "fp8") if p in models), None)
    if finest is None:
        raise BundleError(
            f"The bundle {bundle.path} has no ONNX classifier: add it with `vae-edge export RUN --out {bundle.path}`."
        )
    good = [p for p in ("fp32", "int8", "fp16") if p in models and _is_accurate(models[p], models[finest])]
    return [(b, p) for p in dict.fromkeys([finest, *good]) for b in backends]


def _is_accurate(model: ModelEntry, reference: ModelEntry) -> bool:
    """Whether the manifest records an accuracy within the margin of fp32's, measured on enough images.

    What is not recorded is not trusted, nor what was added although it was refused,
    or loses acceptance, AUROC or angle beyond what is warned about. A quantized model's entry may
    record fp32's accuracy on the very images that its own was measured on.
    """
    have = model.accuracy.get("accuracy")
    want = model.accuracy.get("fp32_accuracy", reference.accuracy.get("accuracy"))
    if reference.precision != "fp32" or not isinstance(have, (int, float)) or not isinstance(want, (int, float)):
        return False
    n = model.accuracy.get("n")
    if model is not reference and (not isinstance(n, (int, float)) or n < LEAST_MEASURED):
        return False
    if model.accuracy.get("refused") or model.accuracy.get("lost"):
        return False
    return want - have <= ACCURACY_MARGIN + 1e-9


def _open(bundle: Bundle, pairs: list[tuple[str, str]], threads: int) -> list[Candidate]:
    """Those of the candidates that can be opened in the time there is."""
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
    return opened


def _fastest_right(
    bundle: Bundle, opened: list[Candidate], median_us: dict[str, float], threads: int, verify: str
) -> tuple[Candidate, list[str]]:
    """The fastest candidate whose answers are right here, and the names of faster ones that are wrong.

    All others are closed. Where all are wrong and `verify` is `warn`, it is the fastest of them.

    Raises:
        VerificationError: all are wrong, and `verify` is `error`.
    """
    strict = "off" if verify == "off" else "error"
    left, wrong = list(opened), list[Candidate]()
    best: Candidate | None = None
    try:
        while left:
            best = _fastest(left, median_us)
            left.remove(best)
            entry = find_entry(bundle, best.precision)
            try:
                probing.check_or_raise(bundle, best.backend, entry, best.engine, threads, strict)
                break
            except VerificationError as error:
                log.warning("auto: %s is left out: %s", best.name, error)
                wrong.append(best)
                if not left and verify == "error":
                    raise
        else:
            best = wrong[0]
    except BaseException:
        best = None
        raise
    finally:
        for candidate in opened:
            if candidate is not best:
                candidate.engine.close()
    assert best is not None
    return best, [candidate.name for candidate in wrong]


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


def _key(bundle: Bundle, pairs: list[tuple[str, str]], threads: int, verify: str) -> dict[str, Any]:
    return {
        "cpu": f"{cpu_model()} {cpu_identity()}",
        "threads": threads,
        "verified": verify != "off",
        "versions": {name: backend_version(name) for name in sorted({backend for backend, _ in pairs})},
        "models": {precision: _sum(bundle, precision) for precision in sorted({precision for _, precision in pairs})},
    }


def _sum(bundle: Bundle, precision: str) -> str | None:
    """The SHA-256 of the file that runs here; None where there is none, which opening it will say."""
    entry = cpu_entry(bundle, precision)
    return None if entry is None else entry.sha256
