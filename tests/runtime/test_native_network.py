"""Network files through the native library, against the test double of the driver that the library's own tests use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vae_edge.errors import BackendError
from vae_edge.runtime.native import load_library

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native library for sm_87 with its test double and a network file."""
    if shutil.which("cmake") is None or shutil.which("cc") is None:
        pytest.skip("needs CMake and a C compiler")
    folder = tmp_path_factory.mktemp("native")
    options = [f"-DPython3_EXECUTABLE={sys.executable}", "-DVAE_EDGE_ARCHITECTURES=87"]
    subprocess.run(["cmake", "-S", ROOT, "-B", folder, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder], check=True, capture_output=True)
    return folder


def run(built: Path, code: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, with the double as the driver."""
    tests = built / "kernels/native/tests"
    path = os.pathsep.join([str(tests / "fake_driver"), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "LD_LIBRARY_PATH": path, "FAKE_CC": "87", **more}
    environment["VAE_EDGE_NATIVE"] = str(built / "lib/libvae_edge_kernels.so")
    before = (
        "import numpy as np\nfrom vae_edge.runtime.native import NativeNetwork\n"
        f"file = {str(tests / 'network_1.ve')!r}\n"
    )
    code = before + code
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_network_file_is_opened_described_and_asked_without_torch(built: Path) -> None:
    done = run(
        built,
        """
import sys
with NativeNetwork(file) as network:
    print(network.classes, network.size, network.channels, network.threshold, network.has_angle)
    answers = network.classify(np.zeros((3, 28, 28, 1), np.uint8))
    print(answers.probabilities.shape, answers.scores.shape, answers.second_shares.shape)
print("torch" in sys.modules, "triton" in sys.modules)
""",
    )
    assert done.stdout.splitlines() == [
        "('one', 't=wo', 'drei äöü') 28 1 0.5 False",
        "(3, 3) (3,) (3,)",
        "False False",
    ], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "code, more, words",
    [
        ("NativeNetwork('/nowhere.ve')", {}, "BundleError: ve_open: /nowhere.ve cannot be opened"),
        ("NativeNetwork(file)", {"FAKE_CC": "90"}, "BackendError: .* has machine code for sm_87; the device is sm_90"),
        ("NativeNetwork(file, 5)", {}, "BackendError: ve_open: this machine has no CUDA device number 5"),
        ("NativeNetwork(file).classify(np.zeros((1, 3), np.uint8))", {}, r"DataError: images must be uint8"),
        ("n = NativeNetwork(file); n.close(); n.close(); n.classify(np.zeros((1, 28, 28, 1), np.uint8))", {}, "closed"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(built: Path, code: str, more: dict[str, str], words: str) -> None:
    import re

    done = run(built, code, **more)
    assert done.returncode == 1 and re.search(words, done.stderr), done.stderr


def test_a_missing_or_foreign_library_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be loaded"):
        load_library(tmp_path / "none.so")
    with pytest.raises(BackendError, match="not a native library of this version"):
        load_library("libc.so.6")
