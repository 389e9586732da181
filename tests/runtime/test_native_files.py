"""Network files through the backend `native`, over the driver's double: damaged, hostile, large, and of before.

What the library refuses, the reader in Python (`vae_edge.engine.network_file`) must refuse too, but for what it does
not look at: machine code, and the values of the weights.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from native_double import ROOT, NativeBuild

from vae_edge.engine.network_file import read_network_file
from vae_edge.errors import EngineError

pytestmark = pytest.mark.slow

BEFORE = ROOT / "tests/fixtures/schema1/native"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two network files of real machine code: one CTA an image, and four."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("networks")
    for ctas in ("1", "4"):
        command = [sys.executable, ROOT / "kernels/native/tests/make_network.py", folder / f"network_{ctas}.ve"]
        subprocess.run([*command, "87", ctas], check=True, capture_output=True)
    return folder


def run(native: NativeBuild, made: Path, code: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, with the double as the driver."""
    before = f"""
import ctypes, os
from pathlib import Path
import numpy as np
from vae_edge.bundle import ModelEntry
from vae_edge.errors import VaeEdgeError
from vae_edge.runtime.backends import LoadOptions
from vae_edge.runtime.native import NativeBackend
from vae_edge.runtime.native_library import load_library
file = {str(made / "network_1.ve")!r}

def opened(path, device=0):
    return NativeBackend(Path(path), ModelEntry("classifier", "fp16", "native"), LoadOptions(device=device))

def told(*arguments):
    try:
        opened(*arguments).close()
    except VaeEdgeError as error:
        return f"{{type(error).__name__}} {{error}}"
    return "opened"

def shapes(session, n):
    return [output.shape for output in session.infer(np.zeros((n, 28, 28, 1), np.uint8))]
"""
    return native.run(before + code, **more)


def test_a_network_file_says_what_it_is(native: NativeBuild, made: Path) -> None:
    done = run(
        native,
        made,
        """
network = opened(file)
print(network.classes, network.threshold, network.version, network.device)
print(network.inputs[0])
print([(info.name, info.shape, info.type) for info in network.outputs])
print(shapes(network, 3))
""",
    )
    names = ("probabilities", "angle", "score")
    assert done.stdout.splitlines() == [
        "('one', 't=wo', 'drei äöü') 0.5 0.1.0 0: Orin (sm_87)",
        "TensorInfo(name='image', shape=['batch', 28, 28, 1], type='tensor(uint8)')",
        str([(name, ["batch", 3] if name == "probabilities" else ["batch"], "tensor(float)") for name in names]),
        "[(3, 3), (3,), (3,)]",
    ], done.stderr


def test_a_network_that_estimates_the_orientation_gives_the_angle_uncertainty(
    native: NativeBuild, made: Path, tmp_path: Path
) -> None:
    path = tmp_path / "angle.ve"
    signed(path, made / "network_1.ve", about(b"has_angle=0\n", b"has_angle=1\n"))
    code = f"network = opened({str(path)!r})\nprint([i.name for i in network.outputs][3:], shapes(network, 5)[3:])"
    names = ["angle_confidence", "second_angle", "second_angle_probability"]
    assert run(native, made, code).stdout == f"{names} [(5,), (5,), (5,)]\n"


def test_network_files_of_versions_before_are_opened(native: NativeBuild, made: Path, tmp_path: Path) -> None:
    (tmp_path / "before.ve").write_bytes(gzip.decompress((BEFORE / "network.ve.gz").read_bytes()))
    schema1 = ROOT / "tests/fixtures/schema1/network.ve"
    code = f"""
for path in ({str(tmp_path / "before.ve")!r}, {str(schema1)!r}):
    network = opened(path)
    print(network.classes, round(network.threshold, 4), shapes(network, 65))
"""
    assert run(native, made, code).stdout.splitlines() == [
        "('one', 't=wo', 'drei äöü') 0.5 [(65, 3), (65,), (65,)]",
        "('ell', 'tee') -0.1464 [(65, 2), (65,), (65,)]",
    ]
    assert read_network_file(tmp_path / "before.ve").classes == ("one", "t=wo", "drei äöü")
    assert read_network_file(schema1).threshold == pytest.approx(-0.14640836417675018, abs=0)


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
    "no side": (about(b"side=40\n", b""), "'side' must be a number from 1 to 1024; it is 'missing'"),
    "a side of nothing": (about(b"side=40\n", b"side=0\n"), "'side' must be a number from 1 to 1024; it is '0'"),
    "a side beyond the limit": (about(b"side=40\n", b"side=1025\n"), "'side' must be a number from 1 to 1024"),
    "a huge side": (about(b"side=40\n", b"side=99999999999999999999\n"), "'side' must be a number"),
    "a side with a sign": (about(b"side=40\n", b"side=+40\n"), "'side' must be a number from 1 to 1024; it is '+40'"),
    "two sides": (added(b"side=40\n"), "a key of its description stands twice: 'side'"),
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
for path in sorted(Path(FOLDER).glob("*.ve")):
    try:
        network = opened(path)
        print(path.stem, "opened", ascii(network.classes), network.threshold)
        network.close()
    except VaeEdgeError as error:
        print(path.stem, type(error).__name__, error)
