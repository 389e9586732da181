"""What a call costs above the bare engine's own call, measured as bench/runtime_overhead.py does."""

from __future__ import annotations

import importlib.util
import tracemalloc
from pathlib import Path

import pytest
from small_models import noise

import vae_edge
from vae_edge.bundle import Bundle

SCRIPT = Path(__file__).parents[2] / "bench" / "runtime_overhead.py"


FRACTION, MICROSECONDS = 0.15, 40.0  # the latter where the processor is so fast that the model takes 100


@pytest.mark.alone
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_call_costs_little_more_than_the_bare_engines(session_bundle: Bundle, backend: str) -> None:
    spec = importlib.util.spec_from_file_location("runtime_overhead", SCRIPT)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    tries = []
    for _ in range(3):  # the machine may be busy: one quiet third is enough to know
        medians = bench.measure(session_bundle.path, backend, "fp32", rounds=400)["median_us"]
        own = medians.pop("classifier(x)")
        if all(own - bare <= max(FRACTION * bare, MICROSECONDS) for bare in medians.values()):
            return
        tries.append({"classifier(x)": own, **medians})
    pytest.fail(f"microseconds of the classifier and of bare calls, in three tries: {tries}")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_hot_path_keeps_nothing_but_its_outputs(session_bundle: Bundle, backend: str) -> None:
    images = noise(64)  # 50 kB
    with vae_edge.load(session_bundle.path, backend, "fp32") as classifier:
        classifier(images)
        tracemalloc.start()
        try:
            classifier(images)
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            for _ in range(20):
                classifier(images)
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak - before < 16_000, "outputs are 3 kB; a copy of the images would be 50"
    assert after - before < 8_000
