"""Pictures of what a trained model does, on images that it was not trained on: docs/pictures/*.png.

    python bench/render_images.py RUN --data DATA [--unknown DATA ...] [--out docs/pictures]

RUN is a finished training run and DATA what it was trained on. Shown are images of the test split or, where there is
none, those that were held out of the training split. `--unknown` names data sets of other things (clothes, say), which
are rotated as far as the run's images are. The temperature in the reliability diagram is fitted on one half of the
images, and the diagram shows the other half.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.data import LabelledImages, load_dataset, rotation_range, select_split
from vae_edge.data.transforms import OOD_KINDS, make_ood_images
from vae_edge.errors import VaeEdgeError
from vae_edge.metrics import wrap_degrees
from vae_edge.report import galleries
from vae_edge.report.galleries import Block, Column, degrees
from vae_edge.training.checkpoint import Checkpoint, load_checkpoint, load_samples
from vae_edge.training.evaluate import Outputs, fit_temperature, predict, rotate_like_training, stratified_subset
from vae_edge.training.generate import derotate, reconstruct, sample_per_class, traverse

EXAMPLES, MISTAKES, AMBIGUOUS = 10, 4, 4  # images shown
DEVIATIONS = tuple(np.linspace(-2, 2, 7).tolist())
TRAVERSED_CLASSES = 5
WRONG_ANGLE_DEG = 90.0  # an angle with a larger error counts as wrong
ROWS = ("input", "derotated", "reconstructed")


@dataclass(frozen=True)
class Evaluated:
    """A run, the images that are shown (rotated as in training), and its outputs for them and for unknown images."""

    checkpoint: Checkpoint
    images: LabelledImages
    outputs: Outputs
    unknown: dict[str, Outputs]
    seed: int

    @property
    def angles_deg(self) -> NDArray[np.float32] | None:
        """The predicted angles; None without an angle encoder."""
        return self.outputs.angles_deg if self.checkpoint.config.model.orientation else None

    @property
    def true_deg(self) -> NDArray[np.float32]:
        """The angles by which the images are rotated."""
        known = self.images.angles_deg
        return np.zeros(len(self.images), np.float32) if known is None else known

    @property
    def errors_deg(self) -> NDArray[np.float64]:
        """Absolute errors of the angles."""
        return np.abs(wrap_degrees(self.outputs.angles_deg - self.true_deg))

    def class_name(self, label: int) -> str:
        """A class's name, cut where it is long."""
        name = self.images.classes[label]
        return name if len(name) <= 8 else name[:7] + "…"


def evaluate(run: Path, data: str, unknown: Sequence[str], seed: int) -> Evaluated:
    """Predict everything that the pictures show."""
    checkpoint = load_checkpoint(run)
    config = checkpoint.config
    dataset = load_dataset(data, prepared_as=config.input)
    split = "test" if dataset.test is not None else "validation"
    if split == "validation" and dataset.fingerprint() != config.data.fingerprint:
        print(f"{run} was not trained on exactly these images: some that are shown may be training images",
              file=sys.stderr)  # fmt: skip
    held_out = select_split(dataset, split, config.data.holdout_fraction, config.data.seed)
    images = held_out if held_out.angles_deg is not None else rotate_like_training(held_out, config, seed + 1)

    range_deg = rotation_range(config.training.rotation) if config.model.orientation else 0.0
    unknown_images = {kind: make_ood_images(images.images, kind, seed, range_deg) for kind in OOD_KINDS}
    for name in unknown:
        other = load_dataset(name, prepared_as=config.input)
        other_split = other.test if other.test is not None else other.train
        assert other_split is not None
        unknown_images[other.name] = rotate_like_training(
            stratified_subset(other_split, len(images), seed), config, seed + 2
        ).images
    outputs = {name: predict(checkpoint.model, pixels) for name, pixels in unknown_images.items()}
    return Evaluated(checkpoint, images, predict(checkpoint.model, images.images), outputs, seed)


