"""Network files through the native library, against the test double of the driver that the library's own tests use."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vae_edge.errors import BackendError
from vae_edge.runtime.native import load_library

ROOT = Path(__file__).parents[2]
BEFORE = ROOT / "tests/fixtures/schema1/native"


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
    path = os.pathsep.join([str(tests / "cuda_double"), os.environ.get("LD_LIBRARY_PATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "LD_LIBRARY_PATH": path, "DOUBLE_CC": "87", **more}
    environment["VAE_EDGE_NATIVE"] = str(built / "lib/libvae_edge_kernels.so")
    before = (
        "import numpy as np\nfrom vae_edge.runtime.native import NativeNetwork\n"
        f"file = {str(tests / 'network_1.ve')!r}\n"
    )
    code = before + code
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_network_file_classifies_without_torch(built: Path) -> None:
    done = run(
        built,
        """
import sys
with NativeNetwork(file) as network:
    print(network.classes, network.size, network.channels, network.threshold, network.has_angle)
    found = network.classify(np.zeros((3, 28, 28, 1), np.uint8))
    print(type(found).__name__, found.probabilities.shape, found.scores.shape, found.angles_deg.shape, len(found))
    print(found.second_angle_probabilities, found.threshold, found.classes == network.classes)
    print(len(found.preprocess_info), found.preprocess_info[2].sentence())
print("torch" in sys.modules, "triton" in sys.modules)
""",
    )
    assert done.stdout.splitlines() == [
        "('one', 't=wo', 'drei äöü') 28 1 0.5 False",
        "Predictions (3, 3) (3,) (3,) 3",
        "None 0.5 True",
        "3 array (28×28, uint8 1-channel): taken as it is.",
        "False False",
    ], done.stderr


@pytest.mark.slow
def test_a_network_that_estimates_the_orientation_gives_the_angle_uncertainty(built: Path, tmp_path: Path) -> None:
    source, path = built / "kernels/native/tests/network_1.ve", tmp_path / "angle.ve"
    signed(path, source, about(b"has_angle=0\n", b"has_angle=1\n"))
    done = run(
        built,
        f"""
with NativeNetwork({str(path)!r}) as network:
    found = network.classify(np.zeros((3, 28, 28, 1), np.uint8))
    print(network.has_angle, found.angle_confidences.shape)
    print(found.second_angles_deg.shape, found.second_angle_probabilities.shape)
""",
    )
    assert done.stdout.splitlines() == ["True (3,)", "(3,) (3,)"], done.stderr


@pytest.mark.slow
def test_a_network_file_of_the_version_before_classifies(built: Path, tmp_path: Path) -> None:
    (tmp_path / "before.ve").write_bytes(gzip.decompress((BEFORE / "network.ve.gz").read_bytes()))
    done = run(
        built,
        f"""
with NativeNetwork({str(tmp_path / "before.ve")!r}) as network:
    print(network.classes, network.classify(np.zeros((65, 28, 28, 1), np.uint8)).scores.shape)
""",
    )
    assert done.stdout.splitlines() == ["('one', 't=wo', 'drei äöü') (65,)"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "code, more, words",
    [
        ("NativeNetwork('/nowhere.ve')", {}, "BundleError: ve_open: /nowhere.ve cannot be opened"),
        ("NativeNetwork(file)", {"DOUBLE_CC": "90"}, "BackendError: .* machine code for sm_87; the device is sm_90"),
        ("NativeNetwork(file, 5)", {}, "BackendError: ve_open: this machine has no CUDA device number 5"),
        ("NativeNetwork(file).classify(np.zeros((1, 3), np.uint8))", {}, r"DataError: images must be uint8"),
        ("n = NativeNetwork(file); n.close(); n.close(); n.classify(np.zeros((1, 28, 28, 1), np.uint8))", {}, "closed"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(built: Path, code: str, more: dict[str, str], words: str) -> None:
    import re

    done = run(built, code, **more)
    assert done.returncode == 1 and re.search(words, done.stderr), done.stderr


@pytest.mark.slow
def test_a_network_file_that_the_version_of_schema_1_wrote_is_opened(built: Path) -> None:
    file = ROOT / "tests/fixtures/schema1/network.ve"
    done = run(
        built,
        f"""
with NativeNetwork({str(file)!r}) as network:
    print(network.classes, network.size, network.channels, round(network.threshold, 4), network.has_angle)
    print(network.classify(np.zeros((2, 28, 28, 1), np.uint8)).probabilities.shape)
