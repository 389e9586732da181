"""What VAE Edge does, as Python functions: train, generate, export, quantize, benchmark.

What a trained model is worth is in `vae_edge.trained`, engines and kits are in `vae_edge.deployment`.

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
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vae_edge.data.dataset import Dataset
from vae_edge.data.load import open_data
from vae_edge.errors import ConfigError, DataError
from vae_edge.files import check_file, check_folder
from vae_edge.listing import left_out_json
from vae_edge.progress import ProgressOption, counting_progress, phase, reporting, start_torch, training_progress
from vae_edge.spec import Size
from vae_edge.text import system_name

if TYPE_CHECKING:
    from vae_edge.benchmarking.run import BenchmarkResult
    from vae_edge.exporting.bundle import Quantization
    from vae_edge.listing import LeftOut
    from vae_edge.training.checkpoint import Checkpoint, TrainResult
    from vae_edge.training.config import TrainConfig

    Data = str | os.PathLike[str] | Dataset

log = logging.getLogger(__name__)

CHECKED_PIXELS = 224  # side of the images that a backbone is tried on while the images' own size is not known
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
    backbone: str | None = None,
    model: Mapping[str, Any] | None = None,
    size: Size | None = None,
    channels: int | None = None,
    fit: str = "auto",
    alpha_background: str = "auto",
    val: str | os.PathLike[str] | None = None,
    minutes: float | None = None,
    strict: bool = False,
    cache: bool = True,
    resume: bool = False,
    tensorboard: bool = False,
    threads: int | None = None,
    progress: ProgressOption = "auto",
) -> TrainedRun:
    """Train a VAE classifier on labelled images; fit its anomaly score and temperature on held-out ones.

    Args:
        data: as `open_data`.
        out: folder of the run; it must be new, or with `resume` hold an unfinished run.
        config: rotation, epochs, loss weights, seed, ... (`vae_edge.TrainConfig`); by default all defaults. Without
            epochs their number is chosen by the time of a step (`vae_edge.training.duration.choose_epochs`).
        preset: `tiny`, `small`, `base` or `large`.
        backbone: a pretrained network as encoder, `timm/MODEL` or `torchvision/MODEL`. Its weights come from the file
            `config.backbone_weights`, or its library downloads them.
        model: numbers of the network that shall differ from the preset, such as `{"latent": 32}`.
        size: of the images in pixels, 28 to 224: the side of a square, or (height, width); None keeps or chooses it
            (`vae_edge.data.load_dataset`).
        channels: 1 grey, 3 colour; None takes what the images have.
        fit: how image files become images of that shape: `pad`, `foreground` or `auto`.
        alpha_background: the colour that transparency is laid on: `white`, `black` or `auto`.
        val: path or name of another data set, whose images are the validation split: early stopping, temperature and
            threshold are set on them, and none of `data` is held out.
        minutes: time for training, in place of a number of epochs.
        strict: refuse a folder of which anything is left out.
        cache: use the cache of decoded images (`vae_edge.data.cache`).
        resume: go on with the unfinished run in `out`, bit for bit as if it had never stopped.
        tensorboard: write a log for TensorBoard into `out/tensorboard`.
        threads: processor threads of PyTorch; None is all that a container's quota allows.
        progress: "auto": say what is being done, to the logger `vae_edge` or, where no logging is set up, on standard
            error, with a bar on a terminal; a function that is called after each step (`vae_edge.progress.Progress`);
            or None.

    Raises:
        ConfigError: an option is out of range, or `out` cannot be written.
        CheckpointError: `out` holds a finished run, or an unfinished one without `resume`.
        DataError: the images cannot be trained on.
        Interrupted: SIGINT or SIGTERM; the run is saved and can be resumed.
    """
    out = check_folder(out)  # what can be refused is refused before the images are read
    with reporting(progress, training_progress("training")) as show:
        start_torch()
        from vae_edge.data import rotation_range
        from vae_edge.evaluation.findings import all_warnings
        from vae_edge.model import create_config
        from vae_edge.model.backbone import check_pretrained
        from vae_edge.training.checkpoint import STATE, check_folder_free
        from vae_edge.training.config import TrainConfig
        from vae_edge.training.distributed import use_threads
        from vae_edge.training.run import train_dataset

        check_folder_free(out, resume)
        config = TrainConfig() if config is None else config
        model = {**(model or {}), **({} if backbone is None else {"backbone": backbone})}
        shape = create_config(preset, **{**model, **({} if size is None else {"size": size})})
        if shape.backbone is not None:
            weights = None if (out / STATE).exists() else config.backbone_weights  # a state holds all weights
            check_pretrained(shape if size else replace(shape, size=CHECKED_PIXELS), weights)
        elif config.backbone_weights is not None:
            raise ConfigError("--backbone-weights belongs to --backbone, which says of which network they are")
        if minutes is not None and (config.epochs is not None or not 0 < minutes < float("inf")):
            raise ConfigError(f"minutes {minutes}: expected a number above 0, and no number of epochs beside it")
        threads = use_threads(threads)
        source, dataset = None, data
        if not isinstance(dataset, Dataset):
            source = dataset
            with phase(f"reading the images of {os.fspath(dataset)}"):
                form: dict[str, Any] = {"size": size, "channels": channels, "fit": fit}
                form["alpha_background"] = alpha_background
                dataset = open_data(dataset, **form, strict=strict, group_by=config.group_by, val=val, cache=cache)
        options = {
            "preset": preset,
            "val": val,
            "strict": strict,
            "cache": cache,
            "tensorboard": tensorboard,
            "threads": threads,
        }
        run = train_dataset(dataset, out, config, model, minutes, resume, {"data": source, **options}, show)
        if os.environ.get("RANK", "0") == "0":  # of the processes that a launcher started together
            _write_learning_curves(out)
        for sentence in all_warnings(run.result.validation, rotation_range(config.rotation)):
            log.warning("warning: %s", sentence)
    parameters = sum(p.numel() for p in run.model.parameters())
    return TrainedRun(out, parameters, run.result, dataset.left_out)


def _write_learning_curves(run: Path) -> None:
    """Draw the run's log into its folder, where matplotlib is installed."""
    from vae_edge.training.checkpoint import CURVES, read_log

    if find_spec("matplotlib") is None:
        log.info('no picture of the learning curves is drawn: that takes matplotlib (pip install "vae-edge[report]")')
        return
    from vae_edge.report.galleries import learning_curves, write_png

    write_png(learning_curves(read_log(run)), run / CURVES)


