"""The TensorRT that is installed: finding it, configuring a build, and its messages as advice.

Only this module imports TensorRT. It covers TensorRT 10.3, 10.13 and later, 11, and TensorRT-RTX 1.x, and compares no
versions: it asks the module what it has. The Python wheels install `tensorrt_bindings` and `tensorrt_rtx_bindings`; the
packages `tensorrt` and `tensorrt_rtx`, and JetPack, give the same under the shorter names.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vae_edge.engine import gpus
from vae_edge.engine.devices import find_architectures
from vae_edge.environment import ShadowedError, import_package, is_installed, shadow
from vae_edge.errors import EngineError
from vae_edge.spec import PRECISIONS, ROLES

KINDS = ("tensorrt", "tensorrt_rtx")
KERNELS = ("tensorrt", "network", "operators", "auto")
DEFAULT_BATCH = (1, 8, 64)
DEFAULT_WORKSPACE_BYTES = 256 << 20
MIN_WORKSPACE_BYTES = 1 << 20
MAX_BATCH = 65_536
MAX_OPTIMIZATION_LEVEL = 5
HARDWARE_COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")

_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings", "tensorrt_lean"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}


@dataclass(frozen=True)
class BuildConfig:
    """What an engine is built for. Checked when it is made.

    Attributes:
        precision: of the ONNX file: "fp32", "fp16", "int8" or "fp8". The file decides it, not the build.
        role: "classifier" or "reconstruction".
        batch: (min, opt, max) of the optimization profile.
        targets: architectures such as "sm_86", or devices such as "rtx-4090"; kept as architectures. Empty for this
            machine's GPU.
        kind: "tensorrt", "tensorrt_rtx", or "auto" for the one that fits; "native" is a network file of the native
            library (`vae_edge.exporting.network_file`), which takes precision and targets alone.
        workspace_bytes: scratch memory on the device that a kernel may take.
        optimization_level: 0 to 5; None leaves it to TensorRT, whose default is 3.
        tf32: whether fp32 matrix products may round their inputs to 10 bits of mantissa. None: not in an engine of an
            fp32 file, which takes much of what its probes allow (docs/engines.md); in others they may.
        version_compatible: whether a later TensorRT can run the engine (full TensorRT only).
        hardware_compatibility: "none", "ampere_plus" or "same_compute_capability" (full TensorRT only).
        dla_core: DLA core of a Jetson to build for, with fallback to the GPU.
        timing_cache: file of measured kernel times, read if it is there and written after the build (needs a GPU).
        refit: whether the engine can be given new weights.
        strip_weights: leave the weights out of the engine; whoever loads it puts them in from the ONNX file.
        mark_outputs: names of tensors inside the graph that become outputs too, to be compared with the probes.
        device: number of the GPU that full TensorRT builds on, and for.
        kernels: whose kernels run: "tensorrt" for TensorRT's own, "network" for the toolkit's one for the whole
            network, as a plugin (docs/kernels.md), "operators" for one an operator, "auto" for the faster of
            TensorRT's and the network's, which is measured.

    Raises:
        EngineError: a value that no TensorRT takes.
    """

    precision: str
    role: str = "classifier"
    batch: tuple[int, int, int] = DEFAULT_BATCH
    targets: tuple[str, ...] = ()
    kind: str = "auto"
    workspace_bytes: int = DEFAULT_WORKSPACE_BYTES
    optimization_level: int | None = None
    tf32: bool | None = None
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    dla_core: int | None = None
    timing_cache: str | None = None
    refit: bool = False
    strip_weights: bool = False
    mark_outputs: tuple[str, ...] = ()
    device: int = 0
    kernels: str = "tensorrt"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EngineError(f"The precision {self.precision!r} is unknown: choose one of {', '.join(PRECISIONS)}.")
        object.__setattr__(self, "targets", find_architectures(self.targets))
        object.__setattr__(self, "batch", tuple(self.batch))
        object.__setattr__(self, "mark_outputs", tuple(self.mark_outputs))
        if self.tf32 is None:
            object.__setattr__(self, "tf32", self.precision != "fp32")
        if self.timing_cache is not None:
            object.__setattr__(self, "timing_cache", os.fspath(self.timing_cache))
        if self.role not in ROLES:
            raise EngineError(f"The role {self.role!r} is unknown: it is {' or '.join(ROLES)}.")
        if self.kind != "native":
            _check_kind(self.kind)
        self._check_kernels()
        self._check_builder_options()
        self._check_batch()

    def _check_kernels(self) -> None:
        if self.kernels not in KERNELS:
            raise EngineError(f"The kernels {self.kernels!r} are unknown: choose one of {', '.join(KERNELS)}.")
        if self.kernels == "tensorrt":
            return
        if self.role != "classifier" or self.precision not in ("fp16", "int8"):
            raise EngineError(
                f"The toolkit's kernels are for classifiers in fp16 or int8, but {self.precision} of the role "
                f"{self.role} was asked for: build it with TensorRT's kernels (`--kernels tensorrt`)."
            )
        options = {
            "a DLA": self.dla_core is not None,
            "version compatibility": self.version_compatible,
            "hardware compatibility levels": self.hardware_compatibility != "none",
            "refit or stripped weights": self.refit or self.strip_weights,
            "marked outputs": bool(self.mark_outputs),
        }
        requested = [option for option, is_set in options.items() if is_set]
        if requested:
            raise EngineError(
                f"An engine with the toolkit's kernels has no use for {', nor for '.join(requested)}: leave it out, or "
                "build with TensorRT's kernels (`--kernels tensorrt`)."
            )

    def _check_builder_options(self) -> None:
        if not _is_int(self.workspace_bytes) or self.workspace_bytes < MIN_WORKSPACE_BYTES:
            raise EngineError(
                f"The workspace should be at least 1 MiB (1048576 bytes), but {self.workspace_bytes!r} was given."
            )
        level = self.optimization_level
        if level is not None and (not _is_int(level) or not 0 <= level <= MAX_OPTIMIZATION_LEVEL):
            raise EngineError(f"The optimization level should be 0 to 5, but {level!r} was given.")
        if self.hardware_compatibility not in HARDWARE_COMPATIBILITY:
            raise EngineError(
                f"The hardware compatibility {self.hardware_compatibility!r} is unknown: choose one of "
                f"{', '.join(HARDWARE_COMPATIBILITY)}."
            )
        if self.dla_core is not None and (not _is_int(self.dla_core) or self.dla_core < 0):
            raise EngineError(f"The DLA core should be 0 or more, but {self.dla_core!r} was given.")
        if self.strip_weights and self.mark_outputs:
            raise EngineError("An engine without weights cannot have marked outputs: choose one of the two.")
        if not _is_int(self.device) or self.device < 0:
            raise EngineError(f"The number of the GPU should be 0 or more, but {self.device!r} was given.")

    def _check_batch(self) -> None:
        batch = self.batch
        if len(batch) != 3 or not all(_is_int(size) for size in batch):
            raise EngineError(f"The batch should be three whole numbers (min, opt, max), but {batch!r} was given.")
        if not 1 <= batch[0] <= batch[1] <= batch[2] <= MAX_BATCH:
            raise EngineError(
                f"The batch should rise from at least 1 to at most {MAX_BATCH} (min, opt, max), but {batch!r} was "
                "given."
            )
        if self.dla_core is not None and len(set(batch)) != 1:
            raise EngineError(
                f"A DLA runs one fixed batch, so min, opt and max must be equal, but {batch!r} was given: give "
                "(8, 8, 8)."
            )

    def to_json(self) -> dict[str, Any]:
        """All values, for the worker."""
        lists = {name: list(getattr(self, name)) for name in ("batch", "targets", "mark_outputs")}
        return {**dataclasses.asdict(self), **lists}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BuildConfig:
        """The inverse of `to_json`."""
        return cls(**value)

    def for_manifest(self) -> dict[str, Any]:
        """What a manifest keeps: no path, no number of a GPU, and not the kind, which is the entry's format."""
        values = self.to_json()
        del values["kind"], values["device"]
        return {**values, "timing_cache": self.timing_cache is not None}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_kind(kind: str) -> None:
    if kind not in ("auto", *KINDS):
        raise EngineError(f"The kind of TensorRT {kind!r} is unknown: choose auto, {' or '.join(KINDS)}.")


