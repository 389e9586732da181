"""Probe images and their exact answers, by which a backend is checked on the machine where it runs. NumPy alone.

`export` chooses the images. `export` and `quantize` write the answers of each model file, computed with exact sums
(`vae_edge.exporting.probes`). `vae_edge.runtime.probing` runs a backend on the images and compares.

The file is an `.npz` without pickled objects: `images` uint8 [P, S, S, C]; `about`, JSON; and for each model file,
identified by its SHA-256, `<n>/out/<output>`, which is NaN where an image is a close call for that output and is not
compared; and `<n>/inner`, fingerprints of tensors inside the graph for the first images. Outputs have the names of
`vae_edge.spec`, whatever the model file calls them; files of schema 1 have that schema's names.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge import files
from vae_edge.errors import BundleError
from vae_edge.files import read_arrays
from vae_edge.spec import ANGLE_OUTPUTS, MAX_PROBE_BYTES, MAX_PROBES, output_name

SCHEMA = 2
PROJECTIONS = 4
FINGERPRINT_SIZE = 1 + PROJECTIONS  # values for each tensor and image
MIN_SHIFT = 1e-5  # root mean square of the difference of two precisions, below which they are the same
OUTLIER_FRACTION = 0.04  # of the images, that may differ by more: two of 64


@dataclass(frozen=True)
class Tolerance:
    """How far answers may be from the exact ones: in the mean over the probe images, and at most."""

    mean: float
    largest: float


@dataclass(frozen=True)
class Expected:
    """The exact answers of one model file to the probe images.

    Attributes:
        outputs: exact values by output, float32 [P] or [P, K]; of reconstructions float16 [P, S, S, C], whole numbers.
            NaN is not compared.
        tolerance: by output. Answers beyond it, in the mean or at most, are wrong; 4% of the images do not count.
        inner: fingerprints [P', F] of tensors inside the graph by name, in the graph's order, for the first P' images.
        inner_tolerance: the largest difference allowed in a fingerprint, by tensor.
    """

    outputs: Mapping[str, NDArray[Any]]
    tolerance: Mapping[str, Tolerance]
    inner: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    inner_tolerance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Probes:
    """The images uint8 [P, S, S, C], and the exact answers of each model file by its SHA-256."""

    images: NDArray[np.uint8]
    models: Mapping[str, Expected]


@dataclass(frozen=True)
class Mismatch:
    """An output that is further from the exact answers than allowed. Differences are in the output's own unit."""

    output: str
    mean: float
    largest: float
    allowed: Tolerance
    images: int

    def sentence(self) -> str:
        """What differs, by how much, and what is allowed."""
        unit = " rad" if self.output in ANGLE_OUTPUTS else ""
        if not self.images:
            return f"{self.output} is missing, or of another shape"
        if not np.isfinite(self.largest):
            return f"{self.output} holds values that are not finite"
        return (
            f"{self.output} is off by {self.mean:.3g}{unit} in the mean and {self.largest:.3g}{unit} at most over "
            f"{self.images} probe images (allowed: {self.allowed.mean:.2g} and {self.allowed.largest:.2g})"
        )


def difference(output: str, have: NDArray[Any], want: NDArray[Any]) -> NDArray[np.float64]:
    """The difference of an output for each image, [P]: the largest entry, or the mean over an image's pixels.

    Angles are compared on the circle. Scores above 1 are compared relative to their size, since the scores of
    anomalous images grow without bound. NaN where `want` is NaN; infinite where `have` is not finite but should be.
    """
    apart = np.abs(have.astype(np.float64) - want.astype(np.float64))
    if output in ANGLE_OUTPUTS:
        wrapped = np.mod(apart, 2 * np.pi)
        apart = np.where(np.isfinite(apart), np.minimum(wrapped, 2 * np.pi - wrapped), apart)
    if output == "score":
        apart = apart / np.maximum(1.0, np.abs(want))
    apart = np.where(np.isnan(want), np.nan, np.where(np.isfinite(have), apart, np.inf))
    flat = apart.reshape(len(apart), -1)
    return flat.mean(1) if apart.ndim > 2 else flat.max(1)


def compare(expected: Expected, outputs: Mapping[str, NDArray[Any]]) -> list[Mismatch]:
    """The outputs beyond their tolerance, worst first; none if the answers are right.

    Args:
        outputs: a backend's answers to all the probe images, by output.
    """
    found = []
    for name, allowed in expected.tolerance.items():
        if name not in outputs or outputs[name].shape != expected.outputs[name].shape:
            found.append(Mismatch(name, np.inf, np.inf, allowed, 0))
            continue
        apart, compared = without_outliers(name, outputs[name], expected.outputs[name])
        if not len(apart):
            continue
        mean, largest = float(apart.mean()), float(apart.max())
        if not (mean <= allowed.mean and largest <= allowed.largest):
            found.append(Mismatch(name, mean, largest, allowed, compared))
    return sorted(found, key=lambda d: -max(d.mean / d.allowed.mean, d.largest / d.allowed.largest))


def without_outliers(output: str, have: NDArray[Any], want: NDArray[Any]) -> tuple[NDArray[np.float64], int]:
    """The differences that count for an output, and how many images were compared.

    The largest 4% are left out: that many may be close calls that were not recognized. Values that are not finite
    stay in.
    """
    apart = difference(output, have, want)
    apart = np.sort(apart[~np.isnan(apart)])
    finite = int(np.isfinite(apart).sum())
    return apart[: len(apart) - int(OUTLIER_FRACTION * len(apart))] if finite == len(apart) else apart, len(apart)


def precision_shift(expected: Expected, finer: Expected, outputs: Mapping[str, NDArray[Any]]) -> float | None:
    """How far answers lie on the way from a quantized model's exact answers (0) to those of a finer one (1).

    Rounding in another order moves answers in any direction; a backend that silently computes in a finer precision
    moves them in this one. It is a projection over all values that both have, with equal weight for each output.

    Returns:
        None where the two models give the same answers.
    """
    along = length = 0.0
    for name, exact in expected.outputs.items():
        if name not in outputs or name not in finer.outputs or outputs[name].shape != exact.shape:
            continue
        way = _signed_difference(name, finer.outputs[name], exact)
        moved = _signed_difference(name, outputs[name], exact)
        known = np.isfinite(way) & np.isfinite(moved)
        way, moved = way[known], moved[known]
        square = float(np.mean(np.square(way))) if way.size else 0.0
        if square > MIN_SHIFT**2:
            limit = 4.0 * np.sqrt(square)  # one image must not outweigh all others
            along += float(np.mean(np.clip(moved, -limit, limit) * way)) / square
            length += 1.0
    return along / length if length else None


def _signed_difference(output: str, have: NDArray[Any], want: NDArray[Any]) -> NDArray[np.float64]:
    apart = have.astype(np.float64) - want.astype(np.float64)
    if output in ANGLE_OUTPUTS:
        return np.mod(apart + np.pi, 2 * np.pi) - np.pi
    return apart / np.maximum(1.0, np.abs(want)) if output == "score" else apart


def first_inner_mismatch(expected: Expected, inner: Mapping[str, NDArray[Any]]) -> str | None:
    """The first of the given tensors, in the graph's order, whose fingerprints are beyond their tolerance.

    Args:
        inner: tensors inside the graph by name, for the first images, each [P', ...].
    """
    for name, want in expected.inner.items():
        if name not in inner:
            continue
        have = fingerprint(inner[name])
        if not np.isfinite(have).all() or float(np.abs(have - want).max()) > expected.inner_tolerance[name]:
            return name
    return None


def fingerprint(values: NDArray[Any]) -> NDArray[np.float32]:
    """The fingerprint of each image's tensor: its largest magnitude, and projections on fixed vectors of signs.

    Args:
        values: [N, ...].

    Returns:
        float32 [N, 5]. The projection of D independent values of variance 1 has variance 1.
    """
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    bits = (_hashes(flat.shape[1])[:, None] >> np.arange(PROJECTIONS, dtype=np.uint32)) & np.uint32(1)
    signs = (1.0 - 2.0 * bits) / np.sqrt(max(1, flat.shape[1]))
    largest = np.abs(flat).max(1, initial=0.0)
    return np.concatenate([largest[:, None], flat @ signs], 1).astype(np.float32)


def _hashes(count: int) -> NDArray[np.uint32]:
    """MurmurHash3's finalizer of 0, 1, 2, …: the same bits with every version of NumPy."""
    bits = np.arange(count, dtype=np.uint32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        bits = (bits ^ (bits >> np.uint32(shift))) * np.uint32(factor)
    return bits


def save(path: str | os.PathLike[str], probes: Probes) -> None:
    """Write probes to an `.npz` file. The same content gives the same bytes."""
    arrays: dict[str, NDArray[Any]] = {"images": probes.images}
    about: dict[str, Any] = {"schema": SCHEMA, "models": {}}
    for number, (digest, expected) in enumerate(probes.models.items()):
        about["models"][digest] = {
            "number": number,
            "tolerance": {name: [t.mean, t.largest] for name, t in expected.tolerance.items()},
            "inner": {name: expected.inner_tolerance[name] for name in expected.inner},
        }
        arrays |= {f"{number}/out/{name}": values for name, values in expected.outputs.items()}
        if expected.inner:
            arrays[f"{number}/inner"] = np.stack([expected.inner[name] for name in expected.inner])
    arrays["about"] = np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), np.uint8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # np.savez would store the time of day
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def load(path: str | os.PathLike[str]) -> Probes:
    """Read what `save` wrote.

    Raises:
        BundleError: if the file is missing, damaged or of another version.
    """
    try:
        with files.open_regular(path) as file:
            arrays = {name: array for name, array in read_arrays(file, MAX_PROBE_BYTES).items() if array is not None}
        return _probes(arrays)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{Path(path)} does not hold readable probe images ({error}): export and quantize the bundle again."
        ) from error


