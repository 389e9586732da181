"""Which backend and precision is the fastest on this machine, for small and for large batches: timed once, remembered.

For each of the batch sizes 1, 8 and 64 the fastest candidate is taken whose answers to the bundle's probe images are
right here. A precision whose accuracy is not known well enough is no candidate, nor is one that the processor only
emulates. The choice is cached in `auto.json` beside the manifest, under a key of processor, GPU, threads, versions and
models. Processes that load at the same time wait for each other and choose alike.
"""

from __future__ import annotations

import datetime
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vae_edge.bundle import Bundle, ModelEntry
from vae_edge.bundle_schema import AUTO_FILE
from vae_edge.engine import gpus
from vae_edge.environment import cpu_identity, cpu_model, shadows
from vae_edge.errors import BackendError, BundleError, VaeEdgeError, VerificationError
from vae_edge.runtime import probing
from vae_edge.runtime.backends import SPECS, LoadOptions, OpenedModel, backend_version, installed_backends
from vae_edge.runtime.entries import cpu_entries, find_entries, open_classifier
from vae_edge.spec import PRECISIONS

log = logging.getLogger(__name__)

BUCKETS = (1, 8, 64)
"""Batch sizes for which a model is chosen; a batch between two of them takes the nearer one's, by ratio."""
MAX_ACCURACY_LOSS = 0.005  # half a point
MAX_TIME_RATIO = 0.95  # of a model's time to that of one that is preferred; what is nearer is noise
HOPELESS_RATIO = 2.0  # of a model's first calls to the fastest one's: it is not timed further
OPENING_BUDGET_S = 1.0
TIMING_BUDGET_S = 0.4  # for each batch size
WARM_UP_CALLS = 5
FIRST_CALLS = 3
MIN_MEASURED_IMAGES = 50  # an accuracy that was measured on fewer images is not trusted
MIN_CALLS = 5
_FIELDS = {"backend", "precision"}
_ORDER = ("tensorrt", "tensorrt_rtx", "native", "onnxruntime", "openvino", "onnxruntime-cuda")
"""In which backends are opened: engines first, since somebody built them for this. `onnxruntime-tensorrt` is taken only
by its name: it builds an engine for each batch size while it loads, which takes minutes."""

Models = Mapping[int, OpenedModel]
"""An opened model for each of `BUCKETS`, or for 1 alone; the same one may stand for several."""


@dataclass(frozen=True)
class Candidate:
    """One backend with one precision."""

    backend: str
    precision: str

    @property
    def name(self) -> str:
        """Such as "openvino int8"."""
        return f"{self.backend} {self.precision}"


def bucket_of(batch: int, buckets: Iterable[int] = BUCKETS) -> int:
    """The bucket that is nearest to a batch size by ratio."""
    return min(buckets, key=lambda bucket: max(bucket / batch, batch / bucket))


