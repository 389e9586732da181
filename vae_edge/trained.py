"""What a trained model is worth: a run or a bundle is opened and measured on labelled and on unknown images.

    vae_edge.evaluate("runs/photos", "photos", unknown=["other-things"])

Importing this module imports neither torch nor onnx. A bundle is measured without PyTorch. `vae_edge.thresholds` sets a
bundle's threshold, `vae_edge.reporting` writes a report.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.data.load import open_data
from vae_edge.errors import ConfigError, DataError
from vae_edge.listing import left_out_json

if TYPE_CHECKING:
    from vae_edge.data import Dataset, LabelledImages
    from vae_edge.evaluation.figures import Measured, Predict
    from vae_edge.listing import LeftOut
    from vae_edge.preprocess import InputSpec

    Data = str | os.PathLike[str] | Dataset

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


# ------------------------------------------------------------------------------------------------------ a model


@dataclass(frozen=True)
class OpenedModel:
    """A training run or a bundle, ready to be measured.

    Attributes:
        path: of the run or the bundle.
        kind: `checkpoint` or `bundle`.
        predict: images to arrays.
        close: what to close when all is measured.
        input, classes, threshold, reject_rate, rotation: of the model.
        data: what is known of the training data.
        backend, precision: what runs.
        ambiguous: classes without a definite orientation, as in `vae_edge.metrics.summarize`.
        set_on: what the threshold was set on: `data`, `split`, `images` and, where known, `groups`.
        reconstruct: images uint8 [N, S, S, C] to the decoder's, of the same shape; None if there is no decoder.
    """

    path: Path
    kind: str
    predict: Predict
    close: AbstractContextManager[Any]
    input: InputSpec
    classes: Sequence[str]
    threshold: float
    reject_rate: float
    rotation: str
    data: Mapping[str, Any]
    backend: str
    precision: str
    ambiguous: Collection[str]
    set_on: Mapping[str, Any]
    reconstruct: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None

    @property
    def has_angle(self) -> bool:
        """Whether it has an orientation encoder."""
        return self.rotation != "none"


def open_model(
    path: str | os.PathLike[str],
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    **options: Any,
) -> OpenedModel:
    """Open a training run with PyTorch, or a bundle with the runtime; `options` are those of `vae_edge.load`.

    Raises:
        ConfigError, BundleError, CheckpointError, BackendError, VerificationError: the model cannot be loaded.
    """
    path = Path(path)
    if (path / "manifest.json").is_file():
        return _open_bundle(path, backend, precision, threads=threads, **options)
    return _open_run(path, backend, precision, threads)


def _open_run(path: Path, backend: str, precision: str, threads: int | None) -> OpenedModel:
    from vae_edge.evaluation.figures import arrays
    from vae_edge.training.checkpoint import load_checkpoint
    from vae_edge.training.distributed import use_threads
    from vae_edge.training.evaluate import predict
    from vae_edge.training.generate import reconstruct

    for name, value in (("backend", backend), ("precision", precision)):
        if value not in ("auto", "torch", "fp32"):
            raise ConfigError(
                f"--{name} {value}: a training run is measured with PyTorch in fp32; export it, then evaluate the "
                "bundle"
            )
    use_threads(threads)
    checkpoint = load_checkpoint(path)
    config, result = checkpoint.config, checkpoint.result
    return OpenedModel(
        path=path,
        kind="checkpoint",
        predict=lambda images: arrays(predict(checkpoint.model, images)),
        close=nullcontext(),
        input=config.input,
        classes=config.classes,
        threshold=result.threshold,
        reject_rate=result.reject_rate,
        rotation=config.training.rotation,
        data={**config.data.to_dict(), "group_by": config.training.group_by},  # with the folder of a table
        backend="torch",
        precision="fp32",
        ambiguous=checkpoint.ambiguous,
        set_on=_set_in_training(config.data.to_dict()),
        reconstruct=lambda images: reconstruct(checkpoint.model, images),
    )


def _open_bundle(path: Path, backend: str, precision: str, **options: Any) -> OpenedModel:
    from vae_edge.bundle import load_bundle
    from vae_edge.evaluation.figures import arrays
    from vae_edge.runtime import load

    bundle = load_bundle(path)
    classifier = load(path, backend, precision, **options)
    if len(set(classifier.choices.values())) > 1:  # one model is measured: that for single images
        chosen = classifier.choices[1]
        classifier.close()
        classifier = load(path, *chosen, **options)
    data = bundle.training_data
    return OpenedModel(
        path=path,
        kind="bundle",
        predict=lambda images: arrays(classifier(images, color="rgb")),
        close=classifier,
        input=bundle.input,
        classes=bundle.classes,
        threshold=classifier.threshold,
        reject_rate=bundle.reject_rate,
        rotation=str(bundle.rotation),
        data=data,
        backend=classifier.backend,
        precision=classifier.precision,
        ambiguous=bundle.ambiguous,
        set_on=bundle.manifest["score"].get("set_on") or _set_in_training(data),
        reconstruct=classifier.reconstruct if bundle.select("reconstruction") else None,
    )


def _set_in_training(data: Mapping[str, Any]) -> dict[str, Any]:
    """What training set the threshold on: images that it held out."""
    groups = {"groups": data["held_out_groups"]} if data.get("held_out_groups") else None
    return {
        "data": data.get("name", ""),
        "split": "validation",
        "images": data.get("held_out", 0),
        "groups": groups,
    }


# ---------------------------------------------------------------------------------------------------- evaluate


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on labelled images."""

    model: Path
    kind: str
    """`checkpoint` or `bundle`."""
    backend: str
    precision: str
    data: str
    """Name of the data set."""
    split: str
    """`train`, `validation`, `test` or `all`."""
    rotation: str
    """How the images were rotated: `none`, `full`, degrees, or `as given`."""
    figures: Mapping[str, Any]
    """As `vae_edge.evaluation.figures.figures`, with `rejection` (as there), `set_on` (what the threshold was set on)
    and, where the training images are at hand, `near_copies` of them."""
    warnings: Sequence[str] = ()
    """Sentences on what the figures hide."""
    left_out: Sequence[LeftOut] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        about = {name: getattr(self, name) for name in ("kind", "backend", "precision", "data", "split", "rotation")}
        more = {"warnings": list(self.warnings), "left_out": left_out_json(self.left_out)}
        return {"model": str(self.model), **about, **self.figures, **more}


