from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from doubles import emulated_gpu
from vae_edge_kernels.aot import worker

import vae_edge
from vae_edge.ops import reparameterize as reference
from vae_edge.runtime import native_library

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("cmake") is None or shutil.which("cc") is None, reason="needs cmake and a C compiler"
    ),
]


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout + done.stderr)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native library, built for two architectures with warnings as errors."""
    folder = tmp_path_factory.mktemp("native") / "build"
    run("cmake", "-S", ROOT, "-B", folder, f"-DPython3_EXECUTABLE={sys.executable}",
        "-DVAE_EDGE_ARCHITECTURES=87;90", "-DVAE_EDGE_WERROR=ON", "-DVAE_EDGE_EMULATED_DIGITS=12")  # fmt: skip
    run("cmake", "--build", folder)
    return folder


@pytest.fixture(scope="module")
def library(build: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build / "lib" / "libvae_edge_kernels.so"))
    loaded.ve_version.restype = loaded.ve_last_error.restype = ctypes.c_char_p
    return loaded


def test_ctest_passes(build: Path) -> None:
    output = run("ctest", "--test-dir", build, "--output-on-failure")
    assert "100% tests passed" in output
    for name in ("listing", "double_launch_sm_87", "double_launch_sm_90", "broken_driver"):
        assert name in output
    for name in ("gpu_emulated", "digits_emulated"):  # where the emulator knows what this Triton emits
        result = "Skipped" if emulated_gpu.why_not() else "Passed"
        assert re.search(rf"{name} \.+ *(\*\*\*)?{result}", output), output
    if "VAE_EDGE_HAS_SANITIZERS:INTERNAL=1" in (build / "CMakeCache.txt").read_text():
        assert "fuzz_network" in output


def test_the_library_loads_from_python_and_tells_its_version(library: ctypes.CDLL) -> None:
    assert library.ve_version().decode() == vae_edge.__version__
    assert library.ve_kernel_count() == len(list(worker.kernel_specs(90)))


def test_the_interface_has_the_version_that_the_wrapper_needs_and_the_soname_tells(
    library: ctypes.CDLL, build: Path
) -> None:
    assert library.ve_abi_version() == native_library.ABI_VERSION
    assert (build / "lib" / f"libvae_edge_kernels.so.{native_library.ABI_VERSION}").exists()


def test_without_a_driver_initializing_fails_with_a_sentence(library: ctypes.CDLL) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert library.ve_initialize(0) == 2
        assert b"no NVIDIA driver on this machine" in library.ve_last_error()
    else:
        pytest.skip("this machine has a driver")


def test_the_c_reference_has_the_noise_of_the_numpy_reference(build: Path) -> None:
    library = ctypes.CDLL(str(build / "kernels/native/tests/libve_reference.so"))
    library.reference_normal.restype = ctypes.c_double
    for seed, offset in ((0, 0), (2**63 - 1, 2**34 - 50), (77, 3)):
        drawn = [library.reference_normal(ctypes.c_uint64(seed), ctypes.c_uint64(offset + i)) for i in range(100)]
        np.testing.assert_allclose(drawn, reference.normal(seed, offset, 100), rtol=0, atol=3e-6)


def test_building_again_compiles_nothing(build: Path) -> None:
    assert "sm_87:" not in run("cmake", "--build", build)


def test_a_program_builds_against_the_installed_library(build: Path, tmp_path: Path) -> None:
    run("cmake", "--install", build, "--prefix", tmp_path)
    (tmp_path / "program.c").write_text(
        "#include <stdio.h>\n#include <vae_edge.h>\n"
        'int main(void) { printf("%s %d", ve_version(), ve_kernel_count()); }\n'
    )
    folder = next(tmp_path.glob("lib*/**/libvae_edge_kernels.so")).parent
    run(
        "cc",
        tmp_path / "program.c",
        f"-I{tmp_path}/include",
        f"-L{folder}",
        "-lvae_edge_kernels",
        "-o",
        tmp_path / "program",
    )
    output = run(tmp_path / "program", env={**os.environ, "LD_LIBRARY_PATH": str(folder)})
    assert output == f"{vae_edge.__version__} {len(list(worker.kernel_specs(90)))}"


def test_a_python_without_triton_is_told_at_configuration(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -I "$@"\n')
    bare.chmod(0o755)
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), f"-DPython3_EXECUTABLE={bare}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    sentence = " ".join(done.stderr.split())
    assert "has no Triton" in sentence and "-DPython3_EXECUTABLE" in sentence
