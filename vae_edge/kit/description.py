"""What a kit says of itself (`kit.json`), and the held-out images that travel with it (`data.npz`)."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge import files
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.errors import BundleError, EngineError
from vae_edge.spec import MAX_PROBE_BYTES, MAX_RECORD_BYTES

SCHEMA = 1
KIT_FILE = "kit.json"
SUMS_FILE = "SHA256SUMS"
BUNDLE_FOLDER = "bundle"
DATA_FILE = "data.npz"
SCRIPT = "build.sh"
README = "README.txt"
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class HeldOut:
    """Labelled images that a model was not trained on.

    Attributes:
        images: uint8 [N, S, S, C].
        labels: int64 [N], indices into the bundle's classes.
        angles_deg: float32 [N], counter-clockwise; None if unknown.
        name, split: of the data set.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    angles_deg: NDArray[np.float32] | None
    name: str
    split: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)


@dataclass(frozen=True)
class KitDescription:
    """What is to be done on a device.

    Attributes:
        device: its name, product and architecture ("sm_87").
        product, target, jetson: the same.
        bundle: the bundle's name.
        created: ISO date (UTC).
        vae_edge: version that wrote the kit.
        configs: what to build.
        expected: by precision, the figures that the manifest has of the ONNX file.
        measured: by precision, figures of the ONNX file on the kit's own images, by a backend at home; may be empty.
        data: name and split of the held-out images; None without them.
    """

    device: str
    product: str
    target: str
    jetson: bool
    bundle: str
    created: str
    vae_edge: str
    configs: tuple[BuildConfig, ...]
    expected: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """As `kit.json` holds it."""
        configs = [config.to_json() for config in self.configs]
        return {"schema": SCHEMA, **asdict(self), "configs": configs}


def read_description(folder: Path) -> KitDescription:
    """Read a kit's `kit.json`.

    Raises:
        EngineError: it is missing, damaged, or of another version.
    """
    path = folder / KIT_FILE
    try:
        value = files.read_json(path, MAX_RECORD_BYTES)
        if not isinstance(value, dict) or value.pop("schema", None) != SCHEMA:
            raise ValueError(f"it is not of schema {SCHEMA}")
        value["configs"] = tuple(BuildConfig.from_json(config) for config in value["configs"])
        return KitDescription(**value)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EngineError(f"{path} is not what a kit says of itself ({error}): copy the kit again.") from error


def write_held_out(path: str | os.PathLike[str], data: HeldOut) -> None:
    """Write images, labels and angles to an `.npz`. The same content gives the same bytes."""
    arrays: dict[str, NDArray[Any]] = {"images": data.images, "labels": data.labels}
    if data.angles_deg is not None:
        arrays["angles_deg"] = data.angles_deg
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)


def read_held_out(path: Path, about: Mapping[str, str]) -> HeldOut:
    """Read what `write_held_out` wrote.

    Raises:
        BundleError: it is missing or damaged.
    """
    try:
        with files.open_regular(path) as file:
            arrays = files.read_arrays(file, MAX_PROBE_BYTES)
        images, labels, angles = (arrays.get(name) for name in ("images", "labels", "angles_deg"))
        if images is None or labels is None or images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise ValueError("it holds no images uint8 [N, S, S, C] with labels")
        if labels.dtype != np.int64 or labels.shape != (len(images),) or labels.min() < 0:
            raise ValueError("its labels are not int64, one an image")
        if angles is not None and (angles.dtype != np.float32 or angles.shape != labels.shape):
            raise ValueError("its angles are not float32, one an image")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} does not hold labelled images ({error}): copy the kit again.") from error
    return HeldOut(images, labels, angles, about["name"], about["split"])
