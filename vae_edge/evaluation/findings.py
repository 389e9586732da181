"""What figures mean, in sentences: classes that are never right, angles that say nothing, what was not tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vae_edge.metrics import MIN_ACCURACY_GAP, wilson_interval

MAX_NAMED = 5  # classes named in a sentence
MIN_CLASS_IMAGES = 5  # of a class that is called far below the others
MAX_ANGLE_DEG = 30.0  # median error, up to symmetry, above which angles are not to be relied on
MAX_OF_CHANCE = 0.8  # median error relative to that of always guessing upright
MAX_NEAR_COPIES = 0.05  # fraction of the held-out images
RATE_FACTOR = 3.0  # rejected known images, relative to the rate asked for
MAX_ACCEPTED_UNKNOWN = 0.5
MIN_AUROC = 0.7


@dataclass(frozen=True)
class WeakClass:
    """A class that is right far less often than the others: `accuracy` of `images` images."""

    name: str
    accuracy: float
    images: int

    def words(self) -> str:
        """Such as "`grass` 31.2% of 80"."""
        return f"`{self.name}` {self.accuracy:.1%} of {self.images}"


def never_right(figures: Mapping[str, Any]) -> list[WeakClass]:
    """The classes of which no image is right, those with the most images first; `figures` are those of `summarize`."""
    counts = figures.get("images_by_class", {})
    found = [
        WeakClass(name, accuracy, counts[name])
        for name, accuracy in figures.get("accuracy_by_class", {}).items()
        if accuracy == 0 and name in counts
    ]
    return sorted(found, key=lambda weak: -weak.images)


def weak_classes(figures: Mapping[str, Any]) -> list[WeakClass]:
    """The classes that are right far less often than all images, beyond chance; the worst first.

    Far is 10 points, and beyond chance is that the 95% interval of the class ends below the accuracy of all. Classes
    that are never right, and those of fewer than five images, are not among them.
    """
    counts = figures.get("images_by_class", {})
    found = []
    for name, accuracy in figures.get("accuracy_by_class", {}).items():
        n = counts.get(name, 0)
        far = 0 < accuracy <= figures["accuracy"] - MIN_ACCURACY_GAP
        if n >= MIN_CLASS_IMAGES and far and wilson_interval(round(accuracy * n), n)[1] < figures["accuracy"]:
            found.append(WeakClass(name, accuracy, n))
    return sorted(found, key=lambda weak: weak.accuracy)


def angle_is_reliable(figures: Mapping[str, Any], range_deg: float) -> bool | None:
    """Whether the angles of images that were rotated by up to ±`range_deg` can be relied on; None without angles.

    The median error, up to the symmetry of the classes, must be at most 30° and at most 0.8 times that of always
    guessing upright, which is half the range.
    """
    error = figures.get("angle_error_deg")
    if error is None or range_deg == 0:
        return None
    median = float(error.get("up_to_symmetry", error)["median"])
    return median <= min(MAX_ANGLE_DEG, MAX_OF_CHANCE * range_deg / 2)


def class_warnings(figures: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on classes that are never right, or right far less often than the others."""
    never = never_right(figures)
    if never:
        names = _listed([f"`{weak.name}` (0 of {weak.images})" for weak in never])
        yield f"{names} {'is' if len(never) == 1 else 'are'} never right{_taken_for(figures, never)}"
    weak = weak_classes(figures)
    if weak:
        yield f"far below the {figures['accuracy']:.1%} of all images: {_listed([each.words() for each in weak])}"


def _taken_for(figures: Mapping[str, Any], never: Sequence[WeakClass]) -> str:
    """Of a single class: what it is taken for most often."""
    if len(never) > 1:
        return ""
    for row in figures.get("confusions", ()):
        if row["class"] == never[0].name:
            return f": taken for `{row['predicted']}` {row['count']} times"
    return ""


