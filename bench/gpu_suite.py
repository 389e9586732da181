"""Check the kernels on the GPU that is here, then measure them.

    python bench/gpu_suite.py [--native LIBRARY] [--bundle BUNDLE] [--seconds 420] [--out FOLDER]

Correctness comes first: the operators and the tests' cases against the CPU references and, with --native, kernels and
network files through the native library; with --bundle, its engines and network files against its probe images. Only
then are times taken (of the bundle, and bench/kernels.py), and the bandwidth that is reached is compared with that of a
plain copy measured in the same run. Writes `<device>.json` with device, driver,
versions and date, and `kernels-<device>.csv`. Exit codes: 0 done; 1 a kernel computes something else; 2 no GPU, or
something is not installed.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kernel_cases
import numpy as np
import synthetic_models
import torch
from benchmark_case import PRESETS
from torch import Tensor

import kernels
import vae_edge
from vae_edge.benchmarking import run_benchmark
from vae_edge.bundle import ModelEntry
from vae_edge.errors import KernelError, VaeEdgeError
from vae_edge.files import write_json
from vae_edge.ops.network import forward_layerwise, fuse
from vae_edge.ops.reparameterize import reparameterize
from vae_edge.runtime.backends import LoadOptions, installed_backends
from vae_edge.runtime.native import NativeBackend
from vae_edge.runtime.native_library import VARIABLE

RESULTS = Path(__file__).parent / "results"
TESTS = Path(__file__).parents[1] / "tests" / "kernels" / "test_cases.py"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCES = {"fp32": (1e-4, 2e-5), "fp16": (2e-3, 1e-3), "bf16": (1.6e-2, 1e-2)}  # relative, absolute
# rows, columns, offset: one element; a training batch; widths in and out of quads; beyond 32 bits of counter; many rows
CHECKED = [(1, 1, 0), (256, 32, 8), (257, 24, 3), (300, 37, 5), (64, 128, 2**40), (8192, 64, 4), (1000, 1, 1)]
SEED = 2**40 + 12345
BUNDLE_SECONDS = 30.0


def posterior(rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """mu and logvar on the CPU, [rows, columns], the same on every machine."""
    generator = torch.Generator().manual_seed(rows + columns)
    mu, logvar = torch.randn(2, rows, columns, generator=generator)
    return mu.to(dtype), logvar.to(dtype)


def run(device: str, rows: int, columns: int, offset: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """z, kl and both gradients of one weighted sum, computed on a device and brought to the CPU."""
    mu, logvar = (t.to(device).requires_grad_() for t in posterior(rows, columns, dtype))
    z, kl = reparameterize(mu, logvar, SEED, offset)
    weights = torch.linspace(-1.0, 1.0, rows * columns).view(rows, columns).to(device, dtype)
    torch.autograd.backward([z, kl], [weights, torch.full_like(kl, 0.5)])
    named = {"z": z, "kl": kl, "grad_mu": mu.grad, "grad_logvar": logvar.grad}
    return {name: tensor.detach().cpu() for name, tensor in named.items() if tensor is not None}


def check_operator() -> list[dict[str, Any]]:
    """The operator on CUDA against its CPU reference.

    Raises:
        KernelError: names the tensor that differs.
    """
    done = []
    for rows, columns, offset in CHECKED:
        for name, dtype in DTYPES.items():
            got, expected = (run(device, rows, columns, offset, dtype) for device in ("cuda", "cpu"))
            largest = {what: compare(what, got[what], expected[what], name) for what in expected}
            done.append({"rows": rows, "columns": columns, "offset": offset, "dtype": name, "largest_error": largest})
    return done


def compare(what: str, got: Tensor, expected: Tensor, dtype: str) -> float:
    """The largest absolute difference, once it is known to be within the dtype's tolerance."""
    relative, absolute = TOLERANCES[dtype]
    try:
        torch.testing.assert_close(got, expected, rtol=relative, atol=absolute)
    except AssertionError as error:
        raise KernelError(f"{what} in {dtype} is not what the CPU reference computes: {error}") from error
    return float((got.double() - expected.double()).abs().max())


