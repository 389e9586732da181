"""Building: builder, its configuration, profiles, timing caches, and the table of layers in the log."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import onnx

from .basics import ENUMS, Dims, IHostMemory, buffer, check_logger, host_memory, register_logger
from .building import make_engine, plant, precision_of
from .network import INetworkDefinition, dla_takes, model_of
from .personality import HERE, handle, member, offered, only, overloads, text
from .runtime import dla_cores, say, start_driver, start_failed
from .state import DRIVER, STATE

BuilderFlag: Any = ENUMS["BuilderFlag"]
_CACHE_MAGIC = "timing cache"


@offered()
class IProgressMonitor:
    """What a program derives to see the progress of a build, and to end it."""

    def __init__(self) -> None:
        self._made = True

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        raise NotImplementedError('Tried to call pure virtual function "IProgressMonitor::phase_start"')

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError('Tried to call pure virtual function "IProgressMonitor::step_complete"')

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError('Tried to call pure virtual function "IProgressMonitor::phase_finish"')


@offered()
class IOptimizationProfile:
    """The shapes that an engine is built for."""

    def __init__(self) -> None:
        raise TypeError("IOptimizationProfile: No constructor defined!")

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[text(input, "input")] = [Dims(tuple(each)) for each in (min, opt, max)]

    def get_shape(self, input: str) -> list[Dims]:
        return self._shapes.get(input, [])

    def __bool__(self) -> bool:
        """Whether all shapes rise from min to opt to max; what was never set does."""
        return all(_rise(shapes) for shapes in self._shapes.values())


def _rise(shapes: list[Dims]) -> bool:
    low, best, high = (tuple(shape) for shape in shapes)
    return len(low) == len(best) == len(high) and all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))


@offered()
class ITimingCache:
    """Measured times of kernels."""

    def __init__(self) -> None:
        raise TypeError("ITimingCache: No constructor defined!")

    def serialize(self) -> IHostMemory:
        return host_memory(json.dumps(self._content).encode())

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        mine, other = self._content, input_cache._content
        if mine["device"] != other["device"] and not ignore_mismatch:
            return False
        mine["entries"] = sorted({*mine["entries"], *other["entries"]})
        return True

    def reset(self) -> bool:
        self._content["entries"] = []
        return True


@offered()
class IBuilderConfig:
    """What a build is to do."""

    def __init__(self) -> None:
        raise TypeError("IBuilderConfig: No constructor defined!")

    def _setup(self, logger: Any) -> None:
        self._logger = logger
        self._flags: set[str] = {"TF32"}
        self._pools: dict[str, int] = {}
        self._profiles: list[IOptimizationProfile] = []
        self._capabilities: list[int] = []
        self._cache: ITimingCache | None = None
        self._monitor: IProgressMonitor | None = None
        self._level, self._core = 3, -1
        self._verbosity = ENUMS["ProfilingVerbosity"].LAYER_NAMES_ONLY
        self._hardware = ENUMS["HardwareCompatibilityLevel"].NONE
        self._device = ENUMS["DeviceType"].GPU

    def set_flag(self, flag: Any) -> None:
        self._flags.add(member(flag, BuilderFlag, "flag").name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(member(flag, BuilderFlag, "flag").name)

    def get_flag(self, flag: Any) -> bool:
        return member(flag, BuilderFlag, "flag").name in self._flags

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[member(pool, ENUMS["MemoryPoolType"], "pool").name] = handle(pool_size, "pool_size")

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self._pools.get(member(pool, ENUMS["MemoryPoolType"], "pool").name, 0)

    @property
    def profiling_verbosity(self) -> Any:
        return self._verbosity

    @profiling_verbosity.setter
    def profiling_verbosity(self, value: Any) -> None:
        self._verbosity = member(value, ENUMS["ProfilingVerbosity"], "value")

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, value: int) -> None:
        self._level = handle(value, "value")

    @property
    def hardware_compatibility_level(self) -> Any:
        return self._hardware

    @hardware_compatibility_level.setter
    def hardware_compatibility_level(self, value: Any) -> None:
        self._hardware = member(value, ENUMS["HardwareCompatibilityLevel"], "value")

    @property
    def default_device_type(self) -> Any:
        return self._device

    @default_device_type.setter
    def default_device_type(self, value: Any) -> None:
        self._device = member(value, ENUMS["DeviceType"], "value")

    @property
    def DLA_core(self) -> int:
        return self._core

    @DLA_core.setter
    def DLA_core(self, value: int) -> None:
        self._core = handle(value, "value")

    @property
    def progress_monitor(self) -> IProgressMonitor | None:
        return self._monitor

    @progress_monitor.setter
    def progress_monitor(self, value: IProgressMonitor | None) -> None:
        if value is not None and not hasattr(value, "_made"):
            raise TypeError("IProgressMonitor.__init__() must be called when overriding __init__")
        self._monitor = value

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        if not profile:
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def can_run_on_DLA(self, layer: Any) -> bool:
        network = layer._outputs[0]._network
        return dla_cores() > 0 and dla_takes(layer, precision_of(network._proto))

    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache | None:
        content = buffer(serialized_timing_cache, "serialized_timing_cache")
        made: Any = object.__new__(ITimingCache)
        made._content = empty = {"magic": _CACHE_MAGIC, "device": _device(), "entries": []}
        if content:
            try:
                made._content = json.loads(content)
                assert made._content["magic"] == _CACHE_MAGIC
            except (ValueError, KeyError, TypeError, AssertionError):
                say(self._logger, "WARNING", "Failed to deserialize timing cache. Returning an empty timing cache.")
                made._content = empty
        return made

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._content["device"] != _device() and not ignore_mismatch:
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache

    @only("r")
    @property
    def num_compute_capabilities(self) -> int:
        return len(self._capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, value: int) -> None:
        self._capabilities = [0] * handle(value, "value")

    @only("r")
    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        value = member(compute_capability, ENUMS["ComputeCapability"], "compute_capability").value
        if not 0 <= handle(index, "index") < len(self._capabilities):
            return False
        self._capabilities[index] = value
        return True

    @only("r")
    def get_compute_capability(self, index: int) -> Any:
        return ENUMS["ComputeCapability"](self._capabilities[handle(index, "index")])


def _device() -> str:
    return f"{HERE.version} sm_{DRIVER.first_capability()}"


@offered()
class Builder:
    """Builds engines. Full TensorRT needs a GPU for it, TensorRT-RTX does not."""

    def __init__(self, logger: Any) -> None:
        check_logger(logger)
        code = start_driver()
        if code != 0 and HERE.flavour == "tensorrt":
            raise start_failed(logger, "createInferBuilder", code)
        self._logger = logger
        register_logger(self, logger, "createInferBuilder")

    @property
    def logger(self) -> Any:
        return self._logger

    @property
    def num_DLA_cores(self) -> int:
        return dla_cores()

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        made = object.__new__(INetworkDefinition)
        made._setup(self, handle(flags, "flags"))
        return made

    def create_builder_config(self) -> IBuilderConfig:
        made = object.__new__(IBuilderConfig)
        made._setup(self._logger)
        return made

    def create_optimization_profile(self) -> IOptimizationProfile:
        made: Any = object.__new__(IOptimizationProfile)
        made._shapes = {}
        return made

    def is_network_supported(self, network: INetworkDefinition, config: IBuilderConfig) -> bool:
        return not _obstacle(network, config)

    @overloads("network, config", "network, config, kernel_text/bc")
    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig, kernel_text: object = None
    ) -> IHostMemory | None:
        if STATE.fails("build_serialized_network"):
            return self._refuse("Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)")
        obstacle = _obstacle(network, config)
        if obstacle:
            return self._refuse(obstacle)
        model = model_of(network)
        if not self._progress(config):
            return self._refuse("Error Code 9: Cancelled (the progress monitor ended the build)")
        layers = _layers(network)
        say(self._logger, "VERBOSE", "Layers:\n" + "\n".join(_row(layer) for layer in layers) + "\n\nBindings:\nimage")
        if config._cache is not None:
            key = hashlib.sha256(model.SerializeToString()).hexdigest()[:16]
            content = config._cache._content
            content["entries"] = sorted({*content["entries"], key})
        return host_memory(_engine(model, config, layers))

    def _refuse(self, sentence: str) -> None:
        say(self._logger, "ERROR", f"IBuilder::buildSerializedNetwork: {sentence}")

    def _progress(self, config: IBuilderConfig) -> bool:
        steps = 4
        monitor = config.progress_monitor
        if monitor is not None:
            monitor.phase_start("Building Engine", None, steps)
        for step in range(steps):
            time.sleep(STATE.build_seconds / steps)
            if monitor is not None and not monitor.step_complete("Building Engine", step):
                return False
        if monitor is not None:
            monitor.phase_finish("Building Engine")
        return True


def _obstacle(network: INetworkDefinition, config: IBuilderConfig) -> str:
    """Why a network cannot be built so, in TensorRT's words; empty if it can."""
    if not network._outputs:
        return "Error Code 4: API Usage Error (Network must have at least one output)"
    if not network.get_flag(ENUMS["NetworkDefinitionCreationFlag"].STRONGLY_TYPED):
        STATE.fault("The network is not strongly typed, so the builder chooses the precision.")
    for layer in network._layers:
        state: Any = layer
        reads_image = any(each.dtype.name == "UINT8" and each in network._inputs for each in state._inputs)
        if reads_image and layer.type.name not in ("CAST", "SHAPE"):
            return f"Error Code 4: Internal Error ({layer.name}: first input has type UInt8 but must be a float type)"
    free = [each.name for each in network._inputs if -1 in tuple(each.shape)]
    if free and not config._profiles:
        return (
            "Error Code 4: API Usage Error (Network has dynamic or shape inputs, but no optimization profile has been "
            "defined.)"
        )
    for number, profile in enumerate(config._profiles):
        missing = [name for name in free if not profile.get_shape(name)]
        if missing:
            return (
                f"Error Code 4: API Usage Error (Dynamic input tensor {missing[0]} is missing dimensions in profile "
                f"{number}.)"
            )
    if config._device.name == "DLA":
        return _dla_obstacle(network, config)
    return ""


