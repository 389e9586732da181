"""With what a context is made: strategies, and the cache of compiled kernels of TensorRT-RTX."""

from __future__ import annotations

import json
import weakref
from typing import Any

from .basics import ENUMS, buffer, host_memory
from .personality import HERE, member, offered, only
from .state import DRIVER, STATE

Strategy: Any = ENUMS["ExecutionContextAllocationStrategy"]


@offered("bcr")
class IRuntimeConfig:
    """What a context is made with."""

    def __init__(self) -> None:
        raise TypeError("IRuntimeConfig: No constructor defined!")

    def set_execution_context_allocation_strategy(self, strategy: Any = Strategy.STATIC) -> None:
        self._strategy = member(strategy, Strategy, "strategy")

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    @only("r")
    def create_runtime_cache(self) -> IRuntimeCache:
        made = object.__new__(IRuntimeCache)
        made._engines = set()
        return made

    @only("r")
    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        if STATE.fails("set_runtime_cache"):
            return False
        self._cache = None if cache is None else weakref.ref(cache)
        return True

    @only("r")
    def get_runtime_cache(self) -> IRuntimeCache | None:
        return self._cache() if self._cache is not None else None

    @only("r")
    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> Any:
        return self._specialization

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, value: Any) -> None:
        self._specialization = member(value, ENUMS["DynamicShapesKernelSpecializationStrategy"], "value")

    @only("r")
    @property
    def cuda_graph_strategy(self) -> Any:
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, value: Any) -> None:
        self._graphs = member(value, ENUMS["CudaGraphStrategy"], "value")


def make_runtime_config() -> IRuntimeConfig:
    """A configuration with the defaults."""
    made = object.__new__(IRuntimeConfig)
    made._strategy = Strategy.STATIC
    made._cache = None
    if HERE.letter == "r":
        made._specialization = ENUMS["DynamicShapesKernelSpecializationStrategy"].LAZY
        made._graphs = ENUMS["CudaGraphStrategy"].DISABLED
    return made


@offered("r")
class IRuntimeCache:
    """Compiled kernels, by engine. Must live as long as the contexts that were made with it."""

    def __init__(self) -> None:
        raise TypeError("IRuntimeCache: No constructor defined!")

    def serialize(self) -> Any:
        return host_memory(json.dumps({**_machine(), "engines": sorted(self._engines)}).encode())

    def deserialize(self, blob: Any) -> bool:
        content = buffer(blob, "blob")
        if STATE.fails("runtime_cache_deserialize") or not DRIVER.context():
            return False
        try:
            stored = json.loads(content)
            engines = set(stored.pop("engines"))
        except (ValueError, KeyError, AttributeError, TypeError):
            return False
        if stored != _machine():
            return False
        self._engines: set[str] = engines
        return True

    def reset(self) -> bool:
        self._engines = set()
        return True


def _machine() -> dict[str, Any]:
    """What a runtime cache is bound to."""
    return {"rtx": HERE.version, "capability": DRIVER.capability(), "driver": DRIVER.driver_version() // 1000}


def captures_graphs(config: IRuntimeConfig | None) -> bool:
    """Whether a context of this configuration captures CUDA graphs by itself."""
    return HERE.letter == "r" and config is not None and config._graphs.name == "WHOLE_GRAPH_CAPTURE"


def is_lazy(config: IRuntimeConfig | None) -> bool:
    """Whether a context of this configuration runs other kernels at first, as TensorRT-RTX does by default."""
    return HERE.letter == "r" and (config is None or config._specialization.name == "LAZY")
