"""The commands that say what a trained model is worth: evaluate, threshold, report; and the lines that they share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vae_edge.cli.console import emit, percent
from vae_edge.evaluation.findings import (
    confusion_words,
    group_words,
    never_right,
    symmetry_words,
    threshold_words,
    tried_words,
)
from vae_edge.metrics import hides_classes
from vae_edge.progress import counting_progress

if TYPE_CHECKING:
    from vae_edge.reporting import WrittenReport
    from vae_edge.thresholds import ThresholdResult

MAX_CLASSES_PRINTED = 20  # the worst ones


def _measuring(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that evaluate, threshold and report share: which images are measured, and how."""
    names = ("split", "threads", "device", "trusted", "seed", "strict", "group_by", "val", "cache")
    return {
        "unknown": arguments.unknown or (),
        "rotation": None if arguments.rotation is None else str(arguments.rotation),
        **{name: getattr(arguments, name) for name in names},
    }


def evaluate(arguments: argparse.Namespace) -> None:
    """`vae-edge evaluate`."""
    from vae_edge.trained import evaluate

    with counting_progress("evaluating") as progress:
        chosen = {"backend": arguments.backend, "precision": arguments.precision}
        result = evaluate(arguments.model, arguments.data, **chosen, **_measuring(arguments), progress=progress)
    emit(result.to_json(), arguments.json, lambda: evaluation_lines(result.to_json()))


def evaluation_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """An evaluation in text."""
    yield (
        f"{result['model']} ({result['kind']}, {result['backend']}, {result['precision']}) on {result['n']} images of "
        f"{result['data']} ({result['split']}), rotation {result['rotation']}"
    )
    low, high = result["accuracy_interval"]
    yield f"  accuracy     {percent(result['accuracy'])} (95% interval {low:.1%} to {high:.1%})"
    yield from figure_lines(result)
    rejected = result["rejection"]
    yield f"  accepted     {percent(result['accepted'])} by the anomaly score, {threshold_words(result)}"
    for name, found in rejected["unknown"].items():
        yield _unknown_line(name, found)
    if not rejected["unknown"]:
        yield "  unknown      none were shown: --unknown DIR says how many images of other things are accepted"
    if "groups" in result:
        yield f"  groups       {group_words(result['groups'])}"
    if "upright" in result:
        yield f"  upright      {percent(result['upright']['accuracy'])}"
    yield f"  tried        {tried_words(result)}"
    yield from (f"warning: {sentence}" for sentence in result["warnings"])


def _unknown_line(name: str, found: Mapping[str, Any]) -> str:
    return f"  unknown      {name}: {percent(found['accepted'])} of {found['n']} accepted, AUROC {found['auroc']:.4f}"


def figure_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """What the figures say beside the accuracy: of classes, confusions, calibration and angles."""
    yield from class_lines(figures)
    confusions = confusion_words(figures)
    if confusions:
        yield f"  confusions   {confusions}"
    if "expected_calibration_error" in figures:
        yield f"  calibration  {percent(figures['expected_calibration_error'])} expected calibration error"
    if "angle_error_deg" in figures:
        yield from _angle_lines(figures["angle_error_deg"])


def class_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    """Classes that are never right; balanced accuracy and each class, where the accuracy of all hides something."""
    never = never_right(figures)
    if never:
        more = f" and {len(never) - MAX_CLASSES_PRINTED} more" if len(never) > MAX_CLASSES_PRINTED else ""
        names = ", ".join(f"{each.name} (0 of {each.images})" for each in never[:MAX_CLASSES_PRINTED])
        yield f"  NEVER RIGHT  {names}{more}"
    if "images_by_class" not in figures or not hides_classes(figures):  # a run of an earlier version has no counts
        return
    yield f"  balanced     {percent(figures['balanced_accuracy'])}, the mean over the classes"
    fractions = sorted(figures["accuracy_by_class"].items(), key=lambda item: item[1])
    counts = figures["images_by_class"]
    words = [f"{name} {percent(fraction)} of {counts[name]}" for name, fraction in fractions[:MAX_CLASSES_PRINTED]]
    if len(fractions) > MAX_CLASSES_PRINTED:
        words.append(
            f"{len(fractions) - MAX_CLASSES_PRINTED} more at {percent(fractions[MAX_CLASSES_PRINTED][1])} or above"
        )
    yield f"  by class     {', '.join(words)}"


