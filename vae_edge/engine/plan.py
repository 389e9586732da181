"""Engines that run: a serialized engine ("plan"), deserialized by the TensorRT that is installed.

TensorRT returns None or False where other libraries raise, and says why in its log: everything is checked here, and the
log's first error becomes a part of the sentence. Engines are deserialized when they are loaded, never later. Not
verified on hardware.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vae_edge.engine.inspection import MAGIC, parse_header
from vae_edge.engine.plugins import layered
from vae_edge.engine.refit import refit
from vae_edge.engine.tensorrt import KINDS, Log, describe_errors, discover, install_hint, make_logger
from vae_edge.environment import import_package
from vae_edge.errors import BackendError, BundleError, EngineError

log = logging.getLogger(__name__)

MIN_PLAN_BYTES = 64
MAX_ERRORS = 32
_OUT_OF_MEMORY = re.compile(r"(?i)out of ?memory")
_DTYPES = {"UINT8": "uint8", "FLOAT": "float32"}  # trt.DataType of the tensors of our graphs, as NumPy's


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine.

    Attributes:
        name: in the engine.
        dtype: as NumPy's.
        shape: −1 for a free dimension.
        is_input: whether it is one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_input: bool


@dataclass(frozen=True)
class Plan:
    """A deserialized engine.

    Attributes:
        module: the TensorRT module that loaded it.
        kind: "tensorrt" or "tensorrt_rtx".
        version: of TensorRT.
        name: how messages call it.
        engine: `ICudaEngine`; it may be used by several threads.
        tensors: its inputs and outputs, in the engine's order.
        profile: number of the optimization profile that is used.
        batch: its smallest and largest batch.
        log: TensorRT's messages.
        keep_alive: the logger and the runtime, which must outlive the engine.
    """

    module: Any
    kind: str
    version: str
    name: str
    engine: Any
    tensors: tuple[Tensor, ...]
    profile: int
    batch: tuple[int, int]
    log: Log
    keep_alive: tuple[Any, ...]

    def sentence(self, what: str, advice: str = "") -> str:
        """What failed, with the reason that TensorRT's log has given since the last time."""
        product = "TensorRT-RTX" if self.kind == "tensorrt_rtx" else "TensorRT"
        errors = self.log.errors()
        self.log.messages.clear()
        reason = f": {describe_errors(errors)}" if errors else ""
        return f"{product} {self.version} {what}{reason}.{f' {advice}' if advice else ''}"


def open_module(kind: str) -> tuple[Any, str]:
    """The installed TensorRT of a kind, and its version.

    Raises:
        BackendError: it is not installed, or cannot be imported.
    """
    installation = next(iter(discover((kind,), needs="Runtime")), None)
    if installation is None:
        raise BackendError(install_hint(kind))
    if installation.problem:
        raise BackendError(
            f"The module {installation.module} is installed, but it cannot be imported: "
            f"{import_problem(installation.problem)}."
        )
    return import_package(installation.module), installation.version


class ErrorLog(Log):
    """TensorRT's last errors in this thread, and no other messages: an engine may run for months."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self._local = threading.local()
        self.sink = None

    @property
    def messages(self) -> list[tuple[str, str]]:  # type: ignore[override]
        """Of this thread: what a call says is not the reason why another one failed."""
        try:
            return self._local.messages
        except AttributeError:
            self._local.messages = []
            return self._local.messages

    def add(self, severity: str, text: str) -> None:
        """Keep an error; pass other messages on to Python's log."""
        if severity.endswith("ERROR"):
            super().add(severity, text)
            del self.messages[:-MAX_ERRORS]
        else:
            log.debug("%s: %s", severity, text)


_loggers: dict[Any, tuple[ErrorLog, Any]] = {}
_making_logger = threading.Lock()


def _logger(module: Any) -> tuple[ErrorLog, Any]:
    """This process's log and logger of a TensorRT module.

    It is one, and lives as long as the process: TensorRT registers the first that it is given for what it says beside
    any engine (`nvinfer1::getLogger`), and goes on using it when the engine that it came with is gone.
    """
    with _making_logger:
        if module not in _loggers:
            messages = ErrorLog()
            _loggers[module] = messages, make_logger(module, messages)
        return _loggers[module]


