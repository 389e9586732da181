"""Which backend and precision is the fastest on this machine: timed once at batch 1, then remembered.

The fastest candidate is taken whose answers to the bundle's probe images are right here. A precision whose accuracy is
not known well enough is no candidate. The choice is cached in `auto.json` beside the manifest, under a key of
processor, threads, versions and models. Processes that load at the same time wait for each other and choose alike.
"""

from __future__ import annotations

import datetime
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.bundle import Bundle, ModelEntry
from vae_edge.bundle_schema import AUTO_FILE
from vae_edge.environment import cpu_identity, cpu_model, shadows
from vae_edge.errors import BackendError, BundleError, VaeEdgeError, VerificationError
from vae_edge.runtime import probing
from vae_edge.runtime.backends import (
    BACKENDS,
    OpenedModel,
    backend_version,
    cpu_entries,
    cpu_entry,
    installed_backends,
    open_classifier,
)
from vae_edge.spec import PRECISIONS

log = logging.getLogger(__name__)

MAX_ACCURACY_LOSS = 0.005  # half a point
MAX_TIME_RATIO = 0.97  # of a coarser precision's time to the finer one's
OPENING_BUDGET_S = 1.0
TIMING_BUDGET_S = 0.4
WARM_UP_CALLS = 5
MIN_MEASURED_IMAGES = 50  # an accuracy that was measured on fewer images is not trusted
MIN_CALLS = 5
_FIELDS = {"backend", "precision"}