"""


def open_all(native: NativeBuild, made: Path, folder: Path) -> dict[str, str]:
    """What becomes of each file in a folder, by its name."""
    done = run(native, made, OPEN_ALL.replace("FOLDER", repr(str(folder))))
    assert done.returncode == 0, done.stderr
    return {name: words for name, _, words in (line.partition(" ") for line in done.stdout.splitlines())}


UNSEEN = ("machine code", "entry", "overflowed", "numbers that are none", "whitenings that are none")
"""Of `HOSTILE`: what the reader in Python does not look at."""


@pytest.mark.parametrize("version", FORMATS)
def test_a_file_that_is_signed_but_wrong_is_refused_with_what_is_wrong(
    native: NativeBuild, made: Path, tmp_path: Path, version: str
) -> None:
    for name, (edit, _) in HOSTILE.items():
        signed(tmp_path / f"{name.replace(' ', '_')}.ve", made / "network_4.ve", edit, version)
    signed(tmp_path / "same.ve", made / "network_4.ve", lambda header, tensors: None, version)
    told = open_all(native, made, tmp_path)
    assert told.pop("same") == "opened ('one', 't=wo', 'drei \\xe4\\xf6\\xfc') 0.5"
    assert len(told) == len(HOSTILE)
    assert not {
        name: words for name, words in told.items() if HOSTILE[name.replace("_", " ")][1] not in words
    }  # fmt: skip

    found = read_network_file(tmp_path / "same.ve")
    assert (found.format, found.targets, found.ctas_per_image) == (version, ("sm_87",), {"sm_87": 4})
    for name in HOSTILE:
        path = tmp_path / f"{name.replace(' ', '_')}.ve"
        if not any(word in name for word in UNSEEN):
            with pytest.raises(EngineError, match="is not a whole network file: "):
                print(name, read_network_file(path))


@pytest.mark.parametrize("version", FORMATS)
def test_every_flipped_bit_of_the_header_is_refused(
    native: NativeBuild, made: Path, tmp_path: Path, version: str
) -> None:
    path = tmp_path / "network.ve"
    signed(path, made / "network_1.ve", lambda header, tensors: None, version)
    header = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    code = f"""