_IMPORT_HINTS = (
    (
        r"libnvdla_compiler\.so",
        "TensorRT needs libnvdla_compiler.so, which JetPack 7.2 neither has on the host nor puts into containers; use "
        "the image of a JetPack that has it, or TensorRT's SBSA package",
    ),
    (
        r"(libnvinfer\S*|libnvonnxparser\S*): cannot open shared object",
        "the library {0} is not there: install TensorRT's own libraries beside its Python module (on a Jetson "
        "`sudo apt-get install tensorrt`)",
    ),
    (
        r"No module named 'tensorrt(?:_rtx)?_libs'|(libcudart\S*|libcublas\S*): cannot open shared object",
        "CUDA's or TensorRT's own libraries are not there: reinstall it with `pip install --force-reinstall tensorrt`",
    ),
)


def import_problem(problem: str) -> str:
    """Why a TensorRT module cannot be imported, with advice where there is some."""
    for pattern, advice in _IMPORT_HINTS:
        match = re.search(pattern, problem)
        if match:
            return f"{problem.rstrip('.')}; {advice.format(*(group or '' for group in match.groups()))}"
    return problem.rstrip(".")


def load_plan(
    content: bytes,
    kind: str,
    name: str,
    *,
    trusted: bool = False,
    dla_core: int | None = None,
    version_compatible: bool = False,
    weights: bytes | None = None,
    plugins: Sequence[str] = (),
) -> Plan:
    """Deserialize an engine. The GPU's primary context must be current.

    Args:
        content: the engine.
        kind: of the TensorRT that loads it.
        name: of the file, for messages.
        trusted: whether it may bring code for the processor, which version-compatible engines do.
        dla_core: the DLA core that it was built for.
        version_compatible: whether the manifest says that it carries such code.
        weights: of an engine that was built without any, the ONNX file that has them.
        plugins: names of the toolkit's plugins in it, which TensorRT-RTX must know before it reads the engine; full
            TensorRT has their kernels in the engine.

    Raises:
        BackendError: there is no such TensorRT, or it does not start.
        BundleError: it does not take the engine.
    """
    assert kind in KINDS
    module, version = open_module(kind)
    check_content(content, kind, name)
    if version_compatible and not trusted:
        raise BundleError(
            f"{name} was built to run with later versions of TensorRT, so it carries code for the processor, which "
            "runs with your rights. If you trust where the bundle comes from, load it with trusted=True (`--trusted`)."
        )
    messages, logger = _logger(module)
    messages.messages.clear()
    try:
        runtime = module.Runtime(logger)
    except (TypeError, RuntimeError) as error:  # pybind11 makes a TypeError of a null pointer
        raise BackendError(f"{_product(kind)} {version} does not start: {_reason(messages, error)}.") from error
    if dla_core is not None:
        if dla_core >= runtime.num_DLA_cores:
            raise BackendError(
                f"{name} was built for the DLA core {dla_core}, but this device has {runtime.num_DLA_cores}."
            )
        runtime.DLA_core = dla_core
    if version_compatible:
        runtime.engine_host_code_allowed = True
    if plugins and kind == "tensorrt_rtx":
        layered.register(module, plugins)

    _check_validity(module, runtime, content, name, f"{_product(kind)} {version}")
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None and any(_OUT_OF_MEMORY.search(text) for text in messages.errors()):
        raise BackendError(f"{_product(kind)} {version} cannot load {name}: {_reason(messages)}.")
    if engine is None:
        raise BundleError(
            f"{name} is not an engine that {_product(kind)} {version} can run here: {_reason(messages)}. "
            "Build it again on this machine, with `vae-edge build`."
        )
    if weights is not None:
        refit(module, engine, weights, logger, messages, name)
    tensors = tuple(_tensor(module, engine, engine.get_tensor_name(index)) for index in range(engine.num_io_tensors))
    profile, batch = _profile(engine, tensors, name)
    return Plan(module, kind, version, name, engine, tensors, profile, batch, messages, (logger, runtime))


def _product(kind: str) -> str:
    return "TensorRT-RTX" if kind == "tensorrt_rtx" else "TensorRT"


def _reason(messages: Log, error: Exception | None = None) -> str:
    errors = messages.errors()
    return describe_errors(errors) if errors else (str(error) if error is not None else "it gives no reason")


