"""What the model's benchmark measures of a trained model: classes, angles, calibration, OOD, int8, latency."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vae_edge.api import export
from vae_edge.benchmarking import time_interleaved
from vae_edge.bundle import ModelEntry, load_bundle
from vae_edge.data import Dataset, LabelledImages, rotate_dataset, rotation_range
from vae_edge.data.random_numbers import permutation
from vae_edge.data.transforms import OOD_KINDS, make_ood_images
from vae_edge.evaluation.figures import arrays, evaluate
from vae_edge.experiments.baselines import LogitsOnly, inference_cost, network_probabilities
from vae_edge.experiments.trials import TrainedModel
from vae_edge.exporting import quantize_bundle_from_dataset
from vae_edge.exporting.onnx_file import ClassifierGraph, check_parity, to_onnx
from vae_edge.files import write_bytes
from vae_edge.metrics import auroc
from vae_edge.model import AngleVAE
from vae_edge.runtime import load
from vae_edge.runtime.backends import LoadOptions
from vae_edge.runtime.onnxruntime_backend import OnnxRuntimeBackend
from vae_edge.training.checkpoint import Checkpoint, RunConfig
from vae_edge.training.evaluate import Outputs, cross_fitted_ece, predict, rotate_like_training

CLOTHES = "clothes"  # images of Fashion-MNIST, as a kind of OOD images
OTHERS = ("noise", "inverted", "shuffled quarters")  # kinds of OOD images that `others` takes the worst of
PRECISIONS = ("fp32", "int8")
OOD_SEED, SPLIT_SEED, TEST_SEED = 11, 12, 13  # added to the seed: OOD images, false rejections, angles of a test split
CLOTHES_STREAM = 1 << 34  # the stream that the images of clothes are chosen from
PARITY_IMAGES = 64  # on which an exported graph is compared with PyTorch
SAMPLE_IMAGES = 256  # the same, of the bundle
LATENCY_THREADS, WARM_CALLS = 1, 3
TABLES = ("confusion", "confusions", "classes", "accuracy_by_class", "images_by_class", "accuracy_interval")
"""Figures of `evaluate` that no record holds."""


def evaluate_vae(
    trained: TrainedModel,
    test: LabelledImages,
    upright: LabelledImages | None,
    test_split: LabelledImages | None,
    calibration: Dataset,
    bundle: Path,
    clothes: LabelledImages | None,
    with_ood: bool,
    seconds: float,
) -> dict[str, Any]:
    """All figures of our trained model.

    Args:
        test: the test set, rotated as the training images were.
        upright: the same images upright; None where they are upright, or where that is not known.
        test_split: of the data set, if it has one; measured as well, rotated in the same way.
        calibration: int8 is calibrated on its training split.
        bundle: where the run is exported to, and next to which other graphs are written.
        clothes: OOD images, upright; None: there are none.
        with_ood: show OOD images, and time what the anomaly score costs.
        seconds: for all latencies together.
    """
    checkpoint = trained.checkpoint
    assert checkpoint is not None
    model, config, seed = checkpoint.model, checkpoint.config, checkpoint.config.training.seed
    outputs = predict(model, test.images)
    figures = {
        **summary(outputs, test, config, checkpoint.result.threshold, checkpoint.ambiguous),
        "calibration": asdict(cross_fitted_ece(outputs.logits, test.labels, seed)),
        "false_rejection": false_rejection(outputs, config.training.reject_rate, seed),
        "inference": inference_costs(model),
        "score_numbers": sum(buffer.numel() for buffer in model.score.buffers()),
    }
    if test_split is not None:
        test_split = rotate_like_training(test_split, config, seed + TEST_SEED)
    for name, images in (("upright", upright), ("test", test_split)):
        if images is not None:
            correct = predict(model, images.images).logits.argmax(1) == images.labels
            figures[name] = {"n": len(images), "accuracy": float(correct.mean())}

    unknown: dict[str, NDArray[np.uint8]] = {}
    if with_ood:
        unknown = ood_images(test, rotation_range(config.training.rotation), clothes, seed)
        figures["rejection"] = ood_detection(checkpoint, outputs, unknown)

    export(checkpoint.path, bundle)
    quantize_bundle_from_dataset(
        bundle, "int8", calibration, force=True
    )  # what int8 loses is measured here, so no limit refuses it
    by_precision = {precision: runtime_figures(bundle, precision, test, config, unknown) for precision in PRECISIONS}
    figures |= {"precisions": by_precision, "int8_loss": int8_loss(by_precision["fp32"], by_precision["int8"])}
    if with_ood:
        figures["latency"] = score_latency(model, bundle, test.images, seconds)
    return figures


def evaluate_network(
    trained: TrainedModel, test: LabelledImages, upright: LabelledImages | None, config: RunConfig
) -> dict[str, Any]:
    """Accuracy, calibration and costs of a baseline network."""

    found = network_probabilities(trained.model, test.images)
    logits = np.log(np.maximum(found, np.finfo(np.float32).tiny))
    shape = config.model
    cost = inference_cost(trained.model, torch.zeros(1, shape.channels, shape.height, shape.width))
    figures: dict[str, Any] = {
        "n": len(test),
        "accuracy": float((found.argmax(1) == test.labels).mean()),
        "calibration": asdict(cross_fitted_ece(logits, test.labels, config.training.seed)),
        "inference": {"decision": vars(cost)},
    }
    if upright is not None:
        correct = network_probabilities(trained.model, upright.images).argmax(1) == upright.labels
        figures["upright"] = {"n": len(correct), "accuracy": float(correct.mean())}
    return figures


def summary(
    predicted: Any, images: LabelledImages, config: RunConfig, threshold: float, ambiguous: Collection[str]
) -> dict[str, Any]:
    """The figures of `evaluate` on predictions of PyTorch or of the runtime, without tables of classes."""
    given, has_angle = arrays(predicted), config.model.orientation
    figures = evaluate(lambda _: given, images, config.classes, threshold, 0.0, 0, 0, ambiguous, has_angle)
    return {name: value for name, value in figures.items() if name not in TABLES}


def inference_costs(model: AngleVAE) -> dict[str, dict[str, int]]:
    """Parameters and multiply-accumulates for one image: of the exported graph, and of what the class depends on."""
    config = model.config
    image = torch.zeros(1, config.height, config.width, config.channels, dtype=torch.uint8)
    full = inference_cost(ClassifierGraph(model), image)
    decision = inference_cost(LogitsOnly(model), image.permute(0, 3, 1, 2).float())
    return {"full": vars(full), "decision": vars(decision)}


# ------------------------------------------------------------------------------------------------ OOD detection


def false_rejection(outputs: Outputs, rate: float, seed: int) -> dict[str, float]:
    """The fraction of known images rejected by a threshold that other images set, where `rate` is wanted.

    The images are dealt into two folds; each is measured with the threshold of the other.
    """
    folds = np.array_split(permutation(len(outputs.scores), seed + SPLIT_SEED), 2)
    rates = {"wanted": rate}
    for name, scores in (("full", outputs.scores), ("fast", outputs.fast_scores)):
        thresholds = [float(np.quantile(scores[fold], 1.0 - rate)) for fold in folds]
        rejected = [(scores[fold] > limit).sum() for fold, limit in zip(folds, thresholds[::-1], strict=True)]
        rates[name] = float(sum(rejected) / len(scores))
    return rates


def ood_images(
    test: LabelledImages, range_deg: float, clothes: LabelledImages | None, seed: int
) -> dict[str, NDArray[np.uint8]]:
    """As many OOD images of each kind as there are test images, uint8 [N, S, S, C], rotated as far as these are."""
    found = {kind: make_ood_images(test.images, kind, seed + OOD_SEED, range_deg) for kind in OOD_KINDS}
    if clothes is not None:
        chosen = clothes.take(permutation(len(clothes), seed, stream=CLOTHES_STREAM)[: len(test)])
        found[CLOTHES] = rotate_dataset(chosen, range_deg, seed + OOD_SEED).images if range_deg else chosen.images
    return found


def ood_detection(checkpoint: Checkpoint, known: Outputs, unknown: dict[str, NDArray[np.uint8]]) -> dict[str, Any]:
    """By kind of OOD images: AUROC against the test images, and the fraction accepted, by the full and the fast score.

    `others` has the worst of noise, inverted images and shuffled quarters.
    """
    limit, fast_limit = checkpoint.result.threshold, checkpoint.result.threshold_fast
    found: dict[str, dict[str, float]] = {}
    for kind, images in unknown.items():
        outputs = predict(checkpoint.model, images)
        found[kind] = {
            "auroc": auroc(known.scores, outputs.scores),
            "auroc_fast": auroc(known.fast_scores, outputs.fast_scores),
            "accepted": float((outputs.scores <= limit).mean()),
            "accepted_fast": float((outputs.fast_scores <= fast_limit).mean()),
        }
    found["others"] = {
        name: (min if name.startswith("auroc") else max)(found[kind][name] for kind in OTHERS)
        for name in found[OTHERS[0]]
    }
    return found


# --------------------------------------------------------------------------------------------- int8 and latency


def runtime_figures(
    bundle: Path, precision: str, test: LabelledImages, config: RunConfig, unknown: dict[str, NDArray[np.uint8]]
) -> dict[str, Any]:
    """The figures of a bundle's model through ONNX Runtime, with the AUROC by kind of OOD images."""
    with load(bundle, "onnxruntime", precision, torch.get_num_threads()) as classifier:
        known = classifier(test.images)
        figures = summary(known, test, config, classifier.threshold, classifier.bundle.ambiguous)
        areas = {kind: auroc(known.scores, classifier(images).scores) for kind, images in unknown.items()}
    return {**figures, "auroc": areas} if areas else figures


