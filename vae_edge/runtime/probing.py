"""Whether a backend's answers are right on this machine: it runs the bundle's probe images.

At the first load of a model in a backend the probe images run one at a time and all at once, and the answers are
compared with the exact ones in the bundle. The verdict is cached in `verified.json` beside the manifest, under a key of
model, backend, threads, processor, GPU and versions; later loads read it. `report` also compares tensors inside the
model. The cache files are no part of what a bundle verifies; those of a bundle that cannot be written to are in the
user's cache folder.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge import __version__, files
from vae_edge.bundle import Bundle, ModelEntry
from vae_edge.bundle_schema import VERIFIED_FILE
from vae_edge.environment import cpu_identity, cpu_model, int8_saturates
from vae_edge.errors import BackendError, BundleError, VerificationError
from vae_edge.probes import (
    Expected,
    Mismatch,
    Probes,
    Tolerance,
    compare,
    first_inner_mismatch,
    precision_shift,
    without_outliers,
)
from vae_edge.probes import load as load_probes
from vae_edge.runtime.backends import Backend, LoadOptions, OpenedModel, inner_tensors
from vae_edge.runtime.entries import open_classifier
from vae_edge.spec import MAX_RECORD_BYTES

log = logging.getLogger(__name__)

MAX_RECORDS = 64
MAX_PRECISION_SHIFT = 0.5  # 0: the answers of a quantized model's file, 1: those of the fp32 model
_FIELDS = {"right", "sentence"}


@dataclass(frozen=True)
class Verdict:
    """Whether a model's answers in a backend are right here. `right` is None if the bundle cannot tell."""

    right: bool | None
    sentence: str


@dataclass(frozen=True)
class OutputDifference:
    """How far an output is from the exact answers when the probe images run in batches of one size.

    Attributes:
        batch: images per call.
        compared: how many images were compared.
        mean, largest: differences in the output's own unit; None if a value is missing or not finite.
        allowed: the tolerance.
    """

    batch: int
    compared: int
    mean: float | None
    largest: float | None
    allowed: Tolerance


