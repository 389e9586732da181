"""The native library over the driver's double (`tests/doubles`), and kernels that compute in place of a GPU.

`build_native` builds both. A process that has the double on the loader's path calls `run_with(kernel)`: from then on
each launch calls the kernel with the launch's arguments, in which pointers to the double's device memory can be
followed. So what `reference_kernel` answers comes of the weights that were uploaded, by the operators' CPU references.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from doubles.cuda_library import Launch, build_cuda_double, open_cuda_double

ROOT = Path(__file__).parents[2]
IMAGE, WEIGHTS, PARAMS, WHITENING, OUTPUTS = 0, 1, 2, 3, 7  # arguments of the kernel


@dataclass(frozen=True)
class NativeBuild:
    """The library, and folders with drivers: the double; one that is too old, and a file that is no library."""

    library: Path
    driver: Path
    old_driver: Path = Path()  # not there
    broken_driver: Path = Path()

    def run(
        self, code: str, driver: Path | None = None, timeout_s: float = 500, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Python code in a process of its own, with one of the drivers."""
        return subprocess.run(
            [sys.executable, "-c", code],
            env=self.environment(driver, **more),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )

    def environment(self, driver: Path | None = None, **more: str) -> dict[str, str]:
        """The environment of a process that has the library and one of the drivers; the double is an Orin."""
        paths = [str(driver or self.driver), os.environ.get("LD_LIBRARY_PATH", "")]
        python = [str(Path(__file__).parent), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),
            "PYTHONPATH": os.pathsep.join(filter(None, python)),
            "VAE_EDGE_NATIVE": str(self.library),
            "OMP_NUM_THREADS": "1",
            **more,
        }


