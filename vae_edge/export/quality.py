"""What a precision keeps of a model, and whether the images that it was calibrated on are the model's kind.

A quantized model is measured beside fp32 on the same images: accuracy, angle, acceptance, and how well the score tells
unknown images. Rounding moves scores, so each file gets a threshold of its own: the one that accepts the share of
images that fp32 accepts. What is lost beyond the limits below is refused, or warned about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vae_edge.bundle import Bundle
from vae_edge.data import LabelledImages
from vae_edge.data.transforms import KINDS, make_unknown
from vae_edge.export.onnx_file import run
from vae_edge.metrics import auroc, summarize, wilson_interval

UNKNOWN = 200  # images of each unknown kind
FEW = 50  # images; fewer say little
MANY_CALIBRATION = 100  # images; fewer are warned about


@dataclass(frozen=True)
class Limit:
    """How much of a figure may be lost, before it is warned about and before it is refused."""

    warn: float
    refuse: float


ACCURACY = Limit(0.005, 0.02)  # shares of images; refused only where chance does not explain it
ACCEPTED = Limit(0.02, 0.10)
AUROC = Limit(0.02, 0.10)  # mean over kinds of unknown images
ANGLE_DEG = Limit(1.0, 5.0)  # of the median error
UNLIKE_ACCURACY = 0.10  # below what was recorded at export: the images are not the model's kind
UNLIKE_ACCEPTED = 0.20
LEAST_CLASSES = 0.5  # share of the classes that calibration images must cover


@dataclass(frozen=True)
class Measured:
    """A model's outputs on known and unknown images, and the figures.

    Attributes:
        figures: those of `summarize` with `accuracy_interval` (95%) and `auroc` by kind of unknown images.
        predicted: int64 [N], of the held-out images.
        scores: of the held-out images, then of the calibration images.
    """

    figures: dict[str, Any]
    predicted: NDArray[np.int64]
    scores: NDArray[np.floating]
    threshold: float


@dataclass(frozen=True)
class Findings:
    """Sentences: what is refused, and what is warned about."""

    refused: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(self.refused + other.refused, self.warned + other.warned)


def measure(
    model: onnx.ModelProto,
    bundle: Bundle,
    held: LabelledImages,
    calibration: NDArray[np.uint8],
    like: Measured | None = None,
) -> Measured:
    """Run a model on labelled held-out images, on unknown ones made of them, and on calibration images.

    Args:
        like: the fp32 model's, whose share of accepted images the threshold keeps; without it the bundle's threshold.
    """
    outputs = run(model, held.images)
    others = run(model, calibration)["score"] if len(calibration) else np.zeros(0, np.float32)
    scores = np.concatenate([outputs["score"], others])
    threshold = bundle.threshold if like is None else matching_threshold(like.scores, like.threshold, scores)
    turned = held.angles_deg is not None and bundle.rotation != "none"
    figures = summarize(
        outputs["probabilities"],
        held.labels,
        bundle.classes,
        np.rad2deg(outputs["angle"]) if turned else None,
        held.angles_deg if turned else None,
        outputs["score"],
        threshold,
        bundle.manifest["data"].get("ambiguous", ()),
        np.rad2deg(outputs["second_angle"]) if turned and "second_angle" in outputs else None,
        outputs.get("angle_confidence") if turned else None,
    )
    some = held.images[:UNKNOWN]
    areas = {kind: auroc(outputs["score"], run(model, make_unknown(some, kind))["score"]) for kind in KINDS}
    figures["auroc"] = {kind: round(area, 4) for kind, area in areas.items()}
    predicted = outputs["probabilities"].argmax(1)
    right = int((predicted == held.labels).sum())
    figures["accuracy_interval"] = [round(end, 5) for end in wilson_interval(right, len(held))]
    return Measured(figures, predicted, scores, threshold)


def matching_threshold(scores: NDArray[np.floating], threshold: float, others: NDArray[np.floating]) -> float:
    """The threshold that accepts as many of `others` as `threshold` accepts of `scores`; both [N], of the same images.

    It lies between the scores of the last image accepted and the first one rejected, as far as `threshold` does.
    """
    have, want = np.sort(others.astype(np.float64)), np.sort(scores.astype(np.float64))
    accepted = int((want <= threshold).sum())
    if accepted in (0, len(want)):
        end = 0 if accepted == 0 else -1
        return float(have[end] + (threshold - want[end]))
    gap = want[accepted] - want[accepted - 1]
    share = (threshold - want[accepted - 1]) / gap if gap > 0 else 0.0
    return float(have[accepted - 1] + share * (have[accepted] - have[accepted - 1]))


def compare(precision: str, before: Measured, after: Measured, labels: NDArray[np.int64]) -> Findings:
    """What the model lost: sentences by the limits above. `labels` int64 [N] are the held-out images'.

    Nothing but a loss of accuracy that chance does not explain is refused on fewer than 50 images.
    """
    n, refused, warned = len(labels), list[str](), list[str]()

    def judge(what: str, lost: float, limit: Limit, sentence: str, certain: bool = True) -> None:
        if lost > limit.refuse and certain:
            refused.append(f"{sentence} (more than {what} may be lost)")
        elif lost > limit.warn:
            warned.append(sentence)

    was_right, is_right = before.predicted == labels, after.predicted == labels
    worse, better = int((was_right & ~is_right).sum()), int((~was_right & is_right).sum())
    old, new = before.figures, after.figures
    judge(
        f"{100 * ACCURACY.refuse:g} points",
        old["accuracy"] - new["accuracy"],
        ACCURACY,
        f"accuracy falls from {old['accuracy']:.2%} to {new['accuracy']:.2%} in {precision} ({n} images)",
        sign_test(worse, better) < 0.05,
    )
    judge(
        f"{100 * ACCEPTED.refuse:g} points",
        old["accepted"] - new["accepted"],
        ACCEPTED,
        f"the share of known images accepted falls from {old['accepted']:.2%} to {new['accepted']:.2%} in {precision}",
        n >= FEW,
    )
    areas = [float(np.mean(list(figures["auroc"].values()))) for figures in (old, new)]
    judge(
        f"{AUROC.refuse:g}",
        areas[0] - areas[1],
        AUROC,
        f"the score's AUROC on unknown images falls from {areas[0]:.3f} to {areas[1]:.3f} in {precision}",
        n >= FEW,
    )
    if "angle_error_deg" in new:
        medians = [figures["angle_error_deg"]["median"] for figures in (old, new)]
        judge(
            f"{ANGLE_DEG.refuse:g}°",
            medians[1] - medians[0],
            ANGLE_DEG,
            f"the median angle error grows from {medians[0]:.1f}° to {medians[1]:.1f}° in {precision}",
            n >= FEW,
        )
    return Findings(tuple(refused), tuple(warned))


def sign_test(worse: int, better: int) -> float:
    """Probability of at least so many changes for the worse among all changes, if both ways were as likely."""
    n = worse + better
    return sum(math.comb(n, k) for k in range(worse, n + 1)) / 2**n if n else 1.0


def brightness(images: NDArray[np.uint8]) -> dict[str, list[float]]:
    """How bright images uint8 [N, H, W, C] are: 10th, 50th and 90th percentile of their means and of their maxima."""
    flat = images.reshape(len(images), -1)
    return {
        name: [round(float(q), 2) for q in np.quantile(values, [0.1, 0.5, 0.9])]
        for name, values in (("mean", flat.mean(1)), ("largest", flat.max(1)))
    }


def check_images(bundle: Bundle, images: LabelledImages, before: Measured, calibrating: int) -> Findings:
    """Whether images are of the kind that the model knows, by what was recorded at export.

    Args:
        images: the held-out and the calibration images together.
        before: the fp32 model's figures on the held-out ones and scores on all.
        calibrating: how many calibration images there are; 0 where none are needed.
    """
    recorded = bundle.find("classifier", "onnx", "fp32").accuracy
    refused, warned = list[str](), list[str]()
    n, held = len(before.predicted), before.figures
    _, most = wilson_interval(round(held["accuracy"] * n), n)
    if isinstance(recorded.get("accuracy"), (int, float)) and most < recorded["accuracy"] - UNLIKE_ACCURACY:
        refused.append(
            f"the fp32 model gets {held['accuracy']:.1%} of these images right, but got {recorded['accuracy']:.1%} of "
            "its own at export"
        )
    accepted = int((before.scores <= before.threshold).sum())
    _, most = wilson_interval(accepted, len(before.scores))
    if isinstance(recorded.get("accepted"), (int, float)) and most < recorded["accepted"] - UNLIKE_ACCEPTED:
        refused.append(
            f"it accepts {accepted / len(before.scores):.1%} of them as known, but accepted {recorded['accepted']:.1%} "
            "of its own"
        )
    refused += _unlike_brightness(bundle.manifest["data"].get("brightness"), images.images, bool(refused), warned)
    missing = _missing_classes(images, bundle)
    if missing and len(missing) > (1 - LEAST_CLASSES) * len(bundle.classes):
        refused.append(f"they cover {len(bundle.classes) - len(missing)} of {len(bundle.classes)} classes")
    elif missing:
        warned.append(f"no image is of the class {', '.join(missing)}")
    if 0 < calibrating < MANY_CALIBRATION:
        warned.append(f"ranges are measured on {calibrating} images alone; {MANY_CALIBRATION} or more are better")
    if n < FEW:
        low, high = held["accuracy_interval"]
        warned.append(
            f"accuracy is measured on {n} images alone (95% interval {low:.1%} to {high:.1%}), so that `auto` will not "
            f"trust it; {FEW} or more held-out images are needed"
        )
    return Findings(tuple(refused), tuple(warned))


def _unlike_brightness(
    recorded: Mapping[str, Sequence[float]] | None, images: NDArray[np.uint8], refusing: bool, warned: list[str]
) -> list[str]:
    """A sentence where the median image is darker or brighter than the recorded 10th to 90th percentile."""
    if recorded is None:
        return []
    found = brightness(images)
    odd = [
        f"their {'mean' if name == 'mean' else 'largest'} pixel is {found[name][1]:.0f} in the median, training's was "
        f"{recorded[name][0]:.0f} to {recorded[name][2]:.0f} in four of five images"
        for name in ("mean", "largest")
        if not recorded[name][0] - 8 <= found[name][1] <= recorded[name][2] + 8
    ]
    if refusing:
        return odd
    warned += odd
    return []


def _missing_classes(images: LabelledImages, bundle: Bundle) -> list[str]:
    absent = set(bundle.manifest["data"].get("absent", ()))
    there = np.bincount(images.labels, minlength=len(bundle.classes))
    return [name for k, name in enumerate(bundle.classes) if not there[k] and name not in absent]
