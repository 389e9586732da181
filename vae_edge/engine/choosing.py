"""Which TensorRT builds, and for which architectures: from what was asked, what is installed and which GPU is there."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vae_edge.engine import cuda
from vae_edge.engine.adapter import KINDS, Flavour, found, what_to_install
from vae_edge.engine.settings import Settings
from vae_edge.engine.targets import RTX_TARGETS, check_ahead_of_time, check_on_device
from vae_edge.errors import EngineError

_AHEAD = 'ahead of time with TensorRT-RTX (`pip install "vae-edge[rtx]"`)'


def choose(kind: str, settings: Settings, driver: cuda.Driver) -> tuple[str, tuple[str, ...]]:
    """The kind of TensorRT to build with, and the targets to build for.

    Full TensorRT where there is a GPU and nothing else was asked; else TensorRT-RTX.

    Raises:
        EngineError: where nothing here can do it; the sentence says what can.
    """
    if kind not in ("auto", *KINDS):
        raise EngineError(f"The kind of TensorRT {kind!r} is unknown: choose auto, {' or '.join(KINDS)}.")
    targets = settings.targets
    device = driver.devices[0].target if driver.devices else ""
    local = bool(device) and targets in ((), (device,))
    if not local and kind != "tensorrt":
        check_ahead_of_time(targets, settings.precision)
    flavours = found()
    usable = {flavour.kind for flavour in flavours if not flavour.problem}
    if kind == "tensorrt" or (kind == "auto" and local and "tensorrt" in usable):
        _check_full(targets, device, usable, flavours, driver)
        check_on_device(device, settings.precision, settings.dla_core is not None)
        return "tensorrt", (device,)
    if "tensorrt_rtx" not in usable:
        raise EngineError(_nothing_fits(kind, usable, flavours, device))
    wanted = targets or ((device,) if device else ())
    if not wanted:
        raise EngineError(
            f"This machine has no GPU to build for ({driver.problem}), so TensorRT-RTX needs to be told the targets: "
            f"name one or more of {', '.join(RTX_TARGETS)}. For a Jetson, build on the Jetson."
        )
    check_ahead_of_time(wanted, settings.precision)
    return "tensorrt_rtx", wanted


def _check_full(
    targets: tuple[str, ...],
    device: str,
    usable: Collection[str],
    flavours: Sequence[Flavour],
    driver: cuda.Driver,
) -> None:
    if "tensorrt" not in usable:
        raise EngineError(what_to_install("tensorrt", [f for f in flavours if f.kind == "tensorrt"]))
    if not device:
        raise EngineError(
            f"Full TensorRT builds only on a machine with a GPU, and there is none here ({driver.problem}): build on "
            f"the device, or {_AHEAD}."
        )
    if targets not in ((), (device,)):
        raise EngineError(
            f"Full TensorRT builds only for the GPU of this machine, {device}, not for {', '.join(targets)}: build "
            f"there, or {_AHEAD}."
        )


def _nothing_fits(kind: str, usable: Collection[str], flavours: Sequence[Flavour], device: str) -> str:
    if kind == "auto" and "tensorrt" in usable:
        here = (
            f"only for the GPU of this machine ({device})"
            if device
            else "only where there is a GPU, and there is none here"
        )
        other = what_to_install("tensorrt_rtx")
        return f"Full TensorRT is installed, but it builds {here}. To build for other targets: {other}"
    return what_to_install(kind, [f for f in flavours if kind in ("auto", f.kind)])
