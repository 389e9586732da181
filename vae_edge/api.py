"""What VAE Edge does, as Python functions: train, evaluate, generate, export, quantize, benchmark.

Engines and kits are in `vae_edge.deployment`.

    import vae_edge

    run = vae_edge.train("photos", "runs/photos")
    bundle = vae_edge.export(run.path, "photos.bundle")
    vae_edge.quantize(bundle.path, "int8", data="photos")
    with vae_edge.load(bundle.path) as classifier:
        predictions = classifier(["photos/cat/1.png"])

Each function reads files and writes files, can be called alone, and refuses what it can refuse before its work begins.
The command line parses, calls these and prints. What goes on is logged by the logger `vae_edge`.

Importing this module imports neither torch nor onnx; each function imports what it needs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.data.load import open_data
from vae_edge.errors import ConfigError
from vae_edge.files import check_file, check_folder
from vae_edge.listing import left_out_json
from vae_edge.text import system_name

if TYPE_CHECKING:
    from vae_edge.benchmarking.run import BenchmarkResult
    from vae_edge.data import Dataset
    from vae_edge.exporting.bundle import Quantization
    from vae_edge.listing import LeftOut
    from vae_edge.preprocess import InputSpec
    from vae_edge.training.checkpoint import TrainResult
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.trainer import Progress

    Data = str | os.PathLike[str] | Dataset

log = logging.getLogger(__name__)

PARITY_IMAGES = 256  # real images on which an exported file is compared with PyTorch


# ------------------------------------------------------------------------------------------------------- train


@dataclass(frozen=True)
class TrainedRun:
    """A finished training run."""

    path: Path
    """Folder of the run: `model.safetensors`, `config.json`, the log, and samples for later steps."""
    parameters: int
    """Weights of the whole network, the decoder's included."""
    result: TrainResult
    """Figures of the held-out images, thresholds, steps."""
    left_out: Sequence[LeftOut] = ()
    """Files of the data set that were not used."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        left_out = left_out_json(self.left_out)
        return {"run": str(self.path), "parameters": self.parameters, **self.result.to_dict(), "left_out": left_out}


def train(
    data: Data,
    out: str | os.PathLike[str],
    config: TrainConfig | None = None,
    *,
    preset: str = "small",
    size: int | None = None,
    channels: int | None = None,
    fit: str = "auto",
    alpha_background: str = "auto",
    val: str | os.PathLike[str] | None = None,
    strict: bool = False,
    cache: bool = True,
    resume: bool = False,
    tensorboard: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> TrainedRun:
    """Train a VAE classifier on labelled images; fit its anomaly score and temperature on held-out ones.

    Args:
        data: as `open_data`.
        out: folder of the run; it must be new, or with `resume` hold an unfinished run.
        config: rotation, epochs, loss weights, seed, ... (`vae_edge.TrainConfig`); by default all defaults.
        preset: `tiny`, `small` or `base`.
        size: pixels of a side, 28 to 64; None keeps or chooses it (`vae_edge.data.load_dataset`).
        channels: 1 grey, 3 colour; None takes what the images have.
        fit: how image files become square: `pad`, `foreground` or `auto`.
        alpha_background: the colour that transparency is laid on: `white`, `black` or `auto`.
        val: another data set, whose images are the validation split: none of `data` is held out.
        strict: refuse a folder of which anything is left out.
        cache: use the cache of decoded images (`vae_edge.data.cache`).
        resume: go on with the unfinished run in `out`, bit for bit as if it had never stopped.
        tensorboard: write a log for TensorBoard into `out/tensorboard`.
        threads: processor threads of PyTorch; None is all that a container's quota allows.
        progress: called with (step, steps, loss terms) after each step.

    Raises:
        ConfigError: an option is out of range, or `out` cannot be written.
        CheckpointError: `out` holds a finished run, or an unfinished one without `resume`.
        DataError: the images cannot be trained on.
        Interrupted: SIGINT or SIGTERM; the run is saved and can be resumed.
    """
    from vae_edge.model import create_config
    from vae_edge.training.checkpoint import check_folder_free
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.distributed import use_threads

    out = check_folder(out)  # what can be refused is refused before the images are read
    check_folder_free(out, resume)
    create_config(preset, **({} if size is None else {"size": size}))
    config = TrainConfig() if config is None else config
    use_threads(threads)
    form: dict[str, Any] = {"size": size, "channels": channels, "fit": fit, "alpha_background": alpha_background}
    dataset = open_data(data, **form, strict=strict, group_by=config.group_by, val=val, cache=cache)
    return _train(dataset, out, config, preset, resume, tensorboard, progress)


def _train(
    dataset: Dataset,
    out: Path,
    training: TrainConfig,
    preset: str,
    resume: bool,
    tensorboard: bool,
    progress: Progress | None,
) -> TrainedRun:
    from vae_edge.training.checkpoint import load_checkpoint
    from vae_edge.training.data import describe_run, make_run_config, make_splits
    from vae_edge.training.trainer import train

    splits = make_splits(dataset, training)
    config = make_run_config(dataset, splits, preset, training)
    for line in describe_run(dataset, config):
        log.info("%s", line)
    train(splits, config, out, resume=resume, tensorboard=tensorboard, progress=progress)
    checkpoint = load_checkpoint(out)
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    return TrainedRun(out, parameters, checkpoint.result, dataset.left_out)


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
    """As `vae_edge.training.evaluate.evaluate`: `n`, `accuracy`, `accepted`, `angle_error_deg`, `upright`, ..."""
    left_out: Sequence[LeftOut] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        about = {name: getattr(self, name) for name in ("kind", "backend", "precision", "data", "split", "rotation")}
        return {"model": str(self.model), **about, **self.figures, "left_out": left_out_json(self.left_out)}


@dataclass(frozen=True)
class _Model:
    """What an evaluation needs of a run or a bundle."""

    predict: Callable[[NDArray[np.uint8]], Any]
    close: AbstractContextManager[Any]
    input: InputSpec
    classes: Sequence[str]
    threshold: float
    rotation: str
    data: Mapping[str, Any]
    backend: str
    precision: str


def evaluate(
    model: str | os.PathLike[str],
    data: Data,
    *,
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
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a training run (with PyTorch) or a bundle (with the runtime) on labelled images.

    Args:
        model: folder of a training run, or a bundle.
        data: as `open_data`; files are prepared as the model's training images were.
        split: `train`, `validation` (the validation split of the data set, or else what training held out), `test`,
            `all`, or `auto`: the test split where there is one, else `validation`.
        rotation: rotate the images: `none`, `full` or degrees; None is as training did. Images that come with their
            angles are taken as they are.
        backend, precision: of a bundle, as `vae_edge.load`; what `auto` takes for single images.
        threads: of PyTorch, or of the backend.
        device, trusted: of a bundle, as `vae_edge.load`.
        seed: chooses the angles.
        strict: refuse a folder of which anything is left out.
        group_by, val, cache: as training had them, where the model does not know (`vae_edge.data.load_dataset`).
        progress: called with (images done, images in all).

    Raises:
        ConfigError: an option is out of range, or does not go with the model or the data.
        BundleError, CheckpointError, BackendError, VerificationError: the model cannot be loaded.
        DataError: the data does not fit the model.
    """
    from vae_edge.data import rotation_range
    from vae_edge.data.splits import describe_split, resolve_split, select_trained_split
    from vae_edge.training.evaluate import evaluate, in_batches

    if rotation is not None:
        rotation_range(rotation)  # or refuse, before the images are read
    path = Path(model)
    is_bundle = (path / "manifest.json").is_file()
    if is_bundle:
        opened = _open_bundle(path, backend, precision, threads=threads, device=device, trusted=trusted)
    else:
        opened = _open_run(path, backend, precision, threads)
    options: dict[str, Any] = {"strict": strict, "group_by": group_by, "val": val, "cache": cache}
    dataset = open_data(data, prepared_as=opened.input, **options)
    images = select_trained_split(dataset, split, opened.data)
    log.info("measuring on %s of %s", describe_split(dataset, split, images), dataset.name)
    split = resolve_split(split, dataset, opened.data["fingerprint"], path)
    if opened.rotation == "none" and rotation not in (None, "none"):
        log.info("%s was trained without rotation: it has no orientation encoder", path)
    if images.angles_deg is not None and rotation is not None:
        raise ConfigError(f"--rotation {rotation}: the images come with their angles and are taken as they are")
    rotated = opened.rotation if rotation is None else rotation
    with opened.close:
        figures = evaluate(
            in_batches(opened.predict, progress),
            images,
            opened.classes,
            opened.threshold,
            rotation_range(rotated),
            seed + 1,
            opened.input.fill,
            opened.data.get("ambiguous", ()),
            has_angle=opened.rotation != "none",
        )
    return Evaluation(
        path,
        "bundle" if is_bundle else "checkpoint",
        opened.backend,
        opened.precision,
        dataset.name,
        split,
        rotated if images.angles_deg is None else "as given",
        figures,
        dataset.left_out,
    )


