"""What the processor is, and how much of it this process may use."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path


def cpu_model() -> str:
    """The processor's own name, such as "AMD EPYC 9654"; on a Jetson the board's name stands before it."""
    board = Path("/proc/device-tree/model")
    parts = [board.read_text(errors="replace").strip("\0\n ")] if board.is_file() else []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("model name", "hardware") and value.strip():
                parts.append(value.strip())
                break
    return " ".join(parts) or platform.processor() or platform.machine() or "unknown processor"


def available_cpus() -> int:
    """The CPUs that this process may run on: its affinity, and the quota of its control group if that is less."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(affinity, _quota(Path("/sys/fs/cgroup/cpu.max"))))


def _quota(path: Path) -> int:
    """CPUs granted by a version 2 control group's `cpu.max`, whose first word is "max" where there is no limit."""
    words = path.read_text().split() if path.is_file() else []
    if len(words) != 2 or words[0] == "max":
        return 1 << 30
    return math.ceil(int(words[0]) / int(words[1]))