def check_native(path: str) -> dict[str, Any]:
    """Both launches of the native library, on PyTorch's memory and stream, against the CPU reference.

    Raises:
        KernelError: with the library's sentence, or the tensor that differs.
    """
    library = ctypes.CDLL(path)
    library.ve_last_error.restype = library.ve_version.restype = ctypes.c_char_p

    def call(function: str, *values: object) -> None:
        if getattr(library, function)(*values) != 0:
            raise KernelError(library.ve_last_error().decode())

    call("ve_initialize", torch.cuda.current_device())
    tail: list[Any] = [ctypes.c_uint64(SEED), None, None, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)]
    for rows, columns, offset in CHECKED:
        for number, (name, dtype) in enumerate(DTYPES.items()):
            mu, logvar = (t.cuda() for t in posterior(rows, columns, dtype))
            z, grad_mu, grad_logvar = (torch.empty_like(mu) for _ in range(3))
            kl = torch.empty(rows, device="cuda")
            weights = torch.linspace(-1.0, 1.0, rows * columns).view(rows, columns).to("cuda", dtype)
            halves = torch.full((rows,), 0.5, device="cuda")
            tail[1:3] = [ctypes.c_uint64(offset), number]

            def launch(function: str, *tensors: Tensor, shape: tuple[int, int] = (rows, columns)) -> None:
                call(function, *(ctypes.c_void_p(t.data_ptr()) for t in tensors), *shape, *tail)

            launch("ve_launch_reparameterize_forward", mu, logvar, z, kl)
            launch("ve_launch_reparameterize_backward", weights, halves, mu, logvar, grad_mu, grad_logvar)
            torch.cuda.synchronize()
            got = {"z": z, "kl": kl, "grad_mu": grad_mu, "grad_logvar": grad_logvar}
            for what, expected in run("cpu", rows, columns, offset, dtype).items():
                compare(f"native {what}", got[what].cpu(), expected, name)
    return {"version": library.ve_version().decode(), "cases": len(CHECKED) * len(DTYPES)}