""",
    )
    assert done.stdout.splitlines() == ["('ell', 'tee') 28 1 -0.1464 False", "(2, 2)"], done.stderr


def test_a_missing_or_foreign_library_is_told(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be loaded"):
        load_library(tmp_path / "none.so")
    with pytest.raises(BackendError, match="not a native library of this version"):
        load_library("libc.so.6")


FORMATS = ("vae-edge-network-3", "vae-edge-network-2")
WIDTHS = {"U8": 1, "I8": 1, "F16": 2, "F32": 4}


def signed(
    path: Path, source: Path, edit: Callable[[dict[str, Any], dict[str, bytes]], None], version: str = FORMATS[0]
) -> None:
    """A copy of a network file whose header and tensors were edited, with the digest that belongs to it: that of the
    file with zeros in its place, or, in the format before, of what is behind the header."""
    content = source.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    tensors = {
        name: content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        for name, entry in header.items()
        if name != "__metadata__"
    }
    header["__metadata__"] = {"format": version, "sha256": "0" * 64}
    before = {name: len(data) for name, data in tensors.items()}
    edit(header, tensors)
    at = 0
    for name, data in tensors.items():
        entry = header.setdefault(name, {"dtype": "U8", "shape": [len(data)]})
        if before.get(name, len(data)) != len(data):
            entry["shape"] = [len(data) // WIDTHS[entry["dtype"]]]
        entry["data_offsets"] = [at, at + len(data)]
        at += len(data)
    body = b"".join(tensors.values())
    text = json.dumps({name: entry for name, entry in header.items() if name == "__metadata__" or name in tensors})
    file = struct.pack("<Q", len(text)) + text.encode() + body
    digest = hashlib.sha256(file if header["__metadata__"]["format"] == FORMATS[0] else body).hexdigest()
    path.write_bytes(file.replace(b"0" * 64, digest.encode(), 1))


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


def added(line: bytes) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    """A line more in the description."""
    return lambda header, tensors: tensors.__setitem__("about", tensors["about"] + line)


def metadata(**values: str) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    """Other metadata."""
    return lambda header, tensors: header["__metadata__"].update(values)


def entry(name: str, **values: Any) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    """Something else in a tensor's entry."""
    return lambda header, tensors: header[name].update(values)


def begins(name: str, data: bytes) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    """A tensor whose first bytes are others."""
    return lambda header, tensors: tensors.__setitem__(name, data + tensors[name][len(data) :])


def renamed(old: str, new: str) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    """A tensor of another name."""

    def edit(header: dict[str, Any], tensors: dict[str, bytes]) -> None:
        header[new], tensors[new] = header.pop(old), tensors.pop(old)

    return edit


