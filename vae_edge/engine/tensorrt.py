"""What TensorRT says while it parses and builds: collected, and turned into sentences that tell what to do.

What a build is asked to do: one frozen record, checked as a whole, that travels to the worker as JSON.

The one place that imports a TensorRT module: finds those that are there and opens one.

It covers TensorRT 10.3, 10.13 and later, 11, and TensorRT-RTX 1.x. It never compares versions: it asks the module
what it has. The Python wheels install `tensorrt_bindings` and `tensorrt_rtx_bindings`; the packages `tensorrt` and
`tensorrt_rtx`, and JetPack, give the same under the shorter names.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vae_edge.engine import cuda
from vae_edge.engine.targets import check_precision, covers, parse_targets
from vae_edge.errors import EngineError
from vae_edge.optional import ShadowedError, import_package, is_installed, shadow

SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


@dataclass
class Log:
    """The messages of one builder, in order, as (severity, text); each is also handed to `sink` as it comes."""

    messages: list[tuple[str, str]] = field(default_factory=list)
    sink: Callable[[str, str], None] | None = None

    def add(self, severity: str, text: str) -> None:
        """Keep one message."""
        self.messages.append((severity, text))
        if self.sink is not None:
            self.sink(severity, text)

    def errors(self) -> list[str]:
        """The texts of the errors."""
        return [text for severity, text in self.messages if severity.endswith("ERROR")]

    def warnings(self) -> list[str]:
        """The texts of the warnings, each once."""
        return list(dict.fromkeys(text for severity, text in self.messages if severity == "WARNING"))


def make_logger(module: Any, log: Log) -> Any:
    """An `ILogger` of this TensorRT module that writes into `log`. Keep it alive as long as what was made with it."""
    base = module.ILogger

    class Collector(base):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 wants this very call

        def log(self, severity: Any, text: str) -> None:
            log.add(severity.name, text)

    return Collector()


# What TensorRT's text contains, and the sentence for it. The first that fits is taken. {0} is a group of the pattern.
_KNOWN: tuple[tuple[str, str], ...] = (
    (
        r"Failed to parse the ONNX model|ParseFromCodedStream",
        "the file is no ONNX model, or it is cut short: export it again, or copy it again from where it came",
    ),
    (
        r"(\w+): first input has type UInt8",
        "the node '{0}' reads the uint8 image as it is: cast it to a float type before anything else is done with it",
    ),
    (
        r"Cannot compile operation '([^']*)' for Turing.*FP32 GEMM",
        "the matrix product '{0}' is fp32, which TensorRT-RTX does not run on sm_75: leave sm_75 out",
    ),
    (
        r"Cannot compile for target\(s\) ([\w, ]*), because the model contains HW-specific datatypes: (\w+)",
        "{0} has no {1} arithmetic: leave it out, or build another precision for it",
    ),
    (
        r"MyelinCheckException.*CHECK\(dtype == myelinTypeFloat",
        'this version fails on int8 files, as TensorRT-RTX 1.5 and 1.6 do: `pip install -U "vae-edge[rtx]"` brings one '
        "that does not",
    ),
    (
        r"Unable to load library: (libnvinfer_lean\S*?):",
        "a version-compatible engine needs TensorRT's lean runtime, and {0} is not installed: install it, or build "
        "without version_compatible",
    ),
    (
        r"(?i)out of memory|OutOfMemory|could not find any implementation.*(?:memory|workspace)|insufficient workspace",
        "the memory did not suffice: close what else uses the GPU, or lower the largest batch or the workspace",
    ),
    (
        r"(?i)CUDA initialization failure with error|CUDA driver version is insufficient|no CUDA-capable device",
        "it found no GPU that it can use: full TensorRT builds only where the NVIDIA driver sees a GPU. Without one, "
        'build ahead of time with TensorRT-RTX: pip install "vae-edge[rtx]"',
    ),
    (
        r"Plugin not found",
        "the ONNX file has an operator that TensorRT does not know and that no plugin brings",
    ),
    (
        r"Network must have at least one output",
        "the ONNX file has no outputs: it is no model, or it is cut short",
    ),
)
_SOURCE = re.compile(r"\s*In \S+ at \S+:\d+\)?|^\S+: Error Code \d+: ")


def describe_errors(errors: Iterable[str]) -> str:
    """One sentence (without a full stop) for what TensorRT reported; its own words where none of ours fits."""
    texts = [text.strip() for text in errors if text.strip()]
    if not texts:
        return "TensorRT gave no reason"
    return (
        error_hint(texts)
        or 'TensorRT says: "' + "; ".join(dict.fromkeys(_SOURCE.sub("", text) for text in texts[:3])) + '"'
    )


def error_hint(errors: Iterable[str]) -> str:
    """Our sentence (without a full stop) for the first error that has one; empty where none has."""
    for text in errors:
        for pattern, sentence in _KNOWN:
            discover = re.search(pattern, text, re.DOTALL)
            if discover:
                return sentence.format(*(group or "" for group in discover.groups()))
    return ""


def parser_errors(parser: Any) -> list[str]:
    """The errors of an `OnnxParser`, each with the node it is about."""
    texts = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node, operator = _node(error, "node_name"), _node(error, "node_operator")
        where = f"node '{node}' ({operator}): " if operator else ""
        texts.append(where + error.desc())
    return texts


def _node(error: Any, what: str) -> str:
    return str(getattr(error, what)()) if hasattr(error, what) else ""


DEFAULT_BATCH = (1, 8, 64)
DEFAULT_WORKSPACE_BYTES = 256 << 20
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")
MAX_BATCH = 65_536


@dataclass(frozen=True)
class BuildConfig:
    """One build. `batch`: smallest, the one to be fastest at, largest; `targets`: empty for this machine's own GPU."""

    precision: str
    role: str = "classifier"
    batch: tuple[int, int, int] = DEFAULT_BATCH
    targets: tuple[str, ...] = ()
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES
    optimization_level: int | None = None  # None leaves it to TensorRT (3); 0..5
    tf32: bool = True
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    dla_core: int | None = None
    timing_cache: bool = False

    def to_json(self) -> dict[str, Any]:
        """The record as a dict fit for JSON."""
        values = dataclasses.asdict(self)
        return {**values, "batch": list(self.batch), "targets": list(self.targets)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BuildConfig:
        """The inverse of `to_json`."""
        return cls(**{**value, "batch": tuple(value["batch"]), "targets": tuple(value["targets"])})

    def check(self) -> None:
        """Raise EngineError for a value that no TensorRT takes."""
        check_precision(self.precision)
        parse_targets(self.targets)
        if self.role not in ("classifier", "reconstruction"):
            raise EngineError(f"The role {self.role!r} is unknown: it is classifier or reconstruction.")
        if not _is_int(self.workspace_bytes) or self.workspace_bytes < 1 << 20:
            raise EngineError(
                f"The workspace should be at least 1 MiB (1048576 bytes), but {self.workspace_bytes!r} came."
            )
        if self.optimization_level is not None and (
            not _is_int(self.optimization_level) or not 0 <= self.optimization_level <= 5
        ):
            raise EngineError(f"The optimization level should be 0 to 5, but {self.optimization_level!r} came.")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise EngineError(
                f"The hardware compatibility {self.hardware_compatibility!r} is unknown: choose one of "
                f"{', '.join(HARDWARE_COMPATIBILITY)}."
            )
        if self.dla_core is not None and (not _is_int(self.dla_core) or self.dla_core < 0):
            raise EngineError(f"The DLA core should be 0 or more, but {self.dla_core!r} came.")
        self._check_batch()

    def _check_batch(self) -> None:
        batch = self.batch
        if len(batch) != 3 or not all(_is_int(size) for size in batch):
            raise EngineError(f"The batch should be three whole numbers (smallest, best, largest), but {batch!r} came.")
        if not 1 <= batch[0] <= batch[1] <= batch[2] <= MAX_BATCH:
            raise EngineError(
                f"The batch should rise from at least 1 to at most {MAX_BATCH} (smallest, best, largest), but "
                f"{batch!r} came."
            )
        if self.dla_core is not None and len(set(batch)) != 1:
            raise EngineError(
                f"A DLA runs one fixed batch, so all three numbers must be equal, but {batch!r} came: give (8, 8, 8)."
            )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


__all__ = ["KINDS", "Adapter", "Flavour", "Step", "available", "covers", "found", "open_adapter", "what_to_install"]

KINDS = ("tensorrt", "tensorrt_rtx")
_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}


