"""The enumerations of each version, as members with their numbers.

A member is written NAME=number, or NAME=number/versions where not every version has it so: a is 10.3, b 10.13, c 11.4
and r RTX 1.7. `test_against_bindings` compares all of them with the real bindings.
"""

from __future__ import annotations

from typing import Any

TABLE = {
    "ILogger.Severity": "INTERNAL_ERROR=0 ERROR=1 WARNING=2 INFO=3 VERBOSE=4",
    "DataType": "FLOAT=0 HALF=1 BF16=7 INT8=2 INT32=3 INT64=8 BOOL=4 UINT8=5 FP8=6 INT4=9 FP4=10/bcr E8M0=11/bcr",
    "TensorIOMode": "NONE=0 INPUT=1 OUTPUT=2",
    "TensorLocation": "DEVICE=0 HOST=1",
    "TensorFormat": (
        "LINEAR=0 CHW2=1 HWC8=2 CHW4=3 CHW16=4 CHW32=5 DHWC8=6 CDHW32=7 HWC=8 DLA_LINEAR=9 DLA_HWC4=10 HWC16=11 DHWC=12"
    ),
    "EngineCapability": "STANDARD=0 SAFETY=1 DLA_STANDALONE=2",
    "ExecutionContextAllocationStrategy": "STATIC=0 ON_PROFILE_CHANGE=1 USER_MANAGED=2",
    "ProfilingVerbosity": "LAYER_NAMES_ONLY=0 DETAILED=2 NONE=1",
    "LayerInformationFormat": "ONELINE=0 JSON=1",
    "HardwareCompatibilityLevel": "NONE=0 AMPERE_PLUS=1 SAME_COMPUTE_CAPABILITY=2/bcr",
    "EngineStat": "TOTAL_WEIGHTS_SIZE=0/cr STRIPPED_WEIGHTS_SIZE=1/cr",
    "DLAWorkspaceAllocationStrategy": "DEFAULT=0/cr SHARED_STATIC=1/cr",
    "TempfileControlFlag": "ALLOW_IN_MEMORY_FILES=0 ALLOW_TEMPORARY_FILES=1",
    "SerializationFlag": "EXCLUDE_WEIGHTS=0 EXCLUDE_LEAN_RUNTIME=1 INCLUDE_REFIT=2/cr",
    "EngineValidity": "VALID=0/r SUBOPTIMAL=1/r INVALID=2/r",
    "EngineInvalidityDiagnostics": (
        "VERSION_MISMATCH=1/r UNSUPPORTED_CC=2/r OLD_CUDA_DRIVER=4/r OLD_CUDA_RUNTIME=8/r "
        "INSUFFICIENT_GPU_MEMORY=16/r MALFORMED_ENGINE=32/r CUDA_ERROR=64/r"
    ),
    "DynamicShapesKernelSpecializationStrategy": "LAZY=0/r EAGER=1/r NONE=2/r",
    "CudaGraphStrategy": "DISABLED=0/r WHOLE_GRAPH_CAPTURE=1/r",
    "NetworkDefinitionCreationFlag": (
        "EXPLICIT_BATCH=0/ab STRONGLY_TYPED=1/ab STRONGLY_TYPED=0/cr PREFER_AOT_PYTHON_PLUGINS=3/b "
        "PREFER_AOT_PYTHON_PLUGINS=2/c PREFER_JIT_PYTHON_PLUGINS=2/b PREFER_JIT_PYTHON_PLUGINS=1/c"
    ),
    "BuilderFlag": (
        "FP16=0/ab BF16=17/ab INT8=1/ab DEBUG=2 GPU_FALLBACK=3 REFIT=4 DISABLE_TIMING_CACHE=5 TF32=6 "
        "SPARSE_WEIGHTS=7 SAFETY_SCOPE=8 OBEY_PRECISION_CONSTRAINTS=9/ab PREFER_PRECISION_CONSTRAINTS=10/ab "
        "DIRECT_IO=11 REJECT_EMPTY_ALGORITHMS=12/ab VERSION_COMPATIBLE=13/ab VERSION_COMPATIBLE=12/cr "
        "EXCLUDE_LEAN_RUNTIME=14/ab EXCLUDE_LEAN_RUNTIME=13/cr FP8=15/ab ERROR_ON_TIMING_CACHE_MISS=16/ab "
        "ERROR_ON_TIMING_CACHE_MISS=15/cr DISABLE_COMPILATION_CACHE=18/ab DISABLE_COMPILATION_CACHE=17/cr "
        "WEIGHTLESS=19/ab STRIP_PLAN=19/ab STRIP_PLAN=18/cr REFIT_IDENTICAL=20/ab REFIT_IDENTICAL=19/cr "
        "WEIGHT_STREAMING=21/ab WEIGHT_STREAMING=20/cr INT4=22/ab REFIT_INDIVIDUAL=23/ab REFIT_INDIVIDUAL=22/cr "
        "EDITABLE_TIMING_CACHE=27/b EDITABLE_TIMING_CACHE=26/cr STRICT_NANS=24/b STRICT_NANS=23/cr "
        "MONITOR_MEMORY=25/b MONITOR_MEMORY=24/cr FP4=26/b DISTRIBUTIVE_INDEPENDENCE=28/b "
        "DISTRIBUTIVE_INDEPENDENCE=27/cr REQUIRE_USER_ALLOCATION=28/r"
    ),
    "MemoryPoolType": (
        "WORKSPACE=0 DLA_MANAGED_SRAM=1 DLA_LOCAL_DRAM=2 DLA_GLOBAL_DRAM=3 TACTIC_DRAM=4 TACTIC_SHARED_MEMORY=5"
    ),
    "DeviceType": "GPU=0 DLA=1",
    "ComputeCapability": "NONE=0/r CURRENT=1/r SM75=75/r SM80=80/r SM86=86/r SM89=89/r SM120=120/r SM121=121/r",
    "PreviewFeature": (
        "PROFILE_SHARING_0806=0/ab ALIASED_PLUGIN_IO_10_03=1/ab ALIASED_PLUGIN_IO_10_03=0/cr "
        "RUNTIME_ACTIVATION_RESIZE_10_10=2/b RUNTIME_ACTIVATION_RESIZE_10_10=1/cr"
    ),
    "TilingOptimizationLevel": "NONE=0/bcr FAST=1/bcr MODERATE=2/bcr FULL=3/bcr",
    "RuntimePlatform": "SAME_AS_BUILD=0 WINDOWS_AMD64=1",
    "TacticSource": (
        "CUBLAS=0/ab CUBLAS_LT=1/ab CUDNN=2/ab EDGE_MASK_CONVOLUTIONS=3/ab EDGE_MASK_CONVOLUTIONS=0/cr "
        "JIT_CONVOLUTIONS=4/ab JIT_CONVOLUTIONS=1/cr"
    ),
    "QuantizationFlag": "CALIBRATE_BEFORE_FUSION=0/ab",
    "OnnxParserFlag": (
        "NATIVE_INSTANCENORM=0 ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA=1/bcr REPORT_CAPABILITY_DLA=2/cr "
        "ENABLE_PLUGIN_OVERRIDE=3/cr ADJUST_FOR_DLA=4/cr"
    ),
    "ErrorCode": (
        "SUCCESS=0 INTERNAL_ERROR=1 MEM_ALLOC_FAILED=2 MODEL_DESERIALIZE_FAILED=3 INVALID_VALUE=4 INVALID_GRAPH=5 "
        "INVALID_NODE=6 UNSUPPORTED_GRAPH=7 UNSUPPORTED_NODE=8 UNSUPPORTED_NODE_ATTR=9 UNSUPPORTED_NODE_INPUT=10 "
        "UNSUPPORTED_NODE_DATATYPE=11 UNSUPPORTED_NODE_DYNAMIC=12 UNSUPPORTED_NODE_SHAPE=13 REFIT_FAILED=14"
    ),
    "LayerType": (
        "CONVOLUTION=0 GRID_SAMPLE=42 NMS=43 ACTIVATION=2 POOLING=3 LRN=4 SCALE=5 SOFTMAX=6 DECONVOLUTION=7 "
        "CONCATENATION=8 ELEMENTWISE=9 PLUGIN=10 UNARY=11 PADDING=12 SHUFFLE=13 REDUCE=14 TOPK=15 GATHER=16 "
        "MATRIX_MULTIPLY=17 RAGGED_SOFTMAX=18 CONSTANT=19 IDENTITY=20 CAST=1 PLUGIN_V2=21 SLICE=22 SHAPE=23 "
        "PARAMETRIC_RELU=24 RESIZE=25 TRIP_LIMIT=26 RECURRENCE=27 ITERATOR=28 LOOP_OUTPUT=29 SELECT=30 "
        "ASSERTION=39 FILL=31 QUANTIZE=32 DEQUANTIZE=33 CONDITION=34 CONDITIONAL_INPUT=35 CONDITIONAL_OUTPUT=36 "
        "SCATTER=37 EINSUM=38 ONE_HOT=40 NON_ZERO=41 REVERSE_SEQUENCE=44 NORMALIZATION=45 PLUGIN_V3=46 "
        "SQUEEZE=47/bcr UNSQUEEZE=48/bcr CUMULATIVE=49/bcr DYNAMIC_QUANTIZE=50/bcr ATTENTION_INPUT=51/cr "
        "ATTENTION_OUTPUT=52/cr ROTARY_EMBEDDING=53/cr KV_CACHE_UPDATE=54/cr MOE=55/cr DIST_COLLECTIVE=56/cr"
    ),
    "InterpolationMode": "NEAREST=0 LINEAR=1 CUBIC=2",
    "SampleMode": "STRICT_BOUNDS=0 WRAP=1 CLAMP=2 FILL=3 REFLECT=4",
}


class Enum:
    """A member of an enumeration, as pybind11 makes them: compared by type and number."""

    __members__: dict[str, Any] = {}  # noqa: RUF012  (each enumeration has its own)

    def __init__(self, value: int) -> None:
        names = [name for name, member in type(self).__members__.items() if member.value == value]
        self.value, self.name = value, names[0] if names else "???"  # pybind11 takes any number

    def __int__(self) -> int:
        return self.value

    def __index__(self) -> int:
        return self.value

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}.{self.name}: {self.value}>"

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def make_enums(letter: str) -> dict[str, type[Enum]]:
    """The enumerations of the version with this letter."""
    made = {}
    for name, text in TABLE.items():
        members = {}
        for word in text.split():
            member, _, rest = word.partition("=")
            number, _, versions = rest.partition("/")
            if not versions or letter in versions:
                members[member] = int(number)
        if members:
            made[name] = _make_enum(name.rpartition(".")[2], members)
    return made


def _make_enum(name: str, members: dict[str, int]) -> type[Enum]:
    made = type(name, (Enum,), {"__members__": {}})
    for member, value in members.items():
        instance = object.__new__(made)
        instance.name, instance.value = member, value
        made.__members__[member] = instance
        setattr(made, member, instance)
    return made
