"""What building and running share: enumerations, dimensions, loggers, memory of the host, small functions."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from .enums import make_enums
from .personality import EXPORTS, HERE, handle, member, offered, text
from .session import NUMPY
from .state import STATE

ENUMS = make_enums(HERE.letter)
for _name, _enum in ENUMS.items():
    if "." not in _name:
        _enum.__module__ = HERE.module
        EXPORTS[_name] = _enum

Severity: Any = ENUMS["ILogger.Severity"]
DataType: Any = ENUMS["DataType"]
TensorIOMode: Any = ENUMS["TensorIOMode"]

_ITEM_BYTES = {
    "FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "INT32": 4, "INT64": 8, "BOOL": 1, "UINT8": 1, "FP8": 1, "INT4": 0.5,
    "FP4": 0.5,
}  # fmt: skip
DataType.itemsize = property(lambda self: _ITEM_BYTES.get(self.name))

_ALIASES = {
    "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8", "int32": "INT32", "int64": "INT64",
    "bool": "BOOL", "uint8": "UINT8", "fp8": "FP8", "int4": "INT4", "fp4": "FP4", "e8m0": "E8M0",
}  # fmt: skip
EXPORTS.update({alias: getattr(DataType, name) for alias, name in _ALIASES.items() if hasattr(DataType, name)})
EXPORTS["__version__"] = HERE.version

MAX_DIMS = 8


@offered()
class Dims:
    """Dimensions; -1 is one that is not known. The shape of something that has none has the length -1."""

    def __init__(self, shape: Iterable[int] | None = None) -> None:
        values = () if shape is None else tuple(shape)
        if len(values) > MAX_DIMS:
            raise ValueError(f"Input length {len(values)} exceeds the {MAX_DIMS} dimensions that a shape can have")
        self._values: tuple[int, ...] | None = tuple(handle(value, "shape") for value in values)

    MAX_DIMS = MAX_DIMS

    def __len__(self) -> int:
        if self._values is None:
            raise ValueError("__len__() should return >= 0")
        return len(self._values)

    def __getitem__(self, arg0: Any, /) -> Any:
        if self._values is None:
            raise IndexError("index out of range")
        return self._values[arg0]

    def __setitem__(self, arg0: Any, arg1: Any, /) -> None:
        values = list(self._values or ())
        values[arg0] = arg1
        self._values = tuple(values)

    def __eq__(self, arg0: object, /) -> bool:
        if not isinstance(arg0, (list, tuple)):  # not even with dimensions can they be compared
            raise TypeError("__eq__(): incompatible function arguments.")
        return tuple(self) == tuple(arg0)

    __hash__ = None

    def __str__(self) -> str:
        return str(self._values or ())

    def __repr__(self) -> str:
        return str(self)


def no_dims() -> Dims:
    """The shape of what has none: its length is -1, and nothing can be made of it."""
    made = Dims()
    made._values = None
    return made


@offered()
class ILogger:
    """The logger that a program derives."""

    Severity = Severity

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError('Tried to call pure virtual function "ILogger::log"')


@offered()
class Logger(ILogger):
    """The logger that writes to standard error."""

    def __init__(self, min_severity: Any = Severity.WARNING) -> None:
        ILogger.__init__(self)
        self._min_severity = member(min_severity, Severity, "min_severity")

    @property
    def min_severity(self) -> Any:
        return self._min_severity

    @min_severity.setter
    def min_severity(self, value: Any) -> None:
        self._min_severity = member(value, Severity, "min_severity")

    def log(self, severity: Any, msg: str) -> None:
        if severity.value <= self._min_severity.value:
            letter = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I", "VERBOSE": "V"}[severity.name]
            sys.stderr.write(f"[TRT] [{letter}] {text(msg, 'msg')}\n")


for _severity, _value in Severity.__members__.items():
    setattr(Logger, _severity, _value)


def register_logger(owner: Any, logger: Any, function: str) -> Any:
    """The logger of a new runtime or builder. One that is not that of those that live already is warned.

    Raises:
        TypeError: as `check_logger`.
    """
    check_logger(logger)
    if any(each.logger is not logger for each in STATE.logged):
        logger.log(
            Severity.WARNING,
            f"WARNING The logger passed into {function} differs from one already registered for an existing builder, "
            "runtime, or refitter. So the current new logger is ignored, and TensorRT will use the existing one which "
            "is returned by nvinfer1::getLogger() instead.",
        )
    STATE.logged.add(owner)
    return logger


def check_logger(logger: Any) -> Any:
    """A logger, as an argument: of a class of the module, and made by its own `__init__`.

    Raises:
        TypeError: as pybind11 raises it.
    """
    if not isinstance(logger, ILogger):
        raise TypeError(f"incompatible constructor arguments: logger is {type(logger).__name__}, not ILogger.")
    if not hasattr(logger, "_made"):
        raise TypeError("ILogger.__init__() must be called when overriding __init__")
    return logger


def _refuse(self: Any, *args: Any) -> Any:
    raise TypeError(f"object of type '{type(self).__name__}' is a buffer alone")


_refuse._guard = True  # not a method that is offered


@offered()
class IHostMemory(bytes):
    """Bytes that TensorRT made: a buffer, which has neither length nor items of its own."""

    def __new__(cls, *content: bytes) -> IHostMemory:
        if not content:
            raise TypeError("IHostMemory: No constructor defined!")
        return bytes.__new__(cls, *content)

    __len__ = __iter__ = __getitem__ = _refuse

    @property
    def dtype(self) -> Any:
        return DataType.INT8

    @property
    def nbytes(self) -> int:
        return memoryview(self).nbytes


def host_memory(content: bytes) -> IHostMemory:
    """Bytes as TensorRT gives them."""
    return IHostMemory(content)


def buffer(value: Any, what: str) -> bytes:
    """The bytes of an argument that must be a buffer.

    Raises:
        TypeError: as pybind11 raises it.
    """
    try:
        view = memoryview(value)
    except TypeError as error:
        raise TypeError(
            f"incompatible function arguments: {what} is {type(value).__name__}, and a buffer was expected."
        ) from error
    return view.tobytes()


def volume(iterable: Iterable[int]) -> int:
    """The product of the numbers."""
    product = 1
    for value in iterable:
        product *= value
    return product


def nptype(trt_type: Any) -> Any:
    """NumPy's type for a type of TensorRT; TypeError where there is none."""
    found = NUMPY.get(trt_type.name)
    if found is None:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return found


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    """The standard plugins, of which the double's engines use none."""
    return True


EXPORTS.update(volume=volume, nptype=nptype, init_libnvinfer_plugins=init_libnvinfer_plugins)