def _open_run(path: Path, backend: str, precision: str, threads: int | None) -> _Model:
    from vae_edge.training.checkpoint import load_checkpoint
    from vae_edge.training.distributed import use_threads
    from vae_edge.training.evaluate import arrays, predict

    for name, value in (("backend", backend), ("precision", precision)):
        if value not in ("auto", "torch", "fp32"):
            raise ConfigError(
                f"--{name} {value}: a training run is measured with PyTorch in fp32; export it, then evaluate the "
                "bundle"
            )
    use_threads(threads)
    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    return _Model(
        lambda images: arrays(predict(checkpoint.model, images)),
        nullcontext(),
        config.input,
        config.classes,
        checkpoint.result.threshold,
        config.training.rotation,
        {**config.data.to_dict(), "group_by": config.training.group_by},  # with the folder of a table
        "torch",
        "fp32",
    )


def _open_bundle(path: Path, backend: str, precision: str, **options: Any) -> _Model:
    from vae_edge.bundle import load_bundle
    from vae_edge.exporting.bundle import training_data
    from vae_edge.runtime import load
    from vae_edge.training.evaluate import arrays

    bundle = load_bundle(path)
    classifier = load(path, backend, precision, **options)
    if len(set(classifier.choices.values())) > 1:  # one model is measured: that for single images
        chosen = classifier.choices[1]
        classifier.close()
        classifier = load(path, *chosen, **options)
    return _Model(
        lambda images: arrays(classifier(images, color="rgb")),
        classifier,
        bundle.input,
        bundle.classes,
        classifier.threshold,
        str(bundle.rotation),
        training_data(bundle),
        classifier.backend,
        classifier.precision,
    )


