"""Compile every kernel ahead of time, for each architecture, on any machine: no GPU, no driver, no CUDA toolkit.

    python -m vae_edge_kernels.aot --out DIR --arch 80,87,90,110

Writes `DIR/sm_NN/NAME.cubin` and `DIR/manifest.json` (for each kernel: entry, arguments in order with the two
trailing scratch pointers of Triton's calling convention, and for each architecture file, sha256, warps, shared memory
and the constants that the grid depends on). Two runs with the same Triton write the same bytes.

Each architecture compiles in a process of its own (`aot.worker`). `aot.c_codegen` makes C sources of the machine code
for the native library; `aot.network_file` packs a network and its machine code into one file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vae_edge_kernels.errors import KernelError

MANIFEST_SCHEMA = 1
CTAS_PER_IMAGE = 8  # CTAs that work on one image, in the kernel that has several
# Architecture: where it is found.
ARCHITECTURES = {
    80: "A100",
    86: "RTX 30, A10",
    87: "Jetson Orin",
    89: "RTX 40, L4",
    90: "H100, H200",
    100: "B200",
    110: "Jetson Thor",
    120: "RTX 50",
}
DEFAULT_ARCHITECTURES = (80, 86, 87, 89, 90, 110, 120)
RENAMED = {101: "Jetson Thor is sm_110 since CUDA 13, and Triton 3.9 aborts on the old name; ask for 110"}


def parse_architectures(text: str) -> tuple[int, ...]:
    """`"80,87"` or `"sm_80;sm_87"` to (80, 87): sorted, each once.

    Raises:
        KernelError: if one is not known, or is sm_101.
    """
    architectures = set()
    for part in text.replace(";", ",").split(","):
        number = part.strip().removeprefix("sm_")
        if not number.isdecimal() or int(number) not in ARCHITECTURES:
            known = ", ".join(map(str, ARCHITECTURES))
            reason = RENAMED.get(int(number)) if number.isdecimal() else None
            raise KernelError(f"Architecture {part.strip()!r} is refused: {reason or f'known are {known}'}.")
        architectures.add(int(number))
    return tuple(sorted(architectures))


def check_tools(architectures: Sequence[int]) -> str:
    """Check that Triton and an assembler for each architecture are there; the Triton version.

    Raises:
        KernelError: if Triton or ptxas is missing, or ptxas does not know an architecture.
    """
    try:
        import triton
        from triton.backends.nvidia.compiler import get_ptxas
    except ImportError as error:
        raise KernelError(
            f"Triton cannot be imported ({error}); install it with: pip install 'triton>=3.6,<3.10'."
        ) from error

    for architecture in architectures:
        try:
            path = get_ptxas(architecture).path
            text = subprocess.run(
                [path, "--help"], capture_output=True, text=True, encoding="utf-8", errors="replace", check=True
            ).stdout
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            raise KernelError(
                f"Triton {triton.__version__} has no working ptxas for sm_{architecture} ({error}); reinstall Triton."
            ) from error
        if f"sm_{architecture}'" not in text:
            raise KernelError(
                f"The ptxas of Triton {triton.__version__} ({path}) does not know sm_{architecture}; "
                "install Triton 3.9, set TRITON_PTXAS_BLACKWELL_PATH to a newer ptxas, or leave this architecture out."
            )
    return str(triton.__version__)


def compile_all(
    out: str | os.PathLike[str],
    architectures: Sequence[int] = DEFAULT_ARCHITECTURES,
    *,
    ptx: bool = False,
    only: str = "*",
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
    network: str | None = None,
    label: str = "",
    ctas_per_image: int = CTAS_PER_IMAGE,
) -> dict[str, Any]:
    """Compile every kernel for each architecture into the folder `out`, and return the manifest that was written there.

    Args:
        out: folder; made if it is missing. What stood in its `sm_NN` folders is replaced.
        architectures: as `parse_architectures` gives them.
        ptx: keep the PTX beside the machine code.
        only: pattern of kernels' names.
        jobs: processes at a time; the number of CPUs if None.
        progress: called with a line when an architecture is done.
        network: JSON of a network, whose kernels are compiled instead of the library's.
        label: appended to the names of the network's kernels.
        ctas_per_image: CTAs that work on one image, in the kernel that has several.

    Raises:
        KernelError: if a tool is missing, a kernel does not compile, or no kernel fits `only`.
    """
    version = check_tools(architectures)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(architecture: int) -> list[dict[str, Any]]:
        start = time.monotonic()
        entries = _compile_architecture(folder, architecture, ptx, only, network, label, ctas_per_image)
        if progress is not None:
            size = sum(entry["cubin"]["bytes"] for entry in entries)
            seconds = time.monotonic() - start
            progress(f"sm_{architecture}: {len(entries)} kernels, {size:,} bytes, {seconds:.1f} s")
        return entries

    with ThreadPoolExecutor(jobs or cpu_count()) as pool:
        compiled = list(pool.map(compile_one, architectures))

    manifest = {"schema": MANIFEST_SCHEMA, "triton": version, "kernels": _merge(compiled)}
    if not manifest["kernels"]:
        raise KernelError(f"No kernel's name fits {only!r}.")
    write_text(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    return manifest


def cpu_count() -> int:
    """The CPUs that this process may run on. (Of a container's quota the caller knows: it passes `jobs`.)"""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def write_text(path: Path, content: str) -> None:
    """Write a file as UTF-8, completely or not at all: a temporary file beside it is renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as scratch:
        temporary = Path(scratch) / path.name
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)


def _compile_architecture(
    folder: Path,
    architecture: int,
    ptx: bool,
    only: str,
    network: str | None = None,
    label: str = "",
    ctas_per_image: int = CTAS_PER_IMAGE,
) -> list[dict[str, Any]]:
    """Compile in a worker process, into a scratch folder that replaces `sm_NN` only when it is complete."""
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder) as scratch:
        made = Path(scratch) / f"sm_{architecture}"
        made.mkdir()
        command = [sys.executable, "-m", "vae_edge_kernels.aot.worker", str(architecture), str(made), "--only", only]
        if network is not None:
            path = Path(scratch) / "network.json"
            path.write_text(network, encoding="utf-8")
            command += ["--network", str(path), "--label", label, "--ctas-per-image", str(ctas_per_image)]

        done = subprocess.run(
            command + ["--ptx"] * ptx,
            env=_worker_environment(Path(scratch) / "cache"),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            cwd=scratch,
        )
        if done.returncode != 0:
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
            last = done.stderr.strip().splitlines()[-15:]
            raise KernelError(
                f"Compiling for sm_{architecture} failed: the compiler's process ended with {how} and said:\n"
                + "\n".join(last)
            )

        entries: list[dict[str, Any]] = json.loads((made / "kernels.json").read_text(encoding="utf-8"))
        (made / "kernels.json").unlink()
        final = folder / made.name
        if final.exists():
            shutil.rmtree(final)
        made.rename(final)
    return entries


def _worker_environment(cache: Path) -> dict[str, str]:
    """The environment of a compiling process: no interpreter, no source paths in the code, no cache from elsewhere."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return environment | {
        "PYTHONPATH": os.pathsep.join([root] + [path for path in [os.environ.get("PYTHONPATH")] if path]),
        "PYTHONHASHSEED": "0",
        "TRITON_CACHE_DIR": str(cache),
        "TRITON_DISABLE_LINE_INFO": "1",
        "TRITON_DEFAULT_FP_FUSION": "1",
    }


