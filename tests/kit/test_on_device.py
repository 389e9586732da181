"""`sh build.sh` on the device: from the kit to a result, with doubles standing for JetPack's TensorRT and the driver.

What a device lacks (rich, Pillow) cannot be imported in these processes. Verified against doubles, not on hardware.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vae_edge.bundle import Bundle, load_bundle
from vae_edge.engine import gpus
from vae_edge.engine.build import inner_tensor_names
from vae_edge.engine.tensorrt import BuildConfig, TensorRTInstallation
from vae_edge.errors import EngineError
from vae_edge.kit import device
from vae_edge.kit.archive import unpack, write_sums
from vae_edge.kit.description import HeldOut, read_description
from vae_edge.kit.write import Kit, kit_device, write
from vae_edge.runtime import verification

BLOCK = "import sys\nfor name in ('rich', 'PIL', 'torch', 'triton', 'openvino'): sys.modules[name] = None\n"


@pytest.fixture
def copy(kit: Kit, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kit.path, tmp_path / "on the device"))


def build(kit: Path, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "HOME": "/home/somebody", **(environment or {})}
    command = ["sh", str(kit / "build.sh"), *words]
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, check=False, timeout=240)


# What is found before anything is run


def test_nothing_is_imported_from_the_folder_it_is_run_in(copy: Path, tmp_path: Path) -> None:
    for name in ("vae_edge", "numpy", "tensorrt", "hashlib"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("1 / 0")
    elsewhere = tmp_path / "elsewhere" / "tensorrt"
    elsewhere.mkdir(parents=True)
    (elsewhere / "__init__.py").write_text("")
    env = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "PYTHONPATH": str(elsewhere.parent)}
    done = subprocess.run(["sh", copy / "build.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "ZeroDivisionError" not in done.stderr, done.stderr
    assert "files are as they were written" in done.stdout and "needs a GPU with its driver" in done.stderr


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("bundle/manifest.json", "bundle/manifest.json was changed or is damaged"),
        ("data.npz", "data.npz was changed"),
        ("build.sh", "build.sh was changed"),
    ],
)
def test_a_changed_file_is_named_before_anything_is_run(copy: Path, file: str, words: str) -> None:
    with (copy / file).open("ab") as opened:
        opened.write(b"\n")
    done = build(copy)
    assert done.returncode == 2 and words in done.stderr and "copy the kit again" in done.stderr
    assert not list(copy.glob("result*")) and not (copy / device.WORK).exists()


def test_a_changed_wheel_is_not_imported(copy: Path) -> None:
    (wheel,) = copy.glob("*.whl")
    shutil.copyfile(copy / "data.npz", wheel)
    done = build(copy)
    assert done.returncode == 2 and f"{wheel.name} was changed" in done.stderr


def test_missing_files_and_sums_are_sentences(copy: Path) -> None:
    (copy / "data.npz").unlink()
    assert "data.npz cannot be read (No such file or directory)" in build(copy).stderr
    (copy / "SHA256SUMS").unlink()
    assert "SHA256SUMS is missing or damaged" in build(copy).stderr


def test_a_python_that_is_missing_or_too_old_is_named(copy: Path, tmp_path: Path) -> None:
    assert "There is no no-such-python" in build(copy, environment={"PYTHON": "no-such-python"}).stderr
    old = tmp_path / "python3.8"
    old.write_text(f'#!/bin/sh\ncase "$*" in *version_info*) exit 1 ;; esac\nexec {sys.executable} "$@"\n')
    old.chmod(0o755)
    assert "is older than Python 3.10" in build(copy, environment={"PYTHON": str(old)}).stderr


def test_missing_packages_are_named_with_the_command_that_brings_them(copy: Path, tmp_path: Path) -> None:
    for name in ("numpy", "tensorrt", "tensorrt_bindings"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('lib{name}.so: cannot open')")
    assert "sudo apt-get install python3-numpy" in build(copy, environment={"PYTHONPATH": str(tmp_path)}).stderr
    shutil.rmtree(tmp_path / "numpy")
    said = build(copy, environment={"PYTHONPATH": str(tmp_path)}).stderr
    assert "libtensorrt.so: cannot open" in said and "sudo apt-get install python3-libnvinfer" in said


def test_a_folder_with_a_colon_in_its_name_is_refused(copy: Path) -> None:
    moved = copy.rename(copy.with_name("a:b"))
    assert "has a colon in its name" in build(moved).stderr


@pytest.mark.parametrize("name", ["python3.10", "python3.11", "python3.12", "python3.13"])
def test_the_script_runs_with_each_python_that_is_here(copy: Path, name: str) -> None:
    if shutil.which(name) is None or subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no {name}")
    done = build(copy, environment={"PYTHON": name})
    assert "files are as they were written" in done.stdout and done.returncode == 2
    assert re.search(r"has no NumPy|cannot import TensorRT", done.stderr), done.stderr


# The machine


ORIN = gpus.Driver((12, 6), (gpus.Device(0, "Orin", (8, 7), 8, 8 << 30, True),))
DESKTOP = gpus.Driver((13, 0), (gpus.Device(0, "RTX A2000", (8, 6), 26, 12 << 30, False),))
NO_GPU = gpus.Driver(None, (), "no NVIDIA driver is installed")


@pytest.mark.parametrize(
    ("driver", "number", "words"),
    [
        (NO_GPU, 0, "needs a GPU with its driver: no NVIDIA driver is installed"),
        (ORIN, 1, "there is no GPU number 1"),
        (DESKTOP, 0, r"for Jetson Orin Nano 8 GB \(sm_87\), but this GPU is RTX A2000 \(sm_86\).*--target sm_86"),
        (ORIN, 0, "TensorRT is not installed.*JetPack"),
    ],
)
def test_another_machine_is_refused(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, driver: gpus.Driver, number: int, words: str
) -> None:
    monkeypatch.setattr(gpus, "probe", lambda *_: driver)
    monkeypatch.setattr(device, "discover", lambda kinds: [])
    with pytest.raises(EngineError, match=words):
        device.check_machine(read_description(kit.path), number)


def test_the_right_machine_is_accepted(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "probe", lambda *_: ORIN)
    found = TensorRTInstallation("tensorrt", "tensorrt", "10.3.0", True)
    monkeypatch.setattr(device, "discover", lambda kinds: [found])
    assert device.check_machine(read_description(kit.path), 0).name == "Orin"


# The work folder


def test_the_work_folder_is_emptied_before_and_removed_after_whatever_happens(tmp_path: Path) -> None:
    left = tmp_path / device.WORK
    (left / "result").mkdir(parents=True)
    (left / "link").symlink_to(tmp_path)
    with pytest.raises(KeyboardInterrupt), device._work_folder(tmp_path) as work:
        assert work == left and not any(work.iterdir())
        (work / "half").write_text("written")
        raise KeyboardInterrupt
    assert not left.exists()


def test_two_runs_in_one_place_are_refused(tmp_path: Path) -> None:
    refused = pytest.raises(EngineError, match="Another run is going on")
    with device._work_folder(tmp_path), refused, device._work_folder(tmp_path):
        pass
    with device._work_folder(tmp_path):
        pass


def test_a_read_only_medium_is_refused_with_the_option_that_helps(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(device, "check_machine", lambda *_: ORIN.devices[0])
    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(device, "_heed_interrupts", lambda: None)
    assert device.main([str(kit.path), "/"]) == 2
    said = capsys.readouterr().err
    assert "cannot be written to (Read-only file system)" in said and "sh build.sh --out FOLDER" in said


def test_names_of_results_are_not_used_twice(tmp_path: Path) -> None:
    first = device._free_name(tmp_path, "result-x-2026-11-26")
    first.write_text("")
    assert first.name == "result-x-2026-11-26.tar.gz"
    assert device._free_name(tmp_path, "result-x-2026-11-26").name == "result-x-2026-11-26-2.tar.gz"


def test_places_home_and_the_hosts_name_are_taken_out_of_text(tmp_path: Path) -> None:
    scrub = device._scrubber(tmp_path / "kit", tmp_path, tmp_path / device.WORK)
    text = f"{tmp_path}/kit/bundle and {tmp_path}/x on {socket.gethostname()} of {Path.home()}"
    found = scrub(text)
    assert found.startswith("KIT/bundle and OUT/x on ") and str(tmp_path) not in found
    assert len(socket.gethostname()) < 3 or socket.gethostname() not in found


# End to end, through the doubles


@pytest.fixture(scope="session")
def jetpack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a Jetson Orin with JetPack 6: TensorRT 10.3, a driver, NumPy, no rich and no Pillow."""
    loading = pytest.importorskip("doubles.loading", reason="the double of TensorRT is not here")
    library = pytest.importorskip("doubles.cuda_library")
    if not library.have_compiler():
        pytest.skip("needs a C compiler for the double of the CUDA driver")
    if not hasattr(loading.load_tensorrt("10.3").module, "Builder"):
        pytest.skip("the double of TensorRT does not build here")
    folder = tmp_path_factory.mktemp("jetpack")
    cuda = library.build_cuda_double(folder / "cuda")
    packages = loading.write_package(folder / "packages", "10.3")
    (packages / "sitecustomize.py").write_text(BLOCK)
    faults = folder / "faults"
    yield {
        "PYTHONPATH": str(packages),
        "LD_LIBRARY_PATH": str(cuda.folder),
        "DOUBLE_CC": "87",
        "DOUBLE_TENSORRT_FAULTS": str(faults),
        "OMP_NUM_THREADS": "1",
    }
    assert not faults.exists() or faults.read_text() == ""


