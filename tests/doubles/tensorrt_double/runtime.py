"""Runtime and engines: reading an engine, refusing what does not fit, and what an engine says of itself."""

from __future__ import annotations

import json
from typing import Any

from . import engine_file
from .basics import (
    ENUMS,
    DataType,
    Dims,
    Severity,
    TensorIOMode,
    buffer,
    check_logger,
    host_memory,
    no_dims,
    register_logger,
)
from .engine_file import Description, NotAnEngine
from .personality import HERE, handle, member, offered, only, overloads, text
from .runtime_config import IRuntimeConfig, Strategy, make_runtime_config
from .session import Session
from .state import DRIVER, STATE

CUDA_OF = {"10.3": 12000, "10.13": 13000, "11.4": 13000, "rtx": 13000}  # the oldest driver that each runs with
NO_DRIVER, OLD_DRIVER = 35, 35
WEIGHTS_BYTES, ACTIVATION_BYTES, PERSISTENT_BYTES = 4096, 8192, 512


_SERIALIZATION = "Error Code 1: Serialization (Serialization assertion "
_TOO_OLD = "CUDA driver version is insufficient for CUDA runtime version"


def _not_an_engine(problem: str, plan: bytes) -> str:
    """What TensorRT says of bytes that are no whole engine."""
    if not plan:
        return "Error Code 3: API Usage Error (Cannot deserialize with an empty memory buffer.)"
    if problem == "content":  # the double's own: the real ones find out later, or not at all
        return f"{_SERIALIZATION}checksum failed.The plan is corrupted)"
    if problem == "size":
        return f"{_SERIALIZATION}plan.header.size == blobSize failed.)"
    found, expected = (int.from_bytes(each[:4], "little") for each in (plan, engine_file.MAGIC[HERE.flavour]))
    return (
        f"{_SERIALIZATION}header.magicTag == kEXPECTED_MAGIC_TAG failed.Trying to load an engine created with "
        f"incompatible serialization version ({found} != {expected}). Check that the engine was not created using "
        "safety runtime, same OS was used and version compatibility parameters were set accordingly and that it is a "
        "TRT engine file.)"
    )


def _other_version(description: Description) -> str:
    """What 10.3 says of an engine of another version, and what later ones say."""
    if HERE.name == "10.3":
        return (
            f"{_SERIALIZATION}stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: "
            f"Current Version: {HERE.tag}, Serialized Engine Version: {description.tag})"
        )
    return (
        "Error Code 6: API Usage Error (The engine plan file is not compatible with this version of TensorRT, "
        f"expecting library version {HERE.version} got {description.version}, please rebuild.)"
    )


def say(logger: Any, severity: str, sentence: str) -> None:
    """Log a sentence of TensorRT."""
    logger.log(getattr(Severity, severity), sentence)


def start_driver() -> int:
    """0, or the error of the CUDA runtime with which TensorRT does not start."""
    code = DRIVER.start()
    if code != 0:
        return NO_DRIVER if code == -1 else code
    return OLD_DRIVER if DRIVER.driver_version() < CUDA_OF[HERE.name] else 0


def start_failed(logger: Any, function: str, code: int) -> TypeError:
    """What a constructor raises where the driver does not start, said to the logger before."""
    say(
        logger,
        "ERROR",
        f"{function}: Error Code 6: API Usage Error (CUDA initialization failure with error: {code}. Please check your "
        "CUDA installation: http://docs.nvidia.com/cuda/cuda-installation-guide-linux/index.html)",
    )
    return TypeError("pybind11::init(): factory function returned nullptr")


def dla_cores() -> int:
    """DLA cores of the first device: those of an Orin, in the versions that have them."""
    return STATE.dla_cores if DRIVER.first_capability() == 87 and HERE.name in ("10.3", "11.4") else 0