def _angle_lines(error: Mapping[str, Any]) -> Iterator[str]:
    yield f"  angle error  {angle_error_words(error)}"
    if "up_to_symmetry" in error:
        folded = error["up_to_symmetry"]
        yield f"    up to the symmetry of the classes: median {folded['median']}°, mean {folded['mean']}°"
    if "without_ambiguous" in error:
        clear = error["without_ambiguous"]
        names = ", ".join(clear["ambiguous_classes"])
        yield f"    without {names}: median {clear['median']}°, mean {clear['mean']}°"
    if "either_of_two" in error:
        yield f"    the better of the two best angles: {angle_error_words(error['either_of_two'])}"
    if "by_angle_confidence" in error:
        halves = " and ".join(f"{median}°" for median in error["by_angle_confidence"].values())
        yield f"    medians of the half with the highest angle confidence, and of the rest: {halves}"


def angle_error_words(error: Mapping[str, Any]) -> str:
    """Median, mean and fraction beyond 90° of an angle's error."""
    return f"median {error['median']}°, mean {error['mean']}°, {percent(error['beyond_90'])} beyond 90°"


def held_out_lines(result: Any) -> Iterator[str]:
    """What training measured on its held-out images (a `TrainResult`), in text."""
    rotated, upright = result.validation, result.validation_upright
    yield f"validation, {rotated['n']} held-out images, rotation {rotated['rotation']}: {percent(rotated['accuracy'])}"
    yield from figure_lines(rotated)
    if result.symmetry:
        yield f"    look the same when rotated: {symmetry_words(result.symmetry)}"
    if "angle_error_deg" in rotated:
        yield f"  the same images upright: {percent(upright['accuracy'])}"
    yield f"  anomaly score: accepted up to {result.threshold:.3f} ({percent(result.reject_rate)} rejected)"


def threshold(arguments: argparse.Namespace) -> None:
    """`vae-edge threshold`."""
    from vae_edge.thresholds import set_threshold

    with counting_progress("measuring scores") as progress:
        result = set_threshold(
            arguments.bundle,
            arguments.data,
            arguments.reject_rate,
            balance=arguments.balance,
            force=arguments.force,
            dry_run=arguments.dry_run,
            **_measuring(arguments),
            progress=progress,
        )
    emit(result.to_json(), arguments.json, lambda: _threshold_lines(result))


def _threshold_lines(result: ThresholdResult) -> Iterator[str]:
    low, high = result.interval
    yield f"{result.bundle}: thresholds on {result.images} known images of {result.data} ({result.split})"
    rejected = percent(result.rejected / result.images)
    yield f"  rejected     {result.rejected} ({rejected}); with the threshold of before: {result.rejected_before}"
    yield f"  of further images of the same kind between {low:.2%} and {high:.2%} (95% interval)"
    if result.groups is not None:
        groups = result.groups
        yield (
            f"  of a group that the threshold is not set on: {groups.mean:.2%} on average over {groups.groups} groups, "
            f"at most {groups.worst:.2%} ({groups.worst_group})"
        )
    else:
        yield "  of groups of images (makers, days, cameras) nothing is known: other groups may be rejected more often"
    for name, found in result.unknown.items():
        yield _unknown_line(name, found)
    width = max(len(row.file) for row in result.files)
    for row in result.files:
        yield f"  {row.file:<{width}}  {row.before:.4g} → {row.after:.4g}  {row.how}"
    yield "written" if result.written else "not written: a dry run"


def report(arguments: argparse.Namespace) -> None:
    """`vae-edge report`."""
    from vae_edge.reporting import write_report

    with counting_progress("evaluating") as progress:
        chosen = {"backend": arguments.backend, "precision": arguments.precision}
        out = "report.html" if arguments.out is None else arguments.out
        result = write_report(
            arguments.model, arguments.data, out, **chosen, **_measuring(arguments), progress=progress
        )
    emit(result.to_json(), arguments.json, lambda: _report_lines(result))


def _report_lines(result: WrittenReport) -> Iterator[str]:
    yield from result.sentences[:1]
    yield from (f"warning: {sentence}" for sentence in result.evaluation.warnings)
    yield from result.sentences[1:]
    yield f"report: {result.path}"
