"""What `same_as_before.py` runs inside a tree: `vae_edge.load` and calls of what it gives, answered on standard output.

    python same_as_before_worker.py answers BUNDLE IMAGES.npz OUT.npz BACKEND PRECISION[,PRECISION]
    python same_as_before_worker.py overhead BUNDLE BACKEND

Names that differ between versions are tried one after the other, the newest first. `overhead` reads a line for each
turn, `load PRECISION CALLS` or `call PRECISION BATCH CALLS`, and answers with the median nanoseconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402

import vae_edge  # noqa: E402

ATTRIBUTES = (
    ("probabilities",),
    ("scores",),
    ("labels",),
    ("names",),
    ("accepted",),
    ("angles_deg",),
    ("angle_confidences", "angle_confidence", "concentrations"),
    ("second_angles_deg",),
    ("second_angle_probabilities", "second_angle_probability", "second_angle_probs", "second_shares"),
)


def answers(bundle: str, images: str, out: str, backend: str, precisions: str) -> None:
    """Write every attribute of the predictions under its oldest name."""
    found: dict[str, Any] = {}
    with np.load(images) as archive:
        pixels = archive["images"]
    for precision in precisions.split(","):
        with vae_edge.load(bundle, backend, precision, threads=1) as classify:
            predictions = classify(pixels)
            for names in ATTRIBUTES:
                value = next(getattr(predictions, name) for name in names if hasattr(predictions, name))
                if value is not None:
                    found[f"{precision}.{names[-1]}"] = np.asarray(value)
            found[f"{precision}.threshold"] = np.asarray(classify.threshold)
            found[f"{precision}.reconstruction"] = classify.reconstruct(pixels[:50])
    np.savez(out, **found)


def overhead(bundle: str, backend: str) -> None:
    """Take turns, as standard input asks for them."""
    opened: dict[str, Any] = {}
    rng = np.random.default_rng(0)
    images: dict[int, np.ndarray] = {}
    for line in sys.stdin:
        what, precision, *numbers = line.split()
        *sizes, calls = map(int, numbers)
        taken = []
        if what == "call":
            if precision not in opened:
                opened[precision] = vae_edge.load(bundle, backend, precision, threads=1)
            classify, batch = opened[precision], sizes[0]
            if batch not in images:
                shape = (batch, classify.input.size, classify.input.size, classify.input.channels)
                images[batch] = rng.integers(0, 256, shape, dtype=np.uint8)
            pixels = images[batch]
            classify(pixels)  # warms the cache again, which the other process used
            for _ in range(calls):
                began = time.perf_counter_ns()
                classify(pixels)
                taken.append(time.perf_counter_ns() - began)
        else:
            for _ in range(calls):
                began = time.perf_counter_ns()
                loaded = vae_edge.load(bundle, backend, precision, threads=1)
                taken.append(time.perf_counter_ns() - began)
                loaded.close()
        print(statistics.median(taken), flush=True)


if __name__ == "__main__":
    {"answers": answers, "overhead": overhead}[sys.argv[1]](*sys.argv[2:])
