"""The benchmark: its figures against a plain stopwatch, its form, its budget, its refusals."""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from small_models import noise

import vae_edge
from vae_edge.benchmarking import BenchmarkResult, describe_machine, format_table, run_benchmark
from vae_edge.benchmarking.measure import baseline_memory, peak_memory
from vae_edge.benchmarking.run import _images
from vae_edge.bundle import Bundle
from vae_edge.errors import BackendError, BundleError, ConfigError, DataError
from vae_edge.runtime import installed_backends

BACKENDS = ["onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def measured(bench_bundle: Bundle) -> BenchmarkResult:
    told: list[float] = []
    found = run_benchmark(
        bench_bundle.path,
        precisions=["fp32", "int8"],
        batches=(1, 8),
        seconds=4.0,
        progress=lambda _, x: told.append(x),
    )
    assert told == sorted(told) and told[0] == 0 and told[-1] == 1
    return found


@pytest.fixture(scope="module")
def result(measured: BenchmarkResult) -> dict[str, Any]:
    return measured.to_json()


def test_every_candidate_and_batch_has_its_figures(result: dict[str, Any]) -> None:
    rows = {(r["backend"], r["precision"], r["batch"]): r for r in result["results"]}
    assert rows.keys() == {(b, p, n) for b in BACKENDS for p in ("fp32", "int8") for n in (1, 8)}
    for row in rows.values():
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"]
        assert row["calls"] >= 5
        assert row["images_per_s"] == pytest.approx(row["batch"] / row["p50_us"] * 1e6, rel=1e-3)
        assert row["peak_memory_bytes"] is None or row["peak_memory_bytes"] > result["memory"]["baseline_bytes"] > 5e6
    unmeasured = sum(row["peak_memory_bytes"] is None for row in rows.values())
    assert [f"memory of {unmeasured} of 8 rows" in told for told in result["left_out"]] == [True] * bool(unmeasured)
    calls = {batch: {r["calls"] for r in rows.values() if r["batch"] == batch} for batch in (1, 8)}
    assert all(len(c) == 1 for c in calls.values()), "candidates take turns, so each is called as often"


def test_the_result_is_plain_json_and_says_where_it_was_measured(result: dict[str, Any], bench_bundle: Bundle) -> None:
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["schema"] == 1
    machine = result["machine"]
    assert machine["python"] == platform.python_version() and machine["threads"] == 1
    assert machine["versions"].keys() == {"vae_edge", "numpy", *installed_backends()} >= {*BACKENDS}
    assert machine["versions"]["numpy"] == np.__version__
    assert machine["cpu"] and machine["date"].endswith("+00:00") and len(machine["load_average"]) == 3
    assert machine["cpus"] == os.cpu_count() >= machine["available_cpus"] >= 1
    assert [m["sha256"] for m in result["bundle"]["models"]] == [m.sha256 for m in bench_bundle.models]
    assert describe_machine(3)["threads"] == 3


@pytest.mark.alone
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_median_is_what_a_plain_stopwatch_shows(bench_bundle: Bundle, backend: str) -> None:
    ratios = []
    for _ in range(3):  # either side may meet a busy moment
        (row,) = run_benchmark(bench_bundle.path, [backend], ["fp32"], batches=[64], seconds=0.5, memory=False).rows
        assert row.peak_memory_bytes is None
        images, times = noise(64), []
        with vae_edge.load(bench_bundle.path, backend, "fp32") as classifier:
            classifier.warmup(64)
            for _ in range(200):
                start = time.perf_counter()
                classifier(images)
                times.append(time.perf_counter() - start)
        ratios.append(row.p50_us / 1e6 / statistics.median(times))
        if 0.8 < ratios[-1] < 1.25:
            return
    pytest.fail(f"the benchmark's median over the stopwatch's, in three tries: {ratios}")


def test_the_table_shows_each_row_with_the_fastest_first(measured: BenchmarkResult, result: dict[str, Any]) -> None:
    out = io.StringIO()
    Console(file=out, width=160).print(format_table(measured))
    lines = [line for line in out.getvalue().splitlines() if "onnxruntime" in line or "openvino" in line]
    assert len(lines) == len(result["results"])
    best = min((r for r in result["results"] if r["batch"] == 1), key=lambda r: r["p50_us"])
    assert best["backend"] in lines[0] and best["precision"] in lines[0] and f"{best['p50_us']:,.1f}" in lines[0]
    assert result["machine"]["cpu"] in out.getvalue()


def test_memory_grows_with_what_is_loaded_and_predicted(bench_bundle: Bundle) -> None:
    one = peak_memory(bench_bundle.path, "onnxruntime", "fp32", 1, 1)
    many = peak_memory(bench_bundle.path, "onnxruntime", "fp32", 256, 1)
    assert baseline_memory() + 5e6 < one < many


def test_the_process_whose_memory_is_measured_has_only_what_it_needs(bench_bundle: Bundle) -> None:
    code = (
        "import runpy, sys; sys.argv = ['memory', sys.argv[1], '--backend=onnxruntime', '--precision=fp32'];"
        "runpy.run_module('vae_edge.benchmarking.measure', run_name='__main__');"
        "print([m for m in ('torch', 'triton', 'openvino', 'onnx', 'rich', 'PIL') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, bench_bundle.path],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    peak, modules = done.stdout.splitlines()
    assert json.loads(peak)["peak_bytes"] > 1e7 and modules == "[]"


def test_a_process_that_fails_is_an_error_not_a_number(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="The process that measures memory ended with 1"):
        peak_memory(tmp_path / "nowhere", "onnxruntime", "fp32", 1, 1)


def test_images_are_the_given_ones_or_noise_and_never_zeros(bench_bundle: Bundle) -> None:
    made = _images(bench_bundle, None, 9)
    assert made.shape == (9, 28, 28, 1) and made.std() > 50 and not np.array_equal(made[0], made[1])
    given = noise(4)
    np.testing.assert_array_equal(_images(bench_bundle, given, 9), np.concatenate([given, given, given])[:9])
    for bad in (given.astype(np.float32), given[:, :20], given[:0], given[0]):
        with pytest.raises(DataError, match="images should be uint8"):
            run_benchmark(bench_bundle.path, images=bad)


def test_what_cannot_be_measured_is_refused(bench_bundle: Bundle, tmp_path: Path) -> None:
    path = bench_bundle.path
    for options, says in (
        ({"batches": []}, "batches is a list"),
        ({"batches": [0]}, "batches is a list"),
        ({"threads": 0}, "threads is a whole number"),
        ({"seconds": 0}, "seconds is a time"),
        ({"seconds": float("nan")}, "seconds is a time"),
        ({"backends": []}, "nothing to measure"),
    ):
        with pytest.raises(ConfigError, match=says):
            run_benchmark(path, **options)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="no backend 'cuda'"):
        run_benchmark(path, ["cuda"], memory=False)
    with pytest.raises(BundleError, match="no fp8 classifier"):
        run_benchmark(path, precisions=["fp8"], memory=False)
    with pytest.raises(BundleError, match="is not there"):
        run_benchmark(tmp_path / "nowhere")


def test_the_seconds_hold_memory_too_and_what_is_left_out_is_named(
    bench_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: object) -> int:
        time.sleep(0.4)
        return 10**8

    monkeypatch.setattr("vae_edge.benchmarking.run.peak_memory", slow)
    monkeypatch.setattr("vae_edge.benchmarking.run.baseline_memory", slow)
    start = time.perf_counter()
    result = run_benchmark(bench_bundle.path, ["onnxruntime"], ["fp32"], batches=[8, 1, 2, 4], seconds=3.0)
    took = time.perf_counter() - start
    assert result.settings.took_s == pytest.approx(took, abs=0.5)
    assert 2.9 < took < 3.6
    rows = {row.batch: row.peak_memory_bytes for row in result.rows}
    assert list(rows) == [1, 2, 4, 8]
    assert rows[1] == 10**8 and rows[8] is None, "the smallest batch comes first"
    missing = sum(peak is None for peak in rows.values())
    assert result.left_out[0].startswith(f"the memory of {missing} of 4 rows was not measured: one takes 0.")


def test_batches_that_there_is_no_time_for_are_left_out_and_named(bench_bundle: Bundle) -> None:
    result = run_benchmark(
        bench_bundle.path, ["onnxruntime"], ["fp32"], batches=[1, 4096, 8192], seconds=0.05, memory=False
    )
    timed = [row.batch for row in result.rows]
    assert timed[0] == 1 and 8192 not in timed
    assert "batch 8192 was not timed: there was no time left of 0.05 s." in result.left_out


def test_an_unknown_backend_is_refused_before_any_child_starts(
    bench_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(BackendError, match=r"^There is no backend 'cuda'; there are auto, onnxruntime, openvino"):
        run_benchmark(bench_bundle.path, ["cuda"])
    with pytest.raises(ConfigError, match=r"^precision is auto, fp32"):
        run_benchmark(bench_bundle.path, precisions=["fp23"])


@pytest.mark.slow
@pytest.mark.alone
def test_the_defaults_stay_within_25_seconds(bench_bundle: Bundle) -> None:
    start = time.perf_counter()
    result = run_benchmark(bench_bundle.path)
    assert time.perf_counter() - start < 24
    assert len(result.rows) == 2 * 3 * 3