# Finding TensorRT


@dataclass(frozen=True)
class TensorRTInstallation:
    """One TensorRT module on this machine.

    Attributes:
        kind: "tensorrt" or "tensorrt_rtx".
        module: the name under which it is imported.
        gpu: whether the driver sees a GPU.
        problem: why the module cannot be imported; empty if it can.
    """

    kind: str
    module: str
    version: str
    gpu: bool
    problem: str = ""


def discover(kinds: Iterable[str] = KINDS, needs: str = "Builder") -> list[TensorRTInstallation]:
    """The installed TensorRT of each kind, also one that cannot be imported (then with its `problem`).

    `needs` is what the module must have: a "Builder", or a "Runtime", which the lean one has too.
    """
    gpu = gpus.probe().device_count > 0
    installations = []
    for kind in kinds:
        here = [_try_import(kind, name, gpu, needs) for name in _MODULES[kind] if is_installed(name) or shadow(name)]
        working = [installation for installation in here if not installation.problem]
        installations += working[:1] or here[:1]
    return installations


def usable() -> list[TensorRTInstallation]:
    """The TensorRT modules that can be imported, full TensorRT first."""
    return [installation for installation in discover() if not installation.problem]


def _try_import(kind: str, name: str, gpu: bool, needs: str) -> TensorRTInstallation:
    try:
        module = import_package(name)
    except ShadowedError as error:
        return TensorRTInstallation(kind, name, "", gpu, str(error))
    except Exception as error:  # whatever a broken installation raises becomes a sentence for the user
        return TensorRTInstallation(kind, name, "", gpu, f"{type(error).__name__}: {error}")
    if not hasattr(module, needs):
        return TensorRTInstallation(kind, name, "", gpu, f"it has no {needs}, so it is not the full package")
    return TensorRTInstallation(kind, name, str(getattr(module, "__version__", "unknown")), gpu)