@offered()
class Runtime:
    """Reads engines."""

    def __init__(self, logger: Any) -> None:
        check_logger(logger)
        self._dla_core = -1
        self.engine_host_code_allowed = False
        code = start_driver()
        if code != 0 and HERE.flavour == "tensorrt":
            raise start_failed(logger, "createInferRuntime", code)
        self._logger = logger
        register_logger(self, logger, "createInferRuntime")

    @property
    def logger(self) -> Any:
        return self._logger

    @property
    def engine_host_code_allowed(self) -> bool:
        return self._host_code_allowed

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, value: bool) -> None:
        self._host_code_allowed = bool(value)

    @property
    def num_DLA_cores(self) -> int:
        return dla_cores()

    @property
    def DLA_core(self) -> int:
        return self._dla_core

    @DLA_core.setter
    def DLA_core(self, value: int) -> None:
        if not 0 <= value < dla_cores():
            say(self._logger, "ERROR", f"IRuntime::setDLACore: Error Code 3: API Usage Error (no DLA core {value})")
            return
        self._dla_core = value

    @only("r")
    @property
    def engine_header_size(self) -> int:
        return engine_file.HEADER_BYTES

    @overloads("serialized_engine", "stream_reader/ab", "stream_reader_v2/bcr")
    def deserialize_cuda_engine(self, **given: Any) -> ICudaEngine | None:
        (value,) = given.values()
        plan = buffer(value, "serialized_engine")
        say(self._logger, "INFO", f"Loaded engine size: {len(plan) >> 20} MiB")
        if STATE.fails("deserialize_cuda_engine"):
            return self._refuse("Error Code 1: Cuda Runtime (out of memory)")
        try:
            description, model = engine_file.unpack(plan, HERE.flavour)
        except NotAnEngine as error:
            return self._refuse(_not_an_engine(str(error), plan))
        code = start_driver()
        if code != 0:
            return self._refuse(f"Error Code 1: Cuda Runtime (In ScopedCudaStream (cudaError {code}: {_TOO_OLD}))")
        if not DRIVER.context():
            STATE.fault("deserialize_cuda_engine was called while no CUDA context was current.")
            return self._refuse("Error Code 1: Cuda Runtime (invalid device context)")
        refusal = self._misfit(description)
        if refusal:
            return self._refuse(refusal)
        code, address = DRIVER.allocate(WEIGHTS_BYTES)
        if code != 0:
            return self._refuse("Error Code 2: OutOfMemory (Requested size was 4096 bytes.)")
        return _make_engine(self, plan, description, model, address)

    def _misfit(self, description: Description) -> str:
        if description.options.get("platform", "linux") != "linux":
            return _SERIALIZATION + (
                "plan->header.pad == expectedPlatformTag failed.Platform specific tag mismatch detected. TensorRT plan "
                "files are only supported on the target runtime platform they were created on.)"
            )
        compatible = description.options.get("version_compatible", False)
        if description.tag != HERE.tag and not (compatible and _runs_older(description.version)):
            return _other_version(description)
        capability = DRIVER.capability()
        if not engine_file.runs_on(description, capability):
            built_for = description.capabilities[0] if description.capabilities else 80
            return (
                "Error Code 6: API Usage Error (The engine plan file is generated on an incompatible device, expecting "
                f"compute {capability / 10:.1f} got compute {built_for / 10:.1f}, please rebuild.)"
            )
        if compatible and not self._host_code_allowed:
            return (
                "Error Code 3: API Usage Error (The plan contains host code, but engineHostCodeAllowed is false. Call "
                "IRuntime::setEngineHostCodeAllowed(true) if the engine is trusted.)"
            )
        core = description.options.get("dla_core")
        if core is not None and self._dla_core < 0:
            return "Error Code 3: API Usage Error (The engine needs a DLA core, and none is set for the runtime.)"
        return ""

    def _refuse(self, sentence: str) -> None:
        say(self._logger, "ERROR", f"IRuntime::deserializeCudaEngine: {sentence}")

    @only("r")
    def get_engine_validity(self, buffer: Any) -> tuple[Any, int]:
        validity, diagnostics = ENUMS["EngineValidity"], ENUMS["EngineInvalidityDiagnostics"]
        header = bytes(memoryview(buffer))[: engine_file.HEADER_BYTES]
        found = 0
        if len(header) < engine_file.HEADER_BYTES or header[:4] != engine_file.MAGIC[HERE.flavour]:
            return validity.INVALID, diagnostics.MALFORMED_ENGINE.value
        code = start_driver()
        if code != 0:
            said = f"Error reading CUDA GPU properties: In getCurrentCC (cudaError {code}: {_TOO_OLD})"
            say(self._logger, "INTERNAL_ERROR", f"{said} Ensure that the GPU driver is installed and up to date.")
            return validity.INVALID, 0
        if header[24:28] != HERE.version_bytes:
            found |= diagnostics.VERSION_MISMATCH.value
        mask = int.from_bytes(header[32:36], "little")
        known = engine_file.RTX_CAPABILITIES
        capability = DRIVER.first_capability()
        bit = known.index(capability) if capability in known else len(known)
        if not mask >> bit & 1:
            found |= diagnostics.UNSUPPORTED_CC.value
        return (validity.INVALID if found else validity.VALID), found


