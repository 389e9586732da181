"""The bundle: the folder that travels to a device, a `manifest.json` beside the model files that it names.

Reading verifies everything: the schema, the type of each field, that no file is outside the folder, each SHA-256.
Writing is atomic: new files come first, then the manifest is replaced in one step, then old files are removed. A crash
between two steps leaves a valid bundle, the old one or the new one. What is inside the model files is left to the
runtime.

    manifest.json: {
      "schema": 2, "vae_edge": version, "created": ISO date (UTC), "name": text, "classes": [text, ...],
      "input": {as `InputSpec.to_json` writes it},
      "rotation": "none" | "full" | degrees,
      "score": {"threshold": number, "reject_rate": fraction, "mode": "full" | "fast"},
      "data": {provenance of the training data}, "models": [ModelEntry, ...],
      "probes": {"file": name, "sha256": hexadecimal, "bytes": size}}

`probes` names the file of probe images (`vae_edge.probes`); bundles of early versions have none. A bundle of schema 1
is read as if it were of schema 2 (`vae_edge.bundle_schema`); what changes it writes schema 2. Its model files stay as
they are, with outputs of other names (`vae_edge.spec.SCHEMA_1_OUTPUTS`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vae_edge import __version__, files
from vae_edge.bundle_schema import (
    AUTO_FILE,
    MANIFEST_FILE,
    SCHEMA,
    VERIFIED_FILE,
    check_entry,
    check_manifest,
    load_manifest,
    looks_like_a_manifest,
    read_manifest,
)
from vae_edge.errors import BackendError, BundleError
from vae_edge.preprocess import InputSpec

__all__ = [
    "AUTO_FILE",
    "MANIFEST_FILE",
    "SCHEMA",
    "Bundle",
    "ModelEntry",
    "PlainFile",
    "add_model",
    "add_models",
    "create_bundle",
    "load_bundle",
    "with_bundle",
]

_SUFFIX = {"onnx": ".onnx", "tensorrt": ".engine", "tensorrt_rtx": ".rtx", "native": ".ve"}
_OWN_NAME = re.compile(
    r"(classifier|reconstruction)\.(fp32|fp16|int8|fp8)(\.[\w-]+)*\.(onnx|engine|rtx|ve)|probes(\.[0-9a-f]+)?\.npz"
)
_CACHES = (AUTO_FILE, VERIFIED_FILE)
RETRY_S = 10.0  # how long a reader tries again while others rewrite the bundle
_AGAIN = "export or quantize again, or copy the bundle again from where it came"

Result = TypeVar("Result")


_MADE_BY_EXPORT = re.compile(r"(classifier|reconstruction)\.fp32\.([0-9a-f]+\.)?onnx$|probes\.")


@dataclass(frozen=True)
class ModelEntry:
    """One model file of a bundle. `add_model` and `create_bundle` fill in `file`, `sha256` and `bytes`.

    Attributes:
        role, precision, format: of `vae_edge.spec`.
        target: what runs the file: `any`; for int8 files also `cpu` and `cpu_reduced_range`; for engines an
            architecture such as `sm_87`.
        opset: of an ONNX file.
        accuracy: the figures that `vae-edge evaluate` prints. `accuracy` is a fraction in 0..1, `n` the number of
            images. A quantized model also has `fp32_accuracy` on the same images, and `refused`, the reasons against
            adding it, if somebody insisted. The runtime reads these when it chooses a precision.
        provenance: how the file was made.
        threshold: the largest score that is accepted, if the file has its own: rounding moves the scores of a
            quantized model.
    """

    role: str
    precision: str
    format: str = "onnx"
    target: str = "any"
    opset: int | None = None
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    sha256: str = ""
    bytes: int = 0
    threshold: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """(role, format, precision, target): a bundle has one model of each key."""
        return self.role, self.format, self.precision, self.target

    def to_json(self) -> dict[str, Any]:
        """The entry as the manifest holds it."""
        values = dataclasses.asdict(self)
        order = ["file", "role", "format", "precision", "target", "opset", "sha256", "bytes", "accuracy", "provenance"]
        return {name: values[name] for name in [*order, *(["threshold"] if self.threshold is not None else [])]}


@dataclass(frozen=True)
class PlainFile:
    """A file of a bundle that is not a model."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and verified.

    Attributes:
        path: the folder.
        manifest: what `manifest.json` holds, in the form of schema 2.
        name: of the bundle.
        classes: the class names, in the order of the probabilities.
        input: what the model's images must be.
        rotation: the rotations in training: "none", "full", or the largest angle in degrees.
        threshold: the largest anomaly score that is accepted, of the fp32 model; see `threshold_of`.
        reject_rate: the fraction of known images that the threshold rejects.
        score_mode: `full`, or `fast`: the anomaly score without the reconstruction error.
        models: the model files.
        probes: the file of probe images, if there is one.
    """

    path: Path
    manifest: Mapping[str, Any]
    name: str
    classes: tuple[str, ...]
    input: InputSpec
    rotation: str | float
    threshold: float
    reject_rate: float
    score_mode: str
    models: tuple[ModelEntry, ...]
    probes: PlainFile | None = None

    @property
    def training_data(self) -> dict[str, Any]:
        """What the manifest says of the training data, with defaults for a bundle that says nothing."""
        return {"holdout_fraction": 0.1, "seed": 0, "fingerprint": None, **self.manifest["data"]}

    @property
    def ambiguous(self) -> Collection[str]:
        """The classes without a definite orientation: a mapping to the order of their symmetry (2 for one that looks
        the same rotated by 180°, 0 for none that can be told) where it was measured, else their names."""
        data = self.manifest["data"]
        return dict(data["symmetry"]) if data.get("symmetry") is not None else tuple(data.get("ambiguous", ()))

    @property
    def angle_is_reliable(self) -> bool:
        """Whether the model has angles that can be relied on, as far as it is known."""
        return self.rotation != "none" and bool(self.manifest["data"].get("angle_is_reliable", True))

    def threshold_of(self, entry: ModelEntry) -> float:
        """The largest score that is accepted with a model file: its own threshold, or the bundle's."""
        return self.threshold if entry.threshold is None else entry.threshold

    def select(
        self,
        role: str | None = None,
        format: str | None = None,
        precision: str | None = None,
        target: str | None = None,
    ) -> tuple[ModelEntry, ...]:
        """The entries with these values (None is any), in the manifest's order."""
        wanted = (role, format, precision, target)
        return tuple(m for m in self.models if all(w is None or w == h for w, h in zip(wanted, m.key, strict=True)))

    def find(
        self, role: str = "classifier", format: str = "onnx", precision: str = "fp32", target: str = "any"
    ) -> ModelEntry:
        """The one entry of this role, format, precision and target.

        Raises:
            BundleError: if there is none; the message lists what is there.
        """
        found = self.select(role, format, precision, target)
        if not found:
            there = ", ".join(" ".join(m.key) for m in self.models) or "no model at all"
            raise BundleError(
                f"The bundle {self.path} has no model '{role} {format} {precision} {target}'; it has: {there}."
            )
        return found[0]

    def file(self, entry: ModelEntry | PlainFile) -> Path:
        """Where the entry's file lies."""
        return self.path / entry.file


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read the bundle at `path` and verify all of it: schema, fields, paths, sizes and SHA-256 sums.

    A bundle that is rewritten meanwhile is read as it was before, or as it is then.

    Raises:
        BundleError: with a sentence that names the file or the field, what was expected, what came, and what to do.
    """
    return with_bundle(path, lambda bundle: bundle)


def with_bundle(path: str | os.PathLike[str], use: Callable[[Bundle], Result]) -> Result:
    """Load the bundle at `path` and call `use` with it; do both again if they failed while somebody rewrote the bundle.

    A writer replaces the manifest in one step and then removes old files, so that a reader of the old manifest may
    find a file gone or changed. No lock is taken: bundles lie on file systems that are read-only or have no locks.

    Raises:
        BundleError: as `load_bundle`.
    """
    folder = Path(path)
    deadline = time.monotonic() + RETRY_S
    while True:
        before = _manifest_state(folder)
        try:
            return use(_load_once(folder))
        except (BundleError, BackendError):
            if _manifest_state(folder) == before or time.monotonic() > deadline:
                raise


def _manifest_state(folder: Path) -> tuple[int, ...] | None:
    """What identifies the manifest file: each new manifest is a new file, renamed into place."""
    try:
        found = (folder / MANIFEST_FILE).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _load_once(folder: Path) -> Bundle:
    manifest = load_manifest(folder)
    models = tuple(_entry(model) for model in manifest["models"])
    probes = PlainFile(**manifest["probes"]) if manifest.get("probes") else None
    _verify_files(folder, models if probes is None else (*models, probes))
    return Bundle(
        path=folder,
        manifest=manifest,
        name=manifest["name"],
        classes=tuple(manifest["classes"]),
        input=InputSpec.from_json(manifest["input"]),
        rotation=manifest["rotation"],
        threshold=float(manifest["score"]["threshold"]),
        reject_rate=float(manifest["score"]["reject_rate"]),
        score_mode=manifest["score"]["mode"],
        models=models,
        probes=probes,
    )


def _entry(model: Mapping[str, Any]) -> ModelEntry:
    names = [f.name for f in dataclasses.fields(ModelEntry)]
    return ModelEntry(**{name: model[name] for name in names if name in model})


def _verify_files(folder: Path, parts: Sequence[ModelEntry | PlainFile]) -> None:
    """Check that each file is a regular file of the folder with the size and SHA-256 that the manifest states."""
    real_paths = [_check_place(folder, part) for part in parts]
    for part, real in zip(parts, real_paths, strict=True):
        path = folder / part.file
        try:
            digest = files.sha256(real)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read ({error}): check its permissions.") from error
        if digest != part.sha256:
            raise BundleError(
                f"{path} should have the SHA-256 {part.sha256} but has {digest}: it is damaged or was changed; "
                f"{_AGAIN}."
            )


def _check_place(folder: Path, part: ModelEntry | PlainFile) -> Path:
    """The path of a file of the bundle with all links followed."""
    path = folder / part.file
    try:
        real = path.resolve(strict=True)
        regular, size = real.is_file(), real.stat().st_size
    except (OSError, RuntimeError) as error:
        raise BundleError(
            f"The bundle {folder} names the file {part.file!r}, which is not there ({error}): {_AGAIN}."
        ) from error
    if not real.is_relative_to(folder.resolve()):
        raise BundleError(f"The file {path} is a link that leaves the bundle (to {real}): put the file itself there.")
    if not regular:
        raise BundleError(f"{path} should be a file of the bundle, but it is not a regular file: {_AGAIN}.")
    if size != part.bytes:
        raise BundleError(
            f"{path} should have {part.bytes} bytes but has {size}: it is damaged or was changed; {_AGAIN}."
        )
    return real


def create_bundle(
    path: str | os.PathLike[str],
    *,
    name: str,
    classes: Iterable[str],
    input: InputSpec,
    threshold: float,
    reject_rate: float,
    score_mode: str = "full",
    rotation: str | float = "none",
    data: Mapping[str, Any] | None = None,
    models: Iterable[tuple[str | os.PathLike[str], ModelEntry]] = (),
    probes: str | os.PathLike[str] | None = None,
) -> Bundle:
    """Write a bundle at `path`, and load it.

    A bundle that is there is replaced as a whole, in one step and only once the new files are written. So pass the
    models here rather than adding them one by one afterwards. An empty folder is accepted.

    Args:
        score_mode: of `vae_edge.spec.SCORE_MODES`.
        data: where the training data come from, as plain JSON.
        models: (source file, entry) of each model; the files are copied.
        probes: the file of probe images, which is copied too.

    Raises:
        BundleError: if `path` is something else than a bundle or an empty folder, or a value does not fit the schema.
    """
    folder = Path(path)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "vae_edge": __version__,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "name": name,
        "classes": list(classes),
        "input": input.to_json(),
        "rotation": rotation,
        "score": {"threshold": threshold, "reject_rate": reject_rate, "mode": score_mode},
        "data": dict(data or {}),
        "models": [],
    }
    check_manifest(manifest, folder / MANIFEST_FILE)
    made = not folder.exists()
    if not made and not folder.is_dir():
        raise BundleError(f"{folder} exists and is a file, not a folder: choose another path for the bundle.")
    try:
        with _locked(folder):
            taken = _taken_names(folder)
            _write(folder, manifest, models, taken, probes)
            for file in _CACHES:
                if not (folder / file).is_dir():  # a folder of this name is not read, and stays
                    (folder / file).unlink(missing_ok=True)
    except BaseException:
        if made and folder.is_dir() and not (folder / MANIFEST_FILE).exists():
            shutil.rmtree(folder)
        raise
    return load_bundle(folder)


def replaced_files(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of the files that `create_bundle` would remove or replace at `path`; none where no bundle is.

    Raises:
        BundleError: if `path` is something else than a bundle or an empty folder.
    """
    folder = Path(path)
    return tuple(_taken_names(folder)) if folder.is_dir() else ()