def install_hint(kind: str = "auto", installations: Iterable[TensorRTInstallation] = ()) -> str:
    """What to install on a machine without a usable TensorRT; `installations` are those that cannot be imported."""
    name = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}.get(kind, "TensorRT nor TensorRT-RTX")
    broken = [f"The module {each.module} cannot be used: {each.problem.rstrip('.')}." for each in installations]
    begin = " ".join(broken) or (f"Neither {name} is installed." if kind == "auto" else f"{name} is not installed.")

    jetson = "On a Jetson it is part of JetPack: `python3 -m venv --system-site-packages` makes a venv that sees it."
    desktop = "On a machine with another NVIDIA GPU: `pip install tensorrt`."
    ahead = 'On a machine without a GPU: `pip install "vae-edge[rtx]"`, which builds ahead of time for named targets.'
    hints = {"tensorrt": (jetson, desktop), "tensorrt_rtx": (ahead,)}.get(kind, (jetson, desktop, ahead))
    return " ".join([begin, *hints])


def open_adapter(kind: str = "auto") -> Adapter:
    """Import a TensorRT. "auto" takes full TensorRT where there is a GPU, else TensorRT-RTX.

    Raises:
        EngineError: the kind is unknown or not installed; the sentence says what to install.
    """
    _check_kind(kind)
    installations = discover(KINDS if kind == "auto" else (kind,))
    working = [each for each in installations if not each.problem]
    if kind == "auto":
        working.sort(key=lambda each: each.kind != ("tensorrt" if each.gpu else "tensorrt_rtx"))
    if not working:
        raise EngineError(install_hint(kind, installations))
    return Adapter(importlib.import_module(working[0].module), working[0])


# Configuring a build


@dataclass(frozen=True)
class ConfigCall:
    """One call on TensorRT's `IBuilderConfig`. `value` is a number, or "Enum.MEMBER" of the module (or several)."""

    action: str  # "set" | "flag" | "clear_flag" | "memory" | "targets"
    name: str
    value: Any = None


