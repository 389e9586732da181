"""Execution contexts of the double: what is documented to go wrong is refused, or recorded (all four versions)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from doubles.device import Device
from doubles.loading import TensorRTDouble
from doubles.running import MODEL, Running, assert_close, clean, engine, in_thread, make_logger, truth
from doubles.small_graph import SIZE, images

Use = Callable[[str], TensorRTDouble]


# Shapes, addresses and profiles


def test_shapes_are_unknown_before_the_input_has_one(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    context = running.context
    assert tuple(context.get_tensor_shape("probabilities")) == (-1, 3)
    assert context.infer_shapes() == ["image"]
    assert context.get_max_output_size("probabilities") == -1
    assert not context.execute_async_v3(running.stream)
    assert "Not all input dimensions are specified: image" in running.log[-1]
    assert context.set_input_shape("image", [5, SIZE, SIZE, 1])
    assert tuple(context.get_tensor_shape("probabilities")) == (5, 3)
    assert context.get_max_output_size("probabilities") == 60
    assert clean(double, device)


@pytest.mark.parametrize(
    "shape", [(65, SIZE, SIZE, 1), (0, SIZE, SIZE, 1), (1, SIZE, SIZE), (1, SIZE, SIZE, 3), (-1, SIZE, SIZE, 1)]
)
def test_a_shape_outside_of_the_profile_is_refused(
    double: TensorRTDouble, device: Device, shape: tuple[int, ...]
) -> None:
    running = Running(device, double, engine(double))
    assert running.context.set_input_shape("image", shape) is False
    assert "satisfyProfile" in running.log[-1]
    assert running.context.set_input_shape("picture", (1, SIZE, SIZE, 1)) is False
    assert running.context.set_input_shape("angle", (1,)) is False, "an output"
    with pytest.raises(TypeError):
        running.context.set_input_shape("image", np.array([1, SIZE, SIZE, 1]))


def test_addresses_are_aligned_and_all_of_them_set(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    context = running.context
    assert context.set_input_shape("image", (1, SIZE, SIZE, 1))
    assert context.set_tensor_address("image", running.memory["image"] + 128) is False
    assert context.set_tensor_address("image", running.memory["image"] + 256) is True
    assert context.set_tensor_address("picture", running.memory["image"]) is False
    assert context.set_tensor_address("score", 0) is True
    assert context.execute_async_v3(running.stream) is False
    assert "Address is not set for tensor score" in running.log[-1]


def test_an_address_that_leads_nowhere_fails_the_device_when_it_is_used(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    assert running.context.set_input_shape("image", (64, SIZE, SIZE, 1))
    assert running.context.set_tensor_address("score", running.memory["score"] + 256)
    assert running.context.execute_async_v3(running.stream), "the enqueue does not look"
    assert device.library.cuStreamSynchronize(running.stream) == 700
    assert double.faults() == ["The address of score does not lead to 256 bytes that the device can reach."]
    assert running.context.execute_async_v3(running.stream) is False
    assert "illegal memory access" in running.log[-1]


def test_a_profile_is_set_before_the_shapes_which_it_takes_away(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double, profiles=[(1, 1, 1), (2, 4, 8)]))
    context = running.context
    assert running.engine.num_optimization_profiles == 2
    assert [shape[0] for shape in running.engine.get_tensor_profile_shape("image", 1)] == [2, 4, 8]
    assert context.set_input_shape("image", (4, SIZE, SIZE, 1)) is False
    assert context.set_input_shape("image", (1, SIZE, SIZE, 1))
    assert context.set_optimization_profile_async(1, running.stream)
    device.synchronize(running.stream)
    assert context.infer_shapes() == ["image"]
    assert context.set_input_shape("image", (4, SIZE, SIZE, 1))
    assert context.set_optimization_profile_async(2, running.stream) is False
    assert clean(double, device)


def test_the_stream_of_the_profile_must_be_synchronized(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    assert running.context.set_optimization_profile_async(0, device.stream())
    assert running.context.set_input_shape("image", (1, SIZE, SIZE, 1))
    running.context.execute_async_v3(running.stream)
    assert double.faults() == ["The stream of set_optimization_profile_async was not synchronized before the enqueue."]
    assert device.library.cuCtxSynchronize() == 0


def test_a_profile_shape_of_an_output_is_none(double: TensorRTDouble, device: Device) -> None:
    shapes = Running(device, double, engine(double)).engine.get_tensor_profile_shape("angle", 0)
    with pytest.raises(ValueError, match=r"__len__\(\) should return >= 0"):
        tuple(shapes[0])


def test_the_old_way_to_ask_for_shapes_is_a_fault(double: TensorRTDouble, device: Device) -> None:
    assert Running(device, double, engine(double)).context.all_binding_shapes_specified
    assert "use infer_shapes" in double.faults()[0]


# Device memory that the caller gives


def managed(double: TensorRTDouble) -> Callable[[Any], Any]:
    """How a context without memory of its own is made: by a configuration where there is one, else by its strategy."""
    strategy = double.module.ExecutionContextAllocationStrategy.USER_MANAGED

    def make(one: Any) -> Any:
        if not hasattr(one, "create_runtime_config"):
            return strategy
        made = one.create_runtime_config()
        made.set_execution_context_allocation_strategy(strategy)
        return made

    return make


def test_a_context_without_memory_runs_once_it_has_some(double: TensorRTDouble, device: Device) -> None:
    before = device.cuda.count("device_allocations")
    running = Running(device, double, engine(double), managed(double))
    assert device.cuda.count("device_allocations") == before + 2 + len(running.names), "engine, context, tensors"
    assert running.context.set_input_shape("image", (1, SIZE, SIZE, 1))
    assert running.context.execute_async_v3(running.stream) is False
    assert "bytes of device memory must be set before enqueue" in running.log[-1]
    size = running.context.update_device_memory_size_for_shapes()
    assert size == running.engine.device_memory_size_v2 > 0
    scratch = device.allocate(size)
    running.context.set_device_memory(scratch, size)
    assert_close(running.infer(images(3)), truth(MODEL, images(3)))
    assert set(device.download(scratch, size)) == {0xEE}, "it is used"
    assert clean(double, device)


def test_memory_for_activations_is_there_aligned_and_nobody_elses(double: TensorRTDouble, device: Device) -> None:
    own = Running(device, double, engine(double))
    own.context.set_device_memory(device.allocate(64), 64)
    assert "memory of its own" in double.faults()[0]
    first, second = (Running(device, double, engine(double), managed(double)) for _ in range(2))
    size = first.engine.device_memory_size_v2
    scratch = device.allocate(size)
    first.context.set_device_memory(scratch + 1, size)
    assert "not aligned" in double.faults()[1]
    for running in (first, second):
        running.context.set_device_memory(scratch, size)
        running.infer(images(1))
    assert first.context.execute_async_v3(first.stream)
    assert second.context.execute_async_v3(second.stream)
    assert "share device memory" in double.faults()[2]
    assert device.library.cuCtxSynchronize() == 0
    assert device.library.cuMemFree_v2(scratch) == 0
    assert first.context.execute_async_v3(first.stream)
    assert device.library.cuStreamSynchronize(first.stream) == 700
    assert "is not 8192 bytes any more" in double.faults()[3]


# Enqueueing


class Handle:
    """As cuda-bindings give a stream: it has `__int__`."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value


