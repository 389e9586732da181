"""What `same_as_before.py` runs inside a tree: `vae_edge.load` and calls of what it gives, answered on standard output.

    python same_as_before_worker.py answers BUNDLE IMAGES.npz OUT.npz BACKEND PRECISION[,PRECISION]
    python same_as_before_worker.py overhead BUNDLE BACKEND

Names that differ between versions are tried one after the other, the newest first. `overhead` reads a line for each
turn, `load PRECISION CALLS` or `call PRECISION BATCH CALLS`, and answers with the median nanoseconds of wall and of
processor time.
"""

from __future__ import annotations

import statistics
import sys
import time
from functools import cache
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
    for line in sys.stdin:
        what, precision, *numbers = line.split()
        *sizes, calls = map(int, numbers)
        if what == "call" and precision not in opened:
            opened[precision] = vae_edge.load(bundle, backend, precision, threads=1)
        taken = []
        for number in range(-1 if what == "call" else 0, calls):  # a call warms the cache, which others used
            began = time.perf_counter_ns(), time.process_time_ns()
            if what == "call":
                opened[precision](pixels(opened[precision].input, sizes[0]))
            else:
                loaded = vae_edge.load(bundle, backend, precision, threads=1)
            ended = time.perf_counter_ns(), time.process_time_ns()
            if what == "load":
                loaded.close()
            if number >= 0:
                taken.append([after - before for before, after in zip(began, ended, strict=True)])
        print(*(statistics.median(times) for times in zip(*taken, strict=True)), flush=True)


@cache
def pixels(spec: Any, batch: int) -> np.ndarray:
    """Images of any content."""
    shape = (batch, spec.size, spec.size, spec.channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


if __name__ == "__main__":
    {"answers": answers, "overhead": overhead}[sys.argv[1]](*sys.argv[2:])