@dataclass(frozen=True)
class ModelReport:
    """What the probe images show of one model file in one backend.

    Attributes:
        backend, file, precision, target: what was run.
        right: whether all answers are right; None if the bundle cannot tell.
        sentence: the verdict for people.
        images: how many probe images there are; None if there was nothing to compare with, as with the next two.
        outputs: the differences of each output by batch size.
        first_wrong_tensor: the first tensor inside the model that differs; None if none that the backend shows does.
    """

    backend: str
    file: str
    precision: str
    target: str
    right: bool | None
    sentence: str
    images: int | None = None
    outputs: Mapping[str, tuple[OutputDifference, ...]] = field(default_factory=dict)
    first_wrong_tensor: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; `images`, `outputs` and `first_wrong_tensor` only if there was something to compare with."""
        values = asdict(self)
        if self.images is None:
            for name in ("images", "outputs", "first_wrong_tensor"):
                del values[name]
        else:
            values["outputs"] = {name: list(rows) for name, rows in values["outputs"].items()}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelReport:
        """The inverse of `to_json`."""
        outputs = {
            name: tuple(OutputDifference(**{**row, "allowed": Tolerance(**row["allowed"])}) for row in rows)
            for name, rows in values.get("outputs", {}).items()
        }
        return cls(**{**values, "outputs": outputs})


def check_or_raise(bundle: Bundle, model: OpenedModel, mode: str) -> None:
    """Accept a model whose answers are right here, or of which the bundle cannot tell.

    Args:
        mode: what to do about wrong answers: `error` raises, `warn` logs the sentence, `off` does not check.

    Raises:
        VerificationError: the answers are wrong and the mode is `error`.
        BundleError: the probe images cannot be read.
    """
    if mode == "off":
        return
    found = verdict(bundle, model)
    if found.right is None:
        log.info("not verified: %s", found.sentence)
    elif not found.right:
        if mode == "error":
            raise VerificationError(
                f'{found.sentence}. Choose another backend or precision, or insist with verify="warn"; '
                f"`vae-edge verify {bundle.path}` asks again."
            )
        log.warning("%s", found.sentence)


def open_verified(bundle: Bundle, backend: str, precision: str, options: LoadOptions) -> OpenedModel:
    """The bundle's classifier of a precision in a backend, checked with the probe images as `options.verify` says.

    Raises:
        BundleError, BackendError: as `vae_edge.runtime.entries.open_classifier`.
        VerificationError: as `check_or_raise`.
    """
    model = open_classifier(bundle, backend, precision, options)
    check_or_close(bundle, model, options.verify)
    return model


def check_or_close(bundle: Bundle, model: OpenedModel, mode: str) -> None:
    """As `check_or_raise`; the model is closed if it raises."""
    try:
        check_or_raise(bundle, model, mode)
    except BaseException:
        model.session.close()
        raise


def verdict(bundle: Bundle, model: OpenedModel) -> Verdict:
    """The cached verdict, or one that is reached now and cached."""
    if bundle.probes is None:
        return _without_probes(bundle, model)
    path, key = cache_path(bundle.path, VERIFIED_FILE), _key(bundle, model)
    cached = find_cached(path, key, _FIELDS)
    if cached is not None and isinstance(cached["right"], bool):
        return Verdict(cached["right"], str(cached["sentence"]))

    probes = load_probes(bundle.file(bundle.probes))
    expected = _expected(bundle, probes, model.entry)
    if expected is None:
        return _without_probes(bundle, model)
    images, answers = expected
    mismatches: dict[int, list[Mismatch]] = {}
    for batch in (1, len(images)):
        outputs = run_probes(model.session, images, batch)
        mismatches[batch] = compare(answers, outputs)
        if mismatches[batch]:
            break
    found = _verdict_of(model, mismatches)
    if found.right and _is_finer(bundle, probes, model, outputs):
        found = _finer_verdict(model)
    _save_verdict(path, key, found)
    return found


def report(bundle: Bundle, model: OpenedModel) -> ModelReport:
    """Everything that the probe images show of a model in a backend; the verdict is cached."""
    entry = model.entry
    about = (model.backend, entry.file, entry.precision, entry.target)
    probes = None if bundle.probes is None else load_probes(bundle.file(bundle.probes))
    expected = None if probes is None else _expected(bundle, probes, entry)
    if expected is None:
        unknown = _without_probes(bundle, model)
        return ModelReport(*about, unknown.right, unknown.sentence)

    images, answers = expected
    mismatches: dict[int, list[Mismatch]] = {}
    rows: dict[str, list[OutputDifference]] = {name: [] for name in answers.tolerance}
    for batch in (1, len(images)):
        outputs = run_probes(model.session, images, batch)
        mismatches[batch] = compare(answers, outputs)
        for name, row in rows.items():
            row.append(_difference(answers, name, outputs.get(name), batch))
    found = _verdict_of(model, mismatches)
    if found.right and probes is not None and _is_finer(bundle, probes, model, outputs):
        found = _finer_verdict(model)
    _save_verdict(cache_path(bundle.path, VERIFIED_FILE), _key(bundle, model), found)

    first, remark = None, ""
    if found.right is False and answers.inner:
        some = images[: len(next(iter(answers.inner.values())))]
        try:
            inner = inner_tensors(model, list(answers.inner), some)
            first = first_inner_mismatch(answers, inner)
            remark = f"; the first wrong tensor inside is {first}" if first else ""
        except BackendError as error:
            remark = f"; inner tensors cannot be shown: {error}"
    outputs_of = {name: tuple(row) for name, row in rows.items()}
    return ModelReport(*about, found.right, found.sentence + remark, len(images), outputs_of, first)


def run_probes(session: Backend, images: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """The outputs of an opened model by name for images uint8 [P, S, S, C], `batch` at a time.

    Raises:
        BackendError: if the backend fails.
    """
    names = [info.name for info in session.outputs]
    try:
        parts = [
            [output.copy() for output in session.infer(images[start : start + batch])]
            for start in range(0, len(images), batch)
        ]
        return {name: np.concatenate([part[k] for part in parts]) for k, name in enumerate(names)}
    except Exception as error:  # the backends' own exceptions share no base class
        raise BackendError(f"the backend failed on probe images ({error})") from error


def _expected(bundle: Bundle, probes: Probes, entry: ModelEntry) -> tuple[np.ndarray, Expected] | None:
    """The probe images and the exact answers of an entry's file, if there are any.

    Raises:
        BundleError: if the images are not what the model takes.
    """
    spec = bundle.input
    if probes.images.shape[1:] != spec.shape:
        raise BundleError(
            f"The probe images of the bundle {bundle.path} are {list(probes.images.shape)}, but its model takes "
            f"[N, {', '.join(map(str, spec.shape))}]: export and quantize it again."
        )
    answers = probes.models.get(entry.sha256) or probes.models.get(source_sha256(entry))
    return None if answers is None else (probes.images, answers)


def source_sha256(entry: ModelEntry) -> str:
    """The SHA-256 of the ONNX file that an engine or network file was made from: its answers are the engine's too."""
    source = entry.provenance.get("onnx")
    digest = source.get("sha256") if isinstance(source, dict) else None
    return digest if isinstance(digest, str) else ""


def _without_probes(bundle: Bundle, model: OpenedModel) -> Verdict:
    """The verdict on a model without exact answers to compare with."""
    entry = model.entry
    if entry.precision == "int8" and entry.target == "any" and model.backend == "openvino" and int8_saturates():
        return Verdict(
            False,
            f"openvino gives wrong answers with {model.file} on this processor, which has no int8 dot products "
            "(VNNI): the file was made for TensorRT; add those for CPUs with "
            f"`vae-edge quantize {bundle.path} --precision int8 --data PATH`",
        )
    what = "no probe images" if bundle.probes is None else f"no answers to compare those of {entry.file} with"
    return Verdict(None, f"the bundle {bundle.path} has {what}; `vae-edge quantize` adds them")