def _probes(arrays: Mapping[str, NDArray[Any]]) -> Probes:
    """Probes from the arrays of an archive; anything unexpected is a ValueError."""
    images, about = arrays.get("images"), arrays.get("about")
    if images is None or about is None or about.dtype != np.uint8 or about.ndim != 1:
        raise ValueError("it lacks its images, or what they are about")
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size or len(images) > MAX_PROBES:
        raise ValueError(f"its images are {images.dtype} {list(images.shape)}, not uint8 [P, S, S, C]")
    described = files.parse_json(about.tobytes())
    if not isinstance(described, dict) or described.get("schema") not in (1, SCHEMA):
        raise ValueError(f"it is not of schema 1 or {SCHEMA}, which this version reads")
    models = _object(described, "models")
    return Probes(images, {digest: _expected(arrays, model, len(images)) for digest, model in models.items()})


def _object(values: Any, key: str) -> dict[str, Any]:
    found = values.get(key) if isinstance(values, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"it has no {key}")
    return found


def _limit(value: Any) -> float:
    """An allowed difference."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < np.inf:
        raise ValueError("a tolerance is not a number above 0")
    return float(value)


def _expected(arrays: Mapping[str, NDArray[Any]], model: Any, count: int) -> Expected:
    tolerances, inner = _object(model, "tolerance"), _object(model, "inner")
    number = model.get("number")
    outputs, tolerance = {}, {}
    for name, pair in tolerances.items():
        values = arrays.get(f"{number}/out/{name}")
        if values is None or values.dtype.kind != "f" or values.ndim < 1 or len(values) != count:
            raise ValueError(f"its answers are not floats for each of {count} images")
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("a tolerance is not a mean and a largest difference")
        outputs[output_name(name)] = values
        tolerance[output_name(name)] = Tolerance(_limit(pair[0]), _limit(pair[1]))
    if not outputs:
        raise ValueError("it holds no answers of a model")
    limits = {name: _limit(limit) for name, limit in inner.items()}
    if not limits:
        return Expected(outputs, tolerance, {}, {})
    prints = arrays.get(f"{number}/inner")
    if (
        prints is None
        or prints.dtype.kind != "f"
        or prints.ndim != 3
        or len(prints) != len(limits)
        or not 0 < prints.shape[1] <= count
        or prints.shape[2] != FINGERPRINT_SIZE
    ):
        raise ValueError("its fingerprints of tensors inside are not those of its models")
    return Expected(outputs, tolerance, dict(zip(limits, prints, strict=True)), limits)