# ---------------------------------------------------------------------------------------------------- generate


@dataclass(frozen=True)
class Generated:
    """New labelled images on disk."""

    path: Path
    """A folder with a sub-folder of PNG files for each class, or an `.npz` file."""
    images: int
    contact_sheet: Path
    """All of them on one page, PNG."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """For each class with fewer images than were asked for, how many it has, and why."""
    unrecognized: int = 0
    """Images that the model does not recognize with the confidence that was asked for (`top_up`)."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "out": str(self.path),
            "images": self.images,
            "contact_sheet": str(self.contact_sheet),
            "missing": dict(self.missing),
            "unrecognized": self.unrecognized,
        }


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
    top_up: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | Literal["auto"] | None = "auto",
) -> Generated:
    """Generate labelled images with a trained model's decoder: those that the model itself recognizes.

    Where it recognizes too few of a class, what there is is written, and `missing` says what is not.

    Args:
        run: folder of a finished training run.
        out: a new folder for PNG files, or a new `.npz` file.
        per_class: images of each class.
        classes: names; empty is all.
        angles_deg: degrees counter-clockwise, dealt out in turn.
        method, temperature: as `vae_edge.training.generate.generate_available`.
        confidence: keep images to which the model gives their class at least this; 0 keeps every image.
        top_up: where too few are recognized, add the most confident ones of the others.
        seed: fixes every random number.
        progress: called with (classes done, classes in all); or "auto", as `train`; or None.

    Raises:
        ConfigError: an option is out of range, or `out` exists or cannot be written.
        CheckpointError: `run` holds no finished run.
        DataError: no image of any class is recognized by the model itself.
    """
    if temperature is not None and method == "interpolate":
        raise ConfigError("--temperature belongs to --method gaussian; it does not go with --method interpolate")
    with reporting(progress, counting_progress("generating", "classes")) as show:
        start_torch()
        from vae_edge.training.checkpoint import load_checkpoint, load_samples
        from vae_edge.training.distributed import use_threads
        from vae_edge.training.generate import TEMPERATURE, check_out_free, generate_available, write_generated

        check_out_free(out)
        check_file(out)
        use_threads()
        checkpoint = load_checkpoint(Path(run))
        samples = load_samples(Path(run))
        found = generate_available(
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
            top_up=top_up,
            progress=show,
        )
        if not len(found.images):
            words = "; ".join(f"class {name}: {why}" for name, why in found.missing.items())
            raise DataError(f"nothing could be generated: {words}. --top-up takes the most confident images anyhow")
        path = write_generated(found.images, out)
    sheet = path.with_suffix(".png") if path.suffix == ".npz" else path / "contact_sheet.png"
    return Generated(path, len(found.images), sheet, found.missing, found.unrecognized)


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
        data=_data_of_bundle(checkpoint),
        backbone=config.model.backbone,
    )
    provenance = {
        "checkpoint_sha256": sha256(run / MODEL),
        "preset": config.model.preset,
        **({} if config.model.backbone is None else {"backbone": config.model.backbone}),
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


def _data_of_bundle(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a bundle says of the training data: as the run, with what the trained model showed of classes and angles."""
    from vae_edge.data import rotation_range
    from vae_edge.evaluation.findings import angle_is_reliable

    config, result = checkpoint.config, checkpoint.result
    data = {**config.data.to_dict(), "ambiguous": list(checkpoint.ambiguous)}
    if result.symmetry is not None:
        data["symmetry"] = result.symmetry
    reliable = angle_is_reliable(result.validation, rotation_range(config.training.rotation))
    return data if reliable is None else {**data, "angle_is_reliable": reliable}


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
        group_by, val, cache: as `vae_edge.evaluate`.

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
