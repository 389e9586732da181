"""What the classifier's call costs above the bare engine's own call: one process, interleaved, one image, one thread.

    python bench/runtime_overhead.py BUNDLE [--out bench/results/runtime_overhead.json]

Bare is, on ONNX Runtime, `session.run(None, {"image": x})` of a session with the same options on the same model; on
OpenVINO, `compiled_model(x)` and, as the stricter reference, the `infer()` of a request whose input was bound by hand.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import vae_edge
from vae_edge import files
from vae_edge.benchmarking.measure import describe_machine
from vae_edge.bundle import Bundle, load_bundle
from vae_edge.runtime.entries import cpu_entries, find_entry

ROUNDS, WARM_UP_ROUNDS = 2000, 20
CALLS_PER_ROUND = 3


def interleave(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median microseconds of each call, interleaved (A B A B); the first call of each round only warms the cache."""
    taken: dict[str, list[int]] = {name: [] for name in calls}
    for round_ in range(rounds + WARM_UP_ROUNDS):
        for name, call in calls.items():
            call()
            for _ in range(CALLS_PER_ROUND):
                start = time.perf_counter_ns()
                call()
                spent = time.perf_counter_ns() - start
                if round_ >= WARM_UP_ROUNDS:
                    taken[name].append(spent)
    return {name: statistics.median(times) / 1e3 for name, times in taken.items()}


def bare_onnxruntime(bundle: Bundle, precision: str, image: np.ndarray) -> dict[str, Callable[[], object]]:
    import onnxruntime as ort

    from vae_edge.runtime.onnxruntime_backend import session_options

    file = bundle.file(find_entry(bundle, precision))
    session = ort.InferenceSession(str(file), session_options(1), providers=["CPUExecutionProvider"])
    return {"session.run": lambda: session.run(None, {"image": image})}


def bare_openvino(bundle: Bundle, precision: str, image: np.ndarray) -> dict[str, Callable[[], object]]:
    import openvino as ov

    from vae_edge.runtime.openvino_backend import compile_options

    core = ov.Core()
    model = core.read_model(str(bundle.file(find_entry(bundle, precision))))
    model.reshape([1, *image.shape[1:]])
    compiled = core.compile_model(model, "CPU", compile_options(1))
    request = compiled.create_infer_request()
    tensor = ov.Tensor(image, shared_memory=True)
    request.set_input_tensor(0, tensor)
    return {"compiled_model(x)": lambda: compiled(image), "request.infer()": request.infer}


def measure(path: Path, backend: str, precision: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Medians in microseconds, and the classifier's as a multiple of each bare call's."""
    bundle = load_bundle(path)
    shape = (1, bundle.input.size, bundle.input.size, bundle.input.channels)
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    bare = {"onnxruntime": bare_onnxruntime, "openvino": bare_openvino}[backend](bundle, precision, image)
    with vae_edge.load(path, backend, precision, threads=1) as classifier:
        medians = interleave({**bare, "classifier(x)": lambda: classifier(image)}, rounds)
    ratios = {name: round(medians["classifier(x)"] / medians[name], 3) for name in bare}
    return {
        "backend": backend,
        "precision": precision,
        "median_us": {name: round(value, 2) for name, value in medians.items()},
        "classifier_over_bare": ratios,
    }


def main() -> None:
    """Measure every backend and precision and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "runtime_overhead.json")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    results = []
    for precision in cpu_entries(bundle):
        for backend in vae_edge.runtime.installed_backends():
            results.append(measure(arguments.bundle, backend, precision))
            print(results[-1])
    files.write_json(
        arguments.out,
        {
            "schema": 1,
            "what": "one image, one thread, medians of interleaved calls in one process",
            "machine": describe_machine(threads=1),
            "bundle": {"name": bundle.name, "models": [entry.to_json() for entry in bundle.models]},
            "results": results,
        },
    )
    print(f"Wrote {arguments.out}.")


if __name__ == "__main__":
    main()