def check_cases() -> dict[str, Any]:
    """The kernels' test cases, compiled, in processes of their own; how many passed and failed.

    Raises:
        KernelError: if one fails.
    """
    if find_spec("pytest") is None or find_spec("hypothesis") is None:
        return {"passed": 0, "skipped": "pytest or hypothesis is not installed"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(TESTS)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    passed = re.search(r"(\d+) passed", done.stdout)
    if done.returncode != 0 or passed is None:
        raise KernelError(f"The kernels' cases fail:\n{done.stdout[-4000:]}{done.stderr[-1000:]}")
    return {"passed": int(passed[1])}


def check_network(path: str, name: str, int8: bool, ctas_per_image: int) -> dict[str, Any]:
    """A network file of a preset (of random weights) through the native library: its answers against those of the
    operators one by one on the CPU, and the time of a call from host memory to host memory.

    Raises:
        KernelError: if the answers differ.
    """
    model = synthetic_models.untrained(name)
    fused = fuse(model, synthetic_models.quantized(model) if int8 else None, ctas_per_image=ctas_per_image)
    images = synthetic_models.blotches(256, (fused.layout.height, fused.layout.width), fused.layout.channels).numpy()
    major, minor = torch.cuda.get_device_capability()
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.ve"
        fused.save(file, [str(number) for number in range(fused.layout.classes)], 1.0, [10 * major + minor])
        os.environ[VARIABLE] = path
        network = NativeBackend(file, ModelEntry("classifier", "int8" if int8 else "fp16", "native"), LoadOptions())
        try:
            expected = forward_layerwise(
                fused.layout, torch.from_numpy(images[:64]), fused.weights, fused.params, fused.whitening
            )
            apart = 0.0
            for batch in (1, 2, 16, 17, 64):  # several CTAs an image and one, out of a graph and not
                probabilities, _, found, *_ = network.infer(images[:batch])
                scores = expected[2].numpy()[:batch]
                errors = (
                    np.abs(probabilities - expected[0].numpy()[:batch]).max(),
                    (np.abs(found - scores) / (1 + np.abs(scores))).max(),
                )
                apart = max(apart, *map(float, errors))
                if not all(error <= 2e-2 for error in errors):
                    raise KernelError(f"native network {name}, {batch} images: off by {errors}")
            for batch in (1, 32, 256):
                times[f"batch_{batch}_us"] = call_us(lambda n=batch: network.infer(images[:n]))
        finally:
            network.close()
    return {"network": name, "int8": int8, "ctas_per_image": ctas_per_image, "largest_error": apart, **times}


def check_bundle(path: str) -> dict[str, Any]:
    """Every engine and network file of a bundle that runs on this GPU: its answers to the probe images, then its times.

    Raises:
        KernelError: an answer is wrong, or nothing of the bundle runs here.
    """
    backends = installed_backends(gpu=True)
    found = vae_edge.verify(path, backends)
    wrong = [model.sentence for model in found.models if model.right is False]
    if wrong or not found.models:
        raise KernelError("; ".join(wrong) or f"of {path} nothing runs on this GPU: {'; '.join(found.not_run)}")
    used = [name for name in backends if any(model.backend == name for model in found.models)]
    times = run_benchmark(path, [*used, "onnxruntime"], ["int8"], seconds=BUNDLE_SECONDS, memory=False)
    return {"verification": found.to_json(), "benchmark": times.to_json()["results"]}


def call_us(function: Callable[[], object], calls: int = 500) -> float:
    """Median wall-clock microseconds of a call that waits for its answer."""
    taken = []
    for number in range(calls + 20):
        start = time.perf_counter_ns()
        function()
        if number >= 20:
            taken.append(time.perf_counter_ns() - start)
    return statistics.median(taken) / 1e3


def median_us(function: Callable[[], object]) -> float:
    """Median time of a call in microseconds, the cache cleared before each."""
    from triton.testing import do_bench

    return 1000.0 * float(do_bench(function, return_mode="median"))


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 1 GiB reads and writes."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_us(lambda: target.copy_(source)) * 1e-6)


def bandwidth_shares(lines: list[dict[str, Any]], limit: float) -> dict[str, float]:
    """The largest case of each kernel that only moves memory: its share of a copy's bandwidth."""
    shares = {}
    for kernel in ("reparameterize_fp32", "reparameterize_fp16", "rotate_u8_fp16"):
        found = [line for line in lines if line["kernel"] == kernel]
        if found:
            line = max(found, key=lambda line: line["batch"])
            shares[f"{kernel}, {line['layer']}, {line['batch']}"] = line["gb_per_s"] * 1e9 / limit
    return shares


def machine() -> dict[str, Any]:
    """Device, driver, versions and date."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    driver = None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
        ).stdout
        driver = answer.partition("\n")[0].strip() or None
    return {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "driver": driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure and write the results; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--native", help="the native library, to be checked too: build/lib/libvae_edge_kernels.so")
    parser.add_argument("--bundle", help="a bundle with engines or network files for this GPU, to be checked and timed")
    parser.add_argument("--seconds", type=float, default=420.0, help="after so many, nothing more by torch.compile")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results (default: bench/results)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No CUDA GPU is available to PyTorch on this machine; run this where one is.", file=sys.stderr)
        return 2
    start = time.monotonic()
    try:
        result: dict[str, Any] = {"machine": machine(), "correctness": check_operator(), "cases": check_cases()}
        print(f"correct: {len(result['correctness'])} + {result['cases']['passed']} cases", flush=True)
        if options.native:
            result["native"] = check_native(options.native)
            result["native"]["networks"] = [
                check_network(options.native, name, int8, ctas_per_image)
                for name in PRESETS
                for int8 in (False, True)
                for ctas_per_image in (1, 8)
            ]
            print(f"native library correct: {result['native']}", flush=True)
        if options.bundle:
            result["bundle"] = check_bundle(options.bundle)
            print(f"bundle correct: {len(result['bundle']['verification']['models'])} model files", flush=True)
        name = kernels.slug(result["machine"]["device"])
        write_json(options.out / f"{name}.json", result)
        left = options.seconds - (time.monotonic() - start)
        table = options.out / f"kernels-{name}.csv"
        lines = kernels.measure_all(kernel_cases.cases(), left, table, lambda line: print(line, flush=True))
    except (VaeEdgeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"Triton cannot be imported ({error}); install it with: pip install triton.", file=sys.stderr)
        return 2
    limit = copy_bandwidth()
    result["machine"]["copy_bytes_per_s"] = limit
    result["shares_of_copy_bandwidth"] = bandwidth_shares(lines, limit)
    result["times_as_fast"] = kernels.summary(lines)
    write_json(options.out / f"{name}.json", result)
    for what, value in {**result["shares_of_copy_bandwidth"], **result["times_as_fast"]}.items():
        print(f"{what}: {'not measured' if value is None else f'{value:.2f}'}")
    print(options.out / f"{name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
