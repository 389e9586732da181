"""What the runtime remembers beside a bundle's manifest: lists of records, each under the key that it holds for.

They are no part of what the bundle verifies. Of a bundle that cannot be written to they lie in the user's cache folder.

Whether a backend's answers are right on this very machine: it is run on the bundle's probe images.

At the first load of a model in a backend the probe images are run one at a time, and compared with the exact answers
that the bundle carries. The verdict is remembered in `verified.json` beside the manifest, under a key of model,
backend, threads, processor and versions; later loads read it. `report` runs them all at once too, looks inside, and
remembers what it found.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge import __version__, files
from vae_edge.bundle import Bundle, ModelEntry
from vae_edge.bundle_schema import VERIFIED_FILE
from vae_edge.environment import cpu_identity, cpu_model, int8_saturates
from vae_edge.errors import BackendError, BundleError, ConfigError, VerificationError
from vae_edge.limits import MAX_RECORD_BYTES
from vae_edge.probes import Expected, Mismatch, Probes, compare, first_inner_mismatch, without_outliers
from vae_edge.probes import load as load_probes
from vae_edge.runtime.backends import Backend, backend_version, inner_tensors

log = logging.getLogger(__name__)

MOST_RECORDS = 64


def records_path(bundle: Path, name: str) -> Path:
    """Where a file of records of a bundle lies: in its folder, or in the user's cache if that is not writable."""
    if os.access(bundle, os.W_OK):
        return bundle / name
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as in containers
        return bundle / name
    digest = hashlib.sha256(os.fsencode(bundle.resolve())).hexdigest()[:16]
    return cache / "vae-edge" / digest / name


def read_records(path: Path, fields: set[str]) -> list[dict[str, Any]]:
    """The records, or none where the file is missing or damaged; each has `key` and these fields."""
    try:
        stored = files.read_json(path, MAX_RECORD_BYTES)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s) and will be written anew.", path, error)
        return []
    records = stored.get("records") if isinstance(stored, dict) else None
    if isinstance(records, list) and all(_is_record(record, fields) for record in records):
        return records
    log.warning("%s is damaged and will be written anew.", path)
    return []


def _is_record(record: Any, fields: set[str]) -> bool:
    return isinstance(record, dict) and isinstance(record.get("key"), dict) and fields <= record.keys()


def find_record(path: Path, key: dict[str, Any], fields: set[str]) -> dict[str, Any] | None:
    """The record of this key."""
    return next((record for record in read_records(path, fields) if record["key"] == key), None)


def save_record(path: Path, record: dict[str, Any], fields: set[str]) -> None:
    """Put a record first, in place of one with the same key; where that cannot be written, it is logged."""
    records = [record, *(r for r in read_records(path, fields) if r["key"] != record["key"])][:MOST_RECORDS]
    try:
        files.write_json(path, {"schema": 1, "records": records})
    except (OSError, ValueError) as error:
        log.warning("%s cannot be remembered (%s): it will be found out again at the next load.", path, error)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes that look for the same answer; without a lock where there is none.

    The lock is the one that writers of the bundle hold. It goes with the process, however that ends.
    """
    descriptor = None
    try:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            log.info("%s cannot be locked (%s)", folder, error)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


MODES = ("error", "warn", "off")
_FIELDS = {"right", "sentence"}


@dataclass(frozen=True)
class Verdict:
    """Whether a model's answers in a backend are right here. `right` is None where the bundle cannot tell."""

    right: bool | None
    sentence: str


def check_mode(mode: str) -> None:
    """Refuse an unknown mode (ConfigError)."""
    if mode not in MODES:
        raise ConfigError(f"verify is one of {', '.join(MODES)}, but {mode!r} came.")


def check_or_raise(bundle: Bundle, backend: str, entry: ModelEntry, engine: Backend, threads: int, mode: str) -> None:
    """Let a model through whose answers are right, or that cannot be told.

    Args:
        engine: the entry's model, opened in the backend.

    Raises:
        VerificationError: if they are wrong and the mode is `error`; `warn` logs the sentence.
        BundleError: if the probe images cannot be read.
    """
    if mode == "off":
        return
    found = verdict(bundle, backend, entry, engine, threads)
    if found.right is None:
        log.info("not verified: %s", found.sentence)
    elif not found.right:
        if mode == "error":
            raise VerificationError(
                f'{found.sentence}. Choose another backend or precision, or insist with verify="warn"; '
                f"`vae-edge verify {bundle.path}` asks again."
            )
        log.warning("%s", found.sentence)


def verdict(bundle: Bundle, backend: str, entry: ModelEntry, engine: Backend, threads: int) -> Verdict:
    """The remembered verdict, or one that is found out now and remembered."""
    probes = bundle.probes
    if probes is None:
        return _without_probes(bundle, backend, entry)
    path, key = records_path(bundle.path, VERIFIED_FILE), _key(bundle, backend, entry, threads)
    known = find_record(path, key, _FIELDS)
    if known is not None and isinstance(known["right"], bool):
        return Verdict(known["right"], str(known["sentence"]))
    expected = _expected(bundle, load_probes(bundle.file(probes)), entry)
    if expected is None:
        return _without_probes(bundle, backend, entry)
    images, answers = expected
    found = _judge(bundle, backend, entry, compare(answers, run_probes(engine, images, 1)))
    _remember(path, key, found)
    return found


