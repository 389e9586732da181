"""Pictures of what a trained model does, on images that it was not trained on: docs/pictures/*.png.

    python bench/pictures.py RUN --data DATA [--unknown DATA ...] [--out docs/pictures]

RUN is a finished training run and DATA what it was trained on. Shown are images of the test half or, where there is
none, those that were held out of the training half. `--unknown` names data sets of other things (clothes, say), which
are turned as far as the run's images are. The temperature in the reliability diagram is fitted on one half of the
images, and the diagram is that of the other half.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.api import resolve_split
from vae_edge.data import LabelledImages, load_dataset, rotation_range, select_split
from vae_edge.data.transforms import KINDS, make_unknown
from vae_edge.errors import VaeEdgeError
from vae_edge.metrics import wrap_degrees
from vae_edge.report import galleries
from vae_edge.report.galleries import Block, Column, degrees
from vae_edge.training.checkpoint import Checkpoint, load_checkpoint, load_samples
from vae_edge.training.evaluate import Outputs, as_trained, fit_temperature, predict, sample_of
from vae_edge.training.visualize import draw_each, reconstructed, traverse, turned_back

EXAMPLES, MISTAKES, DOUBTFUL = 10, 4, 4
DEVIATIONS = tuple(np.linspace(-2, 2, 7).tolist())
TRAVERSED = 5  # classes
FAR_OFF = 90.0  # degrees from which on an angle counts as wrong
ROWS = ("as it came", "turned back", "reconstructed")


@dataclass(frozen=True)
class Seen:
    """A run, the images it is shown (turned as it was trained), and what it says of them and of unknown ones."""

    checkpoint: Checkpoint
    images: LabelledImages
    outputs: Outputs
    unknown: dict[str, Outputs]
    seed: int

    @property
    def angles_deg(self) -> NDArray[np.float32] | None:
        """The angles found, where the model has an angle encoder."""
        return self.outputs.angles_deg if self.checkpoint.config.model.pose else None

    @property
    def true_deg(self) -> NDArray[np.float32]:
        """How far the images are turned."""
        known = self.images.angles_deg
        return np.zeros(len(self.images), np.float32) if known is None else known

    @property
    def errors_deg(self) -> NDArray[np.float64]:
        """Absolute errors of the angles."""
        return np.abs(wrap_degrees(self.outputs.angles_deg - self.true_deg))


def look(run: Path, data: str, unknown: Sequence[str], seed: int) -> Seen:
    """Predict what the pictures show."""
    checkpoint = load_checkpoint(run)
    config = checkpoint.config
    dataset = load_dataset(data, prepared_as=config.input)
    split = resolve_split("auto", dataset, config.data["fingerprint"], run)
    held = select_split(dataset, split, config.data["holdout_fraction"], config.data["seed"])
    images = held if held.angles_deg is not None else as_trained(held, config, seed + 1)
    letters_turn_deg = rotation_range(config.training.rotation) if config.model.pose else 0.0
    strange = {kind: make_unknown(images.images, kind, seed, letters_turn_deg) for kind in KINDS}
    for name in unknown:
        other = load_dataset(name, prepared_as=config.input)
        half = other.test if other.test is not None else other.train
        assert half is not None
        strange[other.name] = as_trained(sample_of(half, len(images), seed), config, seed + 2).images
    outputs = {name: predict(checkpoint.model, pages) for name, pages in strange.items()}
    return Seen(checkpoint, images, predict(checkpoint.model, images.images), outputs, seed)


def draw(seen: Seen) -> dict[str, Any]:
    """The figures by the names of their files; without an angle encoder there is none of the angles."""
    figure = {
        "turned": galleries.turned(turned_lines(seen)),
        "traversal": traversal(seen),
        "generated": generated(seen),
        "roc": roc(seen),
        "reliability": reliability(seen),
    }
    if seen.angles_deg is not None:
        assert seen.outputs.concentrations is not None
        names = seen.checkpoint.config.data["ambiguous"]
        alike = np.isin(seen.images.labels, [seen.images.classes.index(name) for name in names])
        figure["angles"] = galleries.angles(seen.errors_deg, seen.outputs.concentrations, alike, names)
    return figure


def turned_lines(seen: Seen) -> list[list[Block]]:
    """One image of each of ten classes; below them the most confident mistakes, and a class with two best angles."""
    labels, order = seen.images.labels, np.random.default_rng(seen.seed).permutation(len(seen.images))
    present = np.unique(labels)
    shown = present[np.unique(np.linspace(0, len(present) - 1, EXAMPLES).round().astype(int))]
    first = [order[labels[order] == k][0] for k in shown]
    wrong = np.flatnonzero(seen.outputs.probabilities.argmax(1) != labels)
    worst = wrong[np.argsort(-seen.outputs.probabilities[wrong].max(1), kind="stable")][:MISTAKES]
    rows = ROWS if seen.angles_deg is not None else (ROWS[0], ROWS[2])
    lines = [[Block(f"One image of each class, drawn at random among {len(order):,}", rows, columns(seen, first))]]
    below = []
    if len(worst):
        below.append(Block(f"The most confident of {len(wrong)} mistakes", rows, columns(seen, worst)))
    if seen.angles_deg is not None:
        below.append(two_angles(seen))
    return [*lines, below] if below else lines


def columns(seen: Seen, chosen: Sequence[int] | NDArray[np.int64]) -> list[Column]:
    """Images as they came, turned back (with an angle encoder), and reconstructed."""
    index = np.asarray(chosen)
    model, images, angles = seen.checkpoint.model, seen.images.images[index], seen.angles_deg
    rows = [images, reconstructed(model, images)]
    if angles is not None:
        rows.insert(1, turned_back(model, images, angles[index]))
    found = seen.outputs.probabilities[index].argmax(1)
    result = []
    for place, (k, answer) in enumerate(zip(index, found, strict=True)):
        truth, words = int(seen.images.labels[k]), []
        if answer != truth:
            names = short(seen, truth), short(seen, answer)
            words += [" read as ".join(names)] if max(map(len, names)) <= 2 else [names[0], "read as", names[1]]
        if angles is not None:
            words += [f"is {degrees(seen.true_deg[k])}", f"found {degrees(angles[k])}"]
        off = angles is not None and seen.errors_deg[k] > FAR_OFF
        pictures = np.stack([row[place] for row in rows])
        result.append(Column(pictures, "\n".join(words), bool(answer != truth or off)))
    return result


def short(seen: Seen, label: int) -> str:
    """A class's name, cut where it is long."""
    name = seen.images.classes[label]
    return name if len(name) <= 8 else name[:7] + "…"