CODE = "must be an entry, warps, bytes and programs"
BITS = f"threshold_bits={struct.unpack('<I', struct.pack('<f', 0.5))[0]}\n".encode()
HOSTILE = {
    "no description": (without("about"), "its description, 'about', must be of at most"),
    "another format": (metadata(format="vae-edge-network-9"), "its format is 'vae-edge-network-9'"),
    "another key in the metadata": (metadata(author="someone"), "the metadata have a key that is unknown"),
    "an unknown tensor": (
        lambda header, tensors: tensors.__setitem__("extra", b"x"),
        "a name that the format does not",
    ),
    "an unknown key of a tensor": (entry("weights", order="C"), "a tensor has a key that is unknown"),
    "a shape that does not fit": (entry("numbers", shape=[1]), "a tensor's shape does not fit its bytes"),
    "a shape beyond all sizes": (entry("numbers", shape=[1 << 27] * 4), "a shape is too large"),
    "numbers of another kind": (entry("whitenings", dtype="I16"), "dtype is none of U8, I8, F16 and F32"),
    "numbers of a wrong kind": (
        lambda header, tensors: header["about"].update(dtype="I8"),
        "its description, 'about', must be",
    ),
    "no side": (about(b"side=28\n", b""), "'side' must be a number from 1 to 1024; it is 'missing'"),
    "a side of nothing": (about(b"side=28\n", b"side=0\n"), "'side' must be a number from 1 to 1024; it is '0'"),
    "a side beyond the limit": (about(b"side=28\n", b"side=1025\n"), "'side' must be a number from 1 to 1024"),
    "a huge side": (about(b"side=28\n", b"side=99999999999999999999\n"), "'side' must be a number"),
    "a side with a sign": (about(b"side=28\n", b"side=+28\n"), "'side' must be a number from 1 to 1024; it is '+28'"),
    "two sides": (added(b"side=28\n"), "a key of its description stands twice: 'side'"),
    "an unknown key": (added(b"colour=blue\n"), "a key that the format does not know: 'colour'"),
    "no key": (added(b"nothing\n"), "is not key=value: 'nothing'"),
    "an end without a line break": (added(b"class.9=x"), "does not end with a line break"),
    "a zero byte": (added(b"class.9=\0\n"), "has a byte that is 0"),
    "words for a number": (about(b"channels=1\n", b"channels=one\n"), "'channels' must be a number"),
    "escapes for a number": (
        about(b"channels=1\n", b"channels=\x1b]0;x\x07\x1b[31m\r\n"),
        r"it is '\x1b]0;x\x07\x1b[31m\x0d'",
    ),
    "a threshold that is not a number": (about(BITS, b"threshold_bits=2143289344\n"), "threshold is not a finite"),
    "an infinite threshold": (about(BITS, b"threshold_bits=4286578688\n"), "threshold is not a finite number"),
    "a threshold of 33 bits": (about(BITS, b"threshold_bits=4294967296\n"), "'threshold_bits' must be a number"),
    "too many classes": (about(b"classes=3\n", b"classes=4096\n"), "class 3 has no name"),
    "fewer classes than names": (about(b"classes=3\n", b"classes=2\n"), "it names 3 classes, where it says it has 2"),
    "a class without a name": (about(b"class.1=", b"klass.1="), "a key that the format does not know: 'klass.1'"),
    "a class without a line": (about(b"class.1=t=wo\n", b""), "class 1 has no name"),
    "a class of two names": (added(b"class.1=two\n"), "a key of its description stands twice: 'class.1'"),
    "a class's number written otherwise": (added(b"class.01=two\n"), "no number that there may be: 'class.01'"),
    "a class beyond the limit": (added(b"class.4096=two\n"), "no number that there may be: 'class.4096'"),
    "an empty name": (about(b"class.0=one\n", b"class.0=\n"), "the name of class 0 must be 1 to 1024 bytes of UTF-8"),
    "a name that is not UTF-8": (about(b"=one\n", b"=o\xffe\n"), r"1024 bytes of UTF-8; it is 'o\xffe'"),
    "a name with half a pair": (about(b"=one\n", b"=\xed\xa0\x80\n"), "must be 1 to 1024 bytes of UTF-8"),
    "a name beyond the limit": (about(b"=one\n", b"=" + b"o" * 1025 + b"\n"), "must be 1 to 1024 bytes of UTF-8"),
    "no scratch": (about(b"floats=", b"float="), "a key that the format does not know: 'float'"),
    "scratch beyond the limit": (added(b"floats=4194305\n"), "stands twice: 'floats'"),
    "fewer weights": (cut("weights"), "'weights' must be of"),
    "weights that overflowed": (begins("weights", b"\x00\x7c"), "numbers that are not finite: 'weights'"),
    "numbers that are none": (begins("numbers", b"\x00\x00\xc0\x7f"), "numbers that are not finite: 'numbers'"),
    "whitenings that are none": (begins("whitenings", b"\x01\xfc"), "numbers that are not finite: 'whitenings'"),
    "no numbers": (without("numbers"), "'numbers' must be of"),
    "no machine code": (without("cubin.87"), "the machine code of a line is missing: 'cubin.87'"),
    "no lines about machine code": (about(b"spread.87=", b"spread.90="), "of a line is missing: 'spread.90'"),
    "machine code of another name": (renamed("spread.87", "spread.86"), "of a line is missing: 'spread.87'"),
    "machine code of nothing": (about(b"kernel.87=network", b"kernel.87="), f"'kernel.87' {CODE}"),
    "another entry": (about(b"kernel.87=network", b"kernel.87=nothing"), "load the network's machine code"),
    "a huge entry": (about(b"kernel.87=network", b"kernel.87=" + b"n" * 400), f"'kernel.87' {CODE}"),
    "an entry with a control character": (about(b"kernel.87=n", b"kernel.87=\x07n"), f"'kernel.87' {CODE}"),
    "a word too many": (about(b"spread.87=", b"spread.87=x 4 0 4 "), f"'spread.87' {CODE}"),
    "three programs": (about(b" 4\n", b" 3\n"), f"'spread.87' {CODE}"),
    "one program that spreads": (about(b" 4\n", b" 1\n"), f"'spread.87' {CODE}"),
    "more programs than there may be": (about(b" 4\n", b" 64\n"), f"'spread.87' {CODE}"),
    "machine code alone": (about(b"spread.87=", b"spreads.87="), "a key that the format does not know: 'spreads.87'"),
    "less than no shared memory": (about(b"kernel.87=network ", b"kernel.87=network -"), f"'kernel.87' {CODE}"),
    "half the machine code": (lambda header, tensors: tensors.__setitem__("cubin.87", b"\x7fELF"), "it is too short"),
    "machine code that ends early": (cut("cubin.87"), "does not lie inside it"),
    "machine code of something else": (begins("cubin.87", b"MZ"), "it is not a 64-bit ELF file for CUDA"),
}