@dataclass(frozen=True)
class Candidate:
    """One backend with one precision."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        """Such as "openvino int8"."""
        return f"{self.backend} {self.precision}"


def select_backend(bundle: Bundle, backend: str, precision: str, threads: int, verify: str) -> OpenedModel:
    """The opened model for what the caller left open ("auto").

    Raises:
        BundleError, BackendError: if there is no candidate, or none can be opened.
        VerificationError: if all candidates give wrong answers here.
    """
    found = candidates(bundle, backend, precision)
    if len(found) == 1:
        (only,) = found
        return probing.open_verified(bundle, only.backend, only.precision, threads, verify)

    key = _key(bundle, found, threads, verify)
    path = probing.cache_path(bundle.path, AUTO_FILE)
    cached = _open_cached(bundle, path, key, found, threads, verify)
    if cached is not None:
        return cached
    with probing.locked(bundle.path):
        cached = _open_cached(bundle, path, key, found, threads, verify)  # another process may have been first
        if cached is not None:
            return cached
        opened = _open(bundle, found, threads)
        median_us = _benchmark(opened, bundle)
        best, wrong = _fastest_verified(bundle, opened, median_us, verify)
        log.info("auto: %s of %s", best.name, median_us)
        record = {
            "key": key,
            "backend": best.backend,
            "precision": best.precision,
            "median_us": median_us,
            "wrong": wrong,
            "not_timed": [candidate.name for candidate in found if candidate.name not in median_us],
            "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        probing.save_cached(path, record, _FIELDS)
    return opened[best]


def _open_cached(
    bundle: Bundle, path: Path, key: dict[str, Any], found: Sequence[Candidate], threads: int, verify: str
) -> OpenedModel | None:
    """The model that was chosen before under this key, if it can still be opened."""
    record = probing.find_cached(path, key, _FIELDS)
    if record is None or Candidate(record["backend"], record["precision"]) not in found:
        return None
    try:
        return probing.open_verified(bundle, record["backend"], record["precision"], threads, verify)
    except VaeEdgeError as error:
        log.warning(
            "auto: the remembered %s %s cannot be loaded (%s): choosing again",
            record["backend"],
            record["precision"],
            error,
        )
        return None


def candidates(bundle: Bundle, backend: str, precision: str) -> list[Candidate]:
    """What may be chosen, the most promising first."""
    backends = installed_backends() if backend == "auto" else (backend,)
    for name, sentence in shadows(BACKENDS).items() if backend == "auto" else ():
        log.warning("auto: %s is left out: %s.", name, sentence)
    if precision != "auto":
        return [Candidate(name, precision) for name in backends]

    models = cpu_entries(bundle)
    finest = next((p for p in PRECISIONS if p in models), None)
    if finest is None:
        raise BundleError(
            f"The bundle {bundle.path} has no ONNX classifier: add it with `vae-edge export RUN --out {bundle.path}`."
        )
    # No CPU computes fp8, so it is tried only if there is nothing else.
    accurate = [p for p in ("fp32", "int8", "fp16") if p in models and _is_accurate(models[p], models[finest])]
    return [Candidate(name, p) for p in dict.fromkeys([finest, *accurate]) for name in backends]


def _is_accurate(model: ModelEntry, reference: ModelEntry) -> bool:
    """Whether the manifest records an accuracy within the margin of fp32's, measured on enough images.

    What is not recorded is not trusted. Nor is a model that was added although it was refused, or that loses more
    acceptance, AUROC or angle than is warned about. A quantized model's entry may record fp32's accuracy on the very
    images that its own was measured on.
    """
    have = model.accuracy.get("accuracy")
    want = model.accuracy.get("fp32_accuracy", reference.accuracy.get("accuracy"))
    if reference.precision != "fp32" or not isinstance(have, (int, float)) or not isinstance(want, (int, float)):
        return False
    n = model.accuracy.get("n")
    if model is not reference and (not isinstance(n, (int, float)) or n < MIN_MEASURED_IMAGES):
        return False
    if model.accuracy.get("refused") or model.accuracy.get("lost"):
        return False
    return want - have <= MAX_ACCURACY_LOSS + 1e-9


def _open(bundle: Bundle, found: Sequence[Candidate], threads: int) -> dict[Candidate, OpenedModel]:
    """The candidates that can be opened in the time there is."""
    opened: dict[Candidate, OpenedModel] = {}
    failure: VaeEdgeError | None = None
    deadline = time.perf_counter() + OPENING_BUDGET_S
    for candidate in found:
        if opened and time.perf_counter() > deadline:
            log.info("auto: no time left to try %s", candidate.name)
            continue
        try:
            opened[candidate] = open_classifier(bundle, candidate.backend, candidate.precision, threads)
        except (BackendError, BundleError) as error:
            log.warning("auto: %s is left out: %s", candidate.name, error)
            failure = error
    if not opened:
        raise failure or BackendError(f"There is no candidate to run the bundle {bundle.path}.")
    return opened


def _benchmark(opened: Mapping[Candidate, OpenedModel], bundle: Bundle) -> dict[str, float]:
    """Median microseconds of one image by name of the candidate."""
    size, channels = bundle.input.size, bundle.input.channels
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, channels), dtype=np.uint8)
    calls = [partial(model.session.infer, image) for model in opened.values()]
    for call in calls:
        for _ in range(WARM_UP_CALLS):
            call()
    times_ns = time_interleaved(calls, TIMING_BUDGET_S, calls_per_round=1, min_calls=3)
    return {
        candidate.name: round(statistics.median(times) / 1e3, 1)
        for candidate, times in zip(opened, times_ns, strict=True)
    }


def time_interleaved(
    calls: Sequence[Callable[[], object]], seconds: float, calls_per_round: int = 4, min_calls: int = MIN_CALLS
) -> list[list[int]]:
    """Interleaved timing (A B C A B C …), so that background load affects all calls equally.

    Args:
        calls: what to time.
        seconds: about how long to go on, for all together.
        calls_per_round: how often each is timed in a round. One more call before them is not timed: it brings the
            model back into the CPU's caches.
        min_calls: how often each is timed at least, however long that takes.

    Returns:
        for each of `calls`, the nanoseconds of each of its timed calls.
    """
    times_ns: list[list[int]] = [[] for _ in calls]
    deadline = time.perf_counter() + seconds
    while calls and (time.perf_counter() < deadline or len(times_ns[-1]) < min_calls):
        for call, taken in zip(calls, times_ns, strict=True):
            call()
            for _ in range(calls_per_round):
                start = time.perf_counter_ns()
                call()
                taken.append(time.perf_counter_ns() - start)
    return times_ns


def _fastest_verified(
    bundle: Bundle, opened: Mapping[Candidate, OpenedModel], median_us: Mapping[str, float], verify: str
) -> tuple[Candidate, list[str]]:
    """The fastest candidate whose answers are right here, and the names of faster ones that are wrong.

    All others are closed. If all are wrong and `verify` is `warn`, it is the fastest of them.

    Raises:
        VerificationError: all are wrong, and `verify` is `error`.
    """
    mode = "off" if verify == "off" else "error"
    left, wrong = list(opened), list[Candidate]()
    best: Candidate | None = None
    try:
        while left:
            best = _fastest(left, median_us)
            left.remove(best)
            try:
                probing.check_or_raise(bundle, opened[best], mode)
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
        for candidate, model in opened.items():
            if candidate != best:
                model.session.close()
    assert best is not None
    return best, [candidate.name for candidate in wrong]


def _fastest(found: Sequence[Candidate], median_us: Mapping[str, float]) -> Candidate:
    """The fastest candidate; a coarser precision must be clearly faster than a finer one."""
    best: Candidate | None = None
    for precision in PRECISIONS:
        same = [candidate for candidate in found if candidate.precision == precision]
        if same:
            fastest = min(same, key=lambda candidate: median_us[candidate.name])
            if best is None or median_us[fastest.name] < MAX_TIME_RATIO * median_us[best.name]:
                best = fastest
    assert best is not None
    return best


def _key(bundle: Bundle, found: Sequence[Candidate], threads: int, verify: str) -> dict[str, Any]:
    """What a cached choice holds for."""
    return {
        "cpu": f"{cpu_model()} {cpu_identity()}",
        "threads": threads,
        "verified": verify != "off",
        "versions": {name: backend_version(name) for name in sorted({c.backend for c in found})},
        "models": {precision: _sha256(bundle, precision) for precision in sorted({c.precision for c in found})},
    }


def _sha256(bundle: Bundle, precision: str) -> str | None:
    """The SHA-256 of the file that runs here; None if there is none, which opening it will say."""
    entry = cpu_entry(bundle, precision)
    return None if entry is None else entry.sha256
