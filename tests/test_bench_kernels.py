"""bench/kernels.py, bench/gpu_suite.py and bench/tune.py as far as they go without a GPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from vae_edge_kernels import config

from vae_edge.errors import KernelError

BENCH = Path(__file__).parents[1] / "bench"
LINES: list[dict[str, Any]] = [
    {"kernel": "conv_fp16", "layer": "a", "batch": 1, "error": 0.0, "ours_us": 2.0, "eager_us": 8.0},
    {"kernel": "conv_fp16", "layer": "b", "batch": 1, "error": 0.0, "ours_us": 4.0, "eager_us": 4.0},
    {"kernel": "conv_int8", "layer": "b", "batch": 1, "error": 0.0, "ours_us": 2.5, "cudnn_fp16_us": 5.0},
]


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The scripts as modules, which find one another as they do when they are started."""
    sys.path.insert(0, str(BENCH))
    names = ("kernels", "gpu_suite", "tune", "kernel_cases", "benchmark_case", "synthetic_models", "whole_networks")
    before: dict[str, ModuleType] = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    import gpu_suite
    import tune

    import kernels

    yield SimpleNamespace(kernels=kernels, gpu_suite=gpu_suite, tune=tune)
    sys.path.remove(str(BENCH))
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("script", ["gpu_suite.py", "kernels.py", "tune.py"])
def test_without_a_gpu_they_say_so_and_give_2(script: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / script)] + (["--out", str(tmp_path)] if script != "tune.py" else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No CUDA GPU is available" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["[!n]*", "network_fp16", "network_int8"])
def test_what_is_measured_is_right_under_the_interpreter(pattern: str) -> None:
    command = [sys.executable, str(BENCH / "kernels.py"), "--check", "--most", "1", "--no-large", "--only", pattern]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"of {1 if 'network' in pattern else 11} kernels are right" in done.stdout


def test_the_comparison_of_the_suite_accepts_the_reference_and_refuses_another_result(
    scripts: SimpleNamespace,
) -> None:
    suite = scripts.gpu_suite
    expected = suite.run("cpu", 17, 8, 3, torch.float32)
    for name, tensor in expected.items():
        assert suite.compare(name, tensor.clone(), tensor, "fp32") == 0.0
        with pytest.raises(KernelError, match=f"{name} in fp32 is not what the CPU reference computes"):
            suite.compare(name, tensor * 1.01 + 0.01, tensor, "fp32")


def test_a_wrong_kernel_is_not_measured(scripts: SimpleNamespace) -> None:
    case = SimpleNamespace(kernel="k", layer="l", batch=3)
    run = SimpleNamespace(check=lambda: 0.5, tolerance=0.1)
    with pytest.raises(KernelError, match=r"k, l, 3: off by 0.5; 0.1 allowed"):
        scripts.kernels.checked(case, run)
    run.check = lambda: float("nan")
    with pytest.raises(KernelError):
        scripts.kernels.checked(case, run)


def test_ratios_are_geometric_means_and_what_is_missing_is_not_measured(scripts: SimpleNamespace) -> None:
    assert scripts.kernels.ratio(LINES, "conv_fp16", "eager_us") == pytest.approx(2.0)
    assert scripts.kernels.ratio(LINES, "conv_fp16", "compiled_us") is None
    summary = scripts.kernels.summary(LINES)
    assert summary["conv_int8 against cudnn_fp16"] == pytest.approx(2.0)
    assert summary["conv_int8 against our fp16"] == pytest.approx(1.6)
    assert "conv_fp16 against cudnn" not in summary


def test_a_table_is_read_as_it_was_written_and_drawn(scripts: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "kernels-made-up.csv"
    scripts.kernels.write_csv(path, LINES)
    assert scripts.kernels.read_csv(path) == LINES
    assert scripts.kernels.main(["--plot", str(path)]) == 0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_tuner_takes_the_fastest_that_is_right_and_within_its_budget(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune, key, chosen = scripts.tune, ("conv", "conv_fp16_32"), []

    def ours() -> None:
        chosen.append(config.get_config(*key, 90))

    def clock(function: Any) -> float:
        function()
        now = chosen[-1]
        return 10.0 / now["num_warps"] + (0.0 if now["BLOCK_M"] == 128 else 1.0)

    run = SimpleNamespace(ours=ours, tolerance=0.0, check=lambda: 0.0)
    monkeypatch.setattr(tune, "compiled_of", lambda *key: [])
    monkeypatch.setattr(tune, "within_budget", lambda key, candidate, *rest: candidate["num_warps"] < 8)
    best, after, before = tune.fastest(key, [run], 90, float("inf"), clock)
    assert (best["BLOCK_M"], best["num_warps"], best["BLOCK_N"]) == (128, 4, 32)
    assert after < before
    run.check = lambda: 1.0 if config.get_config(*key, 90)["BLOCK_M"] == 128 else 0.0
    best, after, before = tune.fastest(key, [run], 90, float("inf"), clock)
    assert best == config.get_config(*key, 90) and after == before


def test_the_tuner_writes_what_launchers_and_compiler_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in config.FOLDER.glob("*.json"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(config, "FOLDER", tmp_path)
    config.load_configs.cache_clear()
    try:
        before = (tmp_path / "rotate.json").read_text().splitlines()
        made = {"BLOCK_SIZE": 256, "num_warps": 2, "num_stages": 1}
        config.write_config("rotate", "rotate", 90, made, "NVIDIA Made Up")
        assert config.get_config("rotate", "rotate", 90) == made
        assert config.get_config("rotate", "rotate", 87) != made
        after = (tmp_path / "rotate.json").read_text().splitlines()
        changed = [number for number, (was, now) in enumerate(zip(before, after, strict=True)) if was != now]
        assert [after[number].split(":")[0].strip() for number in changed] == ['"measured_on"', '"rotate"']
        assert json.loads("\n".join(after))["measured_on"] == ["NVIDIA Made Up"]
    finally:
        config.load_configs.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_every_case_is_correct(scripts: SimpleNamespace) -> None:
    assert len(scripts.gpu_suite.check_operator()) == 21
