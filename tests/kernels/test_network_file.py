"""The writer of network files, without a compiler: what it refuses, and that its digest is of the whole file."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vae_edge_kernels import aot
from vae_edge_kernels.aot import network_file
from vae_edge_kernels.aot.network_file import write_network
from vae_edge_kernels.layout import NetworkLayout, padded
from vae_edge_kernels.layout_builder import make_layout

from vae_edge.errors import KernelError

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "kernels/native/include/vae_edge.h"
HEADER_BEFORE = ROOT / "tests/fixtures/schema1/native/vae_edge.h"
NAMES = ["one", "t=wo", "drei äöü"]


def small_layout(**changes: Any) -> NetworkLayout:
    given: dict[str, Any] = {
        "size": (28, 28), "channels": 1, "classes": 3, "bins": 0, "latent": 4, "hidden": 4, "fill": 0.0,
        "circular_mask": False, "orientation": (), "encoder": [(16, 1), (16, 2), (16, 1), (16, 2), (16, 1), (16, 2)],
        "feature_layer": 2, "components": 4, "clusters": 3, "decoder": None, "reduction": 1, "int8": False,
    }  # fmt: skip
    return make_layout(**{**given, **changes})


def buffers(net: NetworkLayout) -> dict[str, Any]:
    return {
        "weights": np.zeros(net.weights_size, np.float16),
        "params": np.zeros(net.params_size, np.float32),
        "whitening": np.zeros((3, 4, padded(4)), np.float16),
    }


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network file whose machine code is made up."""

    def compiled(folder: str, architectures: Any, **_: Any) -> dict[str, Any]:
        (Path(folder) / "x.cubin").write_bytes(b"0" * 100)  # zeros, as the digest's place has them
        cubins = [{"architecture": 87, "warps": 8, "shared_bytes": 3584, "file": "x.cubin"}]
        return {"kernels": [{"name": "network", "entry": "network", "cubins": cubins}]}

    monkeypatch.setattr(aot, "compile_all", compiled)
    net = small_layout()
    write_network(tmp_path / "network.ve", net, **buffers(net), classes=NAMES, threshold=0.5)
    return tmp_path / "network.ve"


def test_the_digest_is_of_the_whole_file_with_zeros_in_its_place(written: Path) -> None:
    content = written.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    assert metadata["format"] == "vae-edge-network-3"
    at = content.index(metadata["sha256"].encode())
    assert at < 8 + size
    assert hashlib.sha256(content[:at] + b"0" * 64 + content[at + 64 :]).hexdigest() == metadata["sha256"]


def test_the_description_has_each_key_once_and_the_threshold_bit_for_bit(written: Path) -> None:
    from safetensors.numpy import load_file

    lines = load_file(written)["about"].tobytes().decode().splitlines()
    about = dict(line.split("=", 1) for line in lines)
    assert len(about) == len(lines)
    assert [about[f"class.{number}"] for number in range(3)] == NAMES
    assert struct.unpack("<f", struct.pack("<I", int(about["threshold_bits"])))[0] == 0.5
    assert about["kernel.87"] == "network 8 3584 1"


def test_the_limits_are_those_of_the_header() -> None:
    limits = dict(re.findall(r"#define VE_(MAX_\w+) (\(?\d+(?: << \d+\))?)", HEADER.read_text()))
    values = {name: eval(value.strip("()")) for name, value in limits.items()}
    ours = {name: value for name, value in vars(network_file).items() if name.startswith("MAX_")}
    assert len(ours) == 6 and ours == {name: values[name] for name in ours}


def test_the_header_has_every_macro_and_function_of_the_version_before() -> None:
    before, now = HEADER_BEFORE.read_text(), HEADER.read_text()
    macros = [dict(re.findall(r"#define (VE_\w+) (\(?[\d<( ]+\)?)", text)) for text in (before, now)]
    assert len(macros[0]) == 9 and macros[0].items() <= macros[1].items()
    for pattern in (r"(VE_\w+) = (\d+)", r"VE_API (?:VE_DEPRECATED\(\S+\) )?\w[^;]*?\b(ve_\w+)\("):
        assert len(re.findall(pattern, before)) > 10
        assert set(re.findall(pattern, before)) <= set(re.findall(pattern, now))


@pytest.mark.parametrize(
    "names, words",
    [
        (["one", "two"], "the network has 3 classes; got 2 names"),
        (["one", "two", ""], "must have 1 to 1024 bytes of UTF-8; '' has 0"),
        (["one", "two", "ü" * 513], "must have 1 to 1024 bytes of UTF-8; .* has 1026"),
        (["one", "two", "th\nree"], r"a class name must be one line; got 'th\\nree'"),
        (["one", "two", "th\0ree"], r"a class name must be one line; got 'th\\x00ree'"),
        (["one", "two", "caf\udce9"], r"a class name must be valid Unicode; got 'caf\\udce9'"),
    ],
)
def test_names_that_make_no_line_of_utf_8_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    net = small_layout()
    with pytest.raises(KernelError, match=words):
        write_network(tmp_path / "network.ve", net, **buffers(net), classes=names, threshold=0.5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), 1e39])
def test_a_threshold_that_is_no_finite_float32_is_refused(tmp_path: Path, threshold: float) -> None:
    net = small_layout()
    with pytest.raises(KernelError, match="the threshold must be a finite float32"):
        write_network(tmp_path / "network.ve", net, **buffers(net), classes=NAMES, threshold=threshold)


@pytest.mark.parametrize(
    "name, value", [("weights", np.inf), ("weights", np.nan), ("params", np.nan), ("whitening", -np.inf)]
)
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    net = small_layout()
    given = buffers(net)
    given[name].flat[5] = value
    with pytest.raises(KernelError, match=f"{name} must be finite numbers; 1 of {given[name].size} are not"):
        write_network(tmp_path / "network.ve", net, **given, classes=NAMES, threshold=0.5)


def test_a_network_beyond_the_limits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = small_layout()
    monkeypatch.setattr(network_file, "MAX_SIDE", 27)
    with pytest.raises(KernelError, match="may have side up to 27; the network's is 28"):
        write_network(tmp_path / "network.ve", net, **buffers(net), classes=NAMES, threshold=0.5)