@dataclass(frozen=True)
class TensorRTInstallation:
    """One TensorRT on this machine. `gpu`: whether the driver sees a GPU; `problem`: why the module does not import."""

    kind: str  # "tensorrt" | "tensorrt_rtx"
    module: str
    version: str
    gpu: bool
    problem: str = ""


@dataclass(frozen=True)
class ConfigCall:
    """One thing to set on a builder configuration; `value` is a number or "Enum.MEMBER" of the module."""

    action: str  # "set" | "flag" | "clear_flag" | "memory" | "targets"
    name: str
    value: Any = None


def discover(kinds: Iterable[str] = KINDS) -> list[TensorRTInstallation]:
    """Every TensorRT module that is installed, also one that does not import (then with its `problem`)."""
    gpu = cuda.probe().device_count > 0
    flavours = []
    for kind in kinds:
        here = [_try(kind, name, gpu) for name in _MODULES[kind] if is_installed(name) or shadow(name)]
        usable = [installation for installation in here if not installation.problem]
        flavours += usable[:1] or here[:1]
    return flavours


def usable() -> list[TensorRTInstallation]:
    """The TensorRT modules that can be used here, full TensorRT first."""
    return [installation for installation in discover() if not installation.problem]


def open_adapter(kind: str = "auto") -> Adapter:
    """Open a TensorRT. "auto" takes full TensorRT where there is a GPU, else TensorRT-RTX.

    Raises:
        EngineError: if the kind is unknown or not there; the sentence says what to install.
    """
    if kind not in ("auto", *KINDS):
        raise EngineError(f"The kind of TensorRT {kind!r} is unknown: choose auto, {' or '.join(KINDS)}.")
    flavours = discover(KINDS if kind == "auto" else (kind,))
    usable = [f for f in flavours if not f.problem]
    if kind == "auto":
        usable.sort(key=lambda f: f.kind != ("tensorrt" if f.gpu else "tensorrt_rtx"))
    if not usable:
        raise EngineError(install_hint(kind, flavours))
    return Adapter(importlib.import_module(usable[0].module), usable[0])