def two_angles(seen: Seen) -> Block:
    """Images of one class whose second-best angle is most probable, turned back by either angle.

    Of the classes known to pass for upright ones when turned by half it is the most symmetric one; where there are
    none, or images are not turned that far, that whose second-best angles are most probable.
    """
    shares, second = seen.outputs.second_shares, seen.outputs.second_angles_deg
    assert shares is not None and second is not None and seen.angles_deg is not None
    labels, classes = seen.images.labels, seen.images.classes
    config = seen.checkpoint.config
    ambiguous = [k for k in map(classes.index, config.data["ambiguous"]) if (labels == k).any()]
    if ambiguous and rotation_range(config.training.rotation) == 180:
        chosen, why = max(ambiguous, key=lambda k: symmetry(seen, k)), "looks the same turned by half: two angles"
    else:
        chosen = max(np.unique(labels).tolist(), key=lambda k: float(shares[labels == k].mean()))
        why = "has a second angle most often"
    own = np.flatnonzero(labels == chosen)
    most = own[np.argsort(-shares[own], kind="stable")][:DOUBTFUL]
    images = seen.images.images[most]
    rows = [images] + [turned_back(seen.checkpoint.model, images, found[most]) for found in (seen.angles_deg, second)]
    result = [
        Column(
            np.stack([row[place] for row in rows]),
            f"is {degrees(seen.true_deg[k])}\nbest {degrees(seen.angles_deg[k])}\n"
            f"2nd {degrees(second[k])}\nat {shares[k]:.0%}",
            bool(seen.errors_deg[k] > FAR_OFF),
        )
        for place, k in enumerate(most)
    ]
    return Block(f"{short(seen, chosen)} {why}", (ROWS[0], "by the best", "by the second"), result)


