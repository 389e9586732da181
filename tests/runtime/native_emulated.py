"""A bundle's network files on the emulated GPU, through the native library: for the tests in Python, and for `ctest`.

A process gets the double of the driver, whose launches `doubles.emulated_gpu` executes from the PTX that was kept when
the network files were made.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
from doubles import emulated_gpu
from native_double import NativeBuild

from vae_edge.bundle import load_bundle
from vae_edge.data import Dataset
from vae_edge.data.transforms import rotate_dataset
from vae_edge.probes import compare, difference
from vae_edge.probes import load as load_probes

TIMEOUT_S = 1200  # each image takes about a second, and two or more on a busy machine
BEFORE = """
import ctypes
from dataclasses import replace
from pathlib import Path
import numpy as np
import vae_edge
from doubles.emulated_gpu import EmulatedGpu
from native_double import double, faults, held
from vae_edge.bundle import load_bundle
from vae_edge.errors import VaeEdgeError
from vae_edge.probes import compare, load as load_probes
from vae_edge.runtime import native
BUNDLE, PTX = Path({bundle!r}), Path({ptx!r})
gpu = EmulatedGpu(PTX, double())
bundle = load_bundle(BUNDLE)
probes = load_probes(bundle.file(bundle.probes))
images = probes.images

class Library:  # the native library, of whose warm-up the launch of a single image is executed
    library = native.load_library()
    def __getattr__(self, name):
        return getattr(self.library, name)
    def ve_open(self, *arguments):
        gpu.max_programs = 1
        try:
            return self.library.ve_open(*arguments)
        finally:
            gpu.max_programs = 1 << 31
native.load_library = Library

def load(precision="int8", **options):
    return vae_edge.load(BUNDLE, "native", precision, **options)

def wrong(found, start, stop, precision="int8"):  # what is beyond the tolerances in answers to some probe images
    exact = probes.models[bundle.find(precision=precision, format="onnx", target="any").sha256]
    return compare(replace(exact, outputs={{name: part[start:stop] for name, part in exact.outputs.items()}}), found)
"""
# A program in C would call the library in the same way.
C_INTERFACE = """
library = Library()

def open_network(path):
    network = ctypes.c_void_p()
    status = library.ve_open(bytes(path), 0, ctypes.byref(network))
    return network, status, library.ve_last_error().decode()

def classify(network, images, classes=len(bundle.classes)):
    images = np.ascontiguousarray(images)
    n = len(images)
    probabilities, angle, score, uncertainty = (
        np.full(shape, np.nan, np.float32) for shape in ((n, classes), n, n, (n, 3))
    )
    arrays = (images, probabilities, angle, score, uncertainty)
    pointers = [array.ctypes.data for array in arrays]
    assert library.ve_classify_ex(network, pointers[0], n, *pointers[1:]) == 0, library.ve_last_error()
    return {"probabilities": probabilities, "angle": angle, "score": score, "angle_confidence": uncertainty[:, 0],
        "second_angle": uncertainty[:, 1], "second_angle_probability": uncertainty[:, 2]}
"""


class Emulated:
    """A bundle with a network file, and a folder with the PTX of the file's machine code."""

    def __init__(self, bundle: Path, ptx: Path) -> None:
        self.bundle, self.ptx = bundle, ptx

    def copy(self, folder: Path) -> Emulated:
        """The same, of a test's own."""
        return Emulated(
            Path(shutil.copytree(self.bundle, folder / "bundle")), Path(shutil.copytree(self.ptx, folder / "ptx"))
        )

    def run(self, native: NativeBuild, code: str, **more: str) -> list[str]:
        """Python code in a process that has the double and the emulated GPU; what it prints."""
        done = self.process(native, code, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    def process(self, native: NativeBuild, code: str, **more: str) -> subprocess.CompletedProcess[str]:
        """As `run`; the process that has ended, however it did."""
        return native.run(BEFORE.format(bundle=str(self.bundle), ptx=str(self.ptx)) + code, timeout_s=TIMEOUT_S, **more)


def emulated(
    source: Path,
    folder: Path,
    ctas_per_image: int = 1,
    precisions: tuple[str, ...] = ("int8",),
    targets: tuple[str, ...] = ("orin",),
) -> Emulated:
    """A copy of a bundle with network files for some GPUs."""
    from vae_edge.exporting.network_file import build_bundle_network

    made = Emulated(Path(shutil.copytree(source, folder / "bundle")), folder / "ptx")
    with emulated_gpu.keep_ptx(made.ptx):
        for precision in precisions:
            build_bundle_network(made.bundle, targets, precision, ctas_per_image=ctas_per_image)
    return made


# ---- Digits, and the answers of the ONNX file ------------------------------------------------------------------------


def rotated_digits(digits: Dataset, count: int) -> np.ndarray:
    """Test images of all classes, each rotated by an angle of its own."""
    assert digits.test is not None
    chosen = np.random.default_rng(0).choice(len(digits.test.images), count, replace=False)
    return rotate_dataset(digits.test.take(chosen)).images


def onnxruntime_answers(file: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """The answers of an ONNX file, node by node: quantized values are computed in float32, on any processor."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


def assert_answers_of_onnxruntime(folder: Path, images: np.ndarray, found: dict[str, np.ndarray]) -> str:
    """Answers to images are those of a bundle's int8 ONNX file; a sentence on how far they are apart."""
    bundle = load_bundle(folder)
    entry = bundle.find(precision="int8", format="onnx", target="any")
    expected = onnxruntime_answers(bundle.file(entry), images)
    assert bundle.probes is not None
    allowed = load_probes(bundle.file(bundle.probes)).models[entry.sha256]
    apart = {name: difference(name, found[name], expected[name]) for name in allowed.tolerance}
    mismatches = compare(replace(allowed, outputs={name: expected[name] for name in allowed.outputs}), found)
    assert mismatches == [], mismatches
    assert (found["probabilities"].argmax(1) == expected["probabilities"].argmax(1)).all()
    told = ", ".join(f"{name} {values.mean():.1e} and {values.max():.1e}" for name, values in apart.items())
    return f"{len(images)} digits from onnxruntime's answers, in the mean and at most: {told}"