def unpacked(kit: Path, folder: Path, name: str = "result-*.tar.gz") -> dict[str, Any]:
    (path,) = kit.glob(name)
    folder.mkdir()
    unpack(path, folder)
    return {each.name: json.loads(each.read_text()) for each in folder.glob("*.json")}


@pytest.mark.slow
def test_a_kit_builds_verifies_measures_and_packs_and_its_result_comes_home(
    copy: Path, jetpack: dict[str, str], home: Bundle, held_out: HeldOut, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    done = build(copy, "--seconds", "3", environment=jetpack)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.isascii()
    for words in ("TensorRT 10.3.0 built an int8 engine for sm_87", "gives right answers", "p50 us", "at home"):
        assert words in done.stdout
    assert {path: path.read_bytes() for path in before} == before, "the kit itself is only read"
    assert {path.name for path in copy.iterdir()} - {path.name for path in before if path.parent == copy} == {
        "bundle",
        *(path.name for path in copy.glob("result-orin-nano-????-??-??.tar.gz")),
    }

    values = unpacked(copy, tmp_path / "result")
    result, accuracy = values["result.json"], values["accuracy.json"]
    assert (result["device"], result["right"], result["failed"], result["problems"]) == ("orin-nano", True, {}, [])
    assert result["machine"]["code"] and values["verification.json"]["right"] is True
    rows = {(row["precision"], row["batch"]) for row in values["benchmark.json"]["results"]}
    assert {("int8", 1), ("fp32", 1)} <= rows <= {(p, b) for p in ("int8", "fp32") for b in (1, 8, 64)}
    assert len(rows) == 6 or "was not timed: there was no time left" in done.stdout, done.stdout
    for precision in ("int8", "fp32"):
        assert accuracy["here"][precision]["accuracy"] == pytest.approx(
            accuracy["at_home"][precision]["accuracy"], abs=0.02
        )
    for path in (tmp_path / "result").rglob("*"):
        if path.suffix in (".json", ".md", ".txt"):
            text = path.read_text()
            assert str(tmp_path) not in text and "/home/somebody" not in text, path
    with tarfile.open(next(copy.glob("result-*"))) as archive:
        assert {(member.uname, member.uid) for member in archive} == {("", 0)}

    bundle = Path(shutil.copytree(home.path, tmp_path / "home"))
    from vae_edge import add_result

    added = add_result(next(copy.glob("result-*")), bundle)
    assert set(added.files) == {"int8", "fp32"} and added.verified == {"int8": True, "fp32": True}
    entry = load_bundle(bundle).find("classifier", "tensorrt", "int8", "sm_87")
    assert entry.accuracy["n"] == len(held_out) and entry.provenance["settings"]["batch"] == [1, 8, 64]
    assert load_bundle(bundle).find("classifier", "tensorrt", "fp32", "sm_87").provenance["settings"]["tf32"] is False

    again = build(copy, "--seconds", "1", environment=jetpack)
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(list(copy.glob("result-*.tar.gz"))) == 2, "a second run replaces nothing"


def only_int8(copy: Path) -> None:
    """Leave one engine to build, which is faster."""
    about = json.loads((copy / "kit.json").read_text())
    about["configs"] = about["configs"][:1]
    (copy / "kit.json").write_text(json.dumps(about))
    names = [line[66:] for line in (copy / "SHA256SUMS").read_text().splitlines()]
    write_sums(copy, names, "SHA256SUMS")


@pytest.mark.slow
def test_wrong_answers_are_told_and_not_added(
    copy: Path, jetpack: dict[str, str], home: Bundle, tmp_path: Path
) -> None:
    from vae_edge import add_result
    from vae_edge.errors import BundleError

    only_int8(copy)
    done = build(copy, "--seconds", "1", environment={**jetpack, "DOUBLE_TENSORRT_PLANTS": "nearest"})
    assert done.returncode == 1 and "gives wrong answers" in done.stdout, done.stdout + done.stderr
    bundle = Path(shutil.copytree(home.path, tmp_path / "home"))
    with pytest.raises(BundleError, match=r"is not added: .*gives wrong answers"):
        add_result(next(copy.glob("result-*")), bundle)


@pytest.mark.slow
def test_marked_outputs_tell_which_tensor_is_wrong_first(home: Bundle, jetpack: dict[str, str], tmp_path: Path) -> None:
    names = inner_tensor_names(home, "classifier", "int8")
    config = BuildConfig("int8", batch=(1, 1, 1), mark_outputs=names)
    made = write(home, kit_device("orin-nano"), [config], tmp_path / "kit").path
    done = build(made, "--seconds", "1", environment={**jetpack, "DOUBLE_TENSORRT_PLANTS": "nearest"})
    assert done.returncode == 1, done.stdout + done.stderr
    found = re.search(r"the first wrong tensor inside is (\S+)", done.stdout)
    assert found and found[1] in names, done.stdout
    assert "not of the int8 engine, whose answers are wrong" in done.stdout
    right = build(made, "--seconds", "1", environment=jetpack)
    assert right.returncode == 0 and "gives right answers" in right.stdout, right.stdout + right.stderr


@pytest.mark.slow
def test_a_build_that_fails_is_a_sentence_and_leaves_nothing(copy: Path, jetpack: dict[str, str]) -> None:
    only_int8(copy)
    failing = {**jetpack, "DOUBLE_TENSORRT_FAIL": "build_serialized_network:0"}
    done = build(copy, environment=failing)
    assert done.returncode == 2 and "No engine could be built" in done.stderr, done.stdout + done.stderr
    assert not list(copy.glob("result*")) and not (copy / device.WORK).exists()


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_leaves_nothing(copy: Path, jetpack: dict[str, str]) -> None:
    only_int8(copy)
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, **jetpack}
    limited = ["sh", "-c", f"ulimit -f 100; exec sh '{copy / 'build.sh'}'"]
    done = subprocess.run(limited, cwd="/", env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 2 and "File too large" in done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not list(copy.glob("result*")) and not (copy / device.WORK).exists()


def _heed_ctrl_c() -> None:
    """A shell's background job ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_that_is_lost_in_a_callback_comes_again() -> None:
    code = """
import ctypes, os, signal, time
from vae_edge.kit import device
device.INTERRUPT_AGAIN_S = 0.2
device._heed_interrupts()
lost = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGTERM))
try:
    lost()
    print("went on")
    time.sleep(20)
