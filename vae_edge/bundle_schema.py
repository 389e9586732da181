"""The manifest of a bundle: read strictly, every field checked, schema 1 brought to the form of schema 2.

None of the files that a manifest names is opened here.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from vae_edge import files
from vae_edge.errors import BundleError
from vae_edge.preprocess import InputSpec, upgrade_input_json
from vae_edge.spec import (
    FORMATS,
    MAX_CLASSES,
    MAX_INPUT_SIZE,
    MAX_MANIFEST_BYTES,
    MAX_MODELS,
    MAX_NAME,
    PRECISIONS,
    ROLES,
    SCHEMA_1_SCORE_MODES,
    SCORE_MODES,
)

SCHEMA = 2
MANIFEST_FILE = "manifest.json"
AUTO_FILE = "auto.json"
"""The runtime's cache of the backend it chose: not part of what a bundle verifies."""
VERIFIED_FILE = "verified.json"
"""The runtime's cache of which backends gave right answers here: likewise."""
_OPTIONAL_INPUT: dict[str, tuple[Any, ...]] = {
    "fit": ("pad", "foreground"),
    "depth": (None, 8, 10, 12, 14, 16),
    "alpha_background": (None, "white", "black"),
    "color_order": ("rgb",),
}
"""Fields of the input that early versions did not write, and the values they may have."""
_SCHEMA_1_FIT = "ink"  # now "foreground"
_SCHEMA_1_MODES = ("full", *SCHEMA_1_SCORE_MODES)
SCHEMA_1_DATA = {"watched": "val", "copies": "duplicates", "also_tested": "in_test"}
SCHEMA_1_ANGLE_FIGURES = {"by_concentration": "by_angle_confidence"}
"""Keys of schema 1 in `data`, and in `angle_error_deg` of an entry's `accuracy`, with their names of today."""
MAX_OPSET = 1000
MAX_SYMMETRY = 360  # the order of a class's rotational symmetry
_TARGET = re.compile(r"any|[A-Za-z0-9][\w-]{0,31}")
_HEX = re.compile(r"[0-9a-f]{64}")


def load_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a bundle, in the form of schema 2 whatever schema the file has.

    Raises:
        BundleError: as `read_manifest` and `check_manifest`.
    """
    manifest = read_manifest(folder)
    check_manifest(manifest, folder / MANIFEST_FILE)
    return manifest if manifest["schema"] == SCHEMA else _upgraded(manifest)


def _upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """A checked manifest of schema 1 as one of schema 2. `provenance` records how files were made: it stays."""
    score = {**manifest["score"]}
    mode = score.pop("kind", "full")
    return {
        **manifest,
        "schema": SCHEMA,
        "input": InputSpec.from_json(manifest["input"]).to_json(),
        "score": {**score, "mode": SCHEMA_1_SCORE_MODES.get(mode, mode)},
        "data": _renamed(manifest["data"], SCHEMA_1_DATA),
        "models": [{**model, "accuracy": _upgraded_figures(model["accuracy"])} for model in manifest["models"]],
    }


def _upgraded_figures(accuracy: Mapping[str, Any]) -> dict[str, Any]:
    errors = accuracy.get("angle_error_deg")
    if not isinstance(errors, dict):
        return {**accuracy}
    return {**accuracy, "angle_error_deg": _renamed(errors, SCHEMA_1_ANGLE_FIGURES)}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in values.items()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The JSON object in `folder/manifest.json`, refused when a key stands twice or a number is NaN or infinite.

    Raises:
        BundleError: if the folder or file is missing or unreadable, or the file is not such an object.
    """
    path = folder / MANIFEST_FILE
    if not os.path.isdir(folder):  # noqa: PTH112 (a Path's raises for a name that is too long)
        what = "is a file, not a folder" if os.path.exists(folder) else "is not there"  # noqa: PTH110
        raise BundleError(f"The bundle {folder} {what}: give the folder that `vae-edge export` wrote.")
    try:
        value = files.read_json(path, MAX_MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST_FILE}. Give the folder that `vae-edge export` wrote."
        ) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error}): check its permissions.") from error
    except ValueError as error:
        raise BundleError(
            f"{path} is not a valid manifest ({error}): it is damaged; export the bundle again."
        ) from error
    if not isinstance(value, dict):
        raise BundleError(
            f"{path} should hold a JSON object but holds a {type(value).__name__}: export the bundle again."
        )
    return value


def looks_like_a_manifest(manifest: Mapping[str, Any]) -> bool:
    """Whether the object is a bundle's manifest, of any version and perhaps damaged, and not another program's."""
    return {"schema", "vae_edge", "models"} <= manifest.keys()


