from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vae_edge.errors import KernelError

SUITE = Path(__file__).parents[2] / "bench" / "gpu_suite.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_gives_2(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run([sys.executable, SUITE, "--out", out], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No CUDA GPU is available" in done.stderr
    assert not out.exists()


def test_its_comparison_accepts_the_reference_and_refuses_another_result() -> None:
    suite = runpy.run_path(str(SUITE))
    expected = suite["run"]("cpu", 17, 8, 3, torch.float32)
    for name, tensor in expected.items():
        assert suite["compare"](name, tensor.clone(), tensor, "fp32") == 0.0
        with pytest.raises(KernelError, match=f"{name} in fp32 is not what the CPU reference computes"):
            suite["compare"](name, tensor * 1.01 + 0.01, tensor, "fp32")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_every_case_is_correct() -> None:
    assert len(runpy.run_path(str(SUITE))["check_operator"]()) == 21