from vae_edge.engine.network_file import read_network_file
from vae_edge.errors import BundleError, EngineError
refused = [0, 0]
with open({str(path)!r}, "r+b", buffering=0) as out:
    original = out.read({header})
    for bit in range(8 * {header}):
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        out.seek(0)
        out.write(flipped)
        for reader, (read, refusal) in enumerate(((opened, BundleError), (read_network_file, EngineError))):
            try:
                read({str(path)!r})
                print("opened with", bit // 8, bytes(flipped))
            except refusal:
                refused[reader] += 1
print(*refused)
"""
    done = run(native, made, code)
    assert done.stdout == f"{8 * header} {8 * header}\n", done


def test_many_names_in_many_lines_take_no_time(native: NativeBuild, made: Path, tmp_path: Path) -> None:
    def many(header: dict[str, Any], tensors: dict[str, bytes]) -> None:
        lines = [line for line in tensors["about"].split(b"\n") if line and not line.startswith(b"class")]
        names = [b"class.%d=%s" % (number, b"n" * 1000) for number in range(4096)]
        tensors["about"] = b"\n".join([*names, *lines, b"classes=4096", b""])

    def empty_lines(header: dict[str, Any], tensors: dict[str, bytes]) -> None:
        tensors["about"] = b"\n" * (8 << 20)

    def too_large(header: dict[str, Any], tensors: dict[str, bytes]) -> None:
        tensors["about"] = b"x" * ((8 << 20) + 1)

    for edit in (many, empty_lines, too_large):
        signed(tmp_path / f"{edit.__name__}.ve", made / "network_4.ve", edit)
    start = time.monotonic()
    told = open_all(native, made, tmp_path)
    assert time.monotonic() - start < 20  # a lookup of each name in all lines took a minute and a half for half of it
    assert told["many"].startswith(f"opened ('{'n' * 1000}'")
    assert "is not key=value" in told["empty_lines"]
    assert "must be of at most 8388608 bytes" in told["too_large"]
    start = time.monotonic()
    assert len(read_network_file(tmp_path / "many.ve").classes) == 4096
    for name in ("empty_lines", "too_large"):
        with pytest.raises(EngineError, match="description"):
            read_network_file(tmp_path / f"{name}.ve")
    assert time.monotonic() - start < 20


def test_what_is_no_regular_file_is_refused_at_once(native: NativeBuild, made: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ve")
    (tmp_path / "zero.ve").symlink_to("/dev/zero")
    (tmp_path / "folder.ve").mkdir()
    (tmp_path / "loop.ve").symlink_to(tmp_path / "loop.ve")
    (tmp_path / "empty.ve").touch()
    with (tmp_path / "hole.ve").open("wb") as hole:
        hole.truncate(1 << 40)
    code = f"""
library = load_library()
for path in sorted(Path({str(tmp_path)!r}).glob("*.ve")):
    status = library.ve_open(os.fsencode(path), 0, ctypes.byref(ctypes.c_void_p()))
    print(path.stem, status, library.ve_last_error().decode())
    if path.stem != "hole":
        print(path.stem, told(path))
"""
    lines = run(native, made, code).stdout.splitlines()
    assert len(lines) == 11
    for name, (by_c, by_python) in {
        "pipe": ("is a named pipe, not a regular file", "it is a named pipe, not a regular file"),
        "zero": ("is a device, not a regular file", "it is a device, not a regular file"),
        "folder": ("is a folder, not a regular file", "it is a folder, not a regular file"),
        "loop": ("cannot be opened: Too many levels of symbolic links", "Too many levels of symbolic links"),
        "empty": ("it has 0 bytes, where 8 to 268435456 are possible",) * 2,
        "hole": ("it has 1099511627776 bytes, where 8 to 268435456 are possible", ""),
    }.items():
        first, *second = [line for line in lines if line.startswith(f"{name} ")]
        assert first.startswith(f"{name} 9 ve_open: ") and by_c in first, first
        assert all(line.startswith(f"{name} BundleError ") and by_python in line for line in second), second


def test_paths_devices_and_counts_that_c_would_read_otherwise_are_refused(native: NativeBuild, made: Path) -> None:
    code = r"""
print(told(file + "\0.ve"))
print(told("\ud800.ve").encode("ascii", "backslashreplace").decode())
print(told(file, 1 << 32))
print(told(file, -1))
library, handle = load_library(), ctypes.c_void_p()
print(library.ve_open(b"no\x1b[31m.ve", 0, ctypes.byref(handle)), library.ve_last_error().decode())
print(library.ve_open(os.fsencode(file), 0, ctypes.byref(handle)))
print(library.ve_classify_ex(handle, 1, 2**64 - 1, None, None, None, None))
print(library.ve_last_error().decode())
print(told(file, 5))
"""
    done = run(native, made, code)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("BundleError ") and "cannot be read (embedded null byte)" in lines[0], done
    assert lines[1].startswith("BundleError ") and "cannot be read" in lines[1], done
    assert lines[2] == "BackendError The number of a GPU is from 0 to 65535, but 4294967296 came."
    assert lines[3] == "BackendError The number of a GPU is from 0 to 65535, but -1 came."
    assert lines[4].startswith(r"9 ve_open: no\x1b[31m.ve cannot be opened")
    assert lines[5:7] == ["0", "1"] and "n is 18446744073709551615" in lines[7]
    assert lines[8] == "BackendError ve_open: this machine has no CUDA device number 5."


FUZZ = r"""
import random, struct, time
from vae_edge.engine.network_file import read_network_file
from vae_edge.errors import EngineError
original = open(file, "rb").read()
start = 8 + struct.unpack("<Q", original[:8])[0]
header, body = original[:start], original[start:]
at = body.index(b"class.0=") + 8
pieces = [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\x1b[2J", b"\0", b"=", b"\xf0\x9f\x98\x80", b"\xc3", b" ", b"ab"]
pieces += [b"\xe2\x80\xae", b"\n", "ä".encode()]
taken = refused = 0
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
        network = opened(TARGET)
        assert seed % 2 and network.classes == (name.decode(), "t=wo", "drei äöü") or bytes(changed) == original
        network.close()
        whole = True
    except VaeEdgeError as error:
        assert str(error).isprintable(), ascii(str(error))
        whole = False
    try:
        assert read_network_file(TARGET).classes == network.classes and whole
    except EngineError as error:
        assert str(error).isprintable() and not whole, (seed, ascii(str(error)))
    taken, refused = taken + whole, refused + (not whole)
print(taken, refused, time.monotonic() - begin)
"""


def test_two_thousand_mutated_files_are_refused_with_a_printable_sentence_or_open_as_what_they_are(
    native: NativeBuild, made: Path, tmp_path: Path
) -> None:
    sign = """
import hashlib, re
def sign(content):
    plain = re.sub(rb'(?<="sha256":")[0-9a-f]{64}', b"0" * 64, content, count=1)
    return plain.replace(b"0" * 64, hashlib.sha256(plain).hexdigest().encode(), 1)
assert sign(open(file, "rb").read()) == open(file, "rb").read()
"""
    code = FUZZ.replace("TARGET", repr(str(tmp_path / "fuzzed.ve"))).replace("FILES", "2000")
    done = run(native, made, sign + code)
    assert done.returncode == 0, done.stderr
    taken, refused, _ = done.stdout.split()
    assert int(taken) > 100 and int(refused) > 1000 and int(taken) + int(refused) == 2000