def int8_loss(fp32: dict[str, Any], int8: dict[str, Any]) -> dict[str, float]:
    """What int8 loses against fp32: accuracy and the largest AUROC loss, as fractions; angle errors in degrees."""
    error = "expected_calibration_error"
    loss = {"accuracy": fp32["accuracy"] - int8["accuracy"], error: int8[error] - fp32[error]}
    if "angle_error_deg" in fp32:
        for name in ("median", "mean"):
            loss[f"angle_{name}_deg"] = int8["angle_error_deg"][name] - fp32["angle_error_deg"][name]
    if "auroc" in fp32:
        loss["auroc"] = max(fp32["auroc"][kind] - int8["auroc"][kind] for kind in fp32["auroc"])
    return loss


class WithoutScore(nn.Module):
    """The exported classifier with all its outputs but the anomaly score."""

    def __init__(self, graph: ClassifierGraph) -> None:
        super().__init__()
        self.full = graph  # not `graph`: a module that is traced has an attribute of that name
        self.outputs = tuple(name for name in graph.outputs if name != "score")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of `outputs`."""
        values = zip(self.full.outputs, self.full(image), strict=True)
        return tuple(value for name, value in values if name != "score")


def score_latency(model: AngleVAE, bundle: Path, images: NDArray[np.uint8], seconds: float) -> dict[str, Any]:
    """Median microseconds for one image on one thread of ONNX Runtime with the full, the fast and no anomaly score.

    The three are timed interleaved, A B C A B C.
    """
    opened = load_bundle(bundle)
    files = {"full": opened.file(opened.find("classifier", "onnx", "fp32"))}
    folder = bundle.with_name(f"{bundle.name}-latency")
    for name, graph in (("fast", ClassifierGraph(model, "fast")), ("none", WithoutScore(ClassifierGraph(model)))):
        proto = to_onnx(graph, model.config.size, model.config.channels, graph.outputs, {"role": "benchmark"})
        check_parity(graph, proto, images[:PARITY_IMAGES])
        files[name] = folder / f"{name}.onnx"
        write_bytes(files[name], proto.SerializeToString())

    times = time_onnx(list(files.values()), seconds, np.ascontiguousarray(images[:1]))
    medians = {name: statistics.median(taken) / 1e3 for name, taken in zip(files, times, strict=True)}
    return {
        "backend": "onnxruntime",
        "threads": LATENCY_THREADS,
        "calls": len(times[0]),
        **{f"{name}_us": value for name, value in medians.items()},
        **{f"{name}_bytes": file.stat().st_size for name, file in files.items()},
        "full_over_none": medians["full"] / medians["none"],
        "fast_over_none": medians["fast"] / medians["none"],
    }


def time_onnx(files: Sequence[Path], seconds: float, image: NDArray[np.uint8] | None = None) -> list[list[int]]:
    """Nanoseconds of each call of each ONNX file through ONNX Runtime, for one image; interleaved, on one thread.

    Args:
        image: uint8 [1, S, S, C]; None: random pixels of the size that each file takes.
    """
    with contextlib.ExitStack() as stack:
        calls = []
        for file in files:
            backend = OnnxRuntimeBackend(file, ModelEntry("classifier", "fp32"), LoadOptions(LATENCY_THREADS))
            stack.callback(backend.close)
            pixels = image
            if pixels is None:
                shape = [1, *(int(side or 1) for side in backend.inputs[0].shape[1:])]
                pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            for _ in range(WARM_CALLS):
                backend.infer(pixels)
            calls.append(partial(backend.infer, pixels))
        return time_interleaved(calls, seconds)
