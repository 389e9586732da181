"""Checks of users' kernels: what is right is said to be, and each planted fault is found at its line."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from vae_edge_kernels import KernelError
from vae_edge_kernels.analysis.roofline import LIMITS
from vae_edge_kernels.emulator.timing import MODELS, estimate, estimate_full

from vae_edge.emulation.checks import Outcome, load_checks, run_check

FIXTURES = Path(__file__).parents[1] / "fixtures"


def outcomes(file: str, architecture: int = 87, seed: int | None = None) -> dict[str, Outcome]:
    checks = load_checks(str(FIXTURES / file))
    return {name: run_check(name, function, architecture, seed=seed) for name, function in checks.items()}


@pytest.mark.parametrize(
    ("architecture", "seed"), [(80, None), (87, 1), (90, None), (100, None), (110, 2), (120, None)]
)
def test_a_right_kernel_is_right(architecture: int, seed: int | None) -> None:
    found = outcomes("softmax.py", architecture, seed)
    assert {name: outcome.fault for name, outcome in found.items()} == {
        "check_softmax": None,
        "check_narrow_rows": None,
    }
    assert max(found["check_softmax"].differences.values()) < 1e-7
    assert found["check_softmax"].launches[0].device.counts.totals["instructions"] > 1000


def line_of(kernel: str, text: str) -> str:
    """Where a text stands in a kernel of the faulty ones."""
    lines = (FIXTURES / "faulty_kernels.py").read_text().split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(f"def {kernel}("))
    return f"faulty_kernels.py:{next(n for n in range(start, len(lines)) if text in lines[n]) + 1}"


@pytest.mark.parametrize(
    ("name", "kernel", "text", "message"),
    [
        (
            "race_between_threads",
            "reverse_kernel",
            "tl.store(y_ptr",
            "a read of byte 1020 of scratch_ptr .* races",
        ),
        ("race_between_programs", "sum_kernel", "tl.store(total_ptr", "of total_ptr by program 1, .* by program 0"),
        ("out_of_bounds", "double_kernel", "tl.store(y_ptr", "a write of 4 bytes at byte 400 of y_ptr, which has 400"),
        ("misaligned", "copy_kernel", "tl.store(y_ptr", "a read of 16 bytes at byte 12 of x_ptr is misaligned"),
    ],
)
def test_a_planted_fault_is_found_at_its_line(name: str, kernel: str, text: str, message: str) -> None:
    (function,) = load_checks(f"{FIXTURES / 'faulty_kernels.py'}::check_{name}").values()
    fault = run_check(name, function, 87).fault
    assert fault is not None and line_of(kernel, text) in fault
    assert re.search(message, fault), fault


def test_values_that_are_never_written_are_wrong() -> None:
    (function,) = load_checks(f"{FIXTURES / 'faulty_kernels.py'}::check_forgotten").values()
    outcome = run_check("forgotten", function, 87)
    assert outcome.fault is not None and "512 / 1024" in outcome.fault
    assert outcome.differences == {"": float("inf")}
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no Python file"),
        ("x = 1\n", "has no function whose name begins with check_"),
        ("import nowhere\n", "cannot be imported: ModuleNotFoundError"),
        ("def check_a():\n    return 3\n", "returned a int, where pairs of tensors are expected"),
        ("def check_a():\n    return [1, 2]\n", "no pair of tensors"),
        ("def check_a():\n    raise ValueError('no')\n", "check_a has failed: ValueError: no"),
    ],
)
def test_a_file_without_checks_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "checks.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(KernelError, match=message):
        for name, function in load_checks(str(file)).items():
            run_check(name, function, 87)


def test_a_check_that_launches_nothing_is_not_right(tmp_path: Path) -> None:
    (tmp_path / "checks.py").write_text("import torch\ndef check_a():\n    return torch.ones(2), torch.ones(2)\n")
    (function,) = load_checks(str(tmp_path / "checks.py")).values()
    assert run_check("check_a", function, 87).fault == "it has launched no kernel"


def test_the_machine_model_follows_the_counts() -> None:
    """What is counted is what the bounds are made of; the published rates are those of the roofline."""
    function = load_checks(str(FIXTURES / "softmax.py"))["check_softmax"]
    assert "softmax(x)" in inspect.getsource(function)
    for model in MODELS.values():
        outcome = run_check("softmax", function, model.architecture, model=model)
        device = outcome.launches[0].device
        modelled = estimate(device)
        assert modelled.limit == "latency" and modelled.us == max(modelled.bounds.values())
        totals = device.counts.totals
        cycles = (totals["instructions"] - totals["folded"]) / (4 * 3)
        assert modelled.bounds["issue"] == pytest.approx(1e6 * cycles / model.clock_hz)
        assert device.touched_bytes() == pytest.approx(2 * 7 * 781 * 4, rel=0.02)
        assert device.longest > cycles and model.architecture in LIMITS
        full = estimate_full(device, resident=2)  # 3 programs
        assert full.bounds["issue"] == pytest.approx(modelled.bounds["issue"] / model.multiprocessors)
        assert full.bounds["latency"] == pytest.approx(modelled.bounds["latency"] / (2 * model.multiprocessors))
