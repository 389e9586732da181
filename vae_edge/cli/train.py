"""The commands that need the trained network: train, evaluate, generate."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vae_edge.cli.console import check_file, check_folder, counting_progress, emit, percent, say, training_progress
from vae_edge.cli.data import left_out_json, open_data
from vae_edge.errors import ConfigError
from vae_edge.text import system_name

PIECE = 500
WORST = 20  # so many classes are printed, the worst


def train(arguments: argparse.Namespace) -> None:
    """`vae-edge train`."""
    from vae_edge.model import create_config
    from vae_edge.training.checkpoint import check_folder_free
    from vae_edge.training.distributed import use_threads

    check_folder("--out", arguments.out)  # what can be refused is refused before the images are read
    check_folder_free(arguments.out, arguments.resume)
    create_config(arguments.preset, **({} if arguments.size is None else {"size": arguments.size}))
    settings_of(arguments)
    use_threads(arguments.threads)
    dataset = open_data(arguments)
    result = {**fit(dataset, arguments, "go on with --resume"), "left_out": left_out_json(dataset)}
    emit(result, arguments.json, lambda: _training_lines(Path(arguments.out)))


def settings_of(arguments: argparse.Namespace) -> Any:
    """The settings that the options name, or a ConfigError for one that is out of range."""
    from vae_edge.model import LossWeights
    from vae_edge.training.config import TrainConfig

    def given(*names: str) -> dict[str, Any]:
        values = {name: getattr(arguments, name, None) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    return TrainConfig(
        rotation=str(arguments.rotation),
        weights=LossWeights(**given("beta", "gamma", "delta")),
        seed=arguments.seed,
        **given(
            "epochs",
            "batch",
            "learning_rate",
            "holdout",
            "reject_rate",
            "augment",
            "mirror",
            "labels_per_class",
            "labels_only",
            "synthetic_ratio",
            "patience",
            "bf16",
            "compile",
        ),
    )


def fit(dataset: Any, arguments: argparse.Namespace, how_to_go_on: str) -> dict[str, Any]:
    """Train as the options say, with a progress bar; the run's result. An interruption says how to go on."""
    from vae_edge.training.checkpoint import load_checkpoint
    from vae_edge.training.data import make_run_config, make_splits
    from vae_edge.training.trainer import Interrupted, train

    settings = settings_of(arguments)
    splits = make_splits(dataset, settings)
    config = make_run_config(dataset, splits, arguments.preset, settings)
    shown = config.data.trained_on + config.data.unlabelled
    say(
        f"training {arguments.preset} on {config.data.trained_on} images of {dataset.name} "
        f"({config.data.held_out} held out), {len(config.classes)} classes, rotation {settings.rotation}, "
        f"{settings.epochs_for(shown)} epochs"
    )
    for note in dataset.notes:
        say(note)
    if config.data.unlabelled:
        say(f"{config.data.unlabelled} images without labels are learnt from as well")
    if config.data.unlike_mirrored:
        names = ", ".join(config.data.unlike_mirrored)
        say(f"--mirror: mirrored images of {names} look like none of their class; is mirroring right there?")
    if config.data.duplicates:
        say(f"{config.data.duplicates} images repeat others pixel by pixel; copies are trained on or judge, never both")
    if config.data.in_test:
        say(f"{config.data.in_test} images of the test half are training images too: figures on it are too good")
    if config.model.circular_mask:
        say("the images have no even background: they are seen through a round window, whose corners stay black")
    try:
        with training_progress("training") as progress:
            options = {name: bool(getattr(arguments, name, False)) for name in ("resume", "tensorboard")}
            train(splits, config, arguments.out, progress=progress, **options)
    except Interrupted as error:
        raise Interrupted(f"{error}; {how_to_go_on}") from error
    checkpoint = load_checkpoint(arguments.out)
    parameters = sum(p.numel() for p in checkpoint.model.parameters())
    return {"run": str(arguments.out), "parameters": parameters, **checkpoint.result.to_dict()}