def angle_warnings(figures: Mapping[str, Any], range_deg: float) -> Iterator[str]:
    """A sentence where the angles cannot be relied on."""
    if angle_is_reliable(figures, range_deg) is False:
        error = figures["angle_error_deg"]
        median = error.get("up_to_symmetry", error)["median"]
        chance = f"always guessing upright gives {range_deg / 2:g}°"
        yield f"the angles are not to be relied on: their median error is {median:.0f}° ({chance})"


def rejection_warnings(rejection: Mapping[str, Any], reject_rate: float) -> Iterator[str]:
    """Sentences where a threshold does not keep its promise; `rejection` is that of `evaluation.figures.rejection`."""
    low = rejection["known_rejected_interval"][0]
    if low > reject_rate and rejection["known_rejected"] > RATE_FACTOR * reject_rate:
        yield (
            f"{rejection['known_rejected']:.1%} of these known images are rejected, where {reject_rate:.1%} was asked "
            "for: the threshold was set on images that are more like the training images than these; `vae-edge "
            "threshold` sets it anew"
        )
    for name, found in rejection["unknown"].items():
        if found["auroc"] < MIN_AUROC:
            yield f"{name}: the anomaly score hardly tells these images from known ones (AUROC {found['auroc']:.3f})"
        elif found["accepted"] > MAX_ACCEPTED_UNKNOWN:
            yield f"{name}: {found['accepted']:.1%} of these unknown images are accepted"


def near_copy_warnings(found: Mapping[str, int] | None) -> Iterator[str]:
    """A sentence where many held-out images are near copies of training images; `found` is of `near_copies`."""
    if found and found["found"] > MAX_NEAR_COPIES * found["compared"]:
        yield (
            f"{found['found']} of {found['compared']} held-out images are near copies of training images: these "
            "figures are too good for new ones, and the threshold is too strict"
        )


def all_warnings(figures: Mapping[str, Any], range_deg: float, reject_rate: float | None = None) -> list[str]:
    """Every sentence that the figures of an evaluation call for."""
    found = [*class_warnings(figures), *angle_warnings(figures, range_deg)]
    if reject_rate is not None and "rejection" in figures:
        found += rejection_warnings(figures["rejection"], reject_rate)
    return [*found, *near_copy_warnings(figures.get("near_copies"))]


def confusion_words(figures: Mapping[str, Any], most: int = MAX_NAMED) -> str:
    """The most frequent confusions, such as "grass taken for sand: 61 of 80"; empty if there are none."""
    return ", ".join(
        f"{row['class']} taken for {row['predicted']}: {row['count']} of {row['of']}"
        for row in figures.get("confusions", ())[:most]
    )


def symmetry_words(orders: Mapping[str, int]) -> str:
    """Which classes look the same when rotated, such as "bar (180°), square (90°), disc (any angle)"."""
    return _listed([f"{name} ({f'{360 / order:g}°' if order else 'any angle'})" for name, order in orders.items()])


def _groups(count: int) -> str:
    return f"{count} group{'' if count == 1 else 's'}"


def _listed(names: Sequence[str], most: int = MAX_NAMED) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def group_words(groups: Mapping[str, Any]) -> str:
    """The groups of an evaluation's images, and the worst of them."""
    low, high = groups["worst_accuracy"], groups["most_rejected"]
    unseen = "" if groups["unseen"] is None else f", {groups['unseen']} of them not trained on"
    return (
        f"{_groups(groups['groups'])}{unseen}; "
        f"right at least {low['accuracy']:.1%} ({low['name']}, {low['n']} images), "
        f"rejected at most {high['rejected']:.1%} ({high['name']}, {high['n']} images)"
    )


