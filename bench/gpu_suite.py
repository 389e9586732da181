"""Check the kernels on the GPU that is here, then measure them.

    python bench/gpu_suite.py [--native LIBRARY] [--out FILE]

Correctness comes first, against the CPU reference, for several sizes and dtypes, and, with --native, through the
native library. Only when all of it holds are times taken (median of `triton.testing.do_bench`): the fused operator
against the same arithmetic in eager PyTorch, and the bandwidth that it reaches against the bandwidth of a plain copy
measured in the same run. Writes bench/results/<device>.json with device, driver, versions and date. Exit codes: 0
done; 1 a kernel computes something else; 2 no GPU, or something is not installed.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_edge.errors import KernelError
from vae_edge.files import write_json
from vae_edge.ops.reparameterize import reparameterize

RESULTS = Path(__file__).parent / "results"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCES = {"fp32": (1e-4, 2e-5), "fp16": (2e-3, 1e-3), "bf16": (1.6e-2, 1e-2)}  # relative, absolute
# rows, columns, offset: one element; a training batch; widths in and out of quads; beyond 32 bits of counter; many rows
CHECKED = [(1, 1, 0), (256, 32, 8), (257, 24, 3), (300, 37, 5), (64, 128, 2**40), (8192, 64, 4), (1000, 1, 1)]
MEASURED = [(256, 32), (4096, 32), (65536, 64), (1048576, 64)]
SEED = 2**40 + 12345


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


def eager(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """What a model without the kernel does, in eager PyTorch, with PyTorch's own noise."""
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    return z, -0.5 * (1 + logvar - mu.square() - logvar.exp()).float().sum(1)


def median_us(function: Callable[[], object]) -> float:
    """Median time of a call in microseconds, the cache cleared before each."""
    from triton.testing import do_bench

    return 1000.0 * float(do_bench(function, return_mode="median"))


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 1 GiB reads and writes."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_us(lambda: target.copy_(source)) * 1e-6)


def measure(rows: int, columns: int, dtype: str, copy_bytes_per_s: float) -> dict[str, Any]:
    """Times of forward and backward, fused and eager, and the share of a copy's bandwidth that the fused ones reach."""
    mu, logvar = (t.cuda() for t in posterior(rows, columns, DTYPES[dtype]))
    z, kl = reparameterize(mu, logvar, SEED, 0)
    leaves = mu.clone().requires_grad_(), logvar.clone().requires_grad_()
    outputs = eager(*leaves)
    backward = torch.ops.vae_edge.reparameterize_backward.default
    times = {
        "forward_us": median_us(lambda: reparameterize(mu, logvar, SEED, 0)),
        "forward_eager_us": median_us(lambda: eager(mu, logvar)),
        "backward_us": median_us(lambda: backward(z, kl, mu, logvar, SEED, 0)),
        "backward_eager_us": median_us(lambda: torch.autograd.grad(outputs, leaves, (z, kl), retain_graph=True)),
    }
    shares = {
        f"{direction}_share_of_copy_bandwidth": (tensors * mu.nbytes + kl.nbytes)
        / (times[f"{direction}_us"] * 1e-6)
        / copy_bytes_per_s
        for direction, tensors in (("forward", 3), ("backward", 5))
    }
    return {"rows": rows, "columns": columns, "dtype": dtype, **times, **shares}


def machine() -> dict[str, Any]:
    """Device, driver, versions and date."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    driver = None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
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
    parser.add_argument("--out", type=Path, help="file of results (default: bench/results/<device>.json)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No CUDA GPU is available to PyTorch on this machine; run this where one is.", file=sys.stderr)
        return 2
    try:
        result: dict[str, Any] = {"machine": machine(), "correctness": check_operator()}
        print(f"correct: {len(result['correctness'])} cases on {result['machine']['device']}", flush=True)
        if options.native:
            result["native"] = check_native(options.native)
            print(f"native library correct: {result['native']['cases']} cases", flush=True)
    except (KernelError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"Triton cannot be imported ({error}); install it with: pip install triton.", file=sys.stderr)
        return 2
    limit = copy_bandwidth()
    result["machine"]["copy_bytes_per_s"] = limit
    result["measurements"] = [measure(*shape, dtype, limit) for shape in MEASURED for dtype in DTYPES]
    for row in result["measurements"]:
        print(
            f"{row['rows']:>8} x {row['columns']:<4} {row['dtype']}: forward {row['forward_us']:8.1f} us "
            f"(eager {row['forward_eager_us']:8.1f}, {row['forward_share_of_copy_bandwidth']:.0%} of a copy), backward "
            f"{row['backward_us']:8.1f} us (eager {row['backward_eager_us']:8.1f}, "
            f"{row['backward_share_of_copy_bandwidth']:.0%})"
        )
    slug = re.sub(r"[^a-z0-9]+", "-", result["machine"]["device"].lower()).strip("-")
    path = options.out or RESULTS / f"{slug}.json"
    write_json(path, result)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