def check_content(content: bytes, kind: str, name: str) -> None:
    """Refuse what is no engine of this kind, before TensorRT reads it: its own parser trusts what it is given.

    Raises:
        BundleError: it is too short, of the other kind, or not whole.
    """
    is_rtx = content[:4] == MAGIC
    if kind == "tensorrt" and is_rtx:
        raise BundleError(f"{name} is an engine of TensorRT-RTX, not of TensorRT: use the backend tensorrt_rtx.")
    if kind == "tensorrt" and len(content) < MIN_PLAN_BYTES:
        raise BundleError(f"{name} has {len(content)} bytes, too few for an engine: it is cut short; build it again.")
    if kind == "tensorrt_rtx":
        try:
            parse_header(content, len(content), name)
        except EngineError as error:
            raise BundleError(str(error)) from error


def _check_validity(module: Any, runtime: Any, content: bytes, name: str, product: str) -> None:
    """TensorRT-RTX says without reading all of an engine whether it fits this machine."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, bits = runtime.get_engine_validity(content)
    if validity == module.EngineValidity.INVALID:
        members = module.EngineInvalidityDiagnostics.__members__.items()
        why = [member.lower().replace("_", " ") for member, value in members if int(bits) & int(value)]
        raise BundleError(
            f"{name} is not an engine that {product} can run here ({', '.join(why) or 'it gives no reason'}): build it "
            "again for this GPU and this version, with `vae-edge build`."
        )


def _tensor(module: Any, engine: Any, name: str) -> Tensor:
    kind = engine.get_tensor_dtype(name).name
    return Tensor(
        name=name,
        dtype=_DTYPES.get(kind, kind.lower()),
        shape=tuple(int(side) for side in engine.get_tensor_shape(name)),
        is_input=engine.get_tensor_mode(name) == module.TensorIOMode.INPUT,
    )


def _profile(engine: Any, tensors: tuple[Tensor, ...], name: str) -> tuple[int, tuple[int, int]]:
    """The optimization profile that takes the most batch sizes, and its smallest and largest batch."""
    inputs = [tensor for tensor in tensors if tensor.is_input]
    if len(inputs) != 1 or not inputs[0].shape:
        raise BundleError(f"{name} has {len(inputs)} inputs, but a model of ours has one: it is not an engine of ours.")
    image = inputs[0]
    if image.shape[0] != -1:
        return 0, (image.shape[0], image.shape[0])
    ranges = []
    for index in range(engine.num_optimization_profiles):
        smallest, _, largest = engine.get_tensor_profile_shape(image.name, index)
        ranges.append((int(smallest[0]), int(largest[0])))
    best = max(range(len(ranges)), key=lambda index: ranges[index][1] - ranges[index][0])
    return best, ranges[best]


def create_context(plan: Plan, cache: Any = None) -> Any:
    """An execution context whose scratch memory the caller gives it (`set_device_memory`). One thread at a time.

    With TensorRT-RTX the engine is compiled for the GPU here, which takes seconds unless `cache` holds the result.

    Raises:
        BackendError: TensorRT makes none, as where memory is short.
    """
    strategy = plan.module.ExecutionContextAllocationStrategy.USER_MANAGED
    if hasattr(plan.engine, "create_runtime_config"):
        config = plan.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if hasattr(config, "create_runtime_cache"):
            if cache is not None and not config.set_runtime_cache(cache):
                raise BackendError(plan.sentence("does not take the runtime cache"))
            strategies = plan.module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            config.cuda_graph_strategy = plan.module.CudaGraphStrategy.DISABLED  # graphs are captured by the caller
        context = plan.engine.create_execution_context(config)
    else:
        context = plan.engine.create_execution_context(strategy)
    if context is None:
        raise BackendError(plan.sentence(f"makes no execution context for {plan.name}", "Is there memory enough?"))
    return context


def scratch_bytes(plan: Plan) -> int:
    """Bytes of the device's memory that a context needs while it runs."""
    return int(getattr(plan.engine, "device_memory_size_v2", 0) or getattr(plan.engine, "device_memory_size", 0))


def create_cache(plan: Plan, read: Callable[[], bytes | None]) -> Any:
    """TensorRT-RTX's runtime cache, with what was saved of it if that fits this machine; None for full TensorRT."""
    if not hasattr(plan.engine, "create_runtime_config"):
        return None
    config = plan.engine.create_runtime_config()
    if not hasattr(config, "create_runtime_cache"):
        return None
    cache = config.create_runtime_cache()
    saved = read()
    if saved and not cache.deserialize(saved):  # it is of another GPU, driver or version
        log.info("the runtime cache of %s does not fit this machine and is made anew", plan.name)
    return cache