def plot_all(run: Evaluated) -> dict[str, Any]:
    """The figures by the names of their files. Without an angle encoder there is none of the angles."""
    figures = {
        "derotated": galleries.derotated(derotated_lines(run)),
        "traversal": traversal(run),
        "generated": generated(run),
        "roc": roc(run),
        "reliability": reliability(run),
    }
    if run.angles_deg is not None:
        assert run.outputs.angle_confidences is not None
        names = list(run.checkpoint.ambiguous)
        ambiguous = np.isin(run.images.labels, [run.images.classes.index(name) for name in names])
        figures["angles"] = galleries.angles(run.errors_deg, run.outputs.angle_confidences, ambiguous, names)
    return figures


def derotated_lines(run: Evaluated) -> list[list[Block]]:
    """An image of each of ten classes; below them the most confident mistakes, and a class with two likely angles."""
    labels, order = run.images.labels, np.random.default_rng(run.seed).permutation(len(run.images))
    present = np.unique(labels)
    shown = present[np.unique(np.linspace(0, len(present) - 1, EXAMPLES).round().astype(int))]
    first = [order[labels[order] == k][0] for k in shown]
    wrong = np.flatnonzero(run.outputs.probabilities.argmax(1) != labels)
    most_confident = wrong[np.argsort(-run.outputs.probabilities[wrong].max(1), kind="stable")][:MISTAKES]

    rows = ROWS if run.angles_deg is not None else (ROWS[0], ROWS[2])
    title = f"One image of each class, chosen at random among {len(order):,}"
    lines = [[Block(title, rows, columns(run, first))]]
    below = []
    if len(most_confident):
        below.append(Block(f"The most confident of {len(wrong)} mistakes", rows, columns(run, most_confident)))
    if run.angles_deg is not None:
        below.append(two_angles(run))
    return [*lines, below] if below else lines


def columns(run: Evaluated, chosen: Sequence[int] | NDArray[np.int64]) -> list[Column]:
    """Input images, derotated (with an angle encoder), and reconstructed."""
    index = np.asarray(chosen)
    model, images, angles = run.checkpoint.model, run.images.images[index], run.angles_deg
    rows = [images, reconstruct(model, images)]
    if angles is not None:
        rows.insert(1, derotate(model, images, angles[index]))
    predicted = run.outputs.probabilities[index].argmax(1)

    result = []
    for position, (k, label) in enumerate(zip(index, predicted, strict=True)):
        truth, caption = int(run.images.labels[k]), []
        if label != truth:
            names = run.class_name(truth), run.class_name(label)
            caption += [" read as ".join(names)] if max(map(len, names)) <= 2 else [names[0], "read as", names[1]]
        if angles is not None:
            caption += [f"is {degrees(run.true_deg[k])}", f"found {degrees(angles[k])}"]
        wrong_angle = angles is not None and run.errors_deg[k] > WRONG_ANGLE_DEG
        shown = np.stack([row[position] for row in rows])
        result.append(Column(shown, "\n".join(caption), bool(label != truth or wrong_angle)))
    return result


def two_angles(run: Evaluated) -> Block:
    """Images of one class with the most probable second angles, derotated by either angle.

    The class is the one most symmetric under a half turn, of those known to pass for upright then. Where there is none,
    or where images are not rotated that far, it is the class whose second angles are most probable.
    """
    second_probs, second = run.outputs.second_angle_probabilities, run.outputs.second_angles_deg
    assert second_probs is not None and second is not None and run.angles_deg is not None
    labels, classes, config = run.images.labels, run.images.classes, run.checkpoint.config
    orders = run.checkpoint.ambiguous
    names = [name for name in orders if not isinstance(orders, Mapping) or orders[name] in (2, 4, 6)]
    ambiguous = [k for k in map(classes.index, names) if (labels == k).any()]
    if ambiguous and rotation_range(config.training.rotation) == 180:
        chosen, why = max(ambiguous, key=lambda k: symmetry(run, k)), "looks the same rotated by 180°: two angles"
    else:
        chosen = max(np.unique(labels).tolist(), key=lambda k: float(second_probs[labels == k].mean()))
        why = "has a second angle most often"

    own = np.flatnonzero(labels == chosen)
    shown = own[np.argsort(-second_probs[own], kind="stable")][:AMBIGUOUS]
    images = run.images.images[shown]
    by_either = [derotate(run.checkpoint.model, images, angles[shown]) for angles in (run.angles_deg, second)]
    rows = [images, *by_either]
    result = [
        Column(
            np.stack([row[position] for row in rows]),
            f"is {degrees(run.true_deg[k])}\nbest {degrees(run.angles_deg[k])}\n"
            f"2nd {degrees(second[k])}\nat {second_probs[k]:.0%}",
            bool(run.errors_deg[k] > WRONG_ANGLE_DEG),
        )
        for position, k in enumerate(shown)
    ]
    return Block(f"{run.class_name(chosen)} {why}", (ROWS[0], "by the best", "by the second"), result)