def select_models(bundle: Bundle, backend: str, precision: str, options: LoadOptions) -> dict[int, OpenedModel]:
    """The opened models for what the caller left open ("auto"), by bucket.

    Raises:
        BundleError, BackendError: if there is no candidate, or none can be opened.
        VerificationError: if all candidates give wrong answers here.
    """
    found = candidates(bundle, backend, precision, options.device)
    if len(found) == 1:
        (only,) = found
        return {1: probing.open_verified(bundle, only.backend, only.precision, options)}

    key = _key(bundle, found, options)
    path = probing.cache_path(bundle.path, AUTO_FILE)
    cached = _open_cached(bundle, probing.find_cached(path, key, _FIELDS), found, options)
    if cached is not None:
        return cached
    with probing.locked(bundle.path):
        record = probing.find_cached(path, key, _FIELDS)  # another process may have been first
        cached = _open_cached(bundle, record, found, options)
        if cached is not None:
            return cached
        opened = _open(bundle, found, options)
        try:
            median_us = {batch: _benchmark(opened, bundle, batch) for batch in BUCKETS}
            chosen, wrong = _fastest_verified(bundle, opened, median_us, options)
        except BaseException:
            _close(opened.values())
            raise
        log.info("auto: %s of %s", {batch: candidate.name for batch, candidate in chosen.items()}, median_us)
        _close(model for candidate, model in opened.items() if candidate not in chosen.values())
        timed = {candidate.name for candidate in opened}
        record = {
            "key": key,
            "backend": chosen[1].backend,
            "precision": chosen[1].precision,
            "by_batch": {str(batch): [c.backend, c.precision] for batch, c in chosen.items()},
            "median_us": {str(batch): times for batch, times in median_us.items()},
            "wrong": wrong,
            "not_timed": [candidate.name for candidate in found if candidate.name not in timed],
            "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        probing.save_cached(path, record, _FIELDS)
    return {batch: opened[candidate] for batch, candidate in chosen.items()}


def _close(models: Iterable[OpenedModel]) -> None:
    for model in models:
        model.session.close()


def _open_cached(
    bundle: Bundle, record: Mapping[str, Any] | None, found: Sequence[Candidate], options: LoadOptions
) -> dict[int, OpenedModel] | None:
    """The models that were chosen before, if they can still be opened."""
    chosen = _chosen(record)
    if chosen is None or not set(chosen.values()) <= set(found):
        return None
    opened: dict[Candidate, OpenedModel] = {}
    try:
        for candidate in dict.fromkeys(chosen.values()):
            opened[candidate] = probing.open_verified(bundle, candidate.backend, candidate.precision, options)
    except VaeEdgeError as error:
        _close(opened.values())
        log.warning("auto: the remembered %s cannot be loaded (%s): choosing again", candidate.name, error)
        return None
    return {batch: opened[candidate] for batch, candidate in chosen.items()}


def _chosen(record: Mapping[str, Any] | None) -> dict[int, Candidate] | None:
    """The candidates of a record by bucket; None if it is of an earlier version, or damaged."""
    by_batch = None if record is None else record.get("by_batch")
    if not isinstance(by_batch, dict) or set(by_batch) != {str(bucket) for bucket in BUCKETS}:
        return None
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in by_batch.values()):
        return None
    return {bucket: Candidate(*map(str, by_batch[str(bucket)])) for bucket in BUCKETS}


def candidates(bundle: Bundle, backend: str, precision: str, device: int = 0) -> list[Candidate]:
    """What may be chosen, in the order in which it is opened."""
    there = installed_backends() if backend == "auto" else (backend,)
    backends = [name for name in _ORDER if name in there] if backend == "auto" else [backend]
    packages = {package: name for name, spec in SPECS.items() for package in spec.packages}
    for package, sentence in shadows(packages).items() if backend == "auto" else ():
        log.warning("auto: %s is left out: %s.", packages[package], sentence)

    wanted = any(SPECS[name].gpu and bundle.select("classifier", SPECS[name].format) for name in backends)
    driver = gpus.probe() if wanted else gpus.Driver(None, ())  # who forks after it was started cannot use a GPU there
    by_backend = {name: find_entries(bundle, name, driver=driver, device=device) for name in backends}
    if precision != "auto":
        found = [Candidate(name, precision) for name in backends if precision in by_backend[name]]
        return found or [Candidate(next((n for n in backends if not SPECS[n].gpu), backends[0]), precision)]

    references = cpu_entries(bundle)
    finest = next((p for p in PRECISIONS if any(p in models for models in by_backend.values())), None)
    if finest is None:
        if backend != "auto" and SPECS[backend].gpu:
            return [Candidate(backend, next(iter(_precisions(bundle, backend)), "int8"))]  # opening it says what lacks
        raise BundleError(
            f"The bundle {bundle.path} has no ONNX classifier: add it with `vae-edge export RUN --out {bundle.path}`."
        )
    found = [
        Candidate(name, p)
        for p in dict.fromkeys([finest, "fp32", "int8", "fp16", "fp8"])
        for name in backends
        if p in by_backend[name]
        and (p == finest or (_is_native(SPECS[name].gpu, p) and _is_accurate(by_backend[name][p], references)))
    ]
    return sorted(found, key=lambda candidate: not SPECS[candidate.backend].gpu)


