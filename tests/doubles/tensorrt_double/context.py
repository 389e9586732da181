"""Execution contexts: shapes, addresses, and enqueueing on a stream of the driver's double."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .basics import ENUMS, DataType, Dims, no_dims, volume
from .enqueued import LIVES, Call, Life
from .personality import HERE, handle, member, offered, only, text
from .runtime import ACTIVATION_BYTES, PERSISTENT_BYTES, ICudaEngine, Strategy, say
from .runtime_config import captures_graphs, is_lazy
from .state import DRIVER, RUN_ADDRESS, STATE, forget, register

ALIGNMENT = 256
SCRATCH_BYTES = 256


@offered()
class IExecutionContext:
    """Runs an engine, for one thread at a time."""

    def __init__(self) -> None:
        raise TypeError("IExecutionContext: No constructor defined!")

    def _setup(self, engine: ICudaEngine, strategy: Any, config: Any, addresses: list[int]) -> None:
        self._engine, self._logger = engine, engine._logger
        self._config, self._strategy = config, strategy
        self._cache = config._cache if config is not None else None
        self._cuda_context, self._allocated = DRIVER.context(), addresses
        self._life = Life()
        LIVES.add(self._life)
        self._lock = threading.Lock()
        self._profile, self._profile_call = 0, (0, 0)
        self._inputs = [each["name"] for each in engine._description.io if each["mode"] == "INPUT"]
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._set_static_shapes()
        self._tensor_addresses: dict[str, int] = {}
        self._consumed_event = 0
        self._warm = False
        self._scratch: list[int] = []
        self._own_memory = (0, 0)
        self.nvtx_verbosity = engine.profiling_verbosity
        self.enqueue_emits_profile = True
        self.name = ""

    def __del__(self) -> None:
        life = getattr(self, "_life", None)
        if life is None or life.released:
            return
        life.released = True
        if life.waiting and DRIVER.works(self._cuda_context):
            STATE.fault("An execution context was destroyed while a stream had its work to do.")
        if self._cache is not None and self._cache() is None:
            STATE.fault("A runtime cache was destroyed before an execution context that was made with it.")
        forget([*life.waiting, *life.captured])
        DRIVER.free(self._cuda_context, self._allocated + self._scratch)

    # What it is

    @property
    def engine(self) -> ICudaEngine:
        return self._engine

    @property
    def name(self) -> str:
        return self._name

    @name.setter
    def name(self, value: str) -> None:
        self._name = value

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    @property
    def nvtx_verbosity(self) -> Any:
        return self._nvtx

    @nvtx_verbosity.setter
    def nvtx_verbosity(self, value: Any) -> None:
        self._nvtx = member(value, ENUMS["ProfilingVerbosity"], "value")

    @property
    def enqueue_emits_profile(self) -> bool:
        return self._emits_profile

    @enqueue_emits_profile.setter
    def enqueue_emits_profile(self, value: bool) -> None:
        self._emits_profile = bool(value)

    @only("bcr")
    def get_runtime_config(self) -> Any:
        return self._config

    @only("r")
    def is_stream_capturable(self, stream: int) -> bool:
        handle(stream, "stream")
        return not self._why_not_capturable()

    # Shapes and addresses

    def _error(self, function: str, sentence: str) -> bool:
        say(self._logger, "ERROR", f"IExecutionContext::{function}: Error Code 3: API Usage Error ({sentence})")
        return False

    @contextmanager
    def _alone(self, function: str) -> Iterator[bool]:
        """Whether no other thread is in this context."""
        alone = self._lock.acquire(blocking=False)
        if not alone:
            STATE.fault(f"{function}: two threads used one execution context at the same time.")
        try:
            yield alone
        finally:
            if alone:
                self._lock.release()

    def _set_static_shapes(self) -> None:
        io = self._engine._io
        self._shapes = {name: tuple(io[name]["shape"]) for name in self._inputs if -1 not in io[name]["shape"]}

    def set_input_shape(self, name: str, shape: Any) -> bool:
        if not isinstance(shape, (tuple, list, Dims)):
            raise TypeError(f"set_input_shape(): incompatible function arguments: shape is {type(shape).__name__}.")
        sides = tuple(int(side) for side in shape)
        with self._alone("set_input_shape") as alone:
            if not alone or STATE.fails("set_input_shape"):
                return self._error("setInputShape", "in use or failing on demand")
            if text(name, "name") not in self._inputs:
                return self._error("setInputShape", f"Given invalid tensor name: {name}")
            low, _, high = self._engine._description.profiles[self._profile][name]
            if len(sides) != len(low) or any(not a <= x <= b for a, x, b in zip(low, sides, high, strict=True)):
                return self._error(
                    "setInputShape",
                    "Parameter check failed, condition: satisfyProfile. Set dimension "
                    f"{list(sides)} for tensor {name} does not satisfy any optimization profiles. Valid range for "
                    f"profile {self._profile}: {low}..{high}.",
                )
            if self._shapes.get(name) != sides:
                self._shapes[name] = sides
                self._changed()
        return True

    def _changed(self) -> None:
        self._life.changes += 1
        self._warm = False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        index, stream = handle(profile_index, "profile_index"), handle(stream_handle, "stream_handle")
        with self._alone("set_optimization_profile_async") as alone:
            if not alone or STATE.fails("set_optimization_profile_async"):
                return self._error("setOptimizationProfileAsync", "in use or failing on demand")
            if not 0 <= index < self._engine.num_optimization_profiles:
                return self._error("setOptimizationProfileAsync", f"Profile index {index} is out of range")
            if stream == 0:
                STATE.fault("set_optimization_profile_async was called with the default stream.")
            life = self._life

            def done() -> None:
                life.waiting.pop(number, None)
                forget([number])

            number = register(done)
            life.waiting[number] = stream
            if DRIVER.library.double_launch_host(stream, RUN_ADDRESS, number) != 0:
                done()
                return self._error("setOptimizationProfileAsync", "the stream does not take it")
            self._profile, self._profile_call = index, (number, stream)
            self._set_static_shapes()
            self._changed()
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        address = handle(memory, "memory")
        with self._alone("set_tensor_address") as alone:
            if not alone or STATE.fails("set_tensor_address"):
                return self._error("setTensorAddress", "in use or failing on demand")
            if text(name, "name") not in self._engine._io:
                return self._error("setTensorAddress", f"Given invalid tensor name: {name}")
            if address % ALIGNMENT:
                return self._error("setTensorAddress", f"The address of {name} is not aligned to {ALIGNMENT} bytes")
            self._tensor_addresses[name] = address
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._tensor_addresses.get(name, 0)

    def _shape(self, name: str) -> tuple[int, ...]:
        """With -1 where it is not known yet."""
        io = self._engine._io[name]
        if io["mode"] == "INPUT":
            return self._shapes.get(name, tuple(io["shape"]))
        if len(self._shapes) < len(self._inputs):
            return tuple(io["shape"])
        batch = self._shapes[self._inputs[0]][0]
        return tuple(batch if side == -1 else side for side in io["shape"])

    def get_tensor_shape(self, name: str) -> Dims:
        if text(name, "name") not in self._engine._io:
            self._error("getTensorShape", f"Given invalid tensor name: {name}")
            return no_dims()
        return Dims(self._shape(name))

    def get_tensor_strides(self, name: str) -> Dims:
        shape = tuple(self.get_tensor_shape(name))
        return Dims([volume(shape[axis + 1 :]) for axis in range(len(shape))])

    def get_max_output_size(self, name: str) -> int:
        shape = tuple(self.get_tensor_shape(name))
        return -1 if -1 in shape else volume(shape) * self._item_bytes(name)

    def _item_bytes(self, name: str) -> int:
        return int(getattr(DataType, self._engine._io[name]["dtype"]).itemsize)

    def infer_shapes(self) -> list[str]:
        if STATE.fails("infer_shapes"):
            raise RuntimeError("IExecutionContext::inferShapes failed on demand")
        return [name for name in self._inputs if name not in self._shapes]

    @property
    def all_binding_shapes_specified(self) -> bool:
        STATE.fault("all_binding_shapes_specified does not work with set_input_shape: use infer_shapes.")
        return True

    @only("ab")
    @property
    def all_shape_inputs_specified(self) -> bool:
        return True

    # Memory that the caller gives

    def set_device_memory(self, memory: int, size: int) -> None:
        address, size = handle(memory, "memory"), handle(size, "size")
        if self._strategy != Strategy.USER_MANAGED:
            STATE.fault("set_device_memory was called for a context that has memory of its own.")
        if address % ALIGNMENT:
            STATE.fault("set_device_memory was called with an address that is not aligned to 256 bytes.")
        self._own_memory = (address, size)
        self._life.memory = address
        self._changed()

    def update_device_memory_size_for_shapes(self) -> int:
        return ACTIVATION_BYTES

    def set_input_consumed_event(self, event: int) -> bool:
        self._consumed_event = handle(event, "event")
        return True

    def get_input_consumed_event(self) -> int:
        return self._consumed_event

    # Enqueueing

    def _why_not_capturable(self) -> str:
        options = self._engine._description.options
        if captures_graphs(self._config):
            return "the context captures graphs by itself"
        if options.get("dla_core") is not None:
            return "an engine with DLA cannot be captured"
        if options.get("not_capturable"):
            return "operation not permitted when stream is capturing"
        return "" if self._warm else "memory is allocated at the first enqueue after a change of shape"

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = handle(stream_handle, "stream_handle")
        with self._alone("execute_async_v3") as alone:
            if not alone:
                return False
            if STATE.fails("execute_async_v3"):
                return self._error("enqueueV3", "failing on demand")
            return self._ready(stream) and self._enqueue(stream)

    def _ready(self, stream: int) -> bool:
        """Whether everything is set, and the context may be enqueued on this stream now."""
        if not DRIVER.context():
            STATE.fault("execute_async_v3 was called while no CUDA context was current.")
            return False
        if stream == 0:
            STATE.fault("execute_async_v3 was called with the default stream.")
        if self._cache is not None and self._cache() is None:
            STATE.fault("A runtime cache was destroyed before an execution context that was made with it.")
        missing = [name for name in self._inputs if name not in self._shapes]
        if missing:
            return self._error("enqueueV3", f"Not all input dimensions are specified: {', '.join(missing)}")
        unset = [name for name in self._engine._io if not self._tensor_addresses.get(name)]
        if unset:
            return self._error(
                "enqueueV3",
                f"Address is not set for tensor {unset[0]}. Call setTensorAddress before enqueue/execute.",
            )
        if self._strategy == Strategy.USER_MANAGED and self._own_memory[1] < ACTIVATION_BYTES:
            return self._error("enqueueV3", f"{ACTIVATION_BYTES} bytes of device memory must be set before enqueue")
        if any(other.waiting and set(other.waiting.values()) != {stream} for other in self._sharing()):
            STATE.fault("Two execution contexts that share device memory had work to do on two streams.")
        number, of_profile = self._profile_call
        if of_profile != stream and number in self._life.waiting:
            STATE.fault("The stream of set_optimization_profile_async was not synchronized before the enqueue.")
        elif any(other != stream for other in list(self._life.waiting.values())):
            STATE.fault("An execution context was enqueued on a stream while another had its work to do.")
        return True

    def _sharing(self) -> list[Life]:
        """The other contexts that were given the same device memory."""
        mine = self._life
        return [life for life in list(LIVES) if life is not mine and life.memory and life.memory == mine.memory]

    def _enqueue(self, stream: int) -> bool:
        code, capturing = DRIVER.capturing(stream)
        if code != 0:
            return self._cuda_error(code)
        reason = self._why_not_capturable() if capturing else ""
        if not self._warm or reason:  # the driver itself breaks the capture in which memory is allocated
            code, address = DRIVER.allocate(SCRATCH_BYTES)
            if code != 0:
                return self._cuda_error(code)
            if reason:
                DRIVER.free(self._cuda_context, [address])
                return self._error("enqueueV3", reason)
            DRIVER.free(self._cuda_context, self._scratch)
            self._scratch = [address]
        if not self._launch(stream, bool(capturing)):
            return False
        if self._consumed_event:
            code = int(DRIVER.library.cuEventRecord(self._consumed_event, stream))
            if code != 0:
                return self._cuda_error(code)
        self._warm = True
        return True

    def _cuda_error(self, code: int) -> bool:
        name = ctypes.c_char_p()
        DRIVER.library.cuGetErrorString(code, ctypes.byref(name))
        said = (name.value or b"unknown").decode()
        if code == 2:
            say(self._logger, "ERROR", f"Error Code 2: OutOfMemory (Requested size was {SCRATCH_BYTES} bytes.)")
        say(self._logger, "ERROR", f"IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime ({said})")
        return False

    def _launch(self, stream: int, captured: bool) -> bool:
        life = self._life
        shapes = {name: self._shape(name) for name in self._engine._io}
        addresses = dict(self._tensor_addresses)
        if STATE.free_engines:
            key = (*sorted(addresses.items()), *sorted(shapes.items()))
            if key in life.prepared:
                code = int(
                    DRIVER.library.double_launch_host(
                        stream, DRIVER.spend, STATE.engine_cost_us(shapes[self._inputs[0]][0])
                    )
                )
                return code == 0 or self._cuda_error(code)
            life.prepared.add(key)
        work = self._own_memory[0] or self._allocated[-1]
        call = Call(self._engine, life, shapes, addresses, work, captured, is_lazy(self._config))
        number = call.number = register(call)
        code = int(DRIVER.library.double_launch_host(stream, RUN_ADDRESS, number))
        if code != 0:
            forget([number])
            return self._cuda_error(code)
        if captured:
            life.captured.append(number)
        else:
            life.waiting[number] = stream
        return True


def make_context(engine: ICudaEngine, strategy: Any, config: Any) -> IExecutionContext | None:
    """A context; None with the reason on the logger if there is no memory."""
    if STATE.fails("create_execution_context"):
        return _no_context(engine, 2)
    if not DRIVER.context():
        STATE.fault("create_execution_context was called while no CUDA context was current.")
        return _no_context(engine, 201)
    addresses: list[int] = []
    wanted = [PERSISTENT_BYTES] + ([ACTIVATION_BYTES] if strategy != Strategy.USER_MANAGED else [])
    for size in wanted:
        code, address = DRIVER.allocate(size)
        if code != 0:
            DRIVER.free(DRIVER.context(), addresses)
            return _no_context(engine, code)
        addresses.append(address)
    cache = config._cache() if config is not None and config._cache is not None else None
    if HERE.letter == "r":
        key = hashlib.sha256(engine._plan).hexdigest()
        if cache is None or key not in cache._engines:
            STATE.count("jit_compilations")
        if cache is not None:
            cache._engines.add(key)
    made = object.__new__(IExecutionContext)
    made._setup(engine, strategy, config, addresses)
    return made


def _no_context(engine: ICudaEngine, code: int) -> None:
    reason = "out of memory" if code == 2 else f"error {code}"
    if code == 2:
        say(engine._logger, "ERROR", f"Error Code 2: OutOfMemory (Requested size was {ACTIVATION_BYTES} bytes.)")
    say(engine._logger, "ERROR", f"ICudaEngine::createExecutionContext: Error Code 1: Cuda Runtime ({reason})")