def symmetry(run: Evaluated, label: int) -> float:
    """Correlation of a class's mean upright image with itself rotated by 180°."""
    own = run.images.labels == label
    upright = derotate(run.checkpoint.model, run.images.images[own], run.true_deg[own])
    mean = upright.mean(0, dtype=np.float64)
    return float(np.corrcoef(mean.ravel(), mean[::-1, ::-1].ravel())[0, 1])


def traversal(run: Evaluated) -> Any:
    """Some classes' mean codes, moved along the two principal directions of the codes of the images shown."""
    labels, codes = run.images.labels, run.outputs.codes
    enough = [k for k in range(len(run.images.classes)) if (labels == k).sum() >= 3]
    positions = np.unique(np.linspace(0, len(enough) - 1, TRAVERSED_CLASSES).round().astype(int))
    shown = [enough[k] for k in positions]
    traversed = [traverse(run.checkpoint.model, codes[torch.from_numpy(labels == k)], k, DEVIATIONS) for k in shown]
    images, ratios = (np.stack(parts) for parts in zip(*traversed, strict=True))
    return galleries.traversal(images, ratios, [run.class_name(k) for k in shown], DEVIATIONS)


def generated(run: Evaluated) -> Any:
    """Generated images of each class, at angles over the range of training."""
    config = run.checkpoint.config
    range_deg = rotation_range(config.training.rotation) if config.model.orientation else 0.0
    known = {0.0: [0.0] * 12, 180.0: [float(angle) for angle in range(-150, 181, 30)]}
    angles = known.get(range_deg) or np.linspace(-range_deg, range_deg, 7).tolist()
    samples = sample_per_class(
        run.checkpoint.model,
        config.classes,
        len(angles),
        load_samples(run.checkpoint.path),
        config.data.absent,
        angles,
        run.seed,
    )
    for name, why in samples.missing.items():
        print(f"no generated images of {name}: {why}", file=sys.stderr)
    images = {name: samples.images.get(name) for name in config.classes}
    return galleries.generated(images, angles if range_deg else None)


def roc(run: Evaluated) -> Any:
    """The anomaly score with and without the reconstruction term, and their thresholds."""
    known, result = run.outputs, run.checkpoint.result
    full = {kind: outputs.scores for kind, outputs in run.unknown.items()}
    fast = {kind: outputs.fast_scores for kind, outputs in run.unknown.items()}
    return galleries.roc(
        {
            "full score": (known.scores, full, result.threshold),
            "fast score, without the reconstruction": (known.fast_scores, fast, result.threshold_fast),
        }
    )


def reliability(run: Evaluated) -> Any:
    """Probabilities of one half of the images, with the temperature of the other half."""
    fitted, tested = np.array_split(np.random.default_rng(run.seed).permutation(len(run.images)), 2)
    logits, labels = run.outputs.logits.astype(np.float64), run.images.labels
    temperature = fit_temperature(logits[fitted], labels[fitted])
    return galleries.reliability_diagram(
        softmax(logits[tested]), softmax(logits[tested] / temperature), labels[tested], temperature
    )


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits [N, K] to probabilities."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def main() -> int:
    """Plot and write every picture; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="what the run was trained on")
    parser.add_argument("--unknown", action="append", default=[], help="a data set of other things; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--seed", type=int, default=0, help="which images are chosen (default: 0)")
    arguments = parser.parse_args()
    try:
        run = evaluate(arguments.run, arguments.data, arguments.unknown, arguments.seed)
        for name, figure in plot_all(run).items():
            print(galleries.write_png(figure, arguments.out / f"{name}.png"))
    except VaeEdgeError as error:
        print(f"render_images: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