# ---------------------------------------------------------------------------------------------------- generate


@dataclass(frozen=True)
class Generated:
    """New labelled images on disk."""

    path: Path
    """A folder with a sub-folder of PNG files for each class, or an `.npz` file."""
    images: int
    contact_sheet: Path
    """All of them on one page, PNG."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"out": str(self.path), "images": self.images, "contact_sheet": str(self.contact_sheet)}


def generate(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    per_class: int = 12,
    classes: Sequence[str] = (),
    angles_deg: Sequence[float] = (0.0,),
    method: str | None = None,
    temperature: float | None = None,
    confidence: float | None = None,
    seed: int = 0,
) -> Generated:
    """Generate labelled images with a trained model's decoder.

    Args:
        run: folder of a finished training run.
        out: a new folder for PNG files, or a new `.npz` file.
        per_class: images of each class.
        classes: names; empty is all.
        angles_deg: degrees counter-clockwise, dealt out in turn.
        method, temperature, confidence: as `vae_edge.training.generate.generate`.
        seed: fixes every random number.

    Raises:
        ConfigError: an option is out of range, or `out` exists or cannot be written.
        CheckpointError: `run` holds no finished run.
        DataError: too few images are recognized by the model itself.
    """
    from vae_edge.training.checkpoint import load_checkpoint, load_samples
    from vae_edge.training.distributed import use_threads
    from vae_edge.training.generate import TEMPERATURE, check_out_free, generate, write_generated

    check_out_free(out)
    check_file(out)
    if temperature is not None and method == "interpolate":
        raise ConfigError("--temperature belongs to --method gaussian; it does not go with --method interpolate")
    use_threads()
    checkpoint = load_checkpoint(Path(run))
    samples = load_samples(Path(run))
    images = generate(
        checkpoint.model,
        checkpoint.config.classes,
        per_class,
        [system_name(name) for name in classes],
        angles_deg,
        TEMPERATURE if temperature is None else temperature,
        seed,
        absent=checkpoint.config.data.absent,
        codes=samples.codes,
        code_labels=samples.code_labels,
        method="gaussian" if temperature is not None else method,
        confidence=confidence,
    )
    path = write_generated(images, out)
    sheet = path.with_suffix(".png") if path.suffix == ".npz" else path / "contact_sheet.png"
    return Generated(path, len(images), sheet)


# ------------------------------------------------------------------------------------------------------ export


@dataclass(frozen=True)
class Exported:
    """A bundle made of a training run."""

    path: Path
    files: tuple[str, ...]
    parity: Mapping[str, Any]
    """`images`, and `largest_difference` of each output between the ONNX file and PyTorch."""
    probe_images: int
    """Real images in the bundle, by which each device verifies its answers; 0 without probes."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        about = {"probe_images": self.probe_images, "bundle": str(self.path)}
        return {**about, "files": list(self.files), "parity": dict(self.parity)}


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    name: str | None = None,
    score_mode: str = "full",
    probes: bool = True,
    force: bool = False,
) -> Exported:
    """Export a training run to ONNX, as a new bundle, and compare it with PyTorch on real images.

    Args:
        run: folder of a finished training run.
        out: the bundle's folder. A bundle that is there is replaced.
        name: of the model; None is the run's folder name.
        score_mode: of the anomaly score in the graph: `full`, or `fast` without the reconstruction term.
        probes: store probe images and their exact answers in the bundle.
        force: replace a bundle that also holds quantized files or engines, which are lost.

    Raises:
        CheckpointError: `run` holds no finished run.
        BundleError: `out` is no bundle, or holds files that would be lost.
        ExportError: ONNX Runtime's outputs are not PyTorch's.
    """
    from vae_edge.bundle import check_replaceable
    from vae_edge.exporting import BundleMetadata, export_bundle
    from vae_edge.files import sha256
    from vae_edge.probes import load as load_probes
    from vae_edge.training.checkpoint import MODEL, load_checkpoint, load_samples
    from vae_edge.training.distributed import use_threads

    check_replaceable(out, force)
    use_threads()
    run = Path(run)
    checkpoint = load_checkpoint(run)
    config, result = checkpoint.config, checkpoint.result
    about = BundleMetadata(
        name=system_name(name) if name else run.resolve().name,
        classes=config.classes,
        input=config.input,
        rotation=config.training.rotation,
        threshold=result.threshold if score_mode == "full" else result.threshold_fast,
        reject_rate=result.reject_rate,
        score_mode=score_mode,
        data=config.data.to_dict(),
    )
    provenance = {
        "checkpoint_sha256": sha256(run / MODEL),
        "preset": config.model.preset,
        "steps": result.step,
        "seed": config.training.seed,
    }
    images = load_samples(run).images.numpy()[:PARITY_IMAGES]
    accuracy = {**result.validation, "measured_on": "validation"}
    bundle = export_bundle(checkpoint.model, about, str(out), images, accuracy, provenance, probes)
    return Exported(
        bundle.path,
        tuple(model.file for model in bundle.models),
        bundle.find("classifier").provenance["parity"],
        0 if bundle.probes is None else len(load_probes(bundle.file(bundle.probes)).images),
    )


