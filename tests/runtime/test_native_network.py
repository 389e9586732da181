"""Network files through the native library, against the test double of the driver that the library's own tests use."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def signed(path: Path, source: Path, edit: Callable[[dict[str, Any], dict[str, bytes]], None]) -> None:
    """A copy of a network file whose header and tensors were edited, with the digest that belongs to it."""
    content = source.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    tensors = {
        name: content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        for name, entry in header.items()
        if name != "__metadata__"
    }
    edit(header, tensors)
    at = 0
    for name, data in tensors.items():
        entry = header.setdefault(name, {"dtype": "U8", "shape": [len(data)]})
        entry["data_offsets"] = [at, at + len(data)]
        at += len(data)
    body = b"".join(tensors.values())
    header["__metadata__"]["sha256"] = hashlib.sha256(body).hexdigest()
    text = json.dumps({name: entry for name, entry in header.items() if name == "__metadata__" or name in tensors})
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + body)


def about(old: bytes, new: bytes) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    """Something else in the description."""

    def edit(header: dict[str, Any], tensors: dict[str, bytes]) -> None:
        assert old in tensors["about"]
        tensors["about"] = tensors["about"].replace(old, new)

    return edit


def without(name: str) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    """A tensor less."""
    return lambda header, tensors: tensors.__delitem__(name)


def cut(name: str) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    """A tensor of half its size."""
    return lambda header, tensors: tensors.__setitem__(name, tensors[name][: len(tensors[name]) // 2])


HOSTILE = {
    "no description": (without("about"), "is no network file of this version"),
    "another format": (
        lambda header, tensors: header["__metadata__"].__setitem__("format", "vae-edge-network-9"),
        "its format is 'vae-edge-network-9'",
    ),
    "no side": (about(b"side=28\n", b""), "'side' must be a number from 1 to 4096; it is 'missing'"),
    "a side of nothing": (about(b"side=28\n", b"side=0\n"), "'side' must be a number from 1 to 4096; it is '0'"),
    "a huge side": (about(b"side=28\n", b"side=99999999999999999999\n"), "'side' must be a number"),
    "words for a number": (about(b"channels=1\n", b"channels=one\n"), "'channels' must be a number"),
    "too many classes": (about(b"classes=3\n", b"classes=4096\n"), "class 3 has no name"),
    "a class without a name": (about(b"class.1=", b"klass.1="), "class 1 has no name"),
    "no scratch": (about(b"floats=", b"float="), "'floats' must be a number"),
    "fewer weights": (cut("weights"), "'weights' must be of"),
    "no numbers": (without("numbers"), "'numbers' must be of"),
    "no machine code": (without("cubin.87"), "has machine code for no architecture"),
    "machine code of nothing": (
        about(b"kernel.87=network", b"kernel.87="),
        "'kernel.87' must be an entry, warps, bytes",
    ),
    "another entry": (about(b"kernel.87=network", b"kernel.87=nothing"), "load the network's machine code"),
    "a huge entry": (about(b"kernel.87=network", b"kernel.87=" + b"n" * 400), "'kernel.87' must be an entry"),
    "three programs": (about(b"spread.87=", b"spread.87=x 4 0 3 "), "'spread.87' must be an entry"),
    "one program that spreads": (about(b"spread.87=", b"spread.87=x 4 0 1 "), "'spread.87' must be an entry"),
    "more programs than there may be": (about(b"spread.87=", b"spread.87=x 4 0 64 "), "'spread.87' must be an entry"),
    "machine code alone": (about(b"spread.87=", b"spreads.87="), "'spread.87' must be an entry"),
    "less than no shared memory": (about(b"kernel.87=", b"kernel.87=x 4 -1 1 "), "'kernel.87' must be an entry"),
    "half the machine code": (lambda header, tensors: tensors.__setitem__("cubin.87", b"\x7fELF"), "machine code"),
}


@pytest.mark.slow
def test_a_file_that_is_signed_but_wrong_is_refused_with_what_is_wrong(built: Path, tmp_path: Path) -> None:
    source = built / "kernels/native/tests/network_4.ve"
    for number, (edit, _) in enumerate(HOSTILE.values()):
        signed(tmp_path / f"{number}.ve", source, edit)
    signed(tmp_path / "same.ve", source, lambda header, tensors: None)
    done = run(
        built,
        f"""
from vae_edge.errors import VaeEdgeError
NativeNetwork({str(tmp_path / "same.ve")!r}).close()
for number in range({len(HOSTILE)}):
    try:
        NativeNetwork({str(tmp_path)!r} + f"/{{number}}.ve")
    except VaeEdgeError as error:
        print(str(error).replace(chr(10), " "))
    else:
        print("opened")
""",
    )
    assert done.returncode == 0, done.stderr
    told = dict(zip(HOSTILE, done.stdout.splitlines(), strict=True))
    wrong = {name: words for name, words in told.items() if HOSTILE[name][1] not in words}
    assert not wrong
