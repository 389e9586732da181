"""The machine that a measurement was made on, and the peak memory of a process that loads a bundle and predicts.

Memory is measured in a fresh process, `python -m vae_edge.benchmarking.measure`: the peak resident set from its start
to the end of its last prediction, in bytes (`VmHWM` of /proc/self/status, or `ru_maxrss` where that is missing). It
contains the interpreter, NumPy, the backend's libraries, the model, and pages of shared libraries that other processes
use too. Nothing is subtracted. The baseline to compare with is a process that imports NumPy and this package alone.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import vae_edge
from vae_edge.environment import available_cpus, cpu_quota, package_files
from vae_edge.errors import BackendError

TIMEOUT_S = 120


def describe_machine(threads: int | None = None) -> dict[str, Any]:
    """Processor, cores, system, versions, load and GPU, with the date, as a JSON record.

    `cpu_quota` is how many processors' worth of time a container may use, null without a limit; `available_cpus` is
    how many threads that and the affinity leave. `code` identifies this package's source beyond its version. On a
    Jetson, `jetson` has the module, JetPack, the power mode, the strongest one, and whether the clocks are pinned.

    Args:
        threads: what the measurement used.
    """
    from vae_edge.jetson import read_jetson
    from vae_edge.runtime import (  # not in a process whose memory is measured
        backend_version,
        cpu_model,
        installed_backends,
    )

    versions = {"vae_edge": vae_edge.__version__, "numpy": np.__version__}
    versions |= {name: backend_version(name) for name in installed_backends()}
    gpu = gpu_name()
    jetson = read_jetson(gpu_name=gpu or "")
    return {
        "code": code_digest(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "available_cpus": available_cpus(),
        "cpu_quota": cpu_quota(),
        "threads": threads,
        "memory_bytes": _memory_bytes(),
        "os": _system(),
        "python": platform.python_version(),
        "versions": versions,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "gpu": gpu,
        **({"jetson": jetson.summary()} if jetson else {}),
    }


def code_digest() -> str:
    """The first 12 digits of the SHA-256 of this package's Python files, in the order of their names."""
    digest = hashlib.sha256()
    for name, content in package_files("vae_edge", (".py",)):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:12]


def gpu_name() -> str | None:
    """The name of the first NVIDIA GPU whose driver is loaded, or None."""
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model" and value.strip():
                return value.strip()
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = answer.stdout.strip().splitlines()
    return names[0] if answer.returncode == 0 and names else None


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, kernel {platform.release()}"


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory(
    bundle: str | os.PathLike[str],
    backend: str,
    precision: str,
    batch: int,
    threads: int,
    device: int = 0,
    trusted: bool = False,
) -> int:
    """Peak resident bytes of a fresh process that loads the bundle and predicts batches of this size.

    Raises:
        BackendError: if that process fails.
    """
    how = [f"--threads={threads}", f"--device={device}", *(["--trusted"] if trusted else [])]
    return _measure([str(bundle), "--backend", backend, "--precision", precision, f"--batch={batch}", *how])


def baseline_memory() -> int:
    """Peak resident bytes of a fresh process that imports NumPy and this package and loads no bundle."""
    return _measure([])


def _measure(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "vae_edge.benchmarking.measure", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"Measuring memory took longer than {TIMEOUT_S} s and was given up: {command}.") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BackendError(f"The process that measures memory ended with {done.returncode} ({said}): {command}.")
    return int(json.loads(done.stdout.strip().splitlines()[-1])["peak_bytes"])


def peak_of_this_process() -> int:
    """Peak resident bytes of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Load, predict, print {"peak_bytes": n}; without a bundle, print at once."""
    parser = argparse.ArgumentParser(description="Print the peak memory of loading a bundle and predicting.")
    parser.add_argument("bundle", nargs="?")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--trusted", action="store_true")
    given = parser.parse_args()

    if given.bundle is not None:
        how = {"verify": "off", "device": given.device, "trusted": given.trusted}
        with vae_edge.load(given.bundle, given.backend, given.precision, given.threads, **how) as classifier:
            spec = classifier.input
            shape = (given.batch, *spec.shape)
            images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            classifier.warmup(given.batch)
            for _ in range(3):
                classifier(images)
    print(json.dumps({"peak_bytes": peak_of_this_process()}))


if __name__ == "__main__":
    main()