def _merge(compiled: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Entries by architecture to entries by kernel, each with its machine code in the order of the architectures."""
    kernels: dict[str, dict[str, Any]] = {}
    for entries in compiled:
        for entry in entries:
            cubin = entry["cubin"]
            cubin["file"] = f"sm_{cubin['architecture']}/{entry['name']}.cubin"
            shared = {key: value for key, value in entry.items() if key != "cubin"}
            kernel = kernels.setdefault(entry["name"], {**shared, "cubins": []})
            if {key: kernel[key] for key in shared} != shared:
                raise KernelError(f"Kernel {entry['name']} takes other arguments on sm_{cubin['architecture']}.")
            kernel["cubins"].append(cubin)
    return list(kernels.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when everything was written; 2 and a sentence on stderr otherwise."""
    parser = argparse.ArgumentParser(prog="python -m vae_edge_kernels.aot", description=__doc__.splitlines()[0])
    known = ", ".join(f"{number} ({where})" for number, where in ARCHITECTURES.items())
    default = ",".join(map(str, DEFAULT_ARCHITECTURES))
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--arch", default=default, help=f"architectures: {known}")
    parser.add_argument("--only", default="*", help="compile the kernels whose names fit this pattern")
    parser.add_argument("--ptx", action="store_true", help="keep the PTX beside the machine code")
    parser.add_argument("--jobs", type=int, help="processes at a time (default: number of CPUs)")
    options = parser.parse_args(arguments)
    try:
        manifest = compile_all(
            options.out,
            parse_architectures(options.arch),
            ptx=options.ptx,
            only=options.only,
            jobs=options.jobs,
            progress=lambda line: print(line, flush=True),
        )
    except (KernelError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(manifest['kernels'])} kernels by Triton {manifest['triton']} in {options.out}")
    return 0
