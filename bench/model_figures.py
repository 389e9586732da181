"""What is measured of a trained model: classes, angles, calibration, rejection, int8, and what the score costs."""

from __future__ import annotations

import contextlib
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_rows import Row
from model_training import Ground
from numpy.typing import NDArray
from torch import Tensor, nn

from vae_edge.benchmark import time_in_turns
from vae_edge.bundle import ModelEntry, load_bundle
from vae_edge.api import export
from vae_edge.data import Dataset, LabelledImages, rotated, rotation_range
from vae_edge.data.splits import permutation
from vae_edge.data.transforms import KINDS, make_unknown
from vae_edge.experiments import baselines
from vae_edge.export import quantize_with
from vae_edge.export.onnx_file import ClassifierGraph, check_parity, to_onnx
from vae_edge.files import write_bytes
from vae_edge.metrics import auroc
from vae_edge.model import AngleVAE
from vae_edge.runtime import load
from vae_edge.runtime.onnxruntime_backend import OnnxRuntimeBackend
from vae_edge.training.checkpoint import Checkpoint, RunConfig, load_checkpoint
from vae_edge.training.evaluate import Outputs, arrays, as_trained, cross_fitted_ece, evaluate, predict

CLOTHES, OTHERS = "clothes", ("noise", "inverted", "shuffled quarters")
UNKNOWN, HALVES, CLOTHES_DRAWN = 11, 12, 1 << 34  # added to the seed, twice; the stream that clothes are drawn from
PRECISIONS = ("fp32", "int8")
PARITY_IMAGES, WARM_CALLS = 64, 3
TEST = 13  # added to the seed, for the angles of a test half


def measure_ours(row: Row, ground: Ground, run: Path, clothes: LabelledImages | None, seconds: float) -> dict[str, Any]:
    """All figures of a finished run of ours.

    Args:
        clothes: images of Fashion-MNIST, upright, as unknown ones; None: there are none.
        seconds: how long latencies are timed.
    """
    checkpoint = load_checkpoint(run)
    config, seed = checkpoint.config, checkpoint.config.training.seed
    outputs = predict(checkpoint.model, ground.judges.images)
    figures = {
        **summary(outputs, ground.judges, config, checkpoint.result["threshold"]),
        "calibration": cross_fitted_ece(outputs.logits, ground.judges.labels, seed),
        "false_rejection": false_rejection(outputs, config.training.reject_rate, seed),
        "inference": costs(checkpoint.model),
        "score_numbers": sum(numbers.numel() for numbers in checkpoint.model.score.buffers()),
    }
    for name, images in (("upright", ground.upright), ("test", turned_test(ground.dataset, config))):
        if images is not None:
            predicted = predict(checkpoint.model, images.images)
            figures[name] = {"n": len(images), "accuracy": float((predicted.logits.argmax(1) == images.labels).mean())}
    unknown: dict[str, NDArray[np.uint8]] = {}
    if row.rejection:
        unknown = unknown_images(ground.judges, rotation_range(config.training.rotation), clothes, seed)
        figures["rejection"] = rejection(checkpoint, outputs, unknown)
    bundle = run.with_name(f"{run.name}-bundle")
    export(run, bundle)
    quantize_with(bundle, "int8", calibrating(ground, config), force=True)  # what it loses is what is measured
    through = {precision: by_runtime(bundle, precision, ground.judges, config, unknown) for precision in PRECISIONS}
    figures |= {"precisions": through, "int8_loss": int8_loss(through["fp32"], through["int8"])}
    if row.rejection:
        figures["latency"] = latency(checkpoint.model, bundle, ground.judges.images, seconds)
    return figures


