"""The one place that imports a TensorRT module: finds those that are there and opens one.

It covers TensorRT 10.3, 10.13 and later, 11, and TensorRT-RTX 1.x. It never compares versions: it asks the module
what it has. The Python wheels install `tensorrt_bindings` and `tensorrt_rtx_bindings`; the packages `tensorrt` and
`tensorrt_rtx`, and JetPack, give the same under the shorter names.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vae_edge.engine import cuda
from vae_edge.engine.messages import Log, explain, make_logger
from vae_edge.engine.settings import Settings
from vae_edge.engine.targets import covers
from vae_edge.errors import EngineError
from vae_edge.optional import ShadowedError, import_package, is_installed, shadow

__all__ = ["KINDS", "Adapter", "Flavour", "Step", "available", "covers", "found", "open_adapter", "what_to_install"]

KINDS = ("tensorrt", "tensorrt_rtx")
_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}


@dataclass(frozen=True)
class Flavour:
    """One TensorRT on this machine. `gpu`: whether the driver sees a GPU; `problem`: why the module does not import."""

    kind: str  # "tensorrt" | "tensorrt_rtx"
    module: str
    version: str
    gpu: bool
    problem: str = ""


@dataclass(frozen=True)
class Step:
    """One thing to set on a builder configuration; `value` is a number or "Enum.MEMBER" of the module."""

    action: str  # "set" | "flag" | "clear_flag" | "memory" | "targets"
    name: str
    value: Any = None


def found(kinds: Iterable[str] = KINDS) -> list[Flavour]:
    """Every TensorRT module that is installed, also one that does not import (then with its `problem`)."""
    gpu = cuda.probe().device_count > 0
    flavours = []
    for kind in kinds:
        here = [_try(kind, name, gpu) for name in _MODULES[kind] if is_installed(name) or shadow(name)]
        usable = [flavour for flavour in here if not flavour.problem]
        flavours += usable[:1] or here[:1]
    return flavours


def available() -> list[Flavour]:
    """The TensorRT modules that can be used here, full TensorRT first."""
    return [flavour for flavour in found() if not flavour.problem]


def open_adapter(kind: str = "auto") -> Adapter:
    """Open a TensorRT. "auto" takes full TensorRT where there is a GPU, else TensorRT-RTX.

    Raises:
        EngineError: if the kind is unknown or not there; the sentence says what to install.
    """
    if kind not in ("auto", *KINDS):
        raise EngineError(f"The kind of TensorRT {kind!r} is unknown: choose auto, {' or '.join(KINDS)}.")
    flavours = found(KINDS if kind == "auto" else (kind,))
    usable = [f for f in flavours if not f.problem]
    if kind == "auto":
        usable.sort(key=lambda f: f.kind != ("tensorrt" if f.gpu else "tensorrt_rtx"))
    if not usable:
        raise EngineError(what_to_install(kind, flavours))
    return Adapter(importlib.import_module(usable[0].module), usable[0])


def what_to_install(kind: str = "auto", flavours: Iterable[Flavour] = ()) -> str:
    """The sentences for a machine without a TensorRT that can be used."""
    name = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}.get(kind, "TensorRT nor TensorRT-RTX")
    broken = [f"The module {f.module} cannot be used: {f.problem.rstrip('.')}." for f in flavours]
    begin = " ".join(broken) or (f"Neither {name} is installed." if kind == "auto" else f"{name} is not installed.")
    jetson = "On a Jetson it is part of JetPack: `python3 -m venv --system-site-packages` makes a venv that sees it."
    desktop = "On a machine with another NVIDIA GPU: `pip install tensorrt`."
    ahead = 'On a machine without a GPU: `pip install "vae-edge[rtx]"`, which builds ahead of time for named targets.'
    return " ".join(
        [begin, *{"tensorrt": (jetson, desktop), "tensorrt_rtx": (ahead,)}.get(kind, (jetson, desktop, ahead))]
    )


def _try(kind: str, name: str, gpu: bool) -> Flavour:
    try:
        module = import_package(name)
    except ShadowedError as error:
        return Flavour(kind, name, "", gpu, str(error))
    except Exception as error:  # whatever a broken installation raises becomes a sentence for the user
        return Flavour(kind, name, "", gpu, f"{type(error).__name__}: {error}")
    if not hasattr(module, "Builder"):
        return Flavour(kind, name, "", gpu, "it has no Builder, so it is not the full package")
    return Flavour(kind, name, str(getattr(module, "__version__", "unknown")), gpu)


class Adapter:
    """One TensorRT module, and the choices that depend on what it has. `build` lives in `vae_edge.engine.building`."""

    def __init__(self, module: Any, flavour: Flavour) -> None:
        self.module = module
        self.flavour = flavour

    @property
    def name(self) -> str:
        """The product's name and version, for sentences."""
        product = "TensorRT-RTX" if self.flavour.kind == "tensorrt_rtx" else "TensorRT"
        return f"{product} {self.flavour.version}"

    def has(self, path: str) -> bool:
        """Whether the module has this name, such as "BuilderFlag.TF32" or "OnnxParser.supports_model_v2"."""
        here = self.module
        for part in path.split("."):
            if not hasattr(here, part):
                return False
            here = getattr(here, part)
        return True

    def get(self, path: str) -> Any:
        """What stands under this name in the module."""
        here = self.module
        for part in path.split("."):
            here = getattr(here, part)
        return here

    def surface(self) -> dict[str, bool]:
        """What the adapter's choices hang on, by name: for `doctor` and for tests against each version's bindings."""
        return {name: self.has(name) for name in _SURFACE}

    def network_flag_names(self) -> tuple[str, ...]:
        """The flags for a strongly typed network with an explicit batch.

        Networks without an explicit batch were possible where the builder has a `max_batch_size`; from TensorRT 10 on
        the flag EXPLICIT_BATCH is ignored, in 11 it is gone.

        Raises:
            EngineError: if this TensorRT has no strongly typed networks.
        """
        flags = []
        if self.has("NetworkDefinitionCreationFlag.EXPLICIT_BATCH") and self.has("Builder.max_batch_size"):
            flags.append("EXPLICIT_BATCH")
        if self.has("NetworkDefinitionCreationFlag.STRONGLY_TYPED"):
            flags.append("STRONGLY_TYPED")
        elif self.has("BuilderFlag.FP16"):  # it types weakly, and knows nothing else
            raise EngineError(
                f"{self.name} has no strongly typed networks: TensorRT 10.3 (JetPack 6.1) or later is needed."
            )
        return tuple(flags)

    def network_flags(self) -> int:
        """`network_flag_names` as the number that `create_network` takes."""
        return sum(1 << int(self.get(f"NetworkDefinitionCreationFlag.{name}")) for name in self.network_flag_names())

    def plan(self, settings: Settings) -> list[Step]:
        """What to set on the builder configuration of this module for these settings, in order.

        Raises:
            EngineError: if this TensorRT cannot do what is asked.
        """
        if self.flavour.kind == "tensorrt_rtx":
            self._refuse_on_rtx(settings)
        steps = [
            Step("memory", "WORKSPACE", settings.workspace_bytes),
            Step("set", "profiling_verbosity", "ProfilingVerbosity.DETAILED"),
        ]
        if self.has("ComputeCapability"):
            steps.append(Step("targets", "compute_capabilities", tuple(self._capability(t) for t in settings.targets)))
        if settings.optimization_level is not None:
            steps.append(Step("set", "builder_optimization_level", settings.optimization_level))
        if not settings.tf32:
            steps.append(Step("clear_flag", "TF32"))
        if settings.version_compatible:
            steps.append(Step("flag", "VERSION_COMPATIBLE"))
        if settings.hardware_compatibility != "none":
            level = f"HardwareCompatibilityLevel.{settings.hardware_compatibility.upper()}"
            steps.append(Step("set", "hardware_compatibility_level", level))
        if settings.dla_core is not None:
            steps += [
                Step("set", "default_device_type", "DeviceType.DLA"),
                Step("set", "DLA_core", settings.dla_core),
                Step("flag", "GPU_FALLBACK"),
            ]
        for step in steps:
            self._check_step(step)
        return steps

    def _refuse_on_rtx(self, settings: Settings) -> None:
        wishes = {
            "a DLA": settings.dla_core is not None,
            "version compatibility": settings.version_compatible,
            "hardware compatibility levels (name several targets instead)": settings.hardware_compatibility != "none",
            "a timing cache": settings.timing_cache,
        }
        asked = [wish for wish, is_set in wishes.items() if is_set]
        if asked:
            raise EngineError(
                f"{self.name} has no use for {', nor for '.join(asked)}: leave it out, or build with full TensorRT."
            )
        if not settings.targets:
            raise EngineError(
                f"{self.name} needs the targets by name: without them its engines claim what they cannot do."
            )

    def _capability(self, target: str) -> str:
        member = f"ComputeCapability.{target.replace('_', '').upper()}"
        if not self.has(member):
            names = [name for name in self.module.ComputeCapability.__members__ if name.startswith("SM")]
            can = ", ".join(f"sm_{name.removeprefix('SM')}" for name in names)
            raise EngineError(f"{self.name} does not build for {target}; it builds for {can}.")
        return member

    def _check_step(self, step: Step) -> None:
        names = {
            "set": [f"IBuilderConfig.{step.name}", *([step.value] if isinstance(step.value, str) else [])],
            "flag": [f"BuilderFlag.{step.name}"],
            "clear_flag": [f"BuilderFlag.{step.name}"],
            "memory": [f"MemoryPoolType.{step.name}", "IBuilderConfig.set_memory_pool_limit"],
            "targets": ["IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"],
        }[step.action]
        missing = [name for name in names if not self.has(name)]
        if missing:
            raise EngineError(
                f"{self.name} has no {' and no '.join(missing)}: leave that setting out, or use another TensorRT."
            )

    def builder(self, log: Log) -> tuple[Any, Any]:
        """A builder, and the logger that must live as long as it.

        Raises:
            EngineError: if it does not start, as full TensorRT without a GPU.
        """
        logger = make_logger(self.module, log)
        try:
            return self.module.Builder(logger), logger
        except (TypeError, RuntimeError) as error:  # pybind11 says so when the library returned no builder
            reason = explain(log.errors()) if log.errors() else explain(["CUDA driver version is insufficient"])
            raise EngineError(f"{self.name} could not start its builder: {reason}.") from error

    def unsupported_nodes(self, parser: Any, model: bytes, path: str) -> tuple[str, ...]:
        """The nodes of an ONNX model that a fresh parser does not take, as "name (operator)".

        They are read from the errors of `supports_model`: the subgraphs that it lists are the groups between them.
        """
        ask = parser.supports_model_v2 if hasattr(parser, "supports_model_v2") else parser.supports_model
        ask(model, path)
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return tuple(dict.fromkeys(f"{e.node_name()} ({e.node_operator()})" for e in errors if e.node_operator()))

    def memory_bytes(self, engine: Any) -> int:
        """The device memory that one execution context of a deserialized engine needs."""
        name = "device_memory_size_v2" if hasattr(engine, "device_memory_size_v2") else "device_memory_size"
        return int(getattr(engine, name))


_SURFACE = (
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "BuilderFlag.FP16",
    "BuilderFlag.INT8",
    "BuilderFlag.TF32",
    "BuilderFlag.VERSION_COMPATIBLE",
    "OnnxParser.supports_model",
    "OnnxParser.supports_model_v2",
    "ICudaEngine.device_memory_size",
    "ICudaEngine.device_memory_size_v2",
    "ComputeCapability",
    "IBuilderConfig.set_compute_capability",
    "IBuilderConfig.set_timing_cache",
    "IBuilderConfig.progress_monitor",
    "ProfilingVerbosity.DETAILED",
    "HardwareCompatibilityLevel.AMPERE_PLUS",
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
    "DeviceType.DLA",
    "IBuilderConfig.DLA_core",
    "IGridSampleLayer.interpolation_mode",
    "IGridSampleLayer.sample_mode",
    "IGridSampleLayer.align_corners",
    "InterpolationMode.LINEAR",
    "SampleMode.FILL",
)