def test_handles_are_plain_integers_on_10(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1))
    calls = (
        lambda: running.context.execute_async_v3(Handle(running.stream)),
        lambda: running.context.set_tensor_address("image", Handle(running.memory["image"])),
    )
    for call in calls:
        if double.name in ("10.3", "10.13"):
            with pytest.raises(TypeError, match="incompatible function arguments"):
                call()
        else:
            assert call()
    with pytest.raises(TypeError):
        running.context.execute_async_v3(stream=running.stream)
    device.synchronize(running.stream)


def test_the_default_stream_is_a_fault(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1))
    assert running.context.execute_async_v3(0)
    device.synchronize(0)
    assert double.faults() == ["execute_async_v3 was called with the default stream."]


def test_two_threads_in_one_context_are_a_fault(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1))
    found = []
    with running.context._alone("the first thread"):
        in_thread(lambda: found.append(running.context.execute_async_v3(running.stream)))
    assert found == [False]
    assert double.faults() == ["execute_async_v3: two threads used one execution context at the same time."]


def test_a_context_on_two_streams_at_once_is_a_fault(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1))
    assert running.context.execute_async_v3(running.stream)
    assert running.context.execute_async_v3(device.stream())
    assert "enqueued on a stream while another had its work to do" in double.faults()[0]
    assert device.library.cuCtxSynchronize() == 0


def test_a_call_without_a_current_context_is_a_fault(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1))
    found: list[Any] = []
    in_thread(lambda: found.append(running.context.execute_async_v3(running.stream)))
    in_thread(lambda: found.append(running.engine.create_execution_context()))
    assert found == [False, None]
    assert [sentence.split()[0] for sentence in double.faults()] == ["execute_async_v3", "create_execution_context"]