def symmetry(seen: Seen, label: int) -> float:
    """Correlation of a class's mean upright image with itself turned by half."""
    own = seen.images.labels == label
    upright = turned_back(seen.checkpoint.model, seen.images.images[own], seen.true_deg[own])
    mean = upright.mean(0, dtype=np.float64)
    return float(np.corrcoef(mean.ravel(), mean[::-1, ::-1].ravel())[0, 1])


def traversal(seen: Seen) -> Any:
    """Some classes' mean codes, moved along the two principal directions of the codes of the images drawn on."""
    labels, codes = seen.images.labels, seen.outputs.codes
    enough = [k for k in range(len(seen.images.classes)) if (labels == k).sum() >= 3]
    shown = [enough[k] for k in np.unique(np.linspace(0, len(enough) - 1, TRAVERSED).round().astype(int))]
    made = [traverse(seen.checkpoint.model, codes[torch.from_numpy(labels == k)], k, DEVIATIONS) for k in shown]
    pictures, shares = (np.stack(parts) for parts in zip(*made, strict=True))
    return galleries.traversal(pictures, shares, [short(seen, k) for k in shown], DEVIATIONS)


def generated(seen: Seen) -> Any:
    """New images of each class, at angles over the range of training."""
    config = seen.checkpoint.config
    reach = rotation_range(config.training.rotation) if config.model.pose else 0.0
    known = {0.0: [0.0] * 12, 180.0: [float(angle) for angle in range(-150, 181, 30)]}
    angles = known.get(reach) or np.linspace(-reach, reach, 7).tolist()
    drawn = draw_each(
        seen.checkpoint.model,
        config.classes,
        len(angles),
        load_samples(seen.checkpoint.path),
        config.data["absent"],
        angles,
        seen.seed,
    )
    for name, why in drawn.missing.items():
        print(f"no generated images of {name}: {why}", file=sys.stderr)
    return galleries.generated({name: drawn.images.get(name) for name in config.classes}, angles if reach else None)


def roc(seen: Seen) -> Any:
    """The rejection score with and without the reconstruction, and their thresholds."""
    known, result = seen.outputs, seen.checkpoint.result
    full = {kind: found.scores for kind, found in seen.unknown.items()}
    light = {kind: found.light_scores for kind, found in seen.unknown.items()}
    return galleries.roc(
        {
            "full score": (known.scores, full, result["threshold"]),
            "light score, without the reconstruction": (known.light_scores, light, result["threshold_light"]),
        }
    )


def reliability(seen: Seen) -> Any:
    """Probabilities of one half of the images, with the temperature of the other half."""
    fitted, judged = np.array_split(np.random.default_rng(seen.seed).permutation(len(seen.images)), 2)
    logits, labels = seen.outputs.logits.astype(np.float64), seen.images.labels
    temperature = fit_temperature(logits[fitted], labels[fitted])
    return galleries.reliability_diagram(
        softmax(logits[judged]), softmax(logits[judged] / temperature), labels[judged], temperature
    )


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits [N, K] to probabilities."""
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def main() -> int:
    """Draw and write every picture; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="what the run was trained on")
    parser.add_argument("--unknown", action="append", default=[], help="a data set of other things; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--seed", type=int, default=0, help="which images are drawn (default: 0)")
    arguments = parser.parse_args()
    try:
        seen = look(arguments.run, arguments.data, arguments.unknown, arguments.seed)
        for name, figure in draw(seen).items():
            print(galleries.write_png(figure, arguments.out / f"{name}.png"))
    except VaeEdgeError as error:
        print(f"pictures: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