def measure_control(network: nn.Module, ground: Ground) -> dict[str, Any]:
    """Accuracy, calibration and costs of the plain network."""
    judges, config = ground.judges, ground.config.model
    probabilities = baselines.network_probabilities(network, judges.images)
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    pixels = torch.zeros(1, config.channels, config.size, config.size)
    cost = baselines.inference_cost(network, pixels)
    figures: dict[str, Any] = {
        "n": len(judges),
        "accuracy": float((probabilities.argmax(1) == judges.labels).mean()),
        "calibration": cross_fitted_ece(logits, judges.labels, ground.config.training.seed),
        "inference": {"decision": {"parameters": cost.parameters, "macs": cost.macs}},
    }
    if ground.upright is not None:
        right = baselines.network_probabilities(network, ground.upright.images).argmax(1) == ground.upright.labels
        figures["upright"] = {"n": len(right), "accuracy": float(right.mean())}
    return figures


def summary(predicted: Any, images: LabelledImages, config: RunConfig, threshold: float) -> dict[str, Any]:
    """What `evaluate` says of predictions by PyTorch or the runtime, without tables of classes."""
    has_angle, ambiguous = config.model.pose, config.data["ambiguous"]
    given = arrays(predicted)
    figures = evaluate(lambda _: given, images, config.classes, threshold, 0.0, 0, 0, ambiguous, has_angle)
    return {
        name: value
        for name, value in figures.items()
        if name not in ("confusion", "accuracy_by_class", "images_by_class")
    }


def turned_test(dataset: Dataset, config: RunConfig) -> LabelledImages | None:
    """The test half, turned as in training; None where there is none."""
    return None if dataset.test is None else as_trained(dataset.test, config, config.training.seed + TEST)


def costs(model: AngleVAE) -> dict[str, dict[str, int]]:
    """Parameters and multiply-accumulates of the exported graph, and of the part that the class depends on."""
    config = model.config
    image = torch.zeros(1, config.size, config.size, config.channels, dtype=torch.uint8)
    whole = baselines.inference_cost(ClassifierGraph(model), image)
    decision = baselines.inference_cost(baselines.Decision(model), image.permute(0, 3, 1, 2).float())
    return {"whole": vars(whole), "decision": vars(decision)}


def false_rejection(outputs: Outputs, wanted: float, seed: int) -> dict[str, float]:
    """Share of known images rejected by a threshold from others: each half is judged by the threshold of the other."""
    halves = np.array_split(permutation(len(outputs.scores), seed + HALVES), 2)
    rates = {"wanted": wanted}
    for name, scores in (("full", outputs.scores), ("light", outputs.light_scores)):
        thresholds = [float(np.quantile(scores[half], 1.0 - wanted)) for half in halves]
        rejected = [(scores[half] > limit).sum() for half, limit in zip(halves, thresholds[::-1], strict=True)]
        rates[name] = float(sum(rejected) / len(scores))
    return rates


def unknown_images(
    judges: LabelledImages, range_deg: float, clothes: LabelledImages | None, seed: int
) -> dict[str, NDArray[np.uint8]]:
    """As many unknown images of each kind as there are judges, turned as far as these are."""
    found = {kind: make_unknown(judges.images, kind, seed + UNKNOWN, range_deg) for kind in KINDS}
    if clothes is not None:
        drawn = clothes.take(permutation(len(clothes), seed, stream=CLOTHES_DRAWN)[: len(judges)])
        found[CLOTHES] = rotated(drawn, range_deg, seed + UNKNOWN).images if range_deg else drawn.images
    return found


def rejection(checkpoint: Checkpoint, known: Outputs, unknown: dict[str, NDArray[np.uint8]]) -> dict[str, Any]:
    """By kind of unknown image: areas under the curve against the judges, and the share accepted.

    `others` has the worst of noise, inverted images and shuffled quarters.
    """
    limit, light_limit = checkpoint.result["threshold"], checkpoint.result["threshold_light"]
    found: dict[str, dict[str, float]] = {}
    for kind, images in unknown.items():
        outputs = predict(checkpoint.model, images)
        found[kind] = {
            "auroc": auroc(known.scores, outputs.scores),
            "auroc_light": auroc(known.light_scores, outputs.light_scores),
            "accepted": float((outputs.scores <= limit).mean()),
            "accepted_light": float((outputs.light_scores <= light_limit).mean()),
        }
    worst = {name: min if name.startswith("auroc") else max for name in found[OTHERS[0]]}
    found["others"] = {name: choose(found[kind][name] for kind in OTHERS) for name, choose in worst.items()}
    return found