def threshold_words(figures: Mapping[str, Any]) -> str:
    """What the threshold is and was set on, of an evaluation's figures."""
    rejected, set_on = figures["rejection"], figures["set_on"]
    images = f"{set_on['images']} " if set_on.get("images") else ""
    where = f"{images}images of {set_on['data']}" if "date" in set_on else f"{images}held-out images of training"
    groups = set_on.get("groups")
    of = f" of {_groups(groups['groups'])}" if groups else ""
    same = ", these very ones" if set_on.get("same_images") else ""
    return f"up to {rejected['threshold']:.3f} (set to reject {rejected['reject_rate']:.2%} of {where}{of}{same})"


def tried_words(figures: Mapping[str, Any]) -> str:
    """What was tried and what was not, of an evaluation's figures."""
    unknown = figures["rejection"]["unknown"]
    count, kinds = sum(found["n"] for found in unknown.values()), len(unknown)
    shown = f"{count} unknown images of {kinds} kind{'s' if kinds > 1 else ''}" if unknown else "no unknown images"
    copies = figures.get("near_copies")
    near = (
        "whether images like these were trained on was not looked at"
        if copies is None
        else f"{copies['found']} of {copies['compared']} known images are near copies of training images"
    )
    groups = figures.get("groups")
    held = (
        "of groups (makers, cameras, days) nothing is known"
        if not groups
        else f"they are of {_groups(groups['groups'])}"
        + ("" if groups["unseen"] is None else f", {groups['unseen']} of them not trained on")
    )
    return f"{figures['n']} known images, {shown}; {near}; {held}"


def summary_sentences(figures: Mapping[str, Any], precisions: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """What an evaluation says, in sentences for somebody who has not seen its figures.

    Args:
        figures: the JSON of an evaluation.
        precisions: rows with `precision`, `accuracy` and `accepted`.
    """
    low, high = figures["accuracy_interval"]
    how = {"none": "", "full": ", rotated by any angle,", "as given": ""}
    rotated = how.get(figures["rotation"], f", rotated by up to {figures['rotation']}°,")
    sentences = [
        f"{figures['accuracy']:.1%} of {figures['n']:,} images of {figures['data']}{rotated} are right (95% interval "
        f"{low:.1%} to {high:.1%})."
    ]
    if "upright" in figures:
        sentences.append(f"Upright, {figures['upright']['accuracy']:.1%} are right.")
    if figures.get("confusions"):
        row = figures["confusions"][0]
        often = f"{row['count']} of {row['of']}"
        sentences.append(f"The most frequent mistake: `{row['class']}` taken for `{row['predicted']}`, {often}.")
    error = figures["expected_calibration_error"]
    sentences.append(f"Its probabilities are off by {100 * error:.1f} points on average (expected calibration error).")
    if "angle_error_deg" in figures and figures["rotation"] != "none":
        angle = figures["angle_error_deg"]
        sentences.append(
            f"The angle is off by {angle['median']:.1f}° in the median, by more than 90° in {angle['beyond_90']:.1%}."
        )
    sentences += _rejection_sentences(figures)
    by_precision = {row["precision"]: row for row in precisions}
    if {"fp32", "int8"} <= by_precision.keys():
        fp32, int8 = by_precision["fp32"], by_precision["int8"]
        sentences.append(
            f"int8 gets {int8['accuracy']:.1%} right where fp32 gets {fp32['accuracy']:.1%}, and accepts "
            f"{int8['accepted']:.1%} where fp32 accepts {fp32['accepted']:.1%}."
        )
    return sentences


def _rejection_sentences(figures: Mapping[str, Any]) -> Iterator[str]:
    """What is rejected of known and of unknown images, and what was not tried."""
    rejected = figures["rejection"]
    yield (
        f"{rejected['known_rejected']:.1%} of these known images are rejected as unknown; the threshold was set to "
        f"reject {rejected['reject_rate']:.1%}."
    )
    for name, found in rejected["unknown"].items():
        yield f"Of the unknown images `{name}`, {found['accepted']:.1%} are accepted (AUROC {found['auroc']:.3f})."
    if not rejected["unknown"]:
        yield "Images of other things were not tried: give a folder of some with --unknown."