@pytest.mark.parametrize("changed", ["first", "shape"])
def test_the_first_enqueue_after_a_change_of_shape_breaks_a_capture(
    double: TensorRTDouble, device: Device, changed: str
) -> None:
    running = Running(device, double, engine(double))
    if changed == "shape":
        running.infer(images(1))
    assert running.context.set_input_shape("image", (2, SIZE, SIZE, 1))
    assert device.library.cuStreamBeginCapture_v2(running.stream, 1) == 0
    assert running.context.execute_async_v3(running.stream) is False
    assert "operation not permitted when stream is capturing" in running.log[-1]
    assert device.end_capture(running.stream) == (901, 0)
    running.infer(images(2))
    running.replay(running.capture())
    assert clean(double, device)


def test_an_engine_that_cannot_be_captured_says_so_and_runs_without(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double, not_capturable=True))
    running.infer(images(2))
    assert device.library.cuStreamBeginCapture_v2(running.stream, 1) == 0
    assert running.context.execute_async_v3(running.stream) is False
    assert device.end_capture(running.stream)[0] == 901
    assert_close(running.infer(images(2)), truth(MODEL, images(2)))


@pytest.mark.parametrize("change", ["shape", "context"])
def test_a_stale_graph_is_a_fault(double: TensorRTDouble, device: Device, change: str) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(2))
    ready = running.capture()
    running.replay(ready)
    assert double.faults() == []
    if change == "shape":
        running.infer(images(3))
    else:
        running.context = None
    running.replay(ready)
    assert len(double.faults()) == 1
    assert ("had changed" if change == "shape" else "was destroyed") in double.faults()[0]


def test_a_context_that_is_destroyed_with_work_left_is_a_fault(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1))
    assert running.context.execute_async_v3(running.stream)
    running.context = None
    assert double.faults() == ["An execution context was destroyed while a stream had its work to do."]
    device.synchronize(running.stream)


def test_an_event_tells_when_the_input_was_read(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1))
    event = device.event(2)
    assert running.context.set_input_consumed_event(event)
    assert running.context.execute_async_v3(running.stream)
    assert device.library.cuEventQuery(event) == 600
    assert device.library.cuEventSynchronize(event) == 0
    assert clean(double, device)


# Faults on demand


def test_memory_can_end_at_each_allocation(double: TensorRTDouble, device: Device) -> None:
    plan, log = engine(double), []
    runtime = double.module.Runtime(make_logger(double.module, log))
    device.cuda.fail("cuMemAlloc_v2", 1, 2)
    assert runtime.deserialize_cuda_engine(plan) is None
    one = runtime.deserialize_cuda_engine(plan)
    for nth in (1, 2):
        device.cuda.fail("cuMemAlloc_v2", nth, 2)
        assert one.create_execution_context() is None
        assert "OutOfMemory" in log[-2] and device.cuda.count("device_allocations") == 1
    del one, runtime
    running = Running(device, double, plan)
    assert running.context.set_input_shape("image", (1, SIZE, SIZE, 1))
    device.cuda.fail("cuMemAlloc_v2", 1, 2)
    assert running.context.execute_async_v3(running.stream) is False
    assert running.context.execute_async_v3(running.stream) is True
    device.synchronize(running.stream)
    assert clean(double, device)


def test_a_method_fails_in_its_own_way_when_a_test_asks_for_it(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1))
    double.fail("execute_async_v3", nth=2)
    found = [running.context.execute_async_v3(running.stream) for _ in range(3)]
    assert found == [True, False, True]
    double.fail("set_tensor_address", nth=0)
    assert [running.context.set_tensor_address("score", running.memory["score"]) for _ in range(2)] == [False, False]
    double.fail("infer_shapes")
    with pytest.raises(RuntimeError):
        running.context.infer_shapes()
    double.fail("create_execution_context")
    assert running.engine.create_execution_context() is None
    device.synchronize(running.stream)


def test_a_lost_device_fails_every_call(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1))
    device.cuda.lose_device(719)
    assert running.context.execute_async_v3(running.stream) is False
    assert "unspecified launch failure" in running.log[-1]
    assert running.engine.create_execution_context() is None


def test_a_device_that_is_lost_takes_its_work_along(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1))
    assert running.context.execute_async_v3(running.stream)
    device.cuda.lose_device(999)
    assert device.library.cuStreamSynchronize(running.stream) == 999
    running.context = None
    assert clean(double, device), "nobody could have waited"


def test_an_attribute_that_is_not_there_cannot_be_set(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    with pytest.raises(AttributeError, match="no attribute 'engine_host_code_alowed'"):
        running.runtime.engine_host_code_alowed = True
    with pytest.raises(AttributeError, match="no attribute 'stream'"):
        running.context.stream = running.stream
    running.context.name = "a context"