def install_hint(kind: str = "auto", flavours: Iterable[TensorRTInstallation] = ()) -> str:
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


def _try(kind: str, name: str, gpu: bool) -> TensorRTInstallation:
    try:
        module = import_package(name)
    except ShadowedError as error:
        return TensorRTInstallation(kind, name, "", gpu, str(error))
    except Exception as error:  # whatever a broken installation raises becomes a sentence for the user
        return TensorRTInstallation(kind, name, "", gpu, f"{type(error).__name__}: {error}")
    if not hasattr(module, "Builder"):
        return TensorRTInstallation(kind, name, "", gpu, "it has no Builder, so it is not the full package")
    return TensorRTInstallation(kind, name, str(getattr(module, "__version__", "unknown")), gpu)


class Adapter:
    """One TensorRT module, and the choices that depend on what it has. `build` lives in `vae_edge.engine.building`."""

    def __init__(self, module: Any, installation: TensorRTInstallation) -> None:
        self.module = module
        self.installation = installation

    @property
    def name(self) -> str:
        """The product's name and version, for sentences."""
        product = "TensorRT-RTX" if self.installation.kind == "tensorrt_rtx" else "TensorRT"
        return f"{product} {self.installation.version}"

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

    def plan(self, settings: BuildConfig) -> list[ConfigCall]:
        """What to set on the builder configuration of this module for these settings, in order.

        Raises:
            EngineError: if this TensorRT cannot do what is asked.
        """
        if self.installation.kind == "tensorrt_rtx":
            self._refuse_on_rtx(settings)
        steps = [
            ConfigCall("memory", "WORKSPACE", settings.workspace_bytes),
            ConfigCall("set", "profiling_verbosity", "ProfilingVerbosity.DETAILED"),
        ]
        if self.has("ComputeCapability"):
            steps.append(ConfigCall("targets", "compute_capabilities", tuple(self._capability(t) for t in settings.targets)))
        if settings.optimization_level is not None:
            steps.append(ConfigCall("set", "builder_optimization_level", settings.optimization_level))
        if not settings.tf32:
            steps.append(ConfigCall("clear_flag", "TF32"))
        if settings.version_compatible:
            steps.append(ConfigCall("flag", "VERSION_COMPATIBLE"))
        if settings.hardware_compatibility != "none":
            level = f"HardwareCompatibilityLevel.{settings.hardware_compatibility.upper()}"
            steps.append(ConfigCall("set", "hardware_compatibility_level", level))
        if settings.dla_core is not None:
            steps += [
                ConfigCall("set", "default_device_type", "DeviceType.DLA"),
                ConfigCall("set", "DLA_core", settings.dla_core),
                ConfigCall("flag", "GPU_FALLBACK"),
            ]
        for step in steps:
            self._check_step(step)
        return steps

    def _refuse_on_rtx(self, settings: BuildConfig) -> None:
        wishes = {
            "a DLA": settings.dla_core is not None,
            "version compatibility": settings.version_compatible,
            "hardware compatibility levels (name several targets instead)": settings.hardware_compatibility != "none",
            "a timing cache": settings.timing_cache,
        }
        requested = [wish for wish, is_set in wishes.items() if is_set]
        if requested:
            raise EngineError(
                f"{self.name} has no use for {', nor for '.join(requested)}: leave it out, or build with full TensorRT."
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

    def _check_step(self, step: ConfigCall) -> None:
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
            reason = describe_errors(log.errors()) if log.errors() else describe_errors(["CUDA driver version is insufficient"])
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
