"""Set the threshold of a bundle's anomaly score on images of one's own, for every model file of the bundle.

    vae_edge.set_threshold("photos.bundle", "new-photos", reject_rate=0.01)

Rounding moves scores, so each file has a threshold of its own. Files that this machine runs are measured, by the
backend that runs them. An engine for another GPU gets that of the ONNX file it was built from, whose answers it must
give. Other files are moved by as much as the measured file of their precision. Neither torch nor onnx is needed.
"""

from __future__ import annotations

import datetime
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vae_edge import __version__
from vae_edge.bundle import Bundle, ModelEntry, load_bundle, update_bundle
from vae_edge.data import LabelledImages, align_classes, rotate_dataset, rotation_range
from vae_edge.data.load import open_data
from vae_edge.data.splits import SPLITS, describe_split, select_trained_split
from vae_edge.errors import BackendError, ConfigError, DataError, VaeEdgeError
from vae_edge.evaluation.figures import rejection, rotate_unknown
from vae_edge.evaluation.rejection import (
    GroupRejection,
    balanced_threshold,
    choose_threshold,
    leave_groups_out,
    threshold_at,
)
from vae_edge.files import check_folder, write_bytes
from vae_edge.trained import load_all_unknown, with_groups

if TYPE_CHECKING:
    from vae_edge.runtime.backends import LoadOptions, OpenedModel
    from vae_edge.trained import Data, Progress

log = logging.getLogger(__name__)

ROTATION_SEED = 1  # added to the seed, for the angles of the known images
BATCH = 64
BACKENDS = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "native", "onnxruntime-cuda")
"""In which order a file's backends are tried."""


@dataclass(frozen=True)
class FileThreshold:
    """The threshold of one model file.

    Attributes:
        file, precision, target: of the file.
        before, after: the largest accepted score.
        how: a phrase: what it was measured with, or why it was not and where it comes from.
    """

    file: str
    precision: str
    target: str
    before: float
    after: float
    how: str


@dataclass(frozen=True)
class ThresholdResult:
    """What `set_threshold` found, and wrote unless it was a dry run.

    Attributes:
        bundle: its folder.
        data, split, rotation: the known images, and how far they were rotated.
        reject_rate: what was asked for; None where known and unknown images were balanced.
        images, rejected: known images, and how many of them the first file's threshold rejects.
        interval: 95% interval of the fraction of further such images that it rejects.
        rejected_before: how many of them it rejected before.
        groups: what happens to the images of a group that the threshold is not set on; None without groups.
        unknown: by name `n`, `auroc` and `accepted` of unknown images, by the first file.
        files: every classifier of the bundle.
        written: False of a dry run.
    """

    bundle: Path
    data: str
    split: str
    rotation: str
    reject_rate: float | None
    images: int
    rejected: int
    interval: tuple[float, float]
    rejected_before: int
    groups: GroupRejection | None
    unknown: Mapping[str, Mapping[str, Any]]
    files: Sequence[FileThreshold]
    written: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        values["groups"] = None if self.groups is None else self.groups.to_json()
        return {**values, "bundle": str(self.bundle), "interval": [round(end, 5) for end in self.interval]}


@dataclass(frozen=True)
class _Scores:
    """Scores of one model file: known images [N], and unknown ones by name."""

    known: NDArray[np.floating]
    unknown: Mapping[str, NDArray[np.floating]]
    backend: str