def calibrating(ground: Ground, config: RunConfig) -> Dataset:
    """What int8 is calibrated on: the run's own data, or the labelled images alone where training had no others."""
    if not config.training.labels_only or config.training.labels_per_class is None:
        return ground.dataset
    few = ground.material
    return Dataset(ground.dataset.name, ground.dataset.source, few.labelled, few.held)


def by_runtime(
    bundle: Path, precision: str, judges: LabelledImages, config: RunConfig, unknown: dict[str, NDArray[np.uint8]]
) -> dict[str, Any]:
    """The figures of a bundle's model as ONNX Runtime gives them, with areas under the curve by kind."""
    with load(bundle, "onnxruntime", precision, torch.get_num_threads()) as classifier:
        known = classifier(judges.images)
        figures = summary(known, judges, config, classifier.threshold)
        areas = {kind: auroc(known.scores, classifier(images).scores) for kind, images in unknown.items()}
    return {**figures, "auroc": areas} if areas else figures


def int8_loss(whole: dict[str, Any], int8: dict[str, Any]) -> dict[str, float]:
    """What int8 loses against fp32: accuracy and the largest loss of an area, as shares; angle errors in degrees."""
    error = "expected_calibration_error"
    loss = {"accuracy": whole["accuracy"] - int8["accuracy"], error: int8[error] - whole[error]}
    if "angle_error_deg" in whole:
        for name in ("median", "mean"):
            loss[f"angle_{name}_deg"] = int8["angle_error_deg"][name] - whole["angle_error_deg"][name]
    if "auroc" in whole:
        loss["auroc"] = max(whole["auroc"][kind] - int8["auroc"][kind] for kind in whole["auroc"])
    return loss


class WithoutScore(nn.Module):
    """The exported classifier with all its outputs but the rejection score."""

    def __init__(self, graph: ClassifierGraph) -> None:
        super().__init__()
        self.whole = graph  # a module that is traced has a `graph` of its own
        self.outputs = tuple(name for name in graph.outputs if name != "score")

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of `outputs`."""
        values = zip(self.whole.outputs, self.whole(image), strict=True)
        return tuple(value for name, value in values if name != "score")


def latency(model: AngleVAE, bundle: Path, images: NDArray[np.uint8], seconds: float) -> dict[str, Any]:
    """Median microseconds for one image on one thread of ONNX Runtime: with the score, the light one, and none.

    The three are timed in turns, A B C A B C, in one run.
    """
    opened = load_bundle(bundle)
    files = {"full": opened.file(opened.find("classifier", "onnx", "fp32"))}
    folder = bundle.with_name(f"{bundle.name}-latency")
    for name, graph in (("light", ClassifierGraph(model, light=True)), ("none", WithoutScore(ClassifierGraph(model)))):
        proto = to_onnx(graph, model.config.size, model.config.channels, graph.outputs, {"role": "benchmark"})
        check_parity(graph, proto, images[:PARITY_IMAGES])
        files[name] = folder / f"{name}.onnx"
        write_bytes(files[name], proto.SerializeToString())
    image = np.ascontiguousarray(images[:1])
    with contextlib.ExitStack() as stack:
        calls = []
        for file in files.values():
            backend = OnnxRuntimeBackend(file, ModelEntry("classifier", "fp32"), 1)
            stack.callback(backend.close)
            for _ in range(WARM_CALLS):
                backend.infer(image)
            calls.append(partial(backend.infer, image))
        times = time_in_turns(calls, seconds)
    medians = {name: statistics.median(taken) / 1e3 for name, taken in zip(files, times, strict=True)}
    return {
        "backend": "onnxruntime",
        "threads": 1,
        "calls": len(times[0]),
        **{f"{name}_us": value for name, value in medians.items()},
        **{f"{name}_bytes": file.stat().st_size for name, file in files.items()},
        "full_over_none": medians["full"] / medians["none"],
        "light_over_none": medians["light"] / medians["none"],
    }