def _difference(answers: Expected, name: str, have: np.ndarray | None, batch: int) -> OutputDifference:
    allowed = answers.tolerance[name]
    if have is None or have.shape != answers.outputs[name].shape:
        return OutputDifference(batch, 0, None, None, allowed)
    apart, compared = without_outliers(name, have, answers.outputs[name])
    finite = bool(len(apart)) and bool(np.isfinite(apart).all())
    mean, largest = (float(apart.mean()), float(apart.max())) if finite else (None, None)
    return OutputDifference(batch, compared, mean, largest, allowed)


def _verdict_of(model: OpenedModel, mismatches: Mapping[int, list[Mismatch]]) -> Verdict:
    """From the mismatches by images per call."""
    for batch, found in mismatches.items():
        if found:
            how = "" if batch == 1 else f" in batches of {batch}"
            return Verdict(False, f"{_where(model)} gives wrong answers{how}: {found[0].sentence()}")
    return Verdict(True, f"{_where(model)} gives right answers")


def _where(model: OpenedModel) -> str:
    machine = model.session.device or cpu_model()
    return f"{model.backend} {model.session.version} with {model.file} on this machine ({machine})"


def _is_finer(bundle: Bundle, probes: Probes, model: OpenedModel, outputs: Mapping[str, np.ndarray]) -> bool:
    """Whether a quantized engine's right answers are rather those of the fp32 model: then it does not run quantized.

    CPU backends leave single layers in fp32 and remain right; they are not asked.
    """
    entry = model.entry
    if entry.precision not in ("int8", "fp8") or entry.format == "onnx":
        return False
    expected, fine = _expected(bundle, probes, entry), bundle.select(entry.role, "onnx", "fp32", "any")
    finer = probes.models.get(fine[0].sha256) if fine else None
    if expected is None or finer is None:
        return False
    shift = precision_shift(expected[1], finer, outputs)
    return shift is not None and shift > MAX_PRECISION_SHIFT


def _finer_verdict(model: OpenedModel) -> Verdict:
    precision = model.entry.precision
    return Verdict(
        False,
        f"{_where(model)} gives wrong answers: they are those of the fp32 model, so it does not compute in {precision}",
    )


def _key(bundle: Bundle, model: OpenedModel) -> dict[str, Any]:
    """What a cached verdict holds for."""
    return {
        "backend": model.backend,
        "model": model.entry.sha256,
        "probes": None if bundle.probes is None else bundle.probes.sha256,
        "threads": model.options.threads,
        "cpu": f"{cpu_identity()} {model.session.device}".rstrip(),
        "versions": {"vae_edge": __version__, "numpy": np.__version__, model.backend: model.session.version},
    }


def _save_verdict(path: Path, key: dict[str, Any], found: Verdict) -> None:
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    save_cached(path, {"key": key, **asdict(found), "measured": now}, _FIELDS)


def cache_path(bundle: Path, name: str) -> Path:
    """Where a cache file of a bundle is: in its folder, or in the user's cache if that cannot be written to."""
    if os.access(bundle, os.W_OK):
        return bundle / name
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as in containers
        return bundle / name
    digest = hashlib.sha256(os.fsencode(bundle.resolve())).hexdigest()[:16]
    return cache / "vae-edge" / digest / name


def read_cache(path: Path, fields: set[str]) -> list[dict[str, Any]]:
    """The records of a cache file, each with `key` and these fields; none if the file is missing or damaged."""
    try:
        stored = files.read_json(path, MAX_RECORD_BYTES)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s) and will be written anew.", path, error)
        return []
    records = stored.get("records") if isinstance(stored, dict) else None
    if isinstance(records, list) and all(
        isinstance(record, dict) and isinstance(record.get("key"), dict) and fields <= record.keys()
        for record in records
    ):
        return records
    log.warning("%s is damaged and will be written anew.", path)
    return []


def find_cached(path: Path, key: dict[str, Any], fields: set[str]) -> dict[str, Any] | None:
    """The record with this key."""
    return next((record for record in read_cache(path, fields) if record["key"] == key), None)


def save_cached(path: Path, record: dict[str, Any], fields: set[str]) -> None:
    """Put a record first, in place of one with the same key; if that cannot be written, it is logged."""
    records = [record, *(r for r in read_cache(path, fields) if r["key"] != record["key"])][:MAX_RECORDS]
    try:
        files.write_json(path, {"schema": 1, "records": records})
    except (OSError, ValueError) as error:
        log.warning("%s cannot be remembered (%s): it will be found out again at the next load.", path, error)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes that seek the same answer; on a file system without locks, do nothing.

    Writers of the bundle hold the same lock. It is released when the process ends, however that happens.
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