def build_native(folder: Path) -> NativeBuild | None:
    """The library without kernels of its own, and the drivers; None where there is no CMake or C compiler."""
    if shutil.which("cmake") is None or shutil.which("cc") is None:
        return None
    configure = ["cmake", "-S", ROOT, "-B", folder / "build", "-DVAE_EDGE_KERNELS=OFF", "-DVAE_EDGE_WERROR=ON"]
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder / "build"], check=True, capture_output=True)
    built = NativeBuild(
        folder / "build/lib/libvae_edge_kernels.so",
        build_cuda_double(folder / "double").folder,
        folder / "old_driver",
        folder / "broken_driver",
    )
    built.old_driver.mkdir()
    sources = (ROOT / "tests/doubles/cuda").glob("*.c")
    options = ["-DDOUBLE_OLD_DRIVER", "-w", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
    command = ["cc", *options, *sources, "-o", built.old_driver / "libcuda.so.1"]
    subprocess.run(command, check=True, capture_output=True)
    built.broken_driver.mkdir()
    (built.broken_driver / "libcuda.so.1").write_text("This is not a shared library.\n")
    return built


def resign(bundle: Path, name: str, content: bytes) -> None:
    """Put other content into a bundle under the digest and the sum that belong to it."""
    plain = re.sub(rb'(?<="sha256":")[0-9a-f]{64}', b"0" * 64, content, count=1)
    content = plain.replace(b"0" * 64, hashlib.sha256(plain).hexdigest().encode(), 1)
    place(bundle, name, content)


def place(bundle: Path, name: str, content: bytes) -> None:
    """Put other content into a bundle, and its sum and size into the manifest."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for model in manifest["models"]:
        if model["file"] == name:
            model["sha256"], model["bytes"] = hashlib.sha256(content).hexdigest(), len(content)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


# Code with images on the GPU: `refused` gives them to the classifier `classify`.
ON_DEVICE = """
import ctypes
from vae_edge.engine import cuda
d = double()
own = ctypes.c_void_p()
with cuda.open_context().current():
    assert d.cuStreamCreate(ctypes.byref(own), 1) == 0

class OnDevice:  # as CuPy's and Numba's arrays
    def __init__(self, array, padding=0, stream=None):
        n, rows, columns, channels = array.shape
        wide = np.zeros((n, rows, columns * channels + padding), np.uint8)
        wide[:, :, : columns * channels] = array.reshape(n, rows, -1)
        pointer = ctypes.c_uint64()
        with cuda.open_context().current():
            assert d.cuMemAlloc_v2(ctypes.byref(pointer), wide.nbytes) == 0
            # Enqueued, and not done yet: whoever reads the array must wait for its stream.
            assert d.cuMemcpyHtoDAsync_v2(pointer, wide.ctypes.data, wide.nbytes, stream) == 0
        pitch, self.kept = columns * channels + padding, wide
        self.__cuda_array_interface__ = {"version": 3, "shape": array.shape, "typestr": "|u1", "stream": stream,
            "data": (pointer.value, False), "strides": (rows * pitch, pitch, channels, 1)}
    def __len__(self):
        return self.__cuda_array_interface__["shape"][0]

def refused(images):
    try:
        return classify(images)
    except VaeEdgeError as error:
        return type(error).__name__ + " " + str(error)
"""


# ---- In the process that has the double -----------------------------------------------------------------------------


Kernel = Callable[[Launch], None]
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.POINTER(Launch))
_kept: list[Any] = []


def double() -> ctypes.CDLL:
    """The driver's double in this process."""
    return open_cuda_double("libcuda.so.1")


def held() -> int:
    """Memory, streams, graphs, machine code and contexts that were not given back."""
    driver = double()
    return int(driver.double_held()) + sum(int(driver.double_count(name)) for name in (b"libraries", b"contexts"))


def faults() -> list[str]:
    """What was done wrong with the driver."""
    return [text.decode() for text in iter(_next_fault(double()), None)]


def _next_fault(driver: ctypes.CDLL) -> Callable[[], bytes | None]:
    numbers = iter(range(1 << 30))
    return lambda: driver.double_fault(next(numbers))


def run_with(kernel: Kernel) -> None:
    """Have each launch call a kernel."""
    _kept.append(_FUNCTION(lambda launch: kernel(launch.contents)))
    double().double_run_with(_kept[-1])


def view(launch: Launch, argument: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A buffer that a launch was given, as an array that may be written to."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_uint8 * size).from_address(launch.values[argument])
    return np.frombuffer(memory, dtype).reshape(shape)


def reference_kernel(bundle: Path, precision: str, change: Callable[[list[np.ndarray]], list[np.ndarray]]) -> Kernel:
    """A network by the operators' CPU references, on the weights in the double's device memory.

    Args:
        bundle: in which the ONNX file of this precision says the network's layout.
        change: what becomes of the outputs [probabilities, angle, score, uncertainty] before they are written.
    """
    import torch

    from vae_edge.bundle import load_bundle
    from vae_edge.exporting.bundle import load_onnx
    from vae_edge.exporting.network_file import read_network
    from vae_edge.ops.network import forward_layerwise

    opened = load_bundle(bundle)
    packed = read_network(load_onnx(opened.file(opened.find(precision=precision))), opened.input)
    net, buffers = packed.layout, (packed.weights, packed.params, packed.whitening)

    def kernel(launch: Launch) -> None:
        n = launch.grid[0]
        given = [view(launch, IMAGE, (n, net.height, net.width, net.channels), np.uint8)]
        if not given[0].any():  # the warm-up, whose answers nobody reads
            return
        for argument, buffer in zip((WEIGHTS, PARAMS, WHITENING), buffers, strict=True):
            given.append(view(launch, argument, tuple(buffer.shape), buffer.numpy().dtype))
        with torch.no_grad():
            found = forward_layerwise(net, *(torch.from_numpy(array.copy()) for array in given))
        for argument, values in enumerate(change([output.numpy() for output in found]), OUTPUTS):
            view(launch, argument, values.shape, np.float32)[...] = values

    return kernel


def probe_kernel(bundle: Path, precision: str) -> Kernel:
    """The exact answers to the bundle's probe images, and zeros to any other image. Needs NumPy alone."""
    from vae_edge.bundle import load_bundle
    from vae_edge.probes import load as load_probes
    from vae_edge.spec import CLASSIFIER_OUTPUTS, UNCERTAINTY_OUTPUTS

    opened = load_bundle(bundle)
    assert opened.probes is not None
    probes = load_probes(opened.file(opened.probes))
    exact = probes.models[opened.find(precision=precision).sha256].outputs
    rows = {image.tobytes(): k for k, image in enumerate(probes.images)}
    widths = [(name,) for name in CLASSIFIER_OUTPUTS] + [tuple(UNCERTAINTY_OUTPUTS)]

    def kernel(launch: Launch) -> None:
        n = launch.grid[0]
        images = view(launch, IMAGE, (n, *probes.images.shape[1:]), np.uint8)
        for argument, names in enumerate(widths, OUTPUTS):
            one = [np.nan_to_num(exact[name]).reshape(len(probes.images), -1) for name in names]
            values = np.concatenate(one, 1)
            out = view(launch, argument, (n, values.shape[1]), np.float32)
            for k, image in enumerate(images):
                row = rows.get(image.tobytes())
                out[k] = 0.0 if row is None else values[row]

    return kernel
