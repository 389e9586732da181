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
    assert "512 are NaN, with which torch.empty fills memory here" in outcome.fault
    assert outcome.differences == {"": float("inf")}
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("x = 1\n", "has no function whose name begins with check_"),
        ("import nowhere\n", r"cannot be imported: ModuleNotFoundError: .* \(checks.py:1\)"),
        ("import sys\nsys.exit(0)\n", "cannot be imported: SystemExit: 0"),
    ],
)
def test_a_file_without_checks_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "checks.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(KernelError, match=message):
        load_checks(str(file))


KERNELS = """
import torch
import triton
import triton.language as tl

hooked = []


@triton.autotune(
    [triton.Config({"BLOCK": 64}, num_warps=2, pre_hook=hooked.append), triton.Config({"BLOCK": 100})], key=["n"]
)
@triton.jit
def double(y_ptr, x_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, 2 * tl.load(x_ptr + i, mask=i < n), mask=i < n)


@triton.jit
def places(n: tl.constexpr):
    return tl.arange(0, n)


@triton.jit
def fill(y_ptr, n, BLOCK: tl.constexpr = 16):
    i = places(BLOCK)
    tl.store(y_ptr + i, i + tl.program_id(0), mask=i < n)


@triton.jit
def half(y_ptr, n):
    tl.atomic_add(y_ptr.to(tl.pointer_type(tl.float16)), 1.0)


@triton.jit
def update_all(y_ptr, old_ptr, n):
    i = tl.arange(0, 64)
    new = (i % n).to(y_ptr.dtype.element_ty)
    place = y_ptr + i % 2
    tl.store(old_ptr + i, tl.atomic_xchg(place, new + 5))
    tl.atomic_max(y_ptr + 2 + i % 2, new)
    tl.atomic_min(y_ptr + 4 + i % 2, -new)
    tl.atomic_or(y_ptr + 6 + i % 2, new)
    tl.atomic_and(y_ptr + 8 + i % 2, new - 1)
    tl.atomic_xor(y_ptr + 10 + i % 2, new)
    tl.atomic_add(y_ptr + 12 + i % 2, -new)


@triton.jit
def take_ticket(lock_ptr, y_ptr):
    while tl.atomic_cas(lock_ptr, 0, 1, sem="acquire") == 1:
        pass
    value = tl.load(y_ptr)  # by every thread, before one of them stores
    tl.debug_barrier()
    tl.store(y_ptr, value + 1.0)
    tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0, sem="release")


@triton.jit
def add(y_ptr, ORDER: tl.constexpr):
    tl.atomic_add(y_ptr, 1.0, sem=ORDER)
    tl.debug_barrier()
    if tl.atomic_add(y_ptr + 1, 1.0, sem=ORDER) == tl.num_programs(0) - 1:
        tl.store(y_ptr + 2, tl.load(y_ptr) + tl.load(y_ptr + 1))


@triton.jit
def forever(y_ptr, n):
    while n > 0:
        n += 2
        tl.store(y_ptr, 1.0)


@triton.jit
def begin_and_add(y_ptr):
    if tl.program_id(0) == 1:
        tl.store(y_ptr, 0.0)
    tl.atomic_add(y_ptr, 1.0)


x, y, zeros = torch.arange(100.0), torch.empty(100), torch.zeros(3)


def check_a():
"""


def check(folder: Path, body: str, timeout: float | None = None) -> Outcome:
    """A check of the kernels above."""
    (folder / "checks.py").write_text(KERNELS + "".join(f"    {line}\n" for line in body.split("; ")))
    (function,) = load_checks(str(folder / "checks.py")).values()
    return run_check("check_a", function, 87, timeout=timeout)


def test_an_autotuned_kernel_runs_with_its_first_configuration(tmp_path: Path) -> None:
    body = "double[lambda m: (triton.cdiv(100, m['BLOCK']),)](y, x, 100); return y, 2 * x * len(hooked)"
    outcome = check(tmp_path, body)
    assert outcome.fault is None and outcome.launches[0].grid == (2, 1, 1) and outcome.launches[0].warps == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 3", "it returned an object of type int, where a pair of tensors is expected"),
        ("return [1, 2]", "it returned an object of type int for '0', where a pair of tensors is expected"),
        ("fill[1,](y, 16)", "it returned nothing, where a pair of tensors is expected"),
        ("raise ValueError('no')", r"ValueError: no \(checks.py:85\)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("fill[1,](y)", "fill: missing arguments: n"),
        ("fill[1,](y, 1, 16, 2)", "fill: 4 arguments came, where 3 are expected: y_ptr, n, BLOCK"),
        ("fill[1,](y, 1, n=2)", "fill: n came twice"),
        (
            "fill[1,](y, 1, num_wraps=2)",
            "fill has no parameter num_wraps, and the emulator knows no such launch option",
        ),
        ("fill[1,](y, 1, num_ctas=2)", "fill: num_ctas=2 is not emulated"),
        ("fill[-1,](y, 1)", r"fill: the grid is \(-1,\): expected one to three integers from 0"),
        ("fill[1, 65536](y, 1)", r"fill: the grid is \(1, 65536\): expected"),
        ("fill[1.0,](y, 1)", r"fill: the grid is \(1.0,\): expected"),
        ("fill[1,](y, 'a')", "fill: n has the type str: expected a tensor or a number"),
        ("fill[1,](y.double(), 1)", "fill: y_ptr is a tensor of torch.float64 on cpu, which is not emulated"),
        (
            "fill[1,](y, 1, 100)",
            r"does not compile: checks.py:20: arange's range must be a power of 2: return tl.arange",
        ),
        ("half[1,](y.int(), 1)", r"\(checks.py:31\): the emulator does not know the instruction '.*atom.*f16"),
    ],
)
def test_a_check_that_cannot_be_run_says_why(tmp_path: Path, body: str, message: str) -> None:
    outcome = check(tmp_path, body)
    assert not outcome.ran and outcome.fault is not None and "\n" not in outcome.fault
    assert re.search(message, outcome.fault), outcome.fault