class Adapter:
    """One TensorRT module, and the choices that depend on what it has. `vae_edge.engine.builder` builds with it."""

    def __init__(self, module: Any, installation: TensorRTInstallation) -> None:
        self.module = module
        self.installation = installation

    @property
    def name(self) -> str:
        """Product and version, as messages call it."""
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
        """What the module has under this name."""
        here = self.module
        for part in path.split("."):
            here = getattr(here, part)
        return here

    def network_flag_names(self) -> tuple[str, ...]:
        """The flags for a strongly typed network with an explicit batch.

        EXPLICIT_BATCH is needed only where the builder has a `max_batch_size` (before TensorRT 10); 10 ignores the
        flag, 11 has none.

        Raises:
            EngineError: this TensorRT has no strongly typed networks.
        """
        flags = []
        if self.has("NetworkDefinitionCreationFlag.EXPLICIT_BATCH") and self.has("Builder.max_batch_size"):
            flags.append("EXPLICIT_BATCH")
        if self.has("NetworkDefinitionCreationFlag.STRONGLY_TYPED"):
            flags.append("STRONGLY_TYPED")
        elif self.has("BuilderFlag.FP16"):  # it types weakly and knows nothing else
            raise EngineError(
                f"{self.name} has no strongly typed networks: TensorRT 10.3 (JetPack 6.1) or later is needed."
            )
        return tuple(flags)

    def network_flags(self) -> int:
        """`network_flag_names` as the bit mask that `create_network` takes."""
        return sum(1 << int(self.get(f"NetworkDefinitionCreationFlag.{name}")) for name in self.network_flag_names())

    def config_calls(self, config: BuildConfig) -> list[ConfigCall]:
        """The calls that set up this module's `IBuilderConfig`, in order.

        Raises:
            EngineError: this TensorRT cannot do what the configuration asks for.
        """
        if self.installation.kind == "tensorrt_rtx":
            self._check_rtx_config(config)

        calls = [
            ConfigCall("memory", "WORKSPACE", config.workspace_bytes),
            ConfigCall("set", "profiling_verbosity", "ProfilingVerbosity.DETAILED"),
        ]
        if self.has("ComputeCapability"):
            capabilities = tuple(self._compute_capability(target) for target in config.targets)
            calls.append(ConfigCall("targets", "compute_capabilities", capabilities))
        if config.optimization_level is not None:
            calls.append(ConfigCall("set", "builder_optimization_level", config.optimization_level))
        if not config.tf32:
            calls.append(ConfigCall("clear_flag", "TF32"))
        if config.version_compatible:
            calls.append(ConfigCall("flag", "VERSION_COMPATIBLE"))
        if config.hardware_compatibility != "none":
            level = f"HardwareCompatibilityLevel.{config.hardware_compatibility.upper()}"
            calls.append(ConfigCall("set", "hardware_compatibility_level", level))
        if config.dla_core is not None:
            calls += [
                ConfigCall("set", "default_device_type", "DeviceType.DLA"),
                ConfigCall("set", "DLA_core", config.dla_core),
                ConfigCall("flag", "GPU_FALLBACK"),
            ]
        calls += [ConfigCall("flag", name) for name in self._refit_flags(config)]
        for call in calls:
            self._check_call(call)
        return calls

    def _refit_flags(self, config: BuildConfig) -> tuple[str, ...]:
        """REFIT_IDENTICAL where only the weights of the build will come back: TensorRT 11.3's release notes tell of
        engines with REFIT that drop a bias."""
        flags = ("STRIP_PLAN",) if config.strip_weights else ()
        if config.refit or (config.strip_weights and not self.has("BuilderFlag.REFIT_IDENTICAL")):
            return (*flags, "REFIT")
        return (*flags, "REFIT_IDENTICAL") if config.strip_weights else ()

    def _check_rtx_config(self, config: BuildConfig) -> None:
        options = {
            "a DLA": config.dla_core is not None,
            "version compatibility": config.version_compatible,
            "hardware compatibility levels (name several targets instead)": config.hardware_compatibility != "none",
            "a timing cache": config.timing_cache is not None,
            "refit or stripped weights (it builds them only on a GPU)": config.refit or config.strip_weights,
        }
        requested = [option for option, is_set in options.items() if is_set]
        if requested:
            raise EngineError(
                f"{self.name} has no use for {', nor for '.join(requested)}: leave it out, or build with full TensorRT."
            )
        if not config.targets:
            raise EngineError(
                f"{self.name} needs the targets by name: without them its engines claim what they cannot do."
            )

    def _compute_capability(self, target: str) -> str:
        member = f"ComputeCapability.{target.replace('_', '').upper()}"
        if not self.has(member):
            names = [name for name in self.module.ComputeCapability.__members__ if name.startswith("SM")]
            supported = ", ".join(f"sm_{name.removeprefix('SM')}" for name in names)
            raise EngineError(f"{self.name} does not build for {target}; it builds for {supported}.")
        return member

    def _check_call(self, call: ConfigCall) -> None:
        needed = {
            "set": [f"IBuilderConfig.{call.name}", *([call.value] if isinstance(call.value, str) else [])],
            "flag": [f"BuilderFlag.{call.name}"],
            "clear_flag": [f"BuilderFlag.{call.name}"],
            "memory": [f"MemoryPoolType.{call.name}", "IBuilderConfig.set_memory_pool_limit"],
            "targets": ["IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"],
        }[call.action]
        missing = [name for name in needed if not self.has(name)]
        if missing:
            raise EngineError(
                f"{self.name} has no {' and no '.join(missing)}: leave that setting out, or use another TensorRT."
            )

    def builder(self, log: Log) -> tuple[Any, Any]:
        """A builder and its logger, which must live as long as the builder.

        Raises:
            EngineError: it does not start, as full TensorRT does not without a GPU.
        """
        logger = make_logger(self.module, log)
        try:
            return self.module.Builder(logger), logger
        except (TypeError, RuntimeError) as error:  # pybind11's error where the library returned no builder
            errors = log.errors() or ["CUDA driver version is insufficient"]
            raise EngineError(f"{self.name} could not start its builder: {describe_errors(errors)}.") from error

    def unsupported_nodes(self, parser: Any, model: bytes, path: str) -> tuple[str, ...]:
        """The nodes of an ONNX model that a fresh parser does not take, as "name (operator)".

        They are in the errors of `supports_model`. The subgraphs that it lists are the groups *between* them.
        """
        ask = parser.supports_model_v2 if hasattr(parser, "supports_model_v2") else parser.supports_model
        ask(model, path)
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return tuple(dict.fromkeys(f"{e.node_name()} ({e.node_operator()})" for e in errors if e.node_operator()))