def report(bundle: Bundle, backend: str, entry: ModelEntry, engine: Backend, threads: int) -> dict[str, Any]:
    """Everything that the probe images tell of a model in a backend, as plain values; the verdict is remembered.

    Returns:
        `backend`, `file`, `precision`, `target`, `right` (null where the bundle cannot tell), `sentence`; and where it
        can `images`, `outputs` (for each, by batch size: mean and largest difference, what is allowed, images compared)
        and `first_wrong_tensor` (null where all that the backend shows are right, or the answers are).
    """
    about = {"backend": backend, "file": entry.file, "precision": entry.precision, "target": entry.target}
    probes = None if bundle.probes is None else load_probes(bundle.file(bundle.probes))
    expected = None if probes is None else _expected(bundle, probes, entry)
    if expected is None:
        return {**about, **asdict(_without_probes(bundle, backend, entry))}
    images, answers = expected
    mismatches: list[Mismatch] = []
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in answers.tolerance}
    for batch in (1, len(images)):
        outputs = run_probes(engine, images, batch)
        mismatches += compare(answers, outputs)
        for name, row in rows.items():
            row.append({"batch": batch, **_figures(answers, name, outputs.get(name))})
    found = _judge(bundle, backend, entry, mismatches)
    _remember(records_path(bundle.path, VERIFIED_FILE), _key(bundle, backend, entry, threads), found)
    first, remark = None, ""
    if mismatches and answers.inner:
        some = images[: len(next(iter(answers.inner.values())))]
        try:
            inner = inner_tensors(backend, bundle.file(entry), list(answers.inner), some, threads)
            first = first_inner_mismatch(answers, inner)
            remark = f"; the first wrong tensor inside is {first}" if first else ""
        except BackendError as error:
            remark = f"; inner tensors cannot be shown: {error}"
    return {
        **about,
        "right": found.right,
        "sentence": found.sentence + remark,
        "images": len(images),
        "outputs": rows,
        "first_wrong_tensor": first,
    }


def run_probes(engine: Backend, images: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """What an opened model says of images uint8 [P, S, S, C], so many at a time, by output.

    Raises:
        BackendError: if the engine fails.
    """
    names = [info.name for info in engine.outputs]
    try:
        parts = [
            [output.copy() for output in engine.infer(images[start : start + batch])]
            for start in range(0, len(images), batch)
        ]
        return {name: np.concatenate([part[k] for part in parts]) for k, name in enumerate(names)}
    except Exception as error:  # the engines' own exceptions share no base class
        raise BackendError(f"the backend failed on probe images ({error})") from error


def _expected(bundle: Bundle, probes: Probes, entry: ModelEntry) -> tuple[np.ndarray, Expected] | None:
    """The probe images and the answers to an entry's file, if there are any.

    Raises:
        BundleError: if the images are not what the model takes.
    """
    spec = bundle.input
    if probes.images.shape[1:] != (spec.size, spec.size, spec.channels):
        raise BundleError(
            f"The probe images of the bundle {bundle.path} are {list(probes.images.shape)}, but its model takes "
            f"[N, {spec.size}, {spec.size}, {spec.channels}]: export and quantize it again."
        )
    answers = probes.models.get(entry.sha256)
    return None if answers is None else (probes.images, answers)


def _without_probes(bundle: Bundle, backend: str, entry: ModelEntry) -> Verdict:
    """What is known without answers to compare with."""
    if entry.precision == "int8" and entry.target == "any" and backend == "openvino" and int8_saturates():
        return Verdict(
            False,
            f"openvino gives wrong answers with {bundle.file(entry)} on this processor, which has no int8 dot products "
            "(VNNI): the file was made for TensorRT; add those for CPUs with "
            f"`vae-edge quantize {bundle.path} --precision int8 --data PATH`",
        )
    what = "no probe images" if bundle.probes is None else f"no answers to compare those of {entry.file} with"
    return Verdict(None, f"the bundle {bundle.path} has {what}; `vae-edge quantize` adds them")


def _figures(answers: Expected, name: str, have: np.ndarray | None) -> dict[str, Any]:
    allowed = asdict(answers.tolerance[name])
    if have is None or have.shape != answers.outputs[name].shape:
        return {"compared": 0, "mean": None, "largest": None, "allowed": allowed}
    apart, compared = without_outliers(name, have, answers.outputs[name])
    finite = bool(len(apart)) and bool(np.isfinite(apart).all())
    mean, largest = (float(apart.mean()), float(apart.max())) if finite else (None, None)
    return {"compared": compared, "mean": mean, "largest": largest, "allowed": allowed}


def _judge(bundle: Bundle, backend: str, entry: ModelEntry, mismatches: list[Mismatch]) -> Verdict:
    where = f"{backend} {backend_version(backend)} with {bundle.file(entry)} on this machine ({cpu_model()})"
    if not mismatches:
        return Verdict(True, f"{where} gives right answers")
    return Verdict(False, f"{where} gives wrong answers: {mismatches[0].sentence()}")


def _remember(path: Path, key: dict[str, Any], found: Verdict) -> None:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    save_record(path, {"key": key, **asdict(found), "measured": now}, _FIELDS)


def _key(bundle: Bundle, backend: str, entry: ModelEntry, threads: int) -> dict[str, Any]:
    return {
        "backend": backend,
        "model": entry.sha256,
        "probes": None if bundle.probes is None else bundle.probes.sha256,
        "threads": threads,
        "cpu": cpu_identity(),
        "versions": {"vae_edge": __version__, "numpy": np.__version__, backend: backend_version(backend)},
    }