except KeyboardInterrupt:
    device._end_interrupts()
    time.sleep(0.5)
    print("ended")
"""
    environment = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "ended" and "ignored" in done.stderr, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_no_result_and_the_next_one_works(
    copy: Path, jetpack: dict[str, str], tmp_path: Path, blow: signal.Signals
) -> None:
    only_int8(copy)
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, **jetpack}
    command = ["sh", str(copy / "build.sh"), "--seconds", "60"]
    out = tmp_path / "out.txt"
    with out.open("w") as stream:
        how: dict[str, Any] = {"stdout": stream, "stderr": stream, "start_new_session": True, "cwd": "/"}
        how["preexec_fn"] = _heed_ctrl_c
        running = subprocess.Popen(command, env=environment, **how)
        try:
            end = time.monotonic() + 120
            while "measuring latency" not in out.read_text() and time.monotonic() < end:
                assert running.poll() is None, out.read_text()
                time.sleep(0.05)
            os.kill(running.pid, blow)
            code = running.wait(60)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
    assert code == (-9 if blow is signal.SIGKILL else 130), out.read_text()
    assert not list(copy.glob("result*"))
    assert (copy / device.WORK).exists() == (blow is signal.SIGKILL)
    if blow is signal.SIGKILL:
        done = build(copy, "--seconds", "1", environment=jetpack)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(list(copy.glob("result*"))) == 1 and not (copy / device.WORK).exists()


@pytest.mark.slow
def test_the_result_goes_where_out_says(copy: Path, jetpack: dict[str, str], tmp_path: Path) -> None:
    only_int8(copy)
    out = tmp_path / "another place"
    done = build(copy, "--out", str(out).lstrip("/"), "--seconds", "1", environment=jetpack)  # from /
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name[:17] for path in out.iterdir()] == ["result-orin-nano-"]
    assert not list(copy.glob("result*"))


def test_verification_is_not_limited_in_address_space_which_a_driver_reserves(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def verify(bundle: Path, backends: list[str], **options: Any) -> None:
        asked.update(options)
        raise EngineError("asked")

    monkeypatch.setattr(verification, "verify_in_subprocess", verify)
    report = device.Report()
    device._verify(read_description(kit.path), kit.path / "bundle", 0, report)
    assert asked["max_bytes"] > 1 << 40 and report.problems == ["asked"]
