"""The native library end to end without a GPU: what it launches is executed, instruction by instruction.

The double of the driver has its launches executed by `doubles.emulated_gpu`. So an answer comes of the weights in the
network file and of the PTX from which its machine code was assembled. The assembling, and hardware, are not tested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles import emulated_gpu
from native_double import ON_DEVICE, NativeBuild, place, resign
from native_emulated import (
    C_INTERFACE,
    TIMEOUT_S,
    Emulated,
    assert_answers_of_onnxruntime,
    emulated,
    rotated_digits,
)

from vae_edge.data import Dataset

pytestmark = pytest.mark.skipif(bool(emulated_gpu.why_not()), reason=emulated_gpu.why_not())

NAME = "classifier.int8.sm_87.ve"
SMALL = Path(__file__).parents[1] / "fixtures/schema1/bundle"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """A network of three classes, int8, one CTA an image. No test changes it."""
    return emulated(SMALL, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def small_multi(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """The same in int8 and fp16, with machine code for two CTAs an image, too."""
    return emulated(SMALL, tmp_path_factory.mktemp("small_multi"), 2, ("int8", "fp16"))


@pytest.fixture(scope="module")
def trained(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    """The trained network of digits, int8, with machine code for one and for two CTAs an image."""
    return emulated(bundle, tmp_path_factory.mktemp("trained"), 2)


# ---- Answers --------------------------------------------------------------------------------------------------------


def test_the_c_interface_gives_the_exact_answers(native: NativeBuild, small: Emulated) -> None:
    code = f"""
network, status, _ = open_network(BUNDLE / {NAME!r})
print(status, dict(gpu.launches))
for start, stop in ((0, 1), (1, 4)):
    print(wrong(classify(network, images[start:stop]), start, stop), faults())
library.ve_close(network)
print(dict(gpu.launches), held())
"""
    assert small.run(native, C_INTERFACE + code) == [
        "0 {('network', 87, 1, 1): 1}",
        "[] []",
        "[] []",
        "{('network', 87, 1, 1): 2, ('network', 87, 3, 1): 1} 0",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_small_batches_run_with_two_ctas_an_image_and_large_ones_with_one(
    native: NativeBuild, small_multi: Emulated, precision: str
) -> None:
    """An Orin of 6 multiprocessors has room for three images of two CTAs; from 17 images on there is no graph."""
    code = f"""
with load({precision!r}, verify="off") as classifier:
    for start, stop in ((0, 1), (1, 4), (4, 8), (8, 25)):
        found = classifier.session.infer(images[start:stop])
        found = dict(zip([info.name for info in classifier.outputs], found))
        print(wrong(found, start, stop, {precision!r}), faults())
print(dict(gpu.launches), held())
"""
    lines = small_multi.run(native, code, DOUBLE_MULTIPROCESSORS="6")
    assert lines[:4] == ["[] []"] * 4, lines
    several = "('network_multi_cta', 87, 1, 2): 2, ('network_multi_cta', 87, 3, 2): 1"
    assert lines[4:] == [f"{{{several}, ('network', 87, 4, 1): 1, ('network', 87, 17, 1): 1}} 0"]


@pytest.mark.slow
def test_the_order_in_which_warps_and_ctas_run_changes_nothing(native: NativeBuild, small_multi: Emulated) -> None:
    code = """
gpu = EmulatedGpu(PTX, double(), seed=5)
with load(verify="off") as classifier:
    found = classifier.session.infer(images[1:3])
    print(wrong(dict(zip([info.name for info in classifier.outputs], found)), 1, 3), faults())
print(dict(gpu.launches))
"""
    expected = ["[] []", "{('network_multi_cta', 87, 1, 2): 1, ('network_multi_cta', 87, 2, 2): 1}"]
    assert small_multi.run(native, code) == expected


@pytest.mark.slow
def test_each_gpu_runs_the_code_that_is_for_it(native: NativeBuild, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file for several GPUs; that of the A100 runs on an RTX 30, too."""
    several = emulated(SMALL, tmp_path_factory.mktemp("several"), targets=("sm_80", "sm_87", "sm_90", "sm_120"))
    (file,) = several.bundle.glob("*.ve")
    code = f"""
network, status, error = open_network({str(file)!r}.encode())
print(status, error, wrong(classify(network, images[1:4]), 1, 4), faults(), dict(gpu.launches))
"""
    for capability, architecture in ((86, 80), (87, 87), (90, 90), (120, 120)):
        (line,) = several.run(native, C_INTERFACE + code, DOUBLE_CC=str(capability))
        launches = f"('network', {architecture}, 1, 1): 1, ('network', {architecture}, 3, 1): 1"
        assert line == f"0  [] [] {{{launches}}}", (capability, line)


