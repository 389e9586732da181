"""Curves of a classifier, each drawn into axes that the page of a report or a picture gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.metrics import auroc, reliability, roc_curve

LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)))
BINS = 15  # of the reliability diagram


def palette(colours: Mapping[str, Any]) -> list[str]:
    """Six colours, those of the unknown first."""
    return [*colours["others"], colours["known"]]


def roc_panel(
    axes: Any,
    colours: Mapping[str, Any],
    known: NDArray[np.floating],
    unknown: Mapping[str, NDArray[np.floating]],
    threshold: float | None = None,
) -> None:
    """A ROC curve for each kind of unknown images, with its AUROC in the legend.

    The share of known images rejected is on a logarithmic axis, from that of half an image on. A dashed line marks the
    share that the threshold rejects.
    """
    least = 0.5 / len(known)
    for k, (name, scores) in enumerate(unknown.items()):
        false, true = roc_curve(known, scores)
        axes.plot(
            np.maximum(false, least),
            true,
            drawstyle="steps-post",
            color=palette(colours)[k % 6],
            linestyle=LINES[k % 6],
            linewidth=1.7,
            label=f"{auroc(known, scores):.4f}  {name}",
        )
    if threshold is not None:
        share = max(least, float((known > threshold).mean()))
        axes.axvline(share, color=colours["ink"], linestyle="--", linewidth=0.9)
        axes.text(
            share, 0.02, " threshold", transform=axes.get_xaxis_transform(), color=colours["ink"], fontsize=8, ha="left"
        )
    axes.set_xscale("log")
    axes.set_xlim(least, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("known images rejected (log)")
    axes.set_ylabel("unknown images rejected")
    axes.grid(color=colours["faint"], linewidth=0.6)
    axes.legend(fontsize=8, title="AUROC", title_fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def reliability_panel(
    axes: Any,
    colours: Mapping[str, Any],
    probabilities: NDArray[np.floating],
    labels: NDArray[np.int64],
    colour: str,
    marker: str = "o",
    label: str | None = None,
) -> NDArray[np.floating]:
    """Accuracy against confidence in 15 bins, with 95% intervals; how many images each bin has, [15].

    Intervals are those of Wilson (1927), which stay within [0, 1]. Empty bins are left out.
    """
    table = reliability(probabilities, labels, BINS)
    there = table["count"] > 0
    confidence, accuracy, count = (table[name][there] for name in ("confidence", "accuracy", "count"))
    low, high = wilson(accuracy * count, count)
    axes.plot([0, 1], [0, 1], color=colours["ink"], linestyle=":", linewidth=1, zorder=0)
    axes.vlines(confidence, low, high, color=colour, linewidth=1.2, alpha=0.6)
    axes.plot(
        confidence, accuracy, color=colour, marker=marker, markersize=5, linewidth=1.2, label=label, clip_on=False
    )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability that it gives")
    axes.set_ylabel("share that is right")
    axes.grid(color=colours["faint"], linewidth=0.6)
    return table["count"]


def wilson(
    hits: NDArray[np.floating], count: NDArray[np.floating], z: float = 1.96
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval of a share of which `hits` of `count` were seen (Wilson 1927); 95% at z = 1.96."""
    hits, count = np.asarray(hits, np.float64), np.asarray(count, np.float64)
    middle = (hits + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * np.sqrt(hits * (count - hits) / count + z * z / 4)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
