"""What the processor is, what it can do, and how much of it this process may use."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

from vae_edge.errors import ConfigError
from vae_edge.processors import available_cpus, cpu_quota

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