@dataclass(frozen=True)
class Evaluated:
    """An evaluation with the predictions that it is of, for the report."""

    opened: OpenedModel
    evaluation: Evaluation
    measured: Measured
    unknown: Mapping[str, NDArray[np.floating]] = field(default_factory=dict)
    """Anomaly scores of unknown images by name."""


def evaluate(
    model: str | os.PathLike[str],
    data: Data,
    *,
    unknown: Sequence[Data] = (),
    split: str = "auto",
    rotation: str | None = None,
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    device: int = 0,
    trusted: bool = False,
    seed: int = 0,
    strict: bool = False,
    group_by: str | None = None,
    val: str | os.PathLike[str] | None = None,
    cache: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a training run (with PyTorch) or a bundle (with the runtime) on labelled images.

    Args:
        model: folder of a training run, or a bundle.
        data: as `open_data`; files are prepared as the model's training images were.
        unknown: folders of images that are of none of the classes, in sub-folders or not, or whatever `data` may be:
            how well the anomaly score tells them from known images.
        split: `train`, `validation` (the validation split of the data set, or else what training held out), `test`,
            `all`, or `auto`: the test split where there is one, else `validation`.
        rotation: rotate the images: `none`, `full` or degrees; None is as training did. Images that come with their
            angles are taken as they are. Unknown images are rotated as far.
        backend, precision: of a bundle, as `vae_edge.load`; what `auto` takes for single images.
        threads: of PyTorch, or of the backend.
        device, trusted: of a bundle, as `vae_edge.load`.
        seed: chooses the angles.
        strict: refuse a folder of which anything is left out.
        group_by: the rule by which images are of groups (makers, fonts, cameras, days), where the model does not know
            it: what training held out as a whole, and what the figures are given by.
        val: path or name of the data set that training was validated on, where that was one of its own.
        cache: use the cache of decoded images (`vae_edge.data.cache`).
        progress: called with (images done, images in all).

    Raises:
        ConfigError: an option is out of range, or does not go with the model or the data.
        BundleError, CheckpointError, BackendError, VerificationError: the model cannot be loaded.
        DataError: the data does not fit the model, or there are no unknown images in a folder.
    """
    from vae_edge.data import rotation_range

    if rotation is not None:
        rotation_range(rotation)  # or refuse, before the images are read
    opened = open_model(model, backend, precision, threads, device=device, trusted=trusted)
    reading: dict[str, Any] = {"strict": strict, "group_by": group_by, "val": val, "cache": cache}
    with opened.close:
        return evaluate_opened(opened, data, unknown, split, rotation, seed, progress, **reading).evaluation


def evaluate_opened(
    opened: OpenedModel,
    data: Data,
    unknown: Sequence[Data] = (),
    split: str = "auto",
    rotation: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **reading: Any,
) -> Evaluated:
    """As `evaluate`, of an opened model, with the predictions; `reading` are options of `open_data`."""
    from vae_edge.data import rotation_range
    from vae_edge.data.splits import describe_split, resolve_split, select_trained_split
    from vae_edge.evaluation.figures import figures, group_figures, in_batches, measure, rejection, rotate_unknown
    from vae_edge.evaluation.findings import all_warnings
    from vae_edge.evaluation.similarity import near_copies

    dataset = with_groups(open_data(data, prepared_as=opened.input, **reading), opened.data)
    images = select_trained_split(dataset, split, opened.data)
    log.info("measuring on %s of %s", describe_split(dataset, split, images, opened.data["fingerprint"]), dataset.name)
    split = resolve_split(split, dataset, opened.data["fingerprint"], str(opened.path))
    others = load_all_unknown(unknown, opened.input, opened.classes, reading.get("cache", True))
    if opened.rotation == "none" and rotation not in (None, "none"):
        log.info("%s was trained without rotation: it has no orientation encoder", opened.path)
    if images.angles_deg is not None and rotation is not None:
        raise ConfigError(f"--rotation {rotation}: the images come with their angles and are taken as they are")
    rotated = opened.rotation if rotation is None else rotation
    range_deg, fill = rotation_range(rotated), opened.input.fill

    predict = in_batches(opened.predict, progress)
    measured = measure(predict, images, opened.classes, range_deg, seed + 1, fill)
    scores = {
        name: np.asarray(predict(rotate_unknown(pixels, range_deg, seed, fill))[2]) for name, pixels in others.items()
    }
    found = figures(measured, opened.classes, opened.threshold, opened.ambiguous, opened.has_angle)
    found["rejection"] = {**rejection(measured.scores, scores, opened.threshold), "reject_rate": opened.reject_rate}
    trained_groups: set[str] | None = None
    fingerprint = dataset.fingerprint()
    found["set_on"] = {**opened.set_on, "same_images": _is_set_on(opened, fingerprint, split)}
    known = split in ("validation", "test") and fingerprint == opened.data["fingerprint"]
    kept = _training_images(dataset, opened) if known else None
    if kept is not None:
        found["near_copies"] = near_copies(images.images, kept.images).to_json()
        if images.groups is not None and kept.groups is not None:
            trained_groups = set(kept.groups.tolist())
    if images.groups is not None:
        found["groups"] = group_figures(measured, opened.threshold, trained_groups)
    as_given = images.angles_deg is not None
    shown_deg = float(np.abs(images.angles_deg).max()) if images.angles_deg is not None else range_deg
    evaluation = Evaluation(
        opened.path,
        opened.kind,
        opened.backend,
        opened.precision,
        dataset.name,
        split,
        "as given" if as_given else rotated,
        found,
        all_warnings(found, shown_deg, opened.reject_rate),
        dataset.left_out,
    )
    return Evaluated(opened, evaluation, measured, scores)


def with_groups(dataset: Dataset, trained_on: Mapping[str, Any]) -> Dataset:
    """The data set with the groups that training held out by, where its files' names tell them."""
    from vae_edge.data.groups import group_images

    rule = trained_on.get("group_by")
    if not rule or any(split.groups is not None for split in dataset.splits.values()):
        return dataset
    try:
        return group_images(dataset, str(rule))
    except DataError as error:
        log.info("%s: groups by %s, as training had them, cannot be told here: %s", dataset.name, rule, error)
        return dataset


def _is_set_on(opened: OpenedModel, fingerprint: str, split: str) -> bool:
    """Whether the threshold was set on the very images of a split of the data set with this fingerprint."""
    set_on = opened.set_on
    return split == set_on["split"] and fingerprint == set_on.get("fingerprint", opened.data["fingerprint"])


def _training_images(dataset: Dataset, opened: OpenedModel) -> LabelledImages | None:
    """The images of its own data set that a model was trained on, where it says which they are."""
    from vae_edge.data.splits import select_trained_split

    if dataset.train is None:
        return None
    try:
        return select_trained_split(dataset, "train", opened.data)
    except DataError as error:
        log.info("the images are not compared with those of training: %s", error)
        return None


def load_all_unknown(
    unknown: Sequence[Data], prepared_as: InputSpec, classes: Sequence[str], cache: bool = True
) -> dict[str, NDArray[np.uint8]]:
    """Images of each unknown folder, by its name, prepared for a model; a sentence where a folder has a class's name.

    Raises:
        DataError: a folder has no images.
    """
    from vae_edge.data.unknown import load_unknown

    found: dict[str, NDArray[np.uint8]] = {}
    for spec in unknown:
        loaded = load_unknown(spec, prepared_as, classes, cache)
        if loaded.known_names:
            log.warning(
                "warning: %s has folders named like known classes (%s): all their images are taken for unknown ones",
                loaded.name,
                ", ".join(loaded.known_names[:5]),
            )
        name, number = loaded.name, 2
        while name in found:
            name, number = f"{loaded.name} ({number})", number + 1
        found[name] = loaded.images
    return found