def _runs_older(version: str) -> bool:
    """TensorRT 11 runs version-compatible engines of 10; later versions of one major run those of earlier ones."""
    theirs, ours = (tuple(int(part) for part in each.split(".")[:2]) for each in (version, HERE.version))
    return theirs <= ours and ours[0] - theirs[0] <= 1


@offered()
class ICudaEngine:
    """An engine. Made by a runtime; read-only questions are safe from several threads."""

    def __init__(self) -> None:
        raise TypeError("ICudaEngine: No constructor defined!")

    def _setup(self, runtime: Runtime, plan: bytes, description: Description, model: bytes, address: int) -> None:
        self._runtime, self._logger = runtime, runtime.logger
        self._plan, self._description = plan, description
        self._session = Session(description, model)
        self._cuda_context = DRIVER.context()
        self._addresses = [address]
        self._io = {each["name"]: each for each in description.io}

    def __del__(self) -> None:
        if getattr(self, "_addresses", None):
            DRIVER.free(self._cuda_context, self._addresses)
            self._addresses = []

    @property
    def name(self) -> str:
        return "Unnamed Network 0"

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._description.profiles)

    @property
    def num_layers(self) -> int:
        return len(self._description.options.get("layers", []))

    @property
    def num_aux_streams(self) -> int:
        return 0

    @property
    def refittable(self) -> bool:
        return bool(self._description.options.get("refit", False))

    @property
    def engine_capability(self) -> Any:
        return ENUMS["EngineCapability"].STANDARD

    @property
    def hardware_compatibility_level(self) -> Any:
        level = self._description.options.get("hardware_compatibility", "NONE")
        return getattr(ENUMS["HardwareCompatibilityLevel"], level)

    @property
    def profiling_verbosity(self) -> Any:
        return ENUMS["ProfilingVerbosity"].DETAILED

    @only("ab")
    @property
    def device_memory_size(self) -> int:
        return ACTIVATION_BYTES

    @property
    def device_memory_size_v2(self) -> int:
        return ACTIVATION_BYTES

    @only("ab")
    def get_device_memory_size_for_profile(self, profile_index: int) -> int:
        return self.get_device_memory_size_for_profile_v2(profile_index)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return ACTIVATION_BYTES if 0 <= handle(profile_index, "profile_index") < self.num_optimization_profiles else 0

    @property
    def streamable_weights_size(self) -> int:
        return 0

    @property
    def weight_streaming_budget_v2(self) -> int:
        return 0

    def get_tensor_name(self, index: int) -> str | None:
        names = list(self._io)
        if not 0 <= handle(index, "index") < len(names):
            self._error("getIOTensorName", f"Index {index} is out of range [0, {len(names)}).")
            return None
        return names[index]

    def __getitem__(self, arg0: int, /) -> str | None:
        return self.get_tensor_name(arg0)

    def _error(self, function: str, sentence: str) -> None:
        say(self._logger, "ERROR", f"ICudaEngine::{function}: Error Code 3: API Usage Error ({sentence})")

    def _tensor(self, name: Any, function: str) -> dict[str, Any] | None:
        found = self._io.get(text(name, "name"))
        if found is None:
            self._error(function, f"Given invalid tensor name: {name}. Get valid tensor names with getIOTensorName()")
        return found

    def get_tensor_mode(self, name: str) -> Any:
        found = self._tensor(name, "getTensorIOMode")
        return getattr(TensorIOMode, found["mode"]) if found else TensorIOMode.NONE

    def get_tensor_dtype(self, name: str) -> Any:
        found = self._tensor(name, "getTensorDataType")
        return getattr(DataType, found["dtype"]) if found else DataType.FLOAT

    def get_tensor_shape(self, name: str) -> Dims:
        found = self._tensor(name, "getTensorShape")
        return Dims(found["shape"]) if found else no_dims()

    def get_tensor_location(self, name: str) -> Any:
        return ENUMS["TensorLocation"].DEVICE

    @overloads("name", "name, profile_index")
    def get_tensor_format(self, name: str, profile_index: int = 0) -> Any:
        return ENUMS["TensorFormat"].LINEAR

    @overloads("name", "name, profile_index")
    def get_tensor_format_desc(self, name: str, profile_index: int = 0) -> str:
        return "Row major linear FP32 format (kLINEAR)"

    @overloads("name", "name, profile_index")
    def get_tensor_bytes_per_component(self, name: str, profile_index: int = 0) -> int:
        return int(self.get_tensor_dtype(name).itemsize)

    @overloads("name", "name, profile_index")
    def get_tensor_components_per_element(self, name: str, profile_index: int = 0) -> int:
        return -1

    @overloads("name", "name, profile_index")
    def get_tensor_vectorized_dim(self, name: str, profile_index: int = 0) -> int:
        return -1

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        found = self._tensor(name, "getProfileShape")
        index = handle(profile_index, "profile_index")
        if found is None or found["mode"] != "INPUT" or not 0 <= index < self.num_optimization_profiles:
            self._error("getProfileShape", f"{name} is no input of the optimization profile {profile_index}.")
            return [no_dims(), no_dims(), no_dims()]
        return [Dims(shape) for shape in self._description.profiles[index][name]]

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    @only("cr")
    def get_engine_stat(self, stat: Any = getattr(ENUMS.get("EngineStat"), "TOTAL_WEIGHTS_SIZE", None)) -> int:  # noqa: B008
        return len(self._plan)

    def serialize(self) -> Any:
        return host_memory(self._plan)

    def create_engine_inspector(self) -> EngineInspector:
        made = object.__new__(EngineInspector)
        made._engine = self
        made._context = None
        return made

    @only("bcr")
    def create_runtime_config(self) -> Any:
        return make_runtime_config()

    @overloads("strategy=STATIC", "runtime_config=None/bcr")
    def create_execution_context(self, strategy: Any = Strategy.STATIC, runtime_config: Any = None) -> Any:
        from .context import make_context

        if isinstance(strategy, IRuntimeConfig):  # given by place
            strategy, runtime_config = Strategy.STATIC, strategy
        if runtime_config is not None:
            strategy = runtime_config.get_execution_context_allocation_strategy()
        return make_context(self, member(strategy, Strategy, "strategy"), runtime_config)

    @only("ab")
    def create_execution_context_without_device_memory(self) -> Any:
        from .context import make_context

        return make_context(self, Strategy.USER_MANAGED, None)