OPEN_ALL = """
import pathlib
from vae_edge.errors import VaeEdgeError
for path in sorted(pathlib.Path(FOLDER).glob("*.ve")):
    try:
        with NativeNetwork(path) as network:
            print(path.stem, "opened", ascii(network.classes), network.threshold)
    except VaeEdgeError as error:
        print(path.stem, type(error).__name__, error)
"""


def open_all(built: Path, folder: Path) -> dict[str, str]:
    """What becomes of each file in a folder, by its name."""
    done = run(built, OPEN_ALL.replace("FOLDER", repr(str(folder))))
    assert done.returncode == 0, done.stderr
    return {name: words for name, _, words in (line.partition(" ") for line in done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("version", FORMATS)
def test_a_file_that_is_signed_but_wrong_is_refused_with_what_is_wrong(
    built: Path, tmp_path: Path, version: str
) -> None:
    source = built / "kernels/native/tests/network_4.ve"
    for name, (edit, _) in HOSTILE.items():
        signed(tmp_path / f"{name.replace(' ', '_')}.ve", source, edit, version)
    signed(tmp_path / "same.ve", source, lambda header, tensors: None, version)
    told = open_all(built, tmp_path)
    assert told.pop("same") == "opened ('one', 't=wo', 'drei \\xe4\\xf6\\xfc') 0.5"
    assert len(told) == len(HOSTILE)
    assert not {
        name: words for name, words in told.items() if HOSTILE[name.replace("_", " ")][1] not in words
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("version", FORMATS)
def test_every_flipped_bit_of_the_header_is_refused(built: Path, tmp_path: Path, version: str) -> None:
    source, path = built / "kernels/native/tests/network_1.ve", tmp_path / "network.ve"
    signed(path, source, lambda header, tensors: None, version)
    header = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    code = f"""
from vae_edge.errors import BundleError
NativeNetwork({str(path)!r}).close()
refused = 0
with open({str(path)!r}, "r+b", buffering=0) as out:
    original = out.read({header})
    for bit in range(8 * {header}):
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        out.seek(0)
        out.write(flipped)
        try:
            NativeNetwork({str(path)!r})
            print("opened with", bit // 8, bytes(flipped))
        except BundleError:
            refused += 1
print(refused)
"""
    done = run(built, code)
    assert done.stdout == f"{8 * header}\n", done


@pytest.mark.slow
def test_many_names_in_many_lines_take_no_time(built: Path, tmp_path: Path) -> None:
    def many(header: dict[str, Any], tensors: dict[str, bytes]) -> None:
        lines = [line for line in tensors["about"].split(b"\n") if line and not line.startswith(b"class")]
        names = [b"class.%d=%s" % (number, b"n" * 1000) for number in range(4096)]
        tensors["about"] = b"\n".join([*names, *lines, b"classes=4096", b""])

    def empty_lines(header: dict[str, Any], tensors: dict[str, bytes]) -> None:
        tensors["about"] = b"\n" * (8 << 20)

    def too_large(header: dict[str, Any], tensors: dict[str, bytes]) -> None:
        tensors["about"] = b"x" * ((8 << 20) + 1)

    source = built / "kernels/native/tests/network_4.ve"
    for edit in (many, empty_lines, too_large):
        signed(tmp_path / f"{edit.__name__}.ve", source, edit)
    start = time.monotonic()
    told = open_all(built, tmp_path)
    assert time.monotonic() - start < 20  # a lookup of each name in all lines took a minute and a half for half of it
    assert told["many"].startswith(f"opened ('{'n' * 1000}'")
    assert "is not key=value" in told["empty_lines"]
    assert "must be of at most 8388608 bytes" in told["too_large"]


@pytest.mark.slow
def test_what_is_no_regular_file_is_refused_at_once(built: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ve")
    (tmp_path / "zero.ve").symlink_to("/dev/zero")
    (tmp_path / "folder.ve").mkdir()
    (tmp_path / "loop.ve").symlink_to(tmp_path / "loop.ve")
    (tmp_path / "empty.ve").touch()
    with (tmp_path / "hole.ve").open("wb") as hole:
        hole.truncate(1 << 40)
    told = open_all(built, tmp_path)
    for name, words in {
        "pipe": "is a named pipe, not a regular file",
        "zero": "is a device, not a regular file",
        "folder": "is a folder, not a regular file",
        "loop": "cannot be opened: Too many levels of symbolic links",
        "empty": "it has 0 bytes, where 8 to 268435456 are possible",
        "hole": "it has 1099511627776 bytes, where 8 to 268435456 are possible",
    }.items():
        assert told[name].startswith("BundleError ve_open: ") and words in told[name], told


@pytest.mark.slow
def test_paths_devices_and_counts_that_c_would_read_otherwise_are_refused(built: Path) -> None:
    done = run(
        built,
        r"""
from vae_edge.errors import VaeEdgeError
def told(*arguments):
    try:
        NativeNetwork(*arguments).close()
    except VaeEdgeError as error:
        return f"{type(error).__name__} {error}"
    return "opened"
print(told(file + "\0.ve"))
print(told("\ud800.ve"))
print(told("no\x1b[31m.ve"))
print(told(file, 1 << 32))
print(told(file, -1))
network = NativeNetwork(file)
print(network._library.ve_classify_ex(network._handle, 1, 2**64 - 1, None, None, None, None))
print(network._library.ve_last_error().decode())
""",
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("BundleError ") and lines[0].endswith("it holds a zero byte"), done
    assert lines[1].startswith(r"BundleError '\ud800.ve' is no path of this system")
    assert lines[2].startswith(r"BundleError ve_open: no\x1b[31m.ve cannot be opened")
    assert lines[3] == "BackendError the number of a GPU is from 0 to 65535; got 4294967296"
    assert lines[4] == "BackendError the number of a GPU is from 0 to 65535; got -1"
    assert lines[5] == "1" and "n is 18446744073709551615" in lines[6]


FUZZ = r"""
import random, struct, time
from vae_edge.errors import VaeEdgeError
original = open(file, "rb").read()
start = 8 + struct.unpack("<Q", original[:8])[0]
header, body = original[:start], original[start:]
at = body.index(b"class.0=") + 8
pieces = [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\x1b[2J", b"\0", b"=", b"\xf0\x9f\x98\x80", b"\xc3", b" ", b"ab"]
pieces += [b"\xe2\x80\xae", b"\n", "ä".encode()]
pieces += [b"\xe2\x80\xae", b"\n", "ä".encode()]
opened = refused = 0
begin = time.monotonic()
for seed in range(FILES):
    draw = random.Random(seed)
    changed = bytearray(original)
    if seed % 2:  # a name of three bytes, whatever they are, under a digest that is right
        name = b"".join(draw.choices(pieces, k=3))[:3].ljust(3, b"x")
        changed[start + at : start + at + 3] = name
        changed = sign(bytes(changed))
    else:
        for _ in range(draw.randint(1, 4)):
            changed[draw.choice((draw.randrange(start), draw.randrange(len(changed))))] = draw.randrange(256)
    with open(TARGET, "wb") as out:
        out.write(changed)
    try:
        with NativeNetwork(TARGET) as network:
            assert seed % 2 and network.classes == (name.decode(), "t=wo", "drei äöü") or bytes(changed) == original
            opened += 1
    except VaeEdgeError as error:
        assert str(error).isprintable(), ascii(str(error))
        refused += 1
print(opened, refused, time.monotonic() - begin)
"""


@pytest.mark.slow
def test_two_thousand_mutated_files_are_refused_with_a_printable_sentence_or_open_as_what_they_are(
    built: Path, tmp_path: Path
) -> None:
    sign = """
import hashlib, re
def sign(content):
    plain = re.sub(rb'(?<="sha256":")[0-9a-f]{64}', b"0" * 64, content, count=1)
    return plain.replace(b"0" * 64, hashlib.sha256(plain).hexdigest().encode(), 1)
assert sign(open(file, "rb").read()) == open(file, "rb").read()
"""
    code = FUZZ.replace("TARGET", repr(str(tmp_path / "fuzzed.ve"))).replace("FILES", "2000")
    done = run(built, sign + code)
    assert done.returncode == 0, done.stderr
    opened, refused, _ = done.stdout.split()
    assert int(opened) > 100 and int(refused) > 1000 and int(opened) + int(refused) == 2000