def set_threshold(
    bundle: str | os.PathLike[str],
    data: Data,
    reject_rate: float | None = None,
    *,
    unknown: Sequence[Data] = (),
    balance: bool = False,
    split: str = "auto",
    rotation: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    device: int = 0,
    trusted: bool = False,
    seed: int = 0,
    strict: bool = False,
    group_by: str | None = None,
    val: str | os.PathLike[str] | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> ThresholdResult:
    """Set the threshold of each of a bundle's classifiers, so that it rejects a fraction of known images.

    Args:
        bundle: the bundle's folder.
        data: known images, as `open_data`; best of groups (makers, days, cameras) that were not trained on.
        reject_rate: the fraction of such images to reject; None is the bundle's own.
        unknown: folders of images that are of none of the classes, as in `vae_edge.evaluate`.
        balance: instead of a rate: reject as many known images as unknown ones are accepted, in fractions.
        split: `train`, `validation`, `test`, `all`, or `auto`: of the training's own data set the test split or, where
            there is none, what was held out; of another data set all images.
        rotation: rotate the images: `none`, `full` or degrees; None is as training did.
        force: take the largest score where there are too few images for the rate.
        dry_run: write nothing.
        threads, device, trusted: as `vae_edge.load`.
        seed: chooses the angles.
        strict: refuse a folder of which anything is left out.
        group_by, val, cache: as `vae_edge.evaluate`. With groups the threshold is also tried on each one that it is not
            set on.
        progress: called with (images done, images in all), over all files.

    Raises:
        ConfigError: an option is out of range.
        BundleError: the bundle is damaged, cannot be written, or was changed meanwhile.
        BackendError: no file of the bundle can be run here.
        DataError: the images do not fit the model, or are too few for the rate.
    """
    from vae_edge.runtime.backends import LoadOptions

    opened = load_bundle(bundle)
    rate = opened.reject_rate if reject_rate is None else reject_rate
    _check_options(reject_rate, rate, balance, unknown, split, rotation)
    if not dry_run:
        check_folder(bundle)
    about = opened.training_data
    reading: dict[str, Any] = {"strict": strict, "group_by": group_by, "val": val, "cache": cache}
    dataset = with_groups(open_data(data, prepared_as=opened.input, **reading), about)
    fingerprint = dataset.fingerprint()
    if split == "auto" and about["fingerprint"] != fingerprint:
        split = "all"
    elif split == "auto":
        split = "test" if dataset.test is not None else "validation"
    images = align_classes(select_trained_split(dataset, split, about), opened.classes)
    log.info("the known images are %s of %s", describe_split(dataset, split, images), dataset.name)
    if split in ("train", "all") and about["fingerprint"] == fingerprint:
        log.warning("warning: images that were trained on have lower scores than new ones: the threshold is too strict")
    rotated = str(opened.rotation) if rotation is None else rotation
    range_deg, fill = rotation_range(rotated), opened.input.fill
    as_given = images.angles_deg is not None
    if as_given and rotation is not None:
        raise ConfigError(f"--rotation {rotation}: the images come with their angles and are taken as they are")
    if not as_given and range_deg:
        images = rotate_dataset(images, range_deg, seed + ROTATION_SEED, fill)
    others = {
        name: rotate_unknown(pixels, range_deg, seed, fill)
        for name, pixels in load_all_unknown(unknown, opened.input, opened.classes, cache).items()
    }

    options = LoadOptions(1 if threads is None else threads, "error", device, trusted)
    measured, problems = _measure_all(opened, images, others, options, progress)
    chosen = {
        file: balanced_threshold(scores.known, np.concatenate(list(scores.unknown.values())))
        if balance
        else choose_threshold(scores.known, rate, force).threshold
        for file, scores in measured.items()
    }
    files = tuple(_all_thresholds(opened, chosen, measured, problems))
    first = next(row for row in files if row.file in measured)
    scores = measured[first.file]
    choice = threshold_at(scores.known, first.after)
    result = ThresholdResult(
        bundle=opened.path,
        data=dataset.name,
        split=split,
        rotation="as given" if as_given else rotated,
        reject_rate=None if balance else rate,
        images=choice.images,
        rejected=choice.rejected,
        interval=choice.interval,
        rejected_before=int((scores.known > np.float32(first.before)).sum()),
        groups=None if images.groups is None or balance else leave_groups_out(scores.known, images.groups, rate),
        unknown=rejection(scores.known, scores.unknown, first.after)["unknown"],
        files=files,
        written=not dry_run,
    )
    if not dry_run:
        _write(opened, result, measured, fingerprint)
    return result


def _check_options(
    reject_rate: float | None, rate: float, balance: bool, unknown: Sequence[Data], split: str, rotation: str | None
) -> None:
    """Refuse options before the images are read."""
    if balance and reject_rate is not None:
        raise ConfigError("--balance and --reject-rate do not go together: give one of them")
    if balance and not unknown:
        raise ConfigError("--balance takes unknown images to balance the known ones with: give --unknown")
    if not balance and not 0 < rate < 0.5:
        raise ConfigError(f"reject_rate {rate}: expected a fraction above 0 and below 0.5, such as 0.01 for 1%")
    if split not in SPLITS:
        raise ConfigError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    if rotation is not None:
        rotation_range(rotation)


# ------------------------------------------------------------------------------------------------------ scores


def _measure_all(
    bundle: Bundle,
    images: LabelledImages,
    unknown: Mapping[str, NDArray[np.uint8]],
    options: LoadOptions,
    progress: Progress | None,
) -> tuple[dict[str, _Scores], dict[str, str]]:
    """The scores by each classifier that can be run here, by file; and why the others cannot.

    Raises:
        BackendError: none can.
    """
    entries = bundle.select("classifier")
    each = len(images) + sum(map(len, unknown.values()))
    measured: dict[str, _Scores] = {}
    problems: dict[str, str] = {}
    for number, entry in enumerate(entries):
        model = _open(bundle, entry, options, problems)
        if model is None:
            continue
        try:
            count = _Counter(progress, number * each, len(entries) * each)
            measured[entry.file] = _Scores(
                _score(model, images.images, count),
                {name: _score(model, pixels, count) for name, pixels in unknown.items()},
                model.backend,
            )
        finally:
            model.session.close()
    if not measured:
        reasons = "; ".join(dict.fromkeys(problems.values()))
        raise BackendError(f"No model of {bundle.path} can be measured on this machine: {reasons}.")
    return measured, problems


def _open(bundle: Bundle, entry: ModelEntry, options: LoadOptions, problems: dict[str, str]) -> OpenedModel | None:
    """A classifier in the first backend that runs it here and answers the probe images rightly; None if none does."""
    from vae_edge.runtime import probing
    from vae_edge.runtime.backends import SPECS, installed_backends, open_model
    from vae_edge.runtime.entries import find_entries

    there = installed_backends()
    names = [name for name in BACKENDS if name in there and SPECS[name].format == entry.format]
    problems[entry.file] = "no backend that runs it is installed here"
    for name in names:
        if SPECS[name].gpu and entry not in find_entries(bundle, name, device=options.device).values():
            problems[entry.file] = f"it is for {entry.target}" if entry.target != "any" else "there is no GPU here"
            continue
        try:
            model = open_model(bundle, name, entry, options)
        except VaeEdgeError as error:
            problems[entry.file] = str(error)
            continue
        if probing.verdict(bundle, model).right is not False:
            del problems[entry.file]
            return model
        model.session.close()
        problems[entry.file] = "its answers are wrong on this machine"
    return None


class _Counter:
    """Tells how many images are done, over all files."""

    def __init__(self, progress: Progress | None, done: int, total: int) -> None:
        self.progress, self.done, self.total = progress, done, total

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def _score(model: OpenedModel, images: NDArray[np.uint8], count: _Counter) -> NDArray[np.floating]:
    """Anomaly scores [N] of images uint8 [N, S, S, C].

    Raises:
        DataError: a score is not finite.
    """
    index = [info.name for info in model.session.outputs].index("score")
    parts = []
    for start in range(0, len(images), BATCH):
        part = np.ascontiguousarray(images[start : start + BATCH])
        parts.append(model.session.infer(part)[index].copy())
        count.add(len(part))
    scores: NDArray[np.floating] = np.concatenate(parts)
    if not np.isfinite(scores).all():
        raise DataError(f"{model.entry.file} gives scores that are not finite: the model is damaged; export it again.")
    return scores


# -------------------------------------------------------------------------------------------------- all files


def _all_thresholds(
    bundle: Bundle, chosen: Mapping[str, float], measured: Mapping[str, _Scores], problems: Mapping[str, str]
) -> Iterator[FileThreshold]:
    """The threshold of every classifier, measured or not."""
    entries = bundle.select("classifier")
    by_sha256 = {entry.sha256: entry for entry in entries}
    there = [entry for entry in entries if entry.file in chosen]
    for entry in entries:
        before = bundle.threshold_of(entry)
        source = by_sha256.get(_source_sha256(entry))
        if entry.file in chosen:
            after, how = chosen[entry.file], f"measured with {measured[entry.file].backend}"
        elif source is not None and source.file in chosen:
            after, how = chosen[source.file], f"as {source.file}, which it was built from ({problems[entry.file]})"
        else:
            like = next((each for each in there if each.precision == entry.precision), there[0])
            after = before + chosen[like.file] - bundle.threshold_of(like)
            how = f"moved by as much as {like.file} ({problems[entry.file]})"
        yield FileThreshold(entry.file, entry.precision, entry.target, before, after, how)


def _source_sha256(entry: ModelEntry) -> str:
    from vae_edge.runtime.probing import source_sha256

    return source_sha256(entry)


def _write(bundle: Bundle, result: ThresholdResult, measured: Mapping[str, _Scores], fingerprint: str) -> None:
    """Write the thresholds into the manifest, with where they come from, and into network files."""
    fraction = result.rejected / result.images
    set_on = {
        "data": result.data,
        "fingerprint": fingerprint,
        "split": result.split,
        "rotation": result.rotation,
        "images": result.images,
        "rejected": result.rejected,
        "interval": [round(end, 5) for end in result.interval],
        "balanced": result.reject_rate is None,
        "groups": None if result.groups is None else result.groups.to_json(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "vae_edge": __version__,
    }
    rows = {row.file: row for row in result.files}
    fp32 = bundle.select("classifier", "onnx", "fp32", "any")
    score = {
        **bundle.manifest["score"],
        "threshold": rows[fp32[0].file].after if fp32 else result.files[0].after,
        "reject_rate": fraction if result.reject_rate is None else result.reject_rate,
        "set_on": set_on,
    }
    models, new_files = [], {}
    with tempfile.TemporaryDirectory(prefix="vae-edge-threshold-") as folder:
        for entry in bundle.select("classifier"):
            row = rows[entry.file]
            own = None if entry.threshold is None and entry in fp32 else row.after
            accuracy = dict(entry.accuracy)
            if "accepted" in accuracy:
                scores = measured[entry.file].known if entry.file in measured else None
                kept = 1.0 - fraction if scores is None else float((scores <= np.float32(row.after)).mean())
                accuracy["accepted"] = round(kept, 5)
            models.append(replace(entry, threshold=own, accuracy=accuracy))
            if entry.format == "native":
                new_files[entry.file] = _network_file(bundle, entry, row.after, Path(folder))
        update_bundle(bundle, score, models, new_files)


def _network_file(bundle: Bundle, entry: ModelEntry, threshold: float, folder: Path) -> Path:
    """A network file with another threshold.

    Raises:
        ConfigError: the threshold has no room in it.
    """
    from vae_edge.engine.network_file import with_threshold

    content = with_threshold(bundle.file(entry), threshold)
    if content is None:
        raise ConfigError(
            f"{entry.file} has no room for a threshold of {threshold:g}: remove it from the bundle, set the threshold, "
            "and build it again with `vae-edge build --kind native`."
        )
    path = folder / entry.file
    write_bytes(path, content)
    return path