def _precisions(bundle: Bundle, backend: str) -> list[str]:
    return [entry.precision for entry in bundle.select("classifier", SPECS[backend].format)]


def _is_native(gpu: bool, precision: str) -> bool:
    """Whether the processor computes in this precision; CPU backends widen fp16 and fp8 to fp32."""
    return gpu or precision in ("fp32", "int8")


def _is_accurate(model: ModelEntry, references: Mapping[str, ModelEntry]) -> bool:
    """Whether the manifest records an accuracy within the margin of fp32's, measured on enough images.

    What is not recorded is not trusted. Nor is a model that was added although it was refused, or that loses more
    acceptance, AUROC or angle than is warned about. A quantized model's entry may record fp32's accuracy on the very
    images that its own was measured on. An engine's accuracy is that of its ONNX file, whose answers it must give.
    """
    reference = references.get("fp32")
    if model.precision == "fp32":
        return True
    figures = recorded_accuracy(model)
    have = figures.get("accuracy")
    want = figures.get("fp32_accuracy", None if reference is None else reference.accuracy.get("accuracy"))
    if not isinstance(have, (int, float)) or not isinstance(want, (int, float)):
        return False
    n = figures.get("n")
    if not isinstance(n, (int, float)) or n < MIN_MEASURED_IMAGES:
        return False
    if figures.get("refused") or figures.get("lost"):
        return False
    return want - have <= MAX_ACCURACY_LOSS + 1e-9


def recorded_accuracy(entry: ModelEntry) -> Mapping[str, Any]:
    """The figures that the manifest has of a model file; of an engine those of the ONNX file that it was built from."""
    source = entry.provenance.get("onnx")
    figures = source.get("accuracy") if isinstance(source, dict) and not entry.accuracy else entry.accuracy
    return figures if isinstance(figures, Mapping) else {}


def _open(bundle: Bundle, found: Sequence[Candidate], options: LoadOptions) -> dict[Candidate, OpenedModel]:
    """The candidates that can be opened: all engines, others in the time there is."""
    opened: dict[Candidate, OpenedModel] = {}
    failure: VaeEdgeError | None = None
    deadline = time.perf_counter() + OPENING_BUDGET_S
    for candidate in found:
        if opened and SPECS[candidate.backend].format == "onnx" and time.perf_counter() > deadline:
            log.info("auto: no time left to try %s", candidate.name)
            continue
        try:
            opened[candidate] = open_classifier(bundle, candidate.backend, candidate.precision, options)
        except (BackendError, BundleError) as error:
            log.warning("auto: %s is left out: %s", candidate.name, error)
            failure = error
    if not opened:
        raise failure or BackendError(f"There is no candidate to run the bundle {bundle.path}.")
    return opened


def _benchmark(opened: dict[Candidate, OpenedModel], bundle: Bundle, batch: int) -> dict[str, float]:
    """Median microseconds of a batch by name of the candidate. One that fails is closed and removed from `opened`."""
    images = np.random.default_rng(0).integers(0, 256, (batch, *bundle.input.shape), dtype=np.uint8)
    first_ns: dict[Candidate, int] = {}
    for candidate, model in list(opened.items()):
        try:
            first_ns[candidate] = _first_calls(model, images)
        except Exception as error:  # noqa: PERF203 (the backends' own exceptions share no base class)
            log.warning("auto: %s is left out: it fails on a batch of %d (%s)", candidate.name, batch, error)
            opened.pop(candidate).session.close()
    if not opened:
        raise BackendError(f"Every backend fails on a batch of {batch} images of the bundle {bundle.path}.")

    fastest = min(first_ns.values())
    timed = [candidate for candidate in opened if first_ns[candidate] <= HOPELESS_RATIO * fastest]
    calls = [partial(opened[candidate].session.infer, images) for candidate in timed]
    times_ns = time_interleaved(calls, TIMING_BUDGET_S, calls_per_round=1) if len(timed) > 1 else []
    median_ns: dict[Candidate, float] = {**first_ns}
    for candidate, times in zip(timed, times_ns, strict=False):  # no times where there is one candidate
        median_ns[candidate] = statistics.median(times)
    return {candidate.name: round(ns / 1e3, 1) for candidate, ns in median_ns.items()}