def test_a_race_of_writes_names_both_programs(tmp_path: Path) -> None:
    outcome = check(tmp_path, "fill[2,](y, 16); return y, y")
    assert outcome.ran and outcome.fault is not None
    assert "by program 1, warp 0 races with the write by program 0, warp 0" in outcome.fault


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


def test_a_kernel_that_does_not_end_is_given_up(tmp_path: Path) -> None:
    fault = check(tmp_path, "forever[2,](zeros, 3); return zeros, zeros", timeout=0.5).fault
    assert fault is not None and re.match(r"checks.py:\d+: not at its end after 0.5 seconds and [\d,]+ warp", fault)
    assert "with 2 of 2 programs still running" in fault


@pytest.mark.parametrize("dtype", ["torch.int32", "torch.int64"])
def test_atomic_operations(tmp_path: Path, dtype: str) -> None:
    # Each pair of elements is changed by the even and by the odd numbers 0 to 6, many times over.
    body = (
        f"y, old = torch.tensor([0] * 8 + [-1] * 2 + [0] * 4, dtype={dtype}), torch.zeros(64, dtype={dtype}); "
        f"update_all[1,](y, old, 7); i = torch.arange(64); new = (i % 7).to({dtype}); "
        "even, odd = new[::2], new[1::2]; import functools, operator; "
        "xor = [functools.reduce(operator.xor, part.tolist()) for part in (even, odd)]; "
        "both = [functools.reduce(operator.and_, (part - 1).tolist(), -1) for part in (even, odd)]; "
        "either = [functools.reduce(operator.or_, part.tolist()) for part in (even, odd)]; "
        "exchanged = sorted(old.tolist() + y[:2].tolist()) == sorted([0, 0] + (new + 5).tolist()); "
        "sums = [-int(part.sum()) for part in (even, odd)]; "
        "answer = [6, 6, -6, -6, *either, *both, *xor, *sums]; "
        f"values = torch.cat([y[2:], torch.tensor([exchanged], dtype={dtype})]); "
        f"return values, torch.tensor([*answer, 1], dtype={dtype})"
    )
    assert check(tmp_path, body).fault is None
    assert check(tmp_path, body.replace("[6, 6, -6", "[6, 5, -6")).fault is not None


def test_a_lock_orders_programs(tmp_path: Path) -> None:
    body = "take_ticket[4,](torch.zeros(1, dtype=torch.int32), zeros); return zeros, torch.tensor([4.0, 0, 0])"
    assert check(tmp_path, body).fault is None
    relaxed = KERNELS.replace('sem="acquire"', 'sem="relaxed"')
    assert relaxed != KERNELS
    (tmp_path / "relaxed.py").write_text(relaxed + "".join(f"    {line}\n" for line in body.split("; ")))
    (function,) = load_checks(str(tmp_path / "relaxed.py")).values()
    fault = run_check("check_a", function, 87).fault
    assert fault is not None and "of y_ptr" in fault and "races" in fault


def test_atomic_updates_race_with_what_is_not_atomic(tmp_path: Path) -> None:
    assert check(tmp_path, "add[3,](zeros, 'acq_rel'); return zeros, torch.tensor([3.0, 3.0, 6.0])").fault is None
    fault = check(tmp_path, "begin_and_add[3,](zeros); return zeros, zeros").fault
    assert fault is not None and re.search(
        "a write of byte 0 of y_ptr by program 1, warp 0 races with the atomic update by program 0, warp 0", fault
    )
    fault = check(tmp_path, "add[3,](zeros[1:].view(2), 'acq_rel'); return zeros, zeros").fault
    assert fault is not None and "of 4 bytes at byte 12 of y_ptr, which has 12" in fault
