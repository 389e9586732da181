"""Nothing opens a file with a serial number, and no damage to a Jetson's files makes the doctor raise, wait or grow."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jetson_trees import FOLDER

from vae_edge.cli.device import jetson_table
from vae_edge.jetson import Interpreter, Jetson, findings, read_jetson
from vae_edge.text import json_text

NANO = "orin-nano-super-jetpack-6.2"
SYSTEM_PYTHON = Interpreter("3.10", sees_tensorrt=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the Orin Nano's files."""
    shutil.copytree(FOLDER / NANO, tmp_path / "root")
    return tmp_path / "root"


def ask(root: Path) -> Jetson:
    jetson = read_jetson(root, "Orin", (8, 7), SYSTEM_PYTHON)
    assert jetson is not None
    return jetson


WATCH = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from pathlib import Path
from vae_edge.environment import cpu_model
from vae_edge.jetson import findings, read_jetson
root = Path(sys.argv[1])
jetson = read_jetson(root, "Orin", (8, 7))
words = repr((jetson, list(findings(jetson)), jetson.to_json(), cpu_model(root)))
if sys.argv[2:]:
    (root / sys.argv[2]).open("rb")
print(sum(str(root) in name for name in opened), sum("serial" in name for name in opened), "POISON" in words)
"""
SERIALS = (
    "proc/device-tree/serial-number",
    "sys/firmware/devicetree/base/serial-number",
    "sys/class/dmi/id/product_serial",
    "sys/devices/soc0/serial_number",
)


def watch(root: Path, *extra: str) -> list[str]:
    top = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(top), str(top / "kernels")))}
    command = [sys.executable, "-c", WATCH, str(root), *extra]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_nothing_opens_a_file_with_a_serial_number(tree: Path) -> None:
    """Every opened file is watched by an audit hook of the interpreter; the files are poisoned besides."""
    for name in SERIALS:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("POISON")
    opened, serials, poisoned = watch(tree)
    assert int(opened) > 15 and serials == "0" and poisoned == "False"
    assert watch(tree, SERIALS[0])[1] == "1"  # the hook sees who does open one


def binary(path: Path) -> None:
    path.write_bytes(random.Random(str(path.name)).randbytes(4096))


def huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 34)


def endless(path: Path) -> None:
    path.write_bytes(b"A" * (3 << 20))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def digits(path: Path) -> None:
    path.write_bytes(b"9" * 100_000)


def nested(path: Path) -> None:
    path.write_bytes(b'{"cuda":' + b"[" * 100_000)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "binary": binary,
    "huge": huge,
    "one endless line": endless,
    "missing": Path.unlink,
    "cut": cut,
    "a pipe": pipe,
    "a folder": folder,
    "a link to itself": loop,
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x80 MAXN \xc3" + path.read_bytes()),
    "digits": digits,
    "nested": nested,
    "NUL": lambda path: path.write_bytes(b"\0" * 100),
    "control characters": lambda path: path.write_bytes(path.read_bytes().replace(b"N", b"\x1b[31m\r")),
}


def everything(root: Path) -> None:
    """All that the doctor does with a Jetson; it must not raise, and must print."""
    jetson = ask(root)
    text = json_text(jetson.to_json())
    assert json.loads(text)["chip"] and json_text(jetson.summary())
    assert all(finding.subject and finding.detail for finding in findings(jetson))
    from rich.console import Console

    page = io.StringIO()
    Console(file=page, width=140).print(jetson_table(jetson))
    assert "\x1b" not in page.getvalue() and "JetPack" in page.getvalue()


def files_of(name: str) -> list[str]:
    return sorted(path.relative_to(FOLDER / name).as_posix() for path in (FOLDER / name).rglob("*") if path.is_file())


def put_back(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damaged_file_makes_it_raise_wait_or_grow(tree: Path, damage: str) -> None:
    """Each file of the tree in its turn, then all of them at once."""
    names = files_of(NANO)
    assert len(names) > 25
    everything(tree)  # imports what is needed
    tracemalloc.start()
    begun = time.monotonic()
    try:
        for name in names:
            content = (tree / name).read_bytes()
            DAMAGES[damage](tree / name)
            everything(tree)
            put_back(tree / name, content)
        for name in names:
            DAMAGES[damage](tree / name)
        everything(tree)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - begun < 60 and peak < 64 << 20


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextlib.contextmanager
def as_a_plain_user() -> Iterator[None]:
    """Without root's right to read everything, in the block."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize("closed", ["files", "folders"])
def test_what_may_not_be_read_is_left_out(open_folder: Path, closed: str) -> None:
    root = open_folder / "root"
    shutil.copytree(FOLDER / NANO, root)
    everything(root)  # imports what is needed
    for name in files_of(NANO):
        (root / name if closed == "files" else (root / name).parent).chmod(0)
    with as_a_plain_user():
        with pytest.raises(PermissionError):
            (root / "etc/nvpmodel.conf").read_bytes()
        everything(root)
        jetson = ask(root)
    assert (jetson.part, jetson.l4t, jetson.cuda, jetson.power_modes, jetson.power_mode) == ("", "", "", (), None)
    assert jetson.clocks.pinned is None and jetson.memory_bytes is None


def test_a_mode_with_a_hostile_name_is_cut_and_escaped(tree: Path) -> None:
    path = tree / "etc/nvpmodel.conf"
    path.write_text(path.read_text().replace("NAME=15W", "NAME=\x1b[31m" + "A" * 5000))
    jetson = ask(tree)
    assert (
        jetson.power_mode is not None
        and jetson.power_mode.name.startswith("\x1b")
        and len(jetson.power_mode.name) <= 64
    )
    everything(tree)