# ---------------------------------------------------------------------------------------------------- quantize


@dataclass(frozen=True)
class Quantized:
    """A precision that was added to a bundle."""

    quantization: Quantization
    """The added files and their figures, beside those of fp32."""
    left_out: Sequence[LeftOut] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**self.quantization.to_json(), "left_out": left_out_json(self.left_out)}


def quantize(
    bundle: str | os.PathLike[str],
    precision: str,
    data: Data,
    *,
    seed: int = 0,
    force: bool = False,
    strict: bool = False,
    group_by: str | None = None,
    val: str | os.PathLike[str] | None = None,
    cache: bool = True,
) -> Quantized:
    """Add a precision to a bundle: calibrated on training images, measured beside fp32 on held-out ones.

    Args:
        bundle: the bundle's folder.
        precision: `fp16` or `int8`.
        data: as `open_data`; best the images that the model was trained on.
        seed: chooses the calibration images.
        force: keep a file that lost too much, recorded as refused; `auto` does not take it.
        strict: refuse a folder of which anything is left out.
        group_by, val, cache: as `evaluate`.

    Raises:
        BundleError: the bundle is damaged, or cannot be written.
        DataError: the images are not the model's kind, or there are none to calibrate on.
        ExportError: the precision loses too much; the bundle is as it was.
    """
    from vae_edge.bundle import load_bundle
    from vae_edge.exporting.bundle import quantize_bundle_from_dataset

    opened = load_bundle(bundle)
    opened.find("classifier", "onnx", "fp32")  # or refuse, before the images are read
    check_folder(bundle)
    options: dict[str, Any] = {"strict": strict, "group_by": group_by, "val": val, "cache": cache}
    dataset = open_data(data, prepared_as=opened.input, **options)
    added = quantize_bundle_from_dataset(bundle, precision, dataset, seed, force)
    for sentence in added.warnings:
        log.warning("warning: %s", sentence)
    return Quantized(added, dataset.left_out)


# ---------------------------------------------------------------------------------------------------- benchmark


def benchmark(
    bundle: str | os.PathLike[str],
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    *,
    batches: Sequence[int] = (1, 8, 64),
    threads: int = 1,
    seconds: float = 20.0,
    device: int = 0,
    trusted: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> BenchmarkResult:
    """Measure latency, throughput and memory of a bundle on this machine, for each backend, precision and batch.

    Args:
        bundle: the bundle's folder.
        backends, precisions: names; None is all that are installed, or in the bundle.
        batches: images of a call.
        threads: processor threads of a call.
        seconds: time for all of it; what does not fit in is named in `left_out`.
        device, trusted: as `load`.
        progress: called with (what is going on, fraction done).

    Raises:
        BundleError, BackendError, VerificationError: as `load`.
        ConfigError: an option is out of range.
    """
    from vae_edge.benchmarking import run_benchmark

    return run_benchmark(
        bundle,
        backends,
        precisions,
        batches=batches,
        threads=threads,
        seconds=seconds,
        device=device,
        trusted=trusted,
        progress=progress,
    )