def _dla_obstacle(network: INetworkDefinition, config: IBuilderConfig) -> str:
    if not 0 <= config._core < dla_cores():
        return "Error Code 3: API Usage Error (the DLA core is not there)"
    refused = [layer.name for layer in network._layers if not config.can_run_on_DLA(layer)]
    if refused and "GPU_FALLBACK" not in config._flags:
        return f"Error Code 9: API Usage Error ({refused[0]}: no DLA takes this layer, and there is no fallback.)"
    for profile in config._profiles:
        shapes = [tuple(shape) for name in profile._shapes for shape in profile.get_shape(name)]
        if len(set(shapes)) != 1:
            return "Error Code 4: Internal Error (DLA needs one fixed batch: min, opt and max must be equal)"
    return ""


def _engine(model: onnx.ModelProto, config: IBuilderConfig, layers: list[dict[str, Any]]) -> bytes:
    options: dict[str, Any] = {"layers": layers}
    if "VERSION_COMPATIBLE" in config._flags:
        options["version_compatible"] = True
    if {"REFIT", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL"} & config._flags:
        options["refit"] = True
    if config._hardware.name != "NONE":
        options["hardware_compatibility"] = config._hardware.name
    if config._device.name == "DLA":
        options["dla_core"] = config._core
    here = DRIVER.first_capability() if HERE.flavour == "tensorrt" or 1 in config._capabilities else 0
    capabilities = [here if each == 1 else each for each in config._capabilities]
    engine = make_engine(
        model.SerializeToString(),
        profiles=[_batches(profile) for profile in config._profiles] or None,
        batch=(1, 1, 1),
        capabilities=tuple(sorted(set(capabilities))) if HERE.flavour == "tensorrt_rtx" else (here,),
        **options,
    )
    for kind in STATE.plants:
        engine = plant(engine, kind)
    return engine


def _batches(profile: IOptimizationProfile) -> tuple[int, int, int]:
    (shapes,) = profile._shapes.values()
    return tuple(shape[0] for shape in shapes)


# The layers, as the log and the inspector tell them

_WORDS = {"FLOAT": "Float", "HALF": "Half", "INT8": "Int8", "UINT8": "UInt8", "INT32": "Int32", "INT64": "Int64",
          "BOOL": "Bool", "FP8": "FP8", "BF16": "BFloat16"}  # fmt: skip


def _layers(network: INetworkDefinition) -> list[dict[str, Any]]:
    """The compute layers with the types that they read, and one more for all the rest."""
    producers = {tensor.name: layer for layer in network._layers for tensor in layer._outputs}
    found = []
    for layer in network._layers:
        state: Any = layer
        if layer.type.name not in ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY"):
            continue
        sources = []
        for tensor in state._inputs[:2]:
            producer: Any = producers.get(tensor.name)
            while producer is not None and producer.type.name in ("SHUFFLE", "IDENTITY"):
                tensor, producer = producer._inputs[0], producers.get(producer._inputs[0].name)  # noqa: PLW2901
            quantized = producer is not None and producer.type.name == "DEQUANTIZE"
            sources.append(producer._inputs[0] if quantized else tensor)
        kind = {"CONVOLUTION": "CaskConvolution", "DECONVOLUTION": "CaskDeconvolution"}.get(layer.type.name, "gemm")
        found.append(_told(layer.name, kind, sources, state._outputs))
    rest: Any = network
    found.append(_told("__myl_Rest_myl0_0", "kgen", rest._inputs, rest._outputs))
    return found


def _told(name: str, kind: str, inputs: list[Any], outputs: list[Any]) -> dict[str, Any]:
    def tensors(given: list[Any]) -> list[dict[str, Any]]:
        return [
            {
                "Name": each.name,
                "Dimensions": list(each.shape),
                "Datatype": _WORDS.get(each.dtype.name, "Float"),
                "Format": "(Linear) Row major linear format",
            }
            for each in given
        ]

    return {"Name": name, "LayerType": kind, "Inputs": tensors(inputs), "Outputs": tensors(outputs), "StreamId": 0,
            "Metadata": f"[ONNX Layer: {name}]"}  # fmt: skip


def _row(layer: dict[str, Any]) -> str:
    """A line of the builder's table, as TensorRT-RTX and as full TensorRT write it."""

    def tensors(given: list[dict[str, Any]]) -> str:
        return ", ".join(f"{{ Name: {each['Name']}, {_shape(each)}, {_format(each)} }}" for each in given)

    return (
        f"Name: {layer['Name']}, LayerType: {layer['LayerType']}, Inputs: [ {tensors(layer['Inputs'])}], "
        f"Outputs: [ {tensors(layer['Outputs'])}], TacticName: , StreamId: 0, Metadata: {layer['Metadata']}"
    )


def _shape(tensor: dict[str, Any]) -> str:
    return "Dimensions: [" + ",".join(str(side) for side in tensor["Dimensions"]) + "]"


def _format(tensor: dict[str, Any]) -> str:
    if HERE.flavour == "tensorrt_rtx":
        return f"Datatype: {tensor['Datatype']}, Format: {tensor['Format']}"
    return f"Format/Datatype: {tensor['Datatype']}"
