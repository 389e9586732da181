"""How many processors this process may keep busy: its affinity, and the quota of its control groups (containers).

Every thread pool and every engine takes its number of threads from `available_cpus`. Nothing but the standard library
is imported, so that the command line can tell numeric libraries before they are loaded (`limit_libraries`).

What the processor is, what it can do, and how much of it this process may use.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath

from vae_edge.errors import ConfigError

_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
_USUAL_MOUNTS = (("cgroup2", "/sys/fs/cgroup"), ("cgroup", "/sys/fs/cgroup/cpu"))  # where mountinfo is not readable


def available_cpus(root: Path = Path("/")) -> int:
    """How many threads can run at a time: the CPUs of the affinity, or fewer by the quota; 1 at least.

    A quota is rounded down, but for a remainder of three quarters and more. A thread that has used up its group's time
    is stopped until the next period while others wait for it in a loop, at a barrier, and use up the rest: one thread
    too many costs more than a part of a processor that stays idle.

    Args:
        root: the folder that holds `proc` and `sys`, for tests.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = cpu_quota(root)
    return affinity if quota is None else max(1, min(affinity, int(quota + 0.25)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time that the control groups of this process grant, such as 0.5; None without a limit.

    It is the least of the process's own group and all groups above it that can be seen, of version 1
    (`cpu.cfs_quota_us`), version 2 (`cpu.max`), or both. What cannot be read sets no limit.
    """
    limits = [limit for folder in _groups(root) for limit in _limits(folder)]
    return min(limits, default=None)


def limit_libraries(environment: MutableMapping[str, str] = os.environ, root: Path = Path("/")) -> None:
    """Tell OpenMP, OpenBLAS, MKL and PyTorch's compiler of a quota, which they do not look for themselves.

    It holds for this process, if it comes before they are loaded, and for those that it starts. What the user has set
    is kept, and nothing is set where there is no quota.
    """
    if cpu_quota(root) is not None:
        for name in _VARIABLES:
            environment.setdefault(name, str(available_cpus(root)))


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's groups and of those above, that may hold a quota."""
    paths = _paths(root)
    for kind, mounted, at in _mounts(root):
        if kind not in paths:
            continue
        below = _below(paths[kind], mounted)
        if below is None:
            continue
        top = root / at.lstrip("/")
        for depth in range(len(below), -1, -1):
            yield top.joinpath(*below[:depth])


def _paths(root: Path) -> dict[str, str]:
    """The path of this process's group by the kind of mount that it lies in, from /proc/self/cgroup."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            paths["cgroup"] = path
    return paths


def _mounts(root: Path) -> Iterator[tuple[str, str, str]]:
    """Mounts of control groups with the controller `cpu`: kind, the group that is mounted, and where."""
    lines = _lines(root / "proc/self/mountinfo")
    if not lines:
        yield from ((kind, "/", at) for kind, at in _USUAL_MOUNTS)
    for line in lines:
        first, _, last = line.partition(" - ")
        left, right = first.split(), last.split()
        if len(left) < 5 or len(right) < 3:
            continue
        if right[0] == "cgroup2" or (right[0] == "cgroup" and "cpu" in right[2].split(",")):
            yield right[0], _unescaped(left[3]), _unescaped(left[4])


def _below(path: str, mounted: str) -> tuple[str, ...] | None:
    """The parts of a group's path below the group that is mounted; None where it does not lie there.

    In a namespace both are told as seen from its root: a mount from `/..` holds the namespace's root somewhere below,
    by a name that is not known here, so that only the mount itself can be read.
    """
    if mounted.startswith("/.."):
        return ()
    parts, start = PurePosixPath(path).parts[1:], PurePosixPath(mounted).parts[1:]
    inside = parts[: len(start)] == start and ".." not in parts
    return parts[len(start) :] if inside else None


def _limits(folder: Path) -> Iterator[float]:
    """The quota of one group, of either version."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    if len(words) == 2:
        yield from _ratio(*words)
    quota, period = (" ".join(_lines(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
    yield from _ratio(quota, period)


def _ratio(quota: str, period: str) -> Iterator[float]:
    """The limit, unless there is none ("max", -1) or it is not to be understood."""
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        yield int(quota) / int(period)


def _lines(path: Path) -> list[str]:
    """A small file's lines; none where it is missing or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescaped(text: str) -> str:
    """A path of mountinfo, where blanks are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


__all__ = ["available_cpus", "cpu_identity", "cpu_model", "cpu_quota", "instruction_set", "int8_saturates"]

ISA_VARIABLE = "VAE_EDGE_CPU_ISA"
ISAS = ("avx2", "vnni")
_X86 = ("x86_64", "amd64", "i386", "i686", "x86")
_DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})  # as /proc/cpuinfo calls them
_IDENTITY = frozenset(
    {
        *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
        *("cpu implementer", "cpu architecture", "cpu variant", "cpu part", "cpu revision", "features", "hardware"),
    }
)
_ONEDNN_WITHOUT = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})  # values of ONEDNN_MAX_CPU_ISA without VNNI


def cpu_model() -> str:
    """The processor's own name, such as "AMD EPYC 9654"; on a Jetson the board's name stands before it."""
    board = Path("/proc/device-tree/model")
    parts = [board.read_text(encoding="utf-8", errors="replace").strip("\0\n ")] if board.is_file() else []
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("model name", "hardware") and value.strip():
                parts.append(value.strip())
                break
    return " ".join(parts) or platform.processor() or platform.machine() or "unknown processor"


def int8_saturates() -> bool:
    """Whether int8 convolutions of CPU backends sum pairs of products in 16 bits, which saturate: x86 without VNNI.

    `VAE_EDGE_CPU_ISA` (`avx2` or `vnni`) says otherwise, for tests; `ONEDNN_MAX_CPU_ISA` is obeyed, as OpenVINO does.
    Where an x86 processor's features cannot be read, they are taken to be missing: that costs accuracy of one bit.

    Raises:
        ConfigError: for another value of `VAE_EDGE_CPU_ISA`.
    """
    forced = os.environ.get(ISA_VARIABLE, "").strip().lower()
    if forced and forced not in ISAS:
        raise ConfigError(f"{ISA_VARIABLE} is {' or '.join(ISAS)}, but {forced!r} came: unset it.")
    if forced:
        return forced == "avx2"
    if platform.machine().lower() not in _X86:
        return False
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").strip().upper() in _ONEDNN_WITHOUT:
        return True
    return not _DOT_PRODUCTS & _cpu_flags()


def instruction_set() -> str:
    """What decides how int8 is computed, for messages."""
    x86 = platform.machine().lower() in _X86
    dot_products = not int8_saturates() if x86 else "asimddp" in _cpu_flags()
    return f"{platform.machine()}, {'with' if dot_products else 'without'} int8 dot products"


def cpu_identity() -> str:
    """A sum over all that tells one kind of processor from another, and whether int8 is taken to saturate."""
    known = "".join(f"{key}:{value}\n" for key, value in _cpu_facts().items() if key in _IDENTITY)
    return hashlib.sha256(f"{platform.machine()} {int8_saturates()} {known}".encode()).hexdigest()[:16]


def _cpu_flags() -> set[str]:
    facts = _cpu_facts()
    return set((facts.get("flags") or facts.get("features") or "").split())


def _cpu_facts() -> dict[str, str]:
    """What the system says of the first processor, by lower-case name; nothing where there is no /proc/cpuinfo."""
    info, facts = Path("/proc/cpuinfo"), dict[str, str]()
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip().lower(), value.strip())
    return facts
