"""Whether a backend's answers are right on this very machine: it is asked the bundle's probe images.

At the first load of a model in a backend the probe images are run one at a time, and compared with the exact answers
that the bundle carries. The verdict is remembered in `verified.json` beside the manifest, under a key of model,
backend, processor and versions; later loads read it. `report` asks in whole batches too, and looks inside.
"""

from __future__ import annotations

import datetime
import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vae_edge import __version__
from vae_edge.bundle import VERIFIED_FILE, Bundle, ModelEntry
from vae_edge.errors import BackendError, ConfigError, VerificationError
from vae_edge.probes import Departure, Expected, Probes, compare, first_inner_departure, judged
from vae_edge.probes import load as load_probes
from vae_edge.runtime import records
from vae_edge.runtime.backends import Backend, backend_version, inner_tensors
from vae_edge.runtime.machine import cpu_model, instruction_set

log = logging.getLogger(__name__)

MODES = ("error", "warn", "off")
_FIELDS = {"right", "sentence"}


@dataclass(frozen=True)
class Verdict:
    """Whether a model's answers in a backend are right here. `right` is None where the bundle cannot tell."""

    backend: str
    file: str
    right: bool | None
    sentence: str


def check_mode(mode: str) -> None:
    """Refuse an unknown mode (ConfigError)."""
    if mode not in MODES:
        raise ConfigError(f"verify is one of {', '.join(MODES)}, but {mode!r} came.")


def verdict(bundle: Bundle, backend: str, entry: ModelEntry, engine: Backend) -> Verdict:
    """The remembered verdict, or one that is found out now and remembered.

    Args:
        engine: the entry's model, opened in the backend.
    """
    if bundle.probes is None:
        return Verdict(backend, entry.file, None, f"the bundle {bundle.path} has no probe images: export it again")
    path, key = bundle.path / VERIFIED_FILE, _key(bundle, backend, entry)
    known = records.find(path, key, _FIELDS)
    if known is None:
        found = ask(bundle, backend, entry, engine, load_probes(bundle.file(bundle.probes)))
        if found.right is None:
            return found
        known = {
            "key": key,
            "right": found.right,
            "sentence": found.sentence,
            "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        records.remember(path, known, _FIELDS)
    return Verdict(backend, entry.file, bool(known["right"]), str(known["sentence"]))


def require(bundle: Bundle, backend: str, entry: ModelEntry, engine: Backend, mode: str) -> None:
    """Let a model through whose answers are right, or that cannot be told.

    Raises:
        VerificationError: if they are wrong and the mode is `error`; `warn` logs the sentence.
    """
    if mode == "off":
        return
    found = verdict(bundle, backend, entry, engine)
    if found.right is None:
        log.info("not verified: %s", found.sentence)
    elif not found.right:
        if mode == "error":
            raise VerificationError(
                f'{found.sentence}. Choose another backend or precision, or insist with verify="warn".'
            )
        log.warning("%s", found.sentence)


def ask(bundle: Bundle, backend: str, entry: ModelEntry, engine: Backend, probes: Probes) -> Verdict:
    """Run the probe images one at a time, and compare."""
    expected = probes.models.get(entry.sha256)
    if expected is None:
        return Verdict(backend, entry.file, None, f"the bundle has no expected answers for {entry.file}")
    return _judge(bundle, backend, entry, compare(expected, run_probes(engine, probes.images, 1)))


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
    except Exception as error:  # the engines' own exceptions share no base class
        raise BackendError(f"the backend failed on probe images ({error})") from error
    return {name: np.concatenate([part[k] for part in parts]) for k, name in enumerate(names)}


def report(bundle: Bundle, backend: str, entry: ModelEntry, engine: Backend, threads: int) -> dict[str, Any]:
    """Everything that the probe images tell of a model in a backend, as plain values.

    Returns:
        `backend`, `file`, `precision`, `target`, `right` (null where the bundle cannot tell), `sentence`; and where it
        can `images`, `outputs` (for each, by batch size: mean and largest difference, what is allowed, images compared)
        and `first_wrong_tensor` (null where all that the backend shows are right, or the answers are).
    """
    about = {"backend": backend, "file": entry.file, "precision": entry.precision, "target": entry.target}
    probes = None if bundle.probes is None else load_probes(bundle.file(bundle.probes))
    expected = None if probes is None else probes.models.get(entry.sha256)
    if probes is None or expected is None:
        missing = "has no probe images" if probes is None else f"has no expected answers for {entry.file}"
        return {**about, "right": None, "sentence": f"the bundle {missing}: export and quantize it again"}
    departures: list[Departure] = []
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in expected.tolerance}
    for batch in (1, len(probes.images)):
        outputs = run_probes(engine, probes.images, batch)
        departures += compare(expected, outputs)
        for name, row in rows.items():
            row.append({"batch": batch, **_figures(expected, name, outputs[name])})
    found = _judge(bundle, backend, entry, departures)
    first = None
    if departures and expected.inner:
        some = probes.images[: len(next(iter(expected.inner.values())))]
        inner = inner_tensors(backend, bundle.file(entry), list(expected.inner), some, threads)
        first = first_inner_departure(expected, inner)
    sentence = found.sentence if first is None else f"{found.sentence}; the first wrong tensor inside is {first}"
    return {
        **about,
        "right": found.right,
        "sentence": sentence,
        "images": len(probes.images),
        "outputs": rows,
        "first_wrong_tensor": first,
    }


def _figures(expected: Expected, name: str, have: np.ndarray) -> dict[str, Any]:
    apart, compared = judged(name, have, expected.outputs[name])
    finite = bool(len(apart)) and bool(np.isfinite(apart).all())
    return {
        "compared": compared,
        "mean": float(apart.mean()) if finite else None,
        "largest": float(apart.max()) if finite else None,
        "allowed": asdict(expected.tolerance[name]),
    }


def _judge(bundle: Bundle, backend: str, entry: ModelEntry, departures: list[Departure]) -> Verdict:
    where = f"{backend} {backend_version(backend)} with {bundle.file(entry)} on this machine ({cpu_model()})"
    if not departures:
        return Verdict(backend, entry.file, True, f"{where} gives right answers")
    return Verdict(backend, entry.file, False, f"{where} gives wrong answers: {departures[0].sentence()}")


def _key(bundle: Bundle, backend: str, entry: ModelEntry) -> dict[str, Any]:
    assert bundle.probes is not None
    return {
        "backend": backend,
        "model": entry.sha256,
        "probes": bundle.probes.sha256,
        "cpu": cpu_model(),
        "isa": instruction_set(),
        "versions": {"vae_edge": __version__, "numpy": np.__version__, backend: backend_version(backend)},
    }