def _first_calls(model: OpenedModel, images: np.ndarray) -> int:
    """Warm a model up, and the nanoseconds of the fastest of a few calls."""
    model.session.warm_up(len(images))
    for _ in range(WARM_UP_CALLS):
        model.session.infer(images)
    times = []
    for _ in range(FIRST_CALLS):
        start = time.perf_counter_ns()
        model.session.infer(images)
        times.append(time.perf_counter_ns() - start)
    return min(times)


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
    bundle: Bundle,
    opened: Mapping[Candidate, OpenedModel],
    median_us: Mapping[int, Mapping[str, float]],
    options: LoadOptions,
) -> tuple[dict[int, Candidate], list[str]]:
    """For each bucket the fastest candidate whose answers are right here, and the names of faster ones that are wrong.

    If all are wrong and `verify` is `warn`, it is the fastest of them.

    Raises:
        VerificationError: all are wrong, and `verify` is `error`.
    """
    right: dict[Candidate, bool] = {}
    chosen: dict[int, Candidate] = {}
    mode = "off" if options.verify == "off" else "error"
    for batch, times in median_us.items():
        left = [candidate for candidate in opened if right.get(candidate, True)]
        while left:
            best = _fastest(left, times, chosen.values())
            if best not in right:
                try:
                    probing.check_or_raise(bundle, opened[best], mode)
                    right[best] = True
                except VerificationError as error:
                    log.warning("auto: %s is left out: %s", best.name, error)
                    right[best] = False
                    if not any(right.get(candidate, True) for candidate in opened) and options.verify == "error":
                        raise
            if right[best]:
                chosen[batch] = best
                break
            left.remove(best)
        else:
            chosen[batch] = _fastest(list(opened), times, chosen.values())
    return chosen, [candidate.name for candidate, is_right in right.items() if not is_right]


def _fastest(found: Sequence[Candidate], median_us: Mapping[str, float], chosen: Iterable[Candidate]) -> Candidate:
    """The fastest candidate.

    One that is preferred is taken unless another is clearly faster: first what is chosen for another batch size, then
    the finest precision.
    """
    taken = list(chosen)
    fastest_us = min(median_us[candidate.name] for candidate in found)
    near = [candidate for candidate in found if MAX_TIME_RATIO * median_us[candidate.name] <= fastest_us]
    return min(near, key=lambda c: (c not in taken, PRECISIONS.index(c.precision), median_us[c.name]))


def _key(bundle: Bundle, found: Sequence[Candidate], options: LoadOptions) -> dict[str, Any]:
    """What a cached choice holds for."""
    backends = sorted({candidate.backend for candidate in found})
    gpu = [f"{options.device} of {gpus.probe().sentence()}"] if any(SPECS[name].gpu for name in backends) else []
    return {
        "cpu": " ".join([cpu_model(), cpu_identity(), *gpu]),
        "threads": options.threads,
        "verified": options.verify != "off",
        "versions": {name: backend_version(name) for name in backends},
        "models": {candidate.name: _sha256(bundle, candidate, options.device) for candidate in found},
    }


def _sha256(bundle: Bundle, candidate: Candidate, device: int) -> str | None:
    """The SHA-256 of the file that runs here; None if there is none, which opening it will say."""
    entry = find_entries(bundle, candidate.backend, device=device).get(candidate.precision)
    return None if entry is None else entry.sha256
