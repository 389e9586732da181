"""Sentences about figures: each is there where its figure calls for it, and not where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vae_edge.data import LabelledImages
from vae_edge.evaluation.figures import Measured, figures, rejection
from vae_edge.evaluation.findings import (
    all_warnings,
    angle_is_reliable,
    confusion_words,
    never_right,
    rejection_warnings,
    summary_sentences,
    symmetry_words,
    threshold_words,
    tried_words,
    weak_classes,
)

NAMES = ("grass", "sand", "sea")


def measured(predicted: list[int], labels: list[int], angles: np.ndarray | None = None) -> Measured:
    """Predictions of three classes, each image with its true angle 0."""
    n = len(labels)
    images = LabelledImages(np.zeros((n, 28, 28, 1), np.uint8), np.array(labels), NAMES, np.zeros(n, np.float32))
    probabilities = 0.8 * np.eye(3)[predicted] + 0.2 / 3
    return Measured(images, (probabilities, np.zeros(n) if angles is None else angles, np.arange(n, dtype=float)))


def told(predicted: list[int], labels: list[int], angles: np.ndarray | None = None, **ambiguous: int) -> dict[str, Any]:
    return figures(measured(predicted, labels, angles), NAMES, 0.0, ambiguous)


def test_a_class_that_is_never_right_is_named_with_what_it_is_taken_for() -> None:
    found = told([1] * 61 + [2] * 19 + [1] * 80 + [2] * 80, [0] * 80 + [1] * 80 + [2] * 80)
    assert [(each.name, each.images) for each in never_right(found)] == [("grass", 80)]
    assert weak_classes(found) == []
    assert all_warnings(found, 180.0)[0] == "`grass` (0 of 80) is never right: taken for `sand` 61 times"
    assert confusion_words(found) == "grass taken for sand: 61 of 80, grass taken for sea: 19 of 80"
    assert found["classes"] == list(NAMES) and found["confusion"][0] == [0, 61, 19]


def test_a_class_far_below_the_others_is_named_only_where_chance_does_not_explain_it() -> None:
    weak = told([0] * 40 + [1] * 40 + [1] * 80 + [2] * 80, [0] * 80 + [1] * 80 + [2] * 80)
    assert [each.words() for each in weak_classes(weak)] == ["`grass` 50.0% of 80"]
    assert all_warnings(weak, 0.0) == ["far below the 83.3% of all images: `grass` 50.0% of 80"]
    few = told([0, 1] + [1] * 80 + [2] * 80, [0, 0] + [1] * 80 + [2] * 80)
    assert weak_classes(few) == [] and all_warnings(few, 0.0) == []


@pytest.mark.parametrize(
    ("median", "range_deg", "reliable"),
    [(3.0, 180.0, True), (29.0, 180.0, True), (31.0, 180.0, False), (13.0, 30.0, False), (11.0, 30.0, True)],
)
def test_angles_are_reliable_within_30_degrees_and_clearly_better_than_guessing_upright(
    median: float, range_deg: float, reliable: bool
) -> None:
    found = told([0] * 9, [0] * 9, np.full(9, median))
    assert angle_is_reliable(found, range_deg) is reliable
    said = [sentence for sentence in all_warnings(found, range_deg) if "not to be relied on" in sentence]
    assert bool(said) is not reliable
    assert all(f"{median:.0f}°" in sentence and f"upright gives {range_deg / 2:g}°" in sentence for sentence in said)


def test_angles_of_symmetric_shapes_are_judged_up_to_their_symmetry() -> None:
    angles = np.resize([0.0, 180.0, 178.0], 60)
    assert angle_is_reliable(told([0] * 60, [0] * 60, angles), 180.0) is False
    folded = told([0] * 60, [0] * 60, angles, grass=2)
    assert folded["angle_error_deg"]["up_to_symmetry"]["median"] == 0.0 and angle_is_reliable(folded, 180.0)
    assert "up_to_symmetry" not in told([0] * 60, [0] * 60, angles, grass=0)["angle_error_deg"]  # no angle at all
    assert symmetry_words({"bar": 2, "square": 4, "disc": 0}) == "bar (180°), square (90°), disc (any angle)"


def test_without_rotation_nothing_is_said_of_angles() -> None:
    assert angle_is_reliable(told([0], [0], np.array([90.0])), 0.0) is None
    assert angle_is_reliable({"accuracy": 1.0}, 180.0) is None


def test_a_threshold_that_rejects_too_many_known_images_is_told() -> None:
    known, unknown = np.arange(100.0), {"letters": np.arange(100.0) + 90, "look-alikes": np.arange(100.0)}
    found = rejection(known, unknown, 79.0)
    assert found["known_rejected"] == 0.2 and found["unknown"]["letters"]["accepted"] == 0.0
    said = list(rejection_warnings(found, 0.01))
    assert len(said) == 2 and said[0].startswith("20.0% of these known images are rejected, where 1.0% was asked for")
    assert said[1].startswith("look-alikes: the anomaly score hardly tells")
    kept = rejection(known, {"letters": np.arange(100.0) + 30}, 98.0)
    assert [sentence[:24] for sentence in rejection_warnings(kept, 0.01)] == ["letters: 69.0% of these "]


def test_near_copies_are_told_from_one_in_twenty_on() -> None:
    found = told([0] * 3, [0] * 3)
    assert all_warnings({**found, "near_copies": {"compared": 100, "found": 5}}, 0.0) == []
    assert (
        "6 of 100 held-out images are near copies"
        in all_warnings({**found, "near_copies": {"compared": 100, "found": 6}}, 0.0)[0]
    )


def evaluated(**more: Any) -> dict[str, Any]:
    found = told([0, 1, 1, 2], [0, 0, 1, 2])
    scores = np.arange(4.0)
    about = {"data": "beach", "rotation": "full", "set_on": {"images": 40, "split": "validation", "data": "beach"}}
    return {**found, **about, "rejection": {**rejection(scores, {}, 2.0), "reject_rate": 0.01}, **more}


def test_the_summary_says_what_was_and_what_was_not_tried() -> None:
    said = summary_sentences(evaluated(), [])
    assert said[0] == "75.0% of 4 images of beach, rotated by any angle, are right (95% interval 30.1% to 95.4%)."
    assert said[1] == "The most frequent mistake: `grass` taken for `sand`, 1 of 2."
    assert said[-1].startswith("Images of other things were not tried")
    assert "25.0% of these known images are rejected as unknown; the threshold was set to reject 1.0%." in said
    assert tried_words(evaluated()) == (
        "4 known images, no unknown images; whether images like these were trained on was not looked at; "
        "of groups (makers, cameras, days) nothing is known"
    )
    assert "(set to reject 1.00% of 40 held-out images of training)" in threshold_words(evaluated())


def test_the_summary_has_the_unknown_images_and_what_int8_costs() -> None:
    unknown = {**rejection(np.arange(4.0), {"letters": np.array([1.0, 9.0])}, 2.0), "reject_rate": 0.01}
    rows = [
        {"precision": "fp32", "accuracy": 0.9, "accepted": 0.99},
        {"precision": "int8", "accuracy": 0.88, "accepted": 0.95},
    ]
    said = summary_sentences(evaluated(rejection=unknown), rows)
    assert "Of the unknown images `letters`, 50.0% are accepted (AUROC 0.688)." in said
    assert said[-1] == "int8 gets 88.0% right where fp32 gets 90.0%, and accepts 95.0% where fp32 accepts 99.0%."