def add_model(bundle_path: str | os.PathLike[str], source_file: str | os.PathLike[str], entry: ModelEntry) -> Bundle:
    """Copy `source_file` into the bundle, in place of an entry with the same role, format, precision and target.

    The new file comes first, then the manifest, then the old file goes. Two processes may add at once: they wait for
    each other.

    Raises:
        BundleError: if the bundle is damaged, the source is not there, or the entry does not fit the schema.
    """
    return add_models(bundle_path, [(source_file, entry)])


def add_models(
    bundle_path: str | os.PathLike[str],
    models: Sequence[tuple[str | os.PathLike[str], ModelEntry]],
    probes: str | os.PathLike[str] | None = None,
) -> Bundle:
    """As `add_model` for several models in one step, with a new file of probe images where one is given.

    Raises:
        BundleError: as `add_model`; the bundle is then as it was.
    """
    folder = Path(bundle_path)
    if not folder.is_dir():
        raise BundleError(f"There is no bundle at {folder}: make one with `vae-edge export RUN --out {folder}`.")
    with _locked(folder):
        bundle = load_bundle(folder)
        replaced = {entry.key for _, entry in models}
        kept = [model.to_json() for model in bundle.models if model.key not in replaced]
        taken: dict[str, str | None] = {model.file: model.sha256 for model in bundle.models}
        if bundle.probes is not None:
            taken[bundle.probes.file] = bundle.probes.sha256
        _write(folder, {**bundle.manifest, "models": kept}, models, taken, probes)
        return load_bundle(folder)