def check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Check every field of a manifest of schema 1 or 2.

    Raises:
        BundleError: for another schema, a missing field, a wrong type or value, or two models with the same key.
    """
    where = str(path)
    schema = _take(manifest, "schema", int, where)
    if schema not in (1, SCHEMA):
        raise BundleError(
            f"{where} has schema {schema}, but this version of vae-edge reads schema 1 and {SCHEMA}: "
            "install the version that wrote it, or export the bundle again."
        )
    for key in ("vae_edge", "created", "name"):
        _check_length(_take(manifest, key, str, where), key, where)
    check_classes(_take(manifest, "classes", list, where), where)
    check_input(_take(manifest, "input", dict, where), where + ", input")
    _check_rotation(manifest, where)
    _check_score(_take(manifest, "score", dict, where), schema, where + ", score")
    check_data(_take(manifest, "data", dict, where), where + ", data")
    models = _take(manifest, "models", list, where)
    if len(models) > MAX_MODELS:
        _wrong(where, "models", f"a list of at most {MAX_MODELS} models", f"one of {len(models)}")
    for index, model in enumerate(models):
        if not isinstance(model, dict):
            _wrong(where, f"models[{index}]", "an object", model)
        check_entry(model, f"{where}, models[{index}]")
    names = [model["file"] for model in models]
    if manifest.get("probes") is not None:
        probes = _take(manifest, "probes", dict, where)
        _check_file(probes, where + ", probes")
        if set(probes) != {"file", "sha256", "bytes"}:
            _wrong(where, "probes", "an object with file, sha256 and bytes", sorted(probes))
        names.append(probes["file"])
    _check_unique(names, "file", where)
    keys = [" ".join(model[name] for name in ("role", "format", "precision", "target")) for model in models]
    _check_unique(keys, "role, format, precision and target", where)


def _check_score(score: Mapping[str, Any], schema: int, where: str) -> None:
    _number(score, "threshold", where)
    if not 0 <= _number(score, "reject_rate", where) <= 1:
        _wrong(where, "reject_rate", "a fraction in 0..1", score["reject_rate"])
    if schema == 1:
        if score.get("kind", "full") not in _SCHEMA_1_MODES:
            _wrong(where, "kind", "one of " + ", ".join(_SCHEMA_1_MODES), score["kind"])
    elif _take(score, "mode", str, where) not in SCORE_MODES:
        _wrong(where, "mode", "one of " + ", ".join(SCORE_MODES), score["mode"])
    if score.get("set_on") is not None:
        set_on = _take(score, "set_on", dict, where)
        for key in ("data", "split", "date"):
            _check_length(_take(set_on, key, str, where + ", set_on"), key, where)
        if not 0 <= _take(set_on, "images", int, where + ", set_on") < 2**31:
            _wrong(where + ", set_on", "images", f"a whole number from 0 to {2**31 - 1}", set_on["images"])


def check_entry(model: Mapping[str, Any], where: str) -> None:
    """Check one entry of a manifest's `models`.

    Raises:
        BundleError: for a missing field, a wrong type or value, or a file that is not a plain name inside the folder.
    """
    for key, allowed in (("role", ROLES), ("format", FORMATS), ("precision", PRECISIONS)):
        if _take(model, key, str, where) not in allowed:
            _wrong(where, key, "one of " + ", ".join(allowed), model[key])
    if not _TARGET.fullmatch(_take(model, "target", str, where)):
        _wrong(where, "target", "'any', 'cpu', 'cpu_reduced_range' or an architecture such as 'sm_87'", model["target"])
    if "opset" not in model:
        _missing(where, "opset")
    if model["opset"] is not None and not 0 <= _take(model, "opset", int, where) <= MAX_OPSET:
        _wrong(where, "opset", f"null or a number from 0 to {MAX_OPSET}", model["opset"])
    _check_file(model, where)
    _take(model, "accuracy", dict, where)
    _take(model, "provenance", dict, where)
    if model.get("threshold") is not None:
        _number(model, "threshold", where)


def _check_file(given: Mapping[str, Any], where: str) -> None:
    _check_file_name(_take(given, "file", str, where), where)
    if not _HEX.fullmatch(_take(given, "sha256", str, where)):
        _wrong(where, "sha256", "64 lower-case hexadecimal digits", given["sha256"])
    if _take(given, "bytes", int, where) < 0:
        _wrong(where, "bytes", "a size in bytes", given["bytes"])


def _check_file_name(name: str, where: str) -> None:
    _check_length(name, "file", where)
    if (
        name in ("", ".", "..")
        or "/" in name
        or "\\" in name
        or ":" in name
        or not name.isprintable()
        or name.startswith(".")
    ):
        _wrong(where, "file", "the plain name of a file in the bundle's folder, no path", name)
    if name.casefold() in (MANIFEST_FILE, AUTO_FILE, VERIFIED_FILE):
        _wrong(where, "file", f"another name than {MANIFEST_FILE}, {AUTO_FILE} and {VERIFIED_FILE}", name)


def check_classes(classes: Any, where: str) -> None:
    """Check a list of class names: texts, not empty, each once, within `vae_edge.spec`.

    Raises:
        BundleError: with the field and what is wrong with it; the message calls the file `where`.
    """
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) and name for name in classes):
        _wrong(where, "classes", "a list of at least one name", classes)
    if len(classes) > MAX_CLASSES:
        _wrong(where, "classes", f"a list of at most {MAX_CLASSES} names", f"one of {len(classes)}")
    for name in classes:
        _check_length(name, "classes", where)
    _check_unique(classes, "class", where)


def check_input(given: Any, where: str) -> None:
    """Check the JSON form of an `InputSpec`, of schema 1 or 2.

    Raises:
        BundleError: as `check_classes`.
    """
    if not isinstance(given, dict):
        _wrong(where, "input", "an object", given)
    given = upgrade_input_json(given)
    size = given.get("size")
    sides = size if isinstance(size, list) and len(size) == 2 else [_take(given, "size", int, where)]
    if not all(type(side) is int and 1 <= side <= MAX_INPUT_SIZE for side in sides):
        expected = f"the side of the image in pixels, or [height, width], from 1 to {MAX_INPUT_SIZE}"
        _wrong(where, "size", expected, given["size"])
    if _take(given, "channels", int, where) not in (1, 3):
        _wrong(where, "channels", "1 or 3", given["channels"])
    if _take(given, "background", str, where) not in ("dark", "light", "none"):
        _wrong(where, "background", "dark, light or none", given["background"])
    if given.get("foreground_ratio") is not None and not 0 < _number(given, "foreground_ratio", where) <= 1:
        _wrong(where, "foreground_ratio", "null or a fraction above 0 up to 1", given["foreground_ratio"])
    for key, allowed in _OPTIONAL_INPUT.items():
        if key == "fit" and given.get(key) == _SCHEMA_1_FIT:
            continue
        if key in given and (isinstance(given[key], (bool, float)) or given[key] not in allowed):
            _wrong(where, key, " or ".join("null" if value is None else str(value) for value in allowed), given[key])


def check_data(given: Mapping[str, Any], where: str) -> None:
    """Check the provenance of the training data, of which any field may be missing.

    Raises:
        BundleError: as `check_classes`.
    """
    for key in ("ambiguous", "absent", "held_out_group_names"):
        names = given.get(key, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            _wrong(where, key, "a list of names", names)
    if given.get("symmetry") is not None:
        for name, order in _take(given, "symmetry", dict, where).items():
            if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= MAX_SYMMETRY:
                _wrong(where, f"symmetry of {name[:80]}", f"a whole number from 0 to {MAX_SYMMETRY}", order)
    for key in ("fingerprint", "group_by"):
        if given.get(key) is not None:
            _check_length(_take(given, key, str, where), key, where)
    for key in ("own_validation", "angle_is_reliable"):
        if not isinstance(given.get(key, False), bool):
            _wrong(where, key, "true or false", given[key])
    if "holdout_fraction" in given and not 0 <= _number(given, "holdout_fraction", where) < 1:
        _wrong(where, "holdout_fraction", "a fraction from 0 to below 1", given["holdout_fraction"])
    for key in ("seed", "trained_on", "unlabelled", "groups", "held_out_groups"):
        if key in given and not 0 <= _take(given, key, int, where) < 2**31:
            _wrong(where, key, f"a whole number from 0 to {2**31 - 1}", given[key])
    if given.get("brightness") is not None:
        found = _take(given, "brightness", dict, where)
        for key in ("mean", "largest"):
            if len(_take(found, key, list, f"{where}, brightness")) != 3:
                _wrong(f"{where}, brightness", key, "three numbers", found[key])
            for k in range(3):
                _number(dict(enumerate(found[key])), k, f"{where}, brightness, {key}")


def _check_length(text: str, key: str, where: str) -> None:
    if len(text) > MAX_NAME:
        _wrong(where, key, f"a text of at most {MAX_NAME} characters", text)


def _check_rotation(manifest: Mapping[str, Any], where: str) -> None:
    if "rotation" not in manifest:
        _missing(where, "rotation")
    rotation = manifest["rotation"]
    if isinstance(rotation, str):
        if rotation not in ("none", "full"):
            _wrong(where, "rotation", "none, full, or degrees in 0..180", rotation)
    elif not 0 <= _number(manifest, "rotation", where) <= 180:
        _wrong(where, "rotation", "none, full, or degrees in 0..180", rotation)


def _check_unique(names: list[str], what: str, where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise BundleError(
            f"{where} has the same {what} twice ({twice[0][:80]!r}): it is damaged; export the bundle again."
        )


def _take(mapping: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    if key not in mapping:
        _missing(where, key)
    value = mapping[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}
        _wrong(where, key, names[kind], value)
    return value


def _number(mapping: Mapping[Any, Any], key: Any, where: str) -> float:
    if key not in mapping:
        _missing(where, key)
    value = mapping[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        _wrong(where, key, "a finite number", value)
    return float(value)


def _missing(where: str, key: object) -> NoReturn:
    raise BundleError(f"{where} lacks the field {key!r}: it is damaged or not a bundle's; export the bundle again.")


def _wrong(where: str, key: object, expected: str, came: object) -> NoReturn:
    shown = repr(came[:80] if isinstance(came, (str, list)) else came)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    raise BundleError(f"{where}: the field {key!r} should be {expected}, but it is {shown}; export the bundle again.")