SHAPES: dict[str, tuple[bool, dict[str, Any]]] = {
    "pooled": (True, {"head": "pooled"}),
    "no angle, color, not square": (False, {"orientation": False, "size": (28, 40), "channels": 3}),
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_networks_of_other_shapes_give_what_the_operators_give(
    native: NativeBuild, small: Emulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "bench")
    from synthetic_models import blotches, quantized, untrained

    from vae_edge.ops.network import forward_layerwise, fuse

    int8, changes = SHAPES[shape]
    model = untrained("tiny", **changes)
    fused = fuse(model, quantized(model) if int8 else None)
    net = fused.layout
    with emulated_gpu.keep_ptx(tmp_path / "ptx"):
        fused.save(tmp_path / "network.ve", [str(k) for k in range(net.classes)], 1.0)
    images = blotches(3, (net.height, net.width), net.channels, seed=1)
    np.save(tmp_path / "images.npy", images.numpy())
    code = f"""
folder = Path({str(tmp_path)!r})
network, status, error = open_network(folder / "network.ve")
assert status == 0, (error, faults())
np.savez(folder / "answers.npz", **classify(network, np.load(folder / "images.npy"), {net.classes}))
print(faults())
"""
    assert Emulated(small.bundle, tmp_path / "ptx").run(native, C_INTERFACE + code) == ["[]"]
    expected = [part.numpy() for part in forward_layerwise(net, images, fused.weights, fused.params, fused.whitening)]
    with np.load(tmp_path / "answers.npz") as found:
        np.testing.assert_allclose(found["probabilities"], expected[0], rtol=0, atol=2e-3)
        np.testing.assert_allclose(found["angle"], expected[1], rtol=0, atol=5e-3)
        np.testing.assert_allclose(found["score"], expected[2], rtol=2e-2, atol=4e-2)
        for number, name in enumerate(("angle_confidence", "second_angle", "second_angle_probability")):
            np.testing.assert_allclose(found[name], expected[3][:, number], rtol=0, atol=5e-3)


@pytest.mark.slow
def test_images_on_the_gpu_are_classified_where_they_are(native: NativeBuild, small: Emulated) -> None:
    code = """
classify = load(verify="off")
expected = classify(images[:2])
found = classify(OnDevice(images[:2], stream=own.value))
print(np.array_equal(found.probabilities, expected.probabilities), np.array_equal(found.scores, expected.scores))
print(faults(), found.probabilities.max() > 0.5)
"""
    assert small.run(native, ON_DEVICE + code) == ["True True", "[] True"]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_a_hundred_digits_get_the_answers_of_onnxruntime(
    native: NativeBuild, trained: Emulated, digits: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    rotated = rotated_digits(digits, 100)
    np.save(tmp_path / "images.npy", rotated)
    code = f"""
images, start, parts = np.load({str(tmp_path / "images.npy")!r}), 0, []
with load(verify="off") as classifier:
    for count in (1, 3, 32, 64):
        parts.append([output.copy() for output in classifier.session.infer(images[start : start + count])])
        start += count
    names = [info.name for info in classifier.outputs]
np.savez({str(tmp_path / "answers.npz")!r}, **dict(zip(names, map(np.concatenate, zip(*parts)))))
print(dict(gpu.launches), faults(), held())
"""
    several = "('network_multi_cta', 87, 1, 2): 2, ('network_multi_cta', 87, 3, 2): 1"
    launches = f"{{{several}, ('network', 87, 32, 1): 1, ('network', 87, 64, 1): 1}}"
    assert trained.run(native, code) == [f"{launches} [] 0"]
    with np.load(tmp_path / "answers.npz") as file:
        told = assert_answers_of_onnxruntime(trained.bundle, rotated, dict(file))
    with capsys.disabled():
        print(f"\n{told}")


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S)
def test_the_bundles_own_proof_passes(native: NativeBuild, trained: Emulated, tmp_path: Path) -> None:
    """The probe images one at a time and all at once, on a GPU that has room for one CTA an image."""
    code = """
with load() as classifier:
    print(classifier.backend, classifier.precision)
print(held(), faults(), len(images))
print(dict(gpu.launches))
"""
    own = trained.copy(tmp_path)
    lines = own.run(native, code, DOUBLE_MULTIPROCESSORS="1")
    count = int(lines[1].split()[-1])
    assert lines[:2] == ["native int8", f"0 [] {count}"] and count >= 32
    assert lines[2] == f"{{('network', 87, 1, 1): {1 + count}, ('network', 87, {count}, 1): 1}}"
    assert "gives right answers" in (own.bundle / "verified.json").read_text()


# ---- Faults ---------------------------------------------------------------------------------------------------------

FEW = 6  # images


def wrong_answers(native: NativeBuild, own: Emulated) -> list[str]:
    """The outputs that are beyond their tolerance on the first few probe images, and the double's faults."""
    code = f"""
network, status, error = open_network(BUNDLE / {NAME!r})
assert status == 0, error
print([mismatch.output for mismatch in wrong(classify(network, images[:{FEW}]), 0, {FEW})], faults())
"""
    return own.run(native, C_INTERFACE + code)


@pytest.mark.slow
def test_one_weight_of_the_other_sign_gives_wrong_answers(native: NativeBuild, small: Emulated, tmp_path: Path) -> None:
    own = small.copy(tmp_path)
    content = bytearray((own.bundle / NAME).read_bytes())
    weights = tensor(content, "weights")
    values = np.frombuffer(content, np.int8)[weights][:144].astype(int)  # of the first layer
    largest = int(np.abs(values).argmax())
    content[weights.start + largest] = -values[largest] % 256
    resign(own.bundle, NAME, bytes(content))
    (line,) = wrong_answers(native, own)
    assert "probabilities" in line and line.endswith("] []"), line


def tensor(content: bytes | bytearray, name: str) -> slice:
    """Where a tensor of a network file is."""
    start = 8 + int.from_bytes(content[:8], "little")
    first, last = json.loads(content[8:start])[name]["data_offsets"]
    return slice(start + first, start + last)


def change_ptx(own: Emulated, change: Callable[[str], str]) -> None:
    (file,) = own.ptx.glob("*.ptx")
    text = file.read_text()
    file.write_text(change(text))
    assert file.read_text() != text


def without_a_product(ptx: str) -> str:
    """Without one product of matrices, in the middle of the network."""
    lines = ptx.split("\n")
    products = [number for number, line in enumerate(lines) if line.strip().startswith("mma.sync")]
    lines[products[len(products) // 2]] = ""
    return "\n".join(lines)


@pytest.mark.slow
def test_one_product_less_in_the_code_gives_wrong_answers(native: NativeBuild, small: Emulated, tmp_path: Path) -> None:
    own = small.copy(tmp_path)
    change_ptx(own, without_a_product)
    (line,) = wrong_answers(native, own)
    assert "probabilities" in line or "score" in line, line


def with_short_workspace(content: bytes) -> bytes:
    """A network file that has the library allocate one float of workspace an image."""
    from safetensors.numpy import load
    from vae_edge_kernels.aot.network_file import FORMAT, _with_digest

    tensors: dict[str, Any] = load(content)
    lines = bytes(tensors["about"]).decode().splitlines()
    about = "".join(f"{'floats=1' if line.startswith('floats=') else line}\n" for line in lines)
    return _with_digest({**tensors, "about": np.frombuffer(about.encode(), np.uint8)}, FORMAT)


@pytest.mark.slow
def test_what_the_emulator_finds_fails_the_call_and_is_told(
    native: NativeBuild, small: Emulated, tmp_path: Path
) -> None:
    code = """
try:
    load()
except VaeEdgeError as error:
    print(type(error).__name__, error)
print(held())
print(*faults(), sep="\\n")
"""
    short = small.copy(tmp_path / "short")
    place(short.bundle, NAME, with_short_workspace((short.bundle / NAME).read_bytes()))
    error, held, *faults = short.run(native, code)
    assert error.startswith("BackendError ve_open: the driver does not run the network: error 700") and held == "0"
    assert len(faults) == 1 and "of workspace_ptr, which has 256." in faults[0], faults

    lost = small.copy(tmp_path / "lost")
    (lost.ptx / emulated_gpu.LINES).write_text("{}")
    error, held, *faults = lost.run(native, code)
    assert error.startswith("BackendError ve_open: the driver does not run the network: error 719") and held == "0"
    assert len(faults) == 1 and "There is no PTX of the machine code" in faults[0], faults

    unknown = small.copy(tmp_path / "unknown")
    change_ptx(unknown, lambda ptx: ptx.replace("mma.sync", "mma.unheard_of"))
    error, held, *faults = unknown.run(native, code)
    assert "error 719" in error and held == "0" and "mma.unheard_of" in faults[0], (error, faults)


@pytest.mark.slow
def test_weights_that_were_never_uploaded_are_told(native: NativeBuild, small: Emulated) -> None:
    code = f"""
from doubles.cuda_library import DeviceMemory
network, status, error = open_network(BUNDLE / {NAME!r})
memory, number = DeviceMemory(), 0
while double().double_memory_at(number, ctypes.byref(memory)):
    ctypes.memset(memory.written, 0, memory.bytes)
    number += 1
try:
    classify(network, images[:1])
except AssertionError as error:
    print(error)
print(*faults(), sep="\\n")
"""
    error, fault = small.run(native, C_INTERFACE + code)
    assert "ve_classify: the driver does not run the network: error 700" in error
    assert re.search(r"a read of byte \d+ of \w+_ptr, which was never written", fault), fault