def _make_engine(runtime: Runtime, plan: bytes, description: Description, model: bytes, address: int) -> ICudaEngine:
    made = object.__new__(ICudaEngine)
    made._setup(runtime, plan, description, model, address)
    return made


@offered()
class EngineInspector:
    """Tells the layers of an engine."""

    def __init__(self) -> None:
        raise TypeError("EngineInspector: No constructor defined!")

    @property
    def execution_context(self) -> Any:
        return self._context

    @execution_context.setter
    def execution_context(self, value: Any) -> None:
        self._context = value

    def get_layer_information(self, layer_index: int, format: Any) -> str:
        layers = self._layers()
        if not 0 <= handle(layer_index, "layer_index") < len(layers):
            return ""
        return self._written(layers[layer_index], format)

    def get_engine_information(self, format: Any) -> str:
        formats = ENUMS["LayerInformationFormat"]
        layers, names = self._layers(), list(self._engine._io)
        if member(format, formats, "format") == formats.ONELINE:
            lines = "\n".join(self._written(layer, format) for layer in layers)
            return f"Layers:\n{lines}\n\nBindings:\n" + "\n".join(names)
        title = "Bindings" if HERE.letter in "ab" else "I/O Tensors"
        return json.dumps({"Layers": layers, title: names}, indent=1)

    def _layers(self) -> list[dict[str, Any]]:
        return [_in_words_of_version(layer) for layer in self._engine._description.options.get("layers", [])]

    def _written(self, layer: dict[str, Any], format: Any) -> str:
        formats = ENUMS["LayerInformationFormat"]
        return json.dumps(layer) if member(format, formats, "format") == formats.JSON else str(layer["Name"])


def _in_words_of_version(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer as the inspector of this version writes it: up to 10 type and format of a tensor are one text."""
    if HERE.letter in "cr":
        return layer
    return {**layer, **{side: [_joined(tensor) for tensor in layer[side]] for side in ("Inputs", "Outputs")}}


def _joined(tensor: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in tensor.items() if key not in ("Format", "Datatype")}
    words = {"Float": "Row major linear FP32", "Half": "Row major linear FP16 format", "Int8": "Row major Int8 format"}
    return {**rest, "Format/Datatype": words.get(tensor["Datatype"], f"Row major {tensor['Datatype']} format")}
