"""The page itself: figures and tables put into the template; every text from outside is escaped there."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.files import write_text
from vae_edge.report import figures
from vae_edge.report.content import Content, SampleSet


def write_report(content: Content, path: str | os.PathLike[str]) -> Path:
    """Write the report as one HTML file that loads nothing; the path."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share, digits=2: f"{100 * share:.{digits}f} %"
    environment.filters["kib"] = lambda count: f"{count / 1024:,.0f} KiB"
    environment.filters["micro"] = lambda value: f"{value:,.0f}"
    source = resources.files("vae_edge.report").joinpath("template.html").read_text(encoding="utf-8")
    write_text(path, environment.from_string(source).render(_view(content)))
    return Path(path)


def _view(content: Content) -> dict[str, Any]:
    """What the template shows."""
    per_class = len(content.generated) // len(content.classes)
    rows = [
        {
            "name": name,
            "picture": figures.picture(figures.strip(content.generated[k * per_class : (k + 1) * per_class])),
        }
        for k, name in enumerate(content.classes)
    ]
    first = [row for row in content.benchmark["results"] if row["batch"] == 1]
    errors = content.angle_errors_deg
    return {
        "title": content.title,
        "classes": list(content.classes),
        "evaluation": content.evaluation,
        "cards": _cards(content, first),
        "samples": _samples(content.samples),
        "mistakes": _samples(content.mistakes),
        "generated": rows,
        "confusion": _confusion(content),
        "angle_plot": None if errors is None else figures.angle_histogram(errors),
        "score_plot": figures.score_histogram(content.known_scores, content.unknown_scores, content.threshold),
        "auroc": dict(content.auroc),
        "rejected": {
            name: float((scores > content.threshold).mean()) for name, scores in content.unknown_scores.items()
        },
        "known_rejected": float((content.known_scores > content.threshold).mean()),
        "precisions": list(content.precisions),
        "precision_plot": figures.precision_bars(content.precisions),
        "latency_plot": figures.latency_bars(first) if first else None,
        "latency": content.benchmark["results"],
        "machine": content.benchmark["machine"],
        "training_plot": figures.training_curve(content.training) if len(content.training) > 1 else None,
        "facts": dict(content.facts),
    }


def _cards(content: Content, first: list[Any]) -> list[dict[str, str]]:
    evaluation = content.evaluation
    turned = {"full": "right, turned by any angle", "none": "right"}
    words = turned.get(evaluation["rotation"], f"right, turned by up to {evaluation['rotation']}°")
    cards = [{"figure": f"{100 * evaluation['accuracy']:.1f} %", "text": words}]
    if "upright" in evaluation:
        cards.append({"figure": f"{100 * evaluation['upright']['accuracy']:.1f} %", "text": "right, upright"})
    if "angle_error_deg" in evaluation:
        cards.append({"figure": f"{evaluation['angle_error_deg']['median']:.1f}°", "text": "median error of the angle"})
    if content.auroc:
        worst = min(content.auroc, key=lambda name: content.auroc[name])
        cards.append({"figure": f"{content.auroc[worst]:.3f}", "text": f"AUROC of the score, worst kind ({worst})"})
    by_precision = {row["precision"]: row for row in content.precisions}
    if {"fp32", "int8"} <= by_precision.keys():
        change = 100 * (by_precision["int8"]["accuracy"] - by_precision["fp32"]["accuracy"])
        cards.append({"figure": f"{change:+.1f}", "text": "points, int8 against fp32"})
    if first:
        best = min(first, key=lambda row: row["p50_us"])
        text = f"a decision here, {best['backend']} {best['precision']}, one thread"
        cards.append({"figure": f"{best['p50_us']:,.0f} µs", "text": text})
    return cards


def _samples(samples: SampleSet) -> list[dict[str, Any]]:
    return [
        {
            "image": figures.picture(samples.images[k]),
            "reconstruction": figures.picture(samples.reconstructions[k]),
            "truth": samples.truth[k],
            "name": samples.names[k],
            "right": samples.truth[k] == samples.names[k],
            "probability": float(samples.probabilities[k]),
            "angle": float(samples.angles_deg[k]),
            "true_angle": float(samples.true_deg[k]),
            "score": float(samples.scores[k]),
            "accepted": bool(samples.accepted[k]),
        }
        for k in range(len(samples.images))
    ]


def _confusion(content: Content) -> list[dict[str, Any]]:
    """Rows of the table; the shade of a cell is its share of the row, mistakes by the root so that few are seen."""
    table = np.array(content.evaluation["confusion"], dtype=np.int64)
    rows = []
    for k, name in enumerate(content.classes):
        total = max(1, int(table[k].sum()))
        shares = table[k] / total
        cells = [
            {"count": int(count), "shade": round(float(share if j == k else min(1.0, share**0.5)), 3), "hit": j == k}
            for j, (count, share) in enumerate(zip(table[k], shares, strict=True))
        ]
        rows.append({"name": name, "cells": cells})
    return rows