# TensorRT's messages


@dataclass
class Log:
    """The messages of one builder in order, as (severity, text). Each also goes to `sink` when it comes."""

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


def make_logger(module: Any, log: Log) -> Any:
    """An `ILogger` of this TensorRT module that writes into `log`. Keep it alive as long as what was made with it."""
    base = module.ILogger

    class LogWriter(base):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 wants this very call

        def log(self, severity: Any, text: str) -> None:
            log.add(severity.name, text)

    return LogWriter()


# A pattern in TensorRT's text, and the advice for it. The first that matches is taken; {0} is the pattern's group.
_HINTS: tuple[tuple[str, str], ...] = (
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
        "the memory did not suffice: close what else uses the GPU, or lower the max batch or the workspace",
    ),
    (
        r"(?i)CUDA initialization failure with error|CUDA driver version is insufficient|no CUDA-capable device",
        "it found no GPU that it can use: full TensorRT builds only where the NVIDIA driver sees a GPU. Without one, "
        'build ahead of time with TensorRT-RTX: pip install "vae-edge[rtx]"',
    ),
    (
        r"Version tag does not match|Serialization assertion stdVersionRead|expecting library version",
        "it was built by another version of TensorRT, and an engine runs on the version that built it",
    ),
    (
        r"incompatible device.*expecting compute (\S+) got compute (\d+\.\d+)",
        "it was built for a GPU of compute capability {1}, and this one has {0}",
    ),
    (
        r"(?i)host.?code",
        "it carries code for the processor, which its manifest does not say: do not use it unless you know where it "
        "comes from",
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
_SOURCE_LINE = re.compile(r"\s*In \S+ at \S+:\d+\)?|^\S+: Error Code \d+: ")


def describe_errors(errors: Iterable[str]) -> str:
    """Advice for TensorRT's errors, without a full stop; where there is none, the errors themselves."""
    texts = [text.strip() for text in errors if text.strip()]
    if not texts:
        return "TensorRT gave no reason"
    quoted = "; ".join(dict.fromkeys(_SOURCE_LINE.sub("", text) for text in texts[:3]))
    return error_hint(texts) or f'TensorRT says: "{quoted}"'


def error_hint(errors: Iterable[str]) -> str:
    """Advice for the first error for which there is some, without a full stop; empty where there is none."""
    for text in errors:
        for pattern, advice in _HINTS:
            match = re.search(pattern, text, re.DOTALL)
            if match:
                return advice.format(*(group or "" for group in match.groups()))
    return ""


def parser_errors(parser: Any) -> list[str]:
    """The errors of an `OnnxParser`, each with the node it is about."""
    texts = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator = _node_field(error, "node_operator")
        where = f"node '{_node_field(error, 'node_name')}' ({operator}): " if operator else ""
        texts.append(where + error.desc())
    return texts


def _node_field(error: Any, name: str) -> str:
    return str(getattr(error, name)()) if hasattr(error, name) else ""