def _training_lines(run: Path) -> Iterator[str]:
    from vae_edge.training.checkpoint import load_checkpoint

    result = load_checkpoint(run).result
    turned, upright = result.validation, result.validation_upright
    yield f"validation, {turned['n']} held-out images, rotation {turned['rotation']}: {percent(turned['accuracy'])}"
    yield from _class_lines(turned)
    if "angle_error_deg" in turned:
        error = turned["angle_error_deg"]
        yield f"  angle error: {_angle_words(error)}"
        yield f"  the same images upright: {percent(upright['accuracy'])}"
    yield f"  rejection score: accepted up to {result.threshold:.3f} ({percent(result.reject_rate)} rejected)"
    yield f"next: vae-edge export {run} --out BUNDLE"


def _class_lines(figures: dict[str, Any]) -> Iterator[str]:
    """Balanced accuracy and the accuracy of each class, the worst first, where the accuracy of all hides something."""
    from vae_edge.metrics import hides_classes

    if "images_by_class" not in figures or not hides_classes(figures):  # a run of an earlier version has no counts
        return
    yield f"  balanced     {percent(figures['balanced_accuracy'])}, the mean over the classes"
    shares = sorted(figures["accuracy_by_class"].items(), key=lambda item: item[1])
    counts = figures["images_by_class"]
    words = [f"{name} {percent(share)} of {counts[name]}" for name, share in shares[:WORST]]
    if len(shares) > WORST:
        words.append(f"{len(shares) - WORST} more at {percent(shares[WORST][1])} or above")
    yield f"  by class     {', '.join(words)}"


def _angle_words(error: dict[str, Any]) -> str:
    return f"median {error['median']}°, mean {error['mean']}°, {percent(error['beyond_90'])} beyond 90°"


