"""At home: a result's engines, and what was measured of them, into the bundle that the kit was made of."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge import files
from vae_edge.bundle import Bundle, ModelEntry, add_models, load_bundle
from vae_edge.errors import BundleError
from vae_edge.kit.archive import changed_file, unpack
from vae_edge.kit.description import BUNDLE_FOLDER, RESULT_FILE, SCHEMA, SUMS_FILE
from vae_edge.spec import MAX_MANIFEST_BYTES

FORMATS = ("tensorrt",)


@dataclass(frozen=True)
class AddedResult:
    """What a result brought.

    Attributes:
        bundle: the bundle's folder.
        device: where it was measured.
        date: ISO date (UTC).
        files: by precision, the engine's file in the bundle.
        verified: by precision, whether its answers are right; None if the bundle has no probes.
        accuracy: by precision, the engine's figures on the kit's images; may be empty.
        latency: rows of the benchmark.
        failed: by precision, why the device could not build an engine.
        problems: sentences about what went wrong on the device.
    """

    bundle: Path
    device: str
    date: str
    files: Mapping[str, str]
    verified: Mapping[str, bool | None]
    accuracy: Mapping[str, Mapping[str, Any]]
    latency: tuple[Mapping[str, Any], ...]
    failed: Mapping[str, str]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As `vae-edge kit` prints it."""
        return {**dataclasses.asdict(self), "bundle": str(self.bundle)}


@dataclass(frozen=True)
class _Result:
    """The JSON files of an unpacked result; {} for what is not there."""

    about: Mapping[str, Any]
    verification: Mapping[str, Any]
    benchmark: Mapping[str, Any]
    accuracy: Mapping[str, Any]


def add(path: str | os.PathLike[str], bundle_path: str | os.PathLike[str]) -> AddedResult:
    """Add the engines of a result to the bundle whose ONNX files they were built from.

    An engine's entry gets the figures that were measured on the device as its accuracy, and the date, the device, the
    verdict and the latencies as `provenance.measured`. All engines are added in one step, or none.

    Raises:
        BundleError: the result or the bundle is damaged, they do not belong together, or an answer was wrong.
    """
    home = load_bundle(bundle_path)
    if not os.path.lexists(path):
        raise BundleError(f"There is no result of a kit at {path}: give the file that `sh build.sh` wrote.")
    with tempfile.TemporaryDirectory(prefix="vae-edge-") as temporary:
        folder = Path(temporary)
        unpack(path, folder)
        _check_sums(folder, path)
        result = _read(folder, path)
        brought = load_bundle(folder / BUNDLE_FOLDER)
        engines = [entry for entry in brought.models if entry.format in FORMATS]
        if not engines:
            raise BundleError(f"{path} holds no engine: nothing was built on the device.")
        _check_belongs(path, home, engines)
        _check_right(path, result, engines)
        pairs = [(brought.file(entry), _measured(entry, result)) for entry in engines]
        added = add_models(bundle_path, pairs)
    accuracy = result.accuracy.get("here", {})
    rows = tuple(row for row in result.benchmark.get("results", ()) if isinstance(row, dict))
    return AddedResult(
        bundle=home.path,
        device=str(result.about["device"]),
        date=str(result.about["date"]),
        files={entry.precision: added.find(*_key(entry)).file for _, entry in pairs},
        verified={entry.precision: entry.provenance["measured"]["verified"] for _, entry in pairs},
        accuracy={name: found for name, found in accuracy.items() if isinstance(found, dict)},
        latency=rows,
        failed={str(name): str(why) for name, why in result.about["failed"].items()},
        problems=tuple(map(str, result.about["problems"])),
    )


def _key(entry: ModelEntry) -> tuple[str, str, str, str]:
    return entry.role, entry.format, entry.precision, entry.target


def _check_sums(folder: Path, path: str | os.PathLike[str]) -> None:
    try:
        changed = changed_file(folder, SUMS_FILE, MAX_MANIFEST_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is no result of a kit: its {SUMS_FILE} cannot be read ({error}).") from error
    if changed is not None:
        raise BundleError(f"{path} is damaged: its {changed} was changed or is missing; copy it again from the device.")


def _read(folder: Path, path: str | os.PathLike[str]) -> _Result:
    names = (RESULT_FILE, "verification.json", "benchmark.json", "accuracy.json")
    values = []
    for name in names:
        try:
            value = files.read_json(folder / name, MAX_MANIFEST_BYTES) if (folder / name).exists() else {}
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} is damaged: its {name} cannot be read ({error}).") from error
        if not isinstance(value, dict):
            raise BundleError(f"{path} is damaged: its {name} holds no object.")
        values.append(value)
    about = values[0]
    fields = {"device": str, "date": str, "failed": dict, "problems": list, "machine": dict, "gpu": dict}
    wrong = [key for key, kind in fields.items() if not isinstance(about.get(key), kind)]
    if about.get("schema") != SCHEMA or wrong:
        raise BundleError(f"{path} is not a result that this version reads: its {RESULT_FILE} lacks {wrong or SCHEMA}.")
    return _Result(*values)


def _check_belongs(path: str | os.PathLike[str], home: Bundle, engines: list[ModelEntry]) -> None:
    for entry in engines:
        source = entry.provenance.get("onnx")
        digest = source.get("sha256") if isinstance(source, dict) else None
        here = home.select(entry.role, "onnx", entry.precision, "any")
        if digest not in [each.sha256 for each in here]:
            raise BundleError(
                f"{path} is of another bundle: its {entry.precision} engine was built from an ONNX file with the "
                f"SHA-256 {digest}, which {home.path} does not have. Nothing was added; give the bundle that the kit "
                "was written from, as it was then."
            )


def _check_right(path: str | os.PathLike[str], result: _Result, engines: list[ModelEntry]) -> None:
    """Refuse an engine whose answers were wrong or not looked at. (A bundle without probes tells neither.)"""
    models = [each for each in result.verification.get("models", ()) if isinstance(each, dict)]
    verdicts = {each.get("file"): each for each in models}
    for entry in engines:
        found = verdicts.get(entry.file)
        if found is None:
            raise BundleError(f"{path} is not added: its {entry.precision} engine was not verified on the device.")
        if found.get("right") is False:
            raise BundleError(
                f"{path} is not added: {str(found.get('sentence')).rstrip('.')}. Build another precision, or see its "
                "verification.md."
            )


def _measured(entry: ModelEntry, result: _Result) -> ModelEntry:
    figures = result.accuracy.get("here", {}).get(entry.precision, {})
    at_home = result.accuracy.get("at_home", {})
    accuracy = dict(figures) if isinstance(figures, dict) else {}
    reference = at_home.get("fp32")
    if accuracy and isinstance(reference, dict) and isinstance(reference.get("accuracy"), (int, float)):
        accuracy["fp32_accuracy"] = reference["accuracy"]
    rows = [row for row in result.benchmark.get("results", ()) if row.get("precision") == entry.precision]
    measured = {
        "device": result.about["device"],
        "date": result.about["date"],
        "gpu": result.about["gpu"],
        "machine": result.about["machine"],
        "verified": next(
            (each.get("right") for each in result.verification.get("models", ()) if each.get("file") == entry.file),
            None,
        ),
        "latency": rows,
    }
    return dataclasses.replace(entry, accuracy=accuracy, provenance={**entry.provenance, "measured": measured})
