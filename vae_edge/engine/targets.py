"""GPU architectures by name ("sm_87"), and which precision can be built for which of them.

Checked before a build starts, and refused with a sentence that names the way out. What TensorRT-RTX accepts was
measured with its version 1.7; what full TensorRT needs is from NVIDIA's support matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from vae_edge.errors import EngineError

DEVICES = {
    "sm_75": "Turing: T4, RTX 20",
    "sm_80": "A100",
    "sm_86": "RTX 30, A10, A40",
    "sm_87": "Jetson Orin",
    "sm_88": "an embedded Ampere",
    "sm_89": "RTX 40, L4, L40",
    "sm_90": "H100, H200, GH200",
    "sm_100": "B200, GB200",
    "sm_103": "B300, GB300",
    "sm_110": "Jetson Thor",
    "sm_120": "RTX 50, RTX PRO Blackwell",
    "sm_121": "DGX Spark (GB10)",
}
RTX_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
RTX_FP8_TARGETS = ("sm_89", "sm_120", "sm_121")
_JETSON_TARGETS = ("sm_87", "sm_110")
_NAME = re.compile(r"(?:sm_?)?(\d{2,3})a?(?:_\d{2,3})*")


def parse_targets(given: str | Iterable[str]) -> tuple[str, ...]:
    """Architectures from "sm_86", "86", "sm_80+89", "sm_80,sm_86" or "sm_80_86": sorted by number, each once.

    Raises:
        EngineError: an architecture is unknown or was renamed.
    """
    parts = [given] if isinstance(given, str) else list(given)
    numbers: set[int] = set()
    for part in parts:
        for word in re.split(r"[\s,+]+", part.strip()):
            if not word:
                continue
            if not _NAME.fullmatch(word):
                raise EngineError(f"The target {word!r} is not the name of an architecture. {_known_targets()}")
            numbers.update(int(number) for number in re.findall(r"\d+", word))

    names = tuple(f"sm_{number}" for number in sorted(numbers))
    for name in names:
        if name == "sm_101":
            raise EngineError("The target sm_101 is Jetson Thor's old name: since CUDA 13 it is sm_110. Use sm_110.")
        if name not in DEVICES:
            raise EngineError(f"The target {name} is unknown. {_known_targets()}")
    return names


def target_name(targets: Iterable[str]) -> str:
    """One name for an engine's targets, for its manifest entry and file: ("sm_80", "sm_86") is "sm_80_86"."""
    return "sm_" + "_".join(name.removeprefix("sm_") for name in parse_targets(targets))


def covers(target: str, device: str) -> bool:
    """Whether an engine whose manifest says `target` ("sm_80_86") was built for the architecture `device` ("sm_86")."""
    return target != "any" and device in parse_targets(target)


def check_rtx_targets(targets: Iterable[str], precision: str) -> None:
    """Raise EngineError if TensorRT-RTX cannot build an engine of this precision for one of the targets."""
    for target in targets:
        device = DEVICES[target]
        if target in _JETSON_TARGETS:
            raise EngineError(
                f"TensorRT-RTX does not build for {target} ({device}): run `vae-edge build` on the Jetson itself, with "
                "the TensorRT of its JetPack (a venv made by `python3 -m venv --system-site-packages` sees it)."
            )
        if target not in RTX_TARGETS:
            raise EngineError(
                f"TensorRT-RTX does not build for {target} ({device}): run `vae-edge build` on such a machine with "
                f"full TensorRT (`pip install tensorrt`). TensorRT-RTX builds for {', '.join(RTX_TARGETS)}."
            )
        if precision == "fp8" and target not in RTX_FP8_TARGETS:
            raise EngineError(
                f"{target} ({device}) has no fp8 arithmetic: build int8 or fp16 for it, or fp8 for "
                f"{', '.join(RTX_FP8_TARGETS)}."
            )
        if target == "sm_75" and precision != "fp16":
            raise EngineError(
                f"TensorRT-RTX runs no fp32 matrix product on sm_75 ({device}), and an {precision} model has some: "
                "leave sm_75 out. (A file that is fp16 throughout can be built for it.)"
            )


def check_local_gpu(device: str, precision: str, dla: bool = False) -> None:
    """Raise EngineError if full TensorRT cannot build an engine of this precision for this machine's GPU or DLA."""
    number = int(device.removeprefix("sm_"))
    if precision == "fp8" and number < 89:
        raise EngineError(f"This GPU ({device}) has no fp8 arithmetic, which came with sm_89: build int8 or fp16.")
    if dla and precision not in ("fp16", "int8"):
        raise EngineError(
            f"A DLA computes only in fp16 and int8, not in {precision}: choose one of these, or leave the DLA out."
        )


def _known_targets() -> str:
    return "Known are " + ", ".join(f"{name} ({device})" for name, device in DEVICES.items()) + "."