def evaluate(arguments: argparse.Namespace) -> None:
    """`vae-edge evaluate`."""
    result = measure(arguments)
    emit(result, arguments.json, lambda: _evaluation_lines(result))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate a run or a bundle as the options say."""
    from vae_edge.data import rotation_range, select_split
    from vae_edge.training.evaluate import evaluate

    if arguments.rotation is not None:
        rotation_range(str(arguments.rotation))  # or refuse, before the images are read
    path = Path(arguments.model)
    is_bundle = (path / "manifest.json").is_file()
    known = _open_bundle(path, arguments) if is_bundle else _open_checkpoint(path, arguments)
    dataset = open_data(arguments, known["input"])
    images = select_split(dataset, arguments.split, known["data"]["holdout_fraction"], known["data"]["seed"])
    split = resolve_split(arguments.split, dataset, known["data"], path)
    rotation = str(arguments.rotation) if arguments.rotation is not None else known["rotation"]
    range_deg = rotation_range(rotation)
    if known["rotation"] == "none" and rotation != "none":
        say(f"{path} was trained without rotation: it has no angle encoder")
    if images.angles_deg is not None:
        if arguments.rotation is not None:
            raise ConfigError(f"--rotation {rotation}: the images come with their angles and are taken as they are")
        rotation = "as given"
    with known["close"], counting_progress("measuring") as progress:
        result = evaluate(
            in_pieces(known["predict"], progress),
            images,
            known["classes"],
            known["threshold"],
            range_deg,
            arguments.seed + 1,
            known["input"].fill,
            known["data"].get("ambiguous", ()),
            has_angle=known["rotation"] != "none",
        )
    return {
        "model": str(path),
        "kind": "bundle" if is_bundle else "checkpoint",
        **known["how"],
        "data": dataset.name,
        "split": split,
        "rotation": rotation,
        **result,
        "left_out": left_out_json(dataset),
    }


def resolve_split(split: str, dataset: Any, trained: dict[str, Any], path: object) -> str:
    """What `auto` comes to; and a warning where the images that were trained on cannot be told from others."""
    if split == "auto":
        split = "test" if dataset.test is not None else "validation"
    if split in ("validation", "train") and dataset.fingerprint() != trained["fingerprint"]:
        say(
            f"{path} was not trained on exactly these images: its {split} part cannot be told, "
            f"so images that it was trained on may be among the ones measured"
        )
    return split


def in_pieces(predict: Any, progress: Any) -> Any:
    """The same predictions, some hundred images at a time, so that progress can be shown."""
    import numpy as np

    def run(images: Any) -> Any:
        parts = []
        for start in range(0, len(images), PIECE):
            parts.append(predict(images[start : start + PIECE]))
            if progress is not None:
                progress(min(start + PIECE, len(images)), len(images))
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    return run


def _open_checkpoint(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from vae_edge.training.checkpoint import load_checkpoint
    from vae_edge.training.distributed import use_threads
    from vae_edge.training.evaluate import arrays, predict

    for name in ("backend", "precision"):
        if getattr(arguments, name) not in ("auto", "torch", "fp32"):
            raise ConfigError(
                f"--{name} {getattr(arguments, name)}: a training run is measured with PyTorch in fp32; "
                f"export it, then evaluate the bundle"
            )
    use_threads(arguments.threads)
    checkpoint = load_checkpoint(path)

    def run(images: Any) -> Any:
        return arrays(predict(checkpoint.model, images))

    config = checkpoint.config
    return {
        "predict": run,
        "close": nullcontext(),
        "input": config.input,
        "classes": config.classes,
        "threshold": checkpoint.result.threshold,
        "rotation": config.training.rotation,
        "data": config.data.to_dict(),
        "how": {"backend": "torch", "precision": "fp32"},
    }


def _open_bundle(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from vae_edge.bundle import load_bundle
    from vae_edge.export.bundle import training_data
    from vae_edge.runtime import load
    from vae_edge.training.evaluate import arrays

    bundle = load_bundle(path)
    classifier = load(path, backend=arguments.backend, precision=arguments.precision, threads=arguments.threads)

    def run(images: Any) -> Any:
        return arrays(classifier(images, color="rgb"))

    return {
        "predict": run,
        "close": classifier,
        "input": bundle.input,
        "classes": bundle.classes,
        "threshold": classifier.threshold,
        "rotation": str(bundle.rotation),
        "data": training_data(bundle),
        "how": {"backend": classifier.backend, "precision": classifier.precision},
    }


def _evaluation_lines(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{result['model']} ({result['kind']}, {result['backend']}, {result['precision']}) on {result['n']} images of "
        f"{result['data']} ({result['split']}), rotation {result['rotation']}"
    )
    yield f"  accuracy     {percent(result['accuracy'])}"
    yield from _class_lines(result)
    yield f"  calibration  {percent(result['expected_calibration_error'])} expected calibration error"
    if "angle_error_deg" in result:
        error = result["angle_error_deg"]
        yield f"  angle error  {_angle_words(error)}"
        if "without_ambiguous" in error:
            clear = error["without_ambiguous"]
            names = ", ".join(clear["ambiguous_classes"])
            yield f"    without {names}: median {clear['median']}°, mean {clear['mean']}°"
        if "either_of_two" in error:
            yield f"    the better of the two best angles: {_angle_words(error['either_of_two'])}"
        if "by_angle_confidence" in error:
            halves = " and ".join(f"{median}°" for median in error["by_angle_confidence"].values())
            yield f"    medians of the half with the surest angles, and of the rest: {halves}"
    yield f"  accepted     {percent(result['accepted'])} by the rejection score"
    if "upright" in result:
        yield f"  upright      {percent(result['upright']['accuracy'])}"


def generate(arguments: argparse.Namespace) -> None:
    """`vae-edge generate`."""
    from vae_edge.training.checkpoint import load_checkpoint, load_samples
    from vae_edge.training.distributed import use_threads
    from vae_edge.training.generate import TEMPERATURE, check_out_free, generate, write_generated

    check_out_free(arguments.out)
    check_file("--out", arguments.out)
    angles = arguments.angles or [0.0]
    use_threads()
    if arguments.temperature is not None and arguments.method == "interpolate":
        raise ConfigError("--temperature belongs to --method gaussian; it does not go with --method interpolate")
    checkpoint = load_checkpoint(arguments.model)
    samples = load_samples(arguments.model)
    images = generate(
        checkpoint.model,
        checkpoint.config.classes,
        arguments.per_class,
        [system_name(name) for name in arguments.classes or ()],
        angles,
        TEMPERATURE if arguments.temperature is None else arguments.temperature,
        arguments.seed,
        absent=checkpoint.config.data.absent,
        codes=samples.codes,
        code_labels=samples.code_labels,
        method="gaussian" if arguments.temperature is not None else arguments.method,
        confidence=arguments.confidence,
    )
    out = write_generated(images, arguments.out)
    sheet = out.with_suffix(".png") if out.suffix == ".npz" else out / "contact_sheet.png"
    result = {"out": str(out), "images": len(images), "contact_sheet": str(sheet)}
    emit(result, arguments.json, lambda: iter([f"{len(images)} images in {out}; all on one page: {sheet}"]))
