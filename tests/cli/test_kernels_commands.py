"""`vae-edge kernels run`, `profile` and `check` on a user's file, and a profile of a whole network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vae_edge.cli import main

pytest.importorskip("triton")
SOFTMAX = str(Path(__file__).parents[1] / "fixtures/softmax.py")
MATMUL = str(Path(__file__).parents[1] / "fixtures/matmul.py")
FAULTY = str(Path(__file__).parents[1] / "fixtures/faulty_kernels.py")


def test_run_tells_what_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "run", SOFTMAX, "--arch", "87,90", "--seed", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = ["check_softmax", "check_narrow_rows"]
    assert [(each["check"], each["architecture"]) for each in found] == [(n, a) for a in (87, 90) for n in names]
    assert all(each["right"] and each["launches"] == 1 and each["warp_instructions"] > 300 for each in found)


def test_run_fails_where_one_check_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "run", f"{FAULTY}::check_out_of_bounds"]) == 2
    printed = capsys.readouterr()
    assert "check_out_of_bounds on sm_87: WRONG" in printed.out
    assert "check_out_of_bounds on sm_87: PTX line" in printed.err
    assert "(faulty_kernels.py:27): a write of 4 bytes at byte 400 of y_ptr, which has 400." in printed.err
    assert main(["kernels", "run", f"{FAULTY}::check_nothing"]) == 2
    assert "has no check check_nothing; it has check_race_between_threads" in capsys.readouterr().err


def test_one_check_that_does_not_run_keeps_no_other_from_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    softmax = Path(SOFTMAX).read_text()
    (tmp_path / "more.py").write_text(softmax.replace("def check_softmax():", "def check_first():\n    1 / 0\n") + "\n")
    assert main(["kernels", "run", str(tmp_path / "more.py"), "--arch", "87,90"]) == 2
    printed = capsys.readouterr()
    assert "check_first on sm_87: NOT RUN; 0 launches" in printed.out
    assert printed.out.count("check_narrow_rows on sm_90: right") == 1
    assert "check_first on sm_90: ZeroDivisionError: division by zero (more.py:" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.py"], "there is no file nowhere.py"),
        (["run", str(Path(SOFTMAX).parent)], "expected a file whose name ends in .py"),
        (["check", SOFTMAX, "--only", "soft*"], "--only and --networks select kernels of VAE Edge, not of "),
        (["profile", SOFTMAX, "--only", "soft*"], "--only is for --operators"),
        (["profile", SOFTMAX, "--programs", "2"], "--programs is for --networks"),
        (["profile", "--networks", "tiny", "--programs", "3"], "--programs 3: expected a power of two"),
        (["profile", "--networks", "none"], "--networks none: expected presets"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_one_tolerance_alone_sets_the_other_to_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "run", f"{SOFTMAX}::check_narrow_rows", "--rtol", "0.001"]) == 0
    assert main(["kernels", "run", f"{SOFTMAX}::check_narrow_rows", "--atol", "1e-12"]) == 2
    with pytest.raises(SystemExit):
        main(["kernels", "run", SOFTMAX, "--rtol=-1"])
    assert "-1: expected a number from 0 on" in capsys.readouterr().err


def test_a_stricter_tolerance_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "run", f"{SOFTMAX}::check_narrow_rows", "--rtol", "0", "--atol", "1e-12"]) == 2
    assert "WRONG, largest difference three columns" in capsys.readouterr().out


def test_profile_counts_by_line_and_says_modelled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "profile", SOFTMAX, "--device", "h100", "--lines", "2"]) == 0
    printed = capsys.readouterr().out
    assert "modelled on h100, not measured" in printed and "more lines (--lines)" in printed
    assert main(["kernels", "profile", f"{SOFTMAX}::check_softmax", "--lines", "0"]) == 0
    printed = capsys.readouterr().out
    assert "modelled on orin, not measured" in printed and "more lines" not in printed
    assert main(["kernels", "profile", f"{SOFTMAX}::check_softmax", "--json"]) == 0
    (launch,) = json.loads(capsys.readouterr().out)
    assert launch["architecture"] == 87 and launch["grid"] == [3, 1, 1] and launch["registers"] > 8
    assert sum(launch["opcodes"].values()) == launch["counts"]["instructions"]
    by_line = sum(counts.get("instructions", 0) for counts in launch["lines"].values())
    assert by_line == launch["counts"]["instructions"]
    assert launch["modelled_us"][launch["limit"]] == max(launch["modelled_us"].values())


def test_products_in_tensor_memory_run_and_are_profiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "run", MATMUL, "--arch", "90,100,110,120", "--json"]) == 0
    assert all(each["right"] for each in json.loads(capsys.readouterr().out))
    assert main(["kernels", "profile", MATMUL, "--device", "thor", "--json"]) == 0
    (launch,) = json.loads(capsys.readouterr().out)
    assert launch["architecture"] == 110 and launch["counts"]["products"] == 16  # of 128 by 64 by 16
    assert launch["modelled_us"]["tensor cores"] > 0


def test_profile_wants_a_file_or_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "profile"]) == 2
    assert "give either a file with checks, or --networks" in capsys.readouterr().err


def test_profile_of_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "profile", "--operators", "tiny", "--only", "rotate*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["operator"] for row in rows} >= {"rotate_u8_fp16", "rotate_u8_int8"}
    for row in rows:
        assert row["counts"]["instructions"] > row["values"] / 32 and 0 < row["share"] <= 1
    assert main(["kernels", "profile", "--operators", "tiny", "--only", "rotate_u8_fp16"]) == 0
    assert "modelled on orin, not measured" in capsys.readouterr().out
    assert main(["kernels", "profile", "--operators", "tiny", "--only", "nothing"]) == 2
    assert "there are avg_pool_fp16" in capsys.readouterr().err


def test_profile_of_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "profile", "--networks", "tiny", "--programs", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [launch["launch"] for launch in found] == ["tiny_fp16", "tiny_int8"]
    assert all(launch["grid"] == [1, 2, 1] and launch["counts"]["barriers"] > 50 for launch in found)
    assert all("network_steps.py" in " ".join(launch["lines"]) for launch in found)


def test_check_lists_the_machine_code_of_a_users_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "check", SOFTMAX, "--arch", "87", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["kernel"] for each in found] == ["softmax_kernel", "softmax_kernel"]
    assert all(each["code"]["registers"] > 8 and each["code"]["spill_store_bytes"] == 0 for each in found)