def update_bundle(
    bundle: Bundle,
    score: Mapping[str, Any],
    models: Sequence[ModelEntry],
    new_files: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Bundle:
    """Replace what a bundle says of its score and of some models, in one step.

    Args:
        bundle: as it was read.
        score: the new `score` of the manifest.
        models: new entries, each in place of the one of its key.
        new_files: by the name of the file in the bundle, what replaces it.

    Raises:
        BundleError: the bundle was changed since it was read, or a value does not fit the schema; it is as it was.
    """
    folder, changed = bundle.path, {model.key: model for model in models}
    with _locked(folder):
        if load_bundle(folder).manifest != bundle.manifest:
            raise BundleError(f"The bundle {folder} was changed while it was measured: run the command again.")
        sources = dict(new_files or {})
        entries = [changed.get(model.key, model) for model in bundle.models]
        kept = [model.to_json() for model in entries if model.file not in sources]
        pairs = [(sources[model.file], model) for model in entries if model.file in sources]
        taken: dict[str, str | None] = {model.file: model.sha256 for model in bundle.models}
        _write(folder, {**bundle.manifest, "score": dict(score), "models": kept}, pairs, taken)
        return load_bundle(folder)


def _taken_names(folder: Path) -> dict[str, str | None]:
    """The file names of the bundle that is about to be replaced (which may be damaged), with their sums.

    Raises:
        BundleError: if the folder holds something else than a bundle, or than what a killed writer left of one.
    """
    if not (folder / MANIFEST_FILE).exists() and all(_is_left_over(path) for path in folder.iterdir()):
        return {}
    refusal = f"{folder} is not a bundle, so nothing is written there: choose another folder or empty this one"
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        raise BundleError(f"{refusal} ({error})") from error
    if not looks_like_a_manifest(manifest):
        raise BundleError(f"{refusal} (its {MANIFEST_FILE} is not one of ours).")
    models = [*manifest["models"]] if isinstance(manifest["models"], list) else []
    models.append(manifest.get("probes"))
    return {str(model.get("file")): model.get("sha256") for model in models if isinstance(model, dict)}


def _write(
    folder: Path,
    manifest: Mapping[str, Any],
    pairs: Iterable[tuple[str | os.PathLike[str], ModelEntry]],
    taken: Mapping[str, str | None],
    probes: str | os.PathLike[str] | None = None,
) -> None:
    """Place the new files beside those that are `taken`, then the manifest, then remove what it no longer names."""
    models = list(manifest["models"])
    if probes is not None:
        manifest = {**manifest, "probes": dataclasses.asdict(_copy(folder, Path(probes), "probes", ".npz", taken))}
    for source, entry in pairs:
        models.append(_place(folder, Path(source), entry, taken).to_json())
    manifest = {**manifest, "models": models}
    check_manifest(manifest, folder / MANIFEST_FILE)
    files.write_json(folder / MANIFEST_FILE, manifest)
    named = {part["file"] for part in (*models, manifest.get("probes")) if part}
    for path in folder.iterdir():
        if path.name not in named and _is_left_over(path):
            if path.name.endswith(".part"):
                files.remove_if_left(path)
            else:
                path.unlink()


def _place(folder: Path, source: Path, entry: ModelEntry, taken: Mapping[str, str | None]) -> ModelEntry:
    """Copy a file into the folder under a name that no other content has."""
    check_entry({**entry.to_json(), "file": "file", "sha256": "0" * 64, "bytes": 1}, "the new model")
    stem = ".".join([entry.role, entry.precision, *([] if entry.target == "any" else [entry.target])])
    return dataclasses.replace(entry, **dataclasses.asdict(_copy(folder, source, stem, _SUFFIX[entry.format], taken)))


def _copy(folder: Path, source: Path, stem: str, suffix: str, taken: Mapping[str, str | None]) -> PlainFile:
    """Copy a file into the folder, under its stem or, where other content has that name, with a part of its sum."""
    if not source.is_file():
        raise BundleError(f"The file {source} is not there or not a regular file: it cannot be added to {folder}.")
    digest = files.sha256(source)
    name = stem + suffix
    if taken.get(name, digest) != digest:
        name = f"{stem}.{digest[:12]}{suffix}"
    with files.atomic_path(folder / name) as temporary:
        shutil.copyfile(source, temporary)
        size, digest = temporary.stat().st_size, files.sha256(temporary)
    return PlainFile(name, digest, size)


def _is_left_over(path: Path) -> bool:
    """Whether the name is one that only our writer gives: of a model, or of a file that it was writing when it died."""
    ours = _OWN_NAME.fullmatch(path.name) or (path.name.startswith(".") and path.name.endswith(".part"))
    return bool(ours) and not path.is_dir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it against other writers; the lock goes with the process, however that ends."""
    descriptor = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise BundleError(f"The bundle {folder} cannot be written ({error}): the old state still stands.") from error
    finally:
        if descriptor is not None:
            os.close(descriptor)


def check_replaceable(path: str | os.PathLike[str], force: bool = False) -> None:
    """Refuse to replace a bundle that holds more than `export` writes: what was quantized and built would be lost.

    Raises:
        ConfigError: as `check_folder`.
        BundleError: the folder holds something else than a bundle, or, without `force`, files that would be lost.
    """
    files.check_folder(path)
    lost = [name for name in sorted(replaced_files(path)) if not _MADE_BY_EXPORT.match(name)]
    if lost and not force:
        raise BundleError(
            f"{path} also holds {', '.join(lost)}, made of the model that is there now. Exporting removes them: give "
            "--force and quantize and build again, or choose another --out."
        )
