"""The machine that a measurement was made on, as data."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

import vae_edge
from vae_edge.processors import available_cpus, cpu_quota
from vae_edge.runtime import backend_version, cpu_model, installed_backends


def describe_machine(threads: int | None = None) -> dict[str, Any]:
    """Processor, cores, system, versions, load and GPU, with the date; `threads` is what the measurement used.

    `cpu_quota` is how many processors' worth of time a container grants, null without a limit; `available_cpus` is how
    many threads that and the affinity leave.
    `code` tells versions of this package apart that have the same number.
    """
    versions = {"vae_edge": vae_edge.__version__, "numpy": np.__version__}
    versions |= {name: backend_version(name) for name in installed_backends()}
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
        "gpu": gpu_name(),
    }


def code_digest() -> str:
    """The beginning of the SHA-256 of this package's Python files, in the order of their names."""
    digest = hashlib.sha256()
    folder = Path(vae_edge.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def gpu_name() -> str | None:
    """The name of the first NVIDIA GPU whose driver is loaded; None where there is none."""
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
