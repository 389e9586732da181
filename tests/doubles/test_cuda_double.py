"""The double of the driver: work waits for a synchronization, misuse is refused, and nothing is forgiven."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading

import numpy as np
import pytest

from doubles.cuda_library import CudaDouble, DeviceMemory, HostFunction
from doubles.device import Device

INVALID_VALUE, OUT_OF_MEMORY, INVALID_CONTEXT, INVALID_HANDLE, NOT_READY = 1, 2, 201, 400, 600
ILLEGAL_ADDRESS, UNSUPPORTED, INVALIDATED = 700, 900, 901
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2


# Memory


def test_fresh_memory_holds_a_pattern_and_is_aligned(device: Device) -> None:
    address = device.allocate(100)
    assert address % 512 == 0
    assert set(device.download(address, 100)) == {0xA5}
    assert set(device.pinned(64)) == {0xA5}


def test_a_device_address_is_not_one_that_the_host_can_follow(device: Device) -> None:
    address = device.allocate(8)
    assert address >> 56 == 0x7D
    assert device.library.double_host_address(address, 8) == address & ~(0xFF << 56)


def written(device: Device, address: int) -> list[int]:
    """Of the bytes of an allocation, 1 for those that were written."""
    found, number = DeviceMemory(), 0
    while device.library.double_memory_at(number, ctypes.byref(found)):
        if found.address == address & ~(0xFF << 56):
            return list(ctypes.string_at(found.written, found.bytes))
        number += 1
    raise AssertionError(f"no allocation at {address:#x}")


def test_the_bytes_of_an_allocation_that_were_written_are_known(device: Device) -> None:
    first, second, host = device.allocate(8), device.allocate(8), device.pinned(8)
    assert written(device, first) == [0] * 8 and written(device, host.ctypes.data) == [1] * 8
    assert device.library.cuMemcpyHtoD_v2(first + 2, host.ctypes.data, 3) == 0
    assert written(device, first) == [0, 0, 1, 1, 1, 0, 0, 0]
    assert device.library.cuMemcpy(second, first, 4) == 0, "what was copied is as written as where it came from"
    assert written(device, second) == [0, 0, 1, 1, 0, 0, 0, 0]
    device.library.double_host_address(second + 6, 2)
    assert written(device, second) == [0, 0, 1, 1, 0, 0, 1, 1]


def test_what_is_written_beyond_a_block_shows_when_it_is_freed(device: Device) -> None:
    address = device.allocate(100)
    ctypes.memset(device.library.double_host_address(address, 100), 0, 101)
    assert device.library.cuMemFree_v2(address) == 0
    assert device.cuda.faults() == ["A block of 100 bytes was written beyond its end (byte 100)."]


@pytest.mark.parametrize("wrong", ["twice", "inside", "of the host", "nothing"])
def test_memory_that_is_not_held_cannot_be_given_back(device: Device, wrong: str) -> None:
    address = device.allocate(64)
    if wrong == "twice":
        assert device.library.cuMemFree_v2(address) == 0
    given = {"twice": address, "inside": address + 8, "of the host": device.allocate_host(64), "nothing": 0}[wrong]
    assert device.library.cuMemFree_v2(given) == INVALID_VALUE
    assert len(device.cuda.faults()) == 1


def test_memory_ends(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOUBLE_MEMORY_BYTES", "1000")
    monkeypatch.setenv("DOUBLE_INTEGRATED", "1")
    made = ctypes.c_uint64()
    first = device.allocate(600)
    assert device.library.cuMemAlloc_v2(ctypes.byref(made), 500) == OUT_OF_MEMORY
    host = ctypes.c_void_p()
    assert device.library.cuMemHostAlloc(ctypes.byref(host), 500, 0) == OUT_OF_MEMORY, "an integrated GPU shares it"
    free, whole = ctypes.c_size_t(), ctypes.c_size_t()
    assert device.library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(whole)) == 0
    assert (free.value, whole.value) == (400, 1000)
    assert device.library.cuMemFree_v2(first) == 0
    device.allocate(1000)


def test_mapped_memory_is_the_same_memory(device: Device) -> None:
    host = device.pinned(16)
    address = device.mapped(host.ctypes.data)
    assert address != host.ctypes.data
    host[:] = 7
    assert set(device.download(address, 16)) == {7}
    plain = device.allocate_host(16, flags=0)
    made = ctypes.c_uint64()
    assert device.library.cuMemHostGetDevicePointer_v2(ctypes.byref(made), plain, 0) == INVALID_VALUE
    assert device.library.double_host_address(plain, 16) is None, "the device cannot reach memory that is not mapped"


def test_attributes_tell_whose_memory_it_is(device: Device) -> None:
    kind = ctypes.c_uint()
    array = np.zeros(4)
    for address, code, expected in (
        (device.allocate(8), 0, 2),
        (device.allocate_host(8), 0, 1),
        (array.ctypes.data, INVALID_VALUE, 0),
    ):
        kind.value = 0
        assert device.library.cuPointerGetAttribute(ctypes.byref(kind), 2, address) == code
        assert kind.value == expected


# Work waits for a synchronization


def test_a_copy_is_done_when_its_stream_is_synchronized_and_not_before(device: Device) -> None:
    stream, source, target = device.stream(), device.pinned(4), device.allocate(4)
    source[:] = 1
    assert device.library.cuMemcpyHtoDAsync_v2(target, source.ctypes.data, 4, stream) == 0
    assert set(device.download(target, 4)) == {0xA5}, "a blocking copy does not wait for a non-blocking stream"
    source[:] = 2
    device.synchronize(stream)
    assert set(device.download(target, 4)) == {2}


def test_order_within_a_stream_holds_and_host_functions_stand_in_it(device: Device) -> None:
    stream, seen = device.stream(), []
    note = HostFunction(seen.append)
    for number in (1, 2, 3):
        assert device.library.double_launch_host(stream, note, number) == 0
    assert seen == []
    device.synchronize(stream)
    assert seen == [1, 2, 3]


def test_an_event_orders_two_streams(device: Device) -> None:
    first, second, event, seen = device.stream(), device.stream(), device.event(), []
    note = HostFunction(seen.append)
    device.library.double_launch_host(first, note, 1)
    assert device.library.cuEventRecord(event, first) == 0
    device.library.double_launch_host(first, note, 2)
    assert device.library.cuStreamWaitEvent(second, event, 0) == 0
    device.library.double_launch_host(second, note, 3)
    device.synchronize(second)
    assert seen == [1, 3], "what the first stream does after the event is nobody's business"
    device.synchronize(first)
    assert seen == [1, 3, 2]


def test_blocking_streams_and_the_default_stream_wait_for_each_other(device: Device) -> None:
    blocking, free, seen = device.stream(flags=0), device.stream(), []
    note = HostFunction(seen.append)
    for stream, number in ((blocking, 1), (free, 2), (None, 3), (blocking, 4)):
        assert device.library.double_launch_host(stream, note, number) == 0
    device.synchronize(blocking)
    assert seen == [1, 3, 4]


def test_a_context_synchronizes_all_its_streams(device: Device) -> None:
    seen: list[int] = []
    note = HostFunction(seen.append)
    for number in (1, 2):
        device.library.double_launch_host(device.stream(), note, number)
    assert device.library.cuCtxSynchronize() == 0
    assert sorted(seen) == [1, 2]


def test_who_asks_twice_sees_that_the_work_goes_on(device: Device) -> None:
    stream, event, seen = device.stream(), device.event(), []
    note = HostFunction(seen.append)
    device.library.double_launch_host(stream, note, 1)
    device.library.cuEventRecord(event, stream)
    assert device.library.cuStreamQuery(stream) == NOT_READY and seen == []
    assert device.library.cuStreamQuery(stream) == 0 and seen == [1]
    assert device.library.cuEventQuery(event) == 0
    device.library.double_launch_host(stream, note, 2)
    device.library.cuEventRecord(event, stream)
    assert device.library.cuEventQuery(event) == NOT_READY
    assert device.library.cuEventQuery(event) == 0 and seen == [1, 2]


def test_events_measure_time_once_they_are_done(device: Device) -> None:
    stream, start, end, silent = device.stream(), device.event(), device.event(), device.event(2)
    elapsed = ctypes.c_float()
    for event in (start, end, silent):
        device.library.cuEventRecord(event, stream)
    assert device.library.cuEventElapsedTime(ctypes.byref(elapsed), start, end) == NOT_READY
    assert device.library.cuEventSynchronize(end) == 0
    assert device.library.cuEventElapsedTime(ctypes.byref(elapsed), start, end) == 0
    assert elapsed.value >= 0
    assert device.library.cuEventElapsedTime(ctypes.byref(elapsed), start, silent) == INVALID_HANDLE


def test_copies_of_pageable_memory_are_counted(device: Device) -> None:
    stream, array, target = device.stream(), np.zeros(4, np.uint8), device.allocate(4)
    device.library.cuMemcpyHtoDAsync_v2(target, array.ctypes.data, 4, stream)
    device.library.cuMemcpyHtoDAsync_v2(target, device.pinned(4).ctypes.data, 4, stream)
    assert device.cuda.count("pageable_copies") == 1


class Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D_v2 of cuda.h."""

    _fields_ = (
        *(("from_x", ctypes.c_size_t), ("from_y", ctypes.c_size_t), ("from_type", ctypes.c_uint)),
        *(("from_host", ctypes.c_void_p), ("source", ctypes.c_uint64), ("from_array", ctypes.c_void_p)),
        *(("from_pitch", ctypes.c_size_t), ("to_x", ctypes.c_size_t), ("to_y", ctypes.c_size_t)),
        *(("to_type", ctypes.c_uint), ("to_host", ctypes.c_void_p), ("target", ctypes.c_uint64)),
        *(("to_array", ctypes.c_void_p), ("to_pitch", ctypes.c_size_t)),
        *(("width", ctypes.c_size_t), ("height", ctypes.c_size_t)),
    )


def test_rows_are_copied_from_one_pitch_to_another(device: Device) -> None:
    grid = np.arange(48, dtype=np.uint8).reshape(6, 8)
    stream, source, target = device.stream(), device.upload(grid), device.allocate(12)
    rows = Copy2D(source=source, from_x=2, from_y=1, from_pitch=8, from_type=2, target=target, to_type=2)
    rows.width, rows.height, rows.to_pitch = 3, 4, 3
    assert device.library.cuMemcpy2DAsync_v2(ctypes.byref(rows), ctypes.c_void_p(stream)) == 0
    device.synchronize(stream)
    np.testing.assert_array_equal(device.download(target, 12).reshape(4, 3), grid[1:5, 2:5])
    rows.to_pitch = 2
    assert device.library.cuMemcpy2DAsync_v2(ctypes.byref(rows), ctypes.c_void_p(stream)) == INVALID_VALUE
    rows.to_pitch, rows.height = 3, 5
    assert device.library.cuMemcpy2DAsync_v2(ctypes.byref(rows), ctypes.c_void_p(stream)) == 0
    assert device.library.cuStreamSynchronize(stream) == ILLEGAL_ADDRESS, "the last row is outside of the target"


def test_a_stream_that_is_destroyed_with_work_left_is_a_fault(device: Device) -> None:
    stream, note = device.stream(), HostFunction(lambda user: None)
    device.library.double_launch_host(stream, note, 1)
    assert device.library.cuStreamDestroy_v2(stream) == 0
    assert device.cuda.faults() == ["A stream was destroyed while it had 1 operations to do."]


# Illegal addresses, and a lost device


@pytest.mark.parametrize("wrong", ["too long", "freed"])
def test_a_copy_outside_of_its_allocation_fails_at_the_synchronization_and_every_call_after_it(
    device: Device, wrong: str
) -> None:
    stream, source, target = device.stream(), device.pinned(64), device.allocate(32)
    size = 33 if wrong == "too long" else 32
    assert device.library.cuMemcpyHtoDAsync_v2(target, source.ctypes.data, size, stream) == 0
    if wrong == "freed":
        assert device.library.cuMemFree_v2(target) == 0
    assert device.library.cuStreamSynchronize(stream) == ILLEGAL_ADDRESS
    made = ctypes.c_void_p()
    assert device.library.cuStreamCreate(ctypes.byref(made), 1) == ILLEGAL_ADDRESS
    assert device.library.cuStreamQuery(stream) == ILLEGAL_ADDRESS
    assert device.library.cuStreamDestroy_v2(stream) == ILLEGAL_ADDRESS
    assert device.cuda.count("streams") == 0, "but it is given back"


def test_a_host_function_can_fail_the_device(device: Device) -> None:
    stream, seen = device.stream(), []
    fail = HostFunction(device.library.double_raise)
    note = HostFunction(seen.append)
    device.library.double_launch_host(stream, fail, 719)
    device.library.double_launch_host(stream, note, 1)
    assert device.library.cuStreamSynchronize(stream) == 719
    assert seen == [], "what stood behind it is never done"


def test_a_new_context_of_the_device_works_again_unless_the_device_is_lost(cuda: CudaDouble) -> None:
    device = Device(cuda)
    fail = HostFunction(lambda user: device.library.double_raise(700))
    with cuda.context():
        device.library.double_launch_host(None, fail, 1)
        assert device.library.cuCtxSynchronize() == ILLEGAL_ADDRESS
    with cuda.context():
        device.allocate(4)
        cuda.lose_device(999)
        made = ctypes.c_uint64()
        assert device.library.cuMemAlloc_v2(ctypes.byref(made), 4) == 999
    context = ctypes.c_void_p()
    assert device.library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 40) == 999


# Captures and graphs


def capture_of_a_copy(device: Device, stream: int, mode: int = THREAD_LOCAL) -> tuple[np.ndarray, int]:
    source, target = device.pinned(4), device.allocate(4)
    assert device.library.cuStreamBeginCapture_v2(stream, mode) == 0
    assert device.library.cuMemcpyHtoDAsync_v2(target, source.ctypes.data, 4, stream) == 0
    return source, target


def test_a_graph_does_what_was_captured_each_time_it_is_launched(device: Device) -> None:
    stream = device.stream()
    source, target = capture_of_a_copy(device, stream)
    code, graph = device.end_capture(stream)
    assert code == 0
    ready = device.instantiate(graph)
    assert device.library.cuGraphDestroy(graph) == 0
    device.synchronize(stream)
    assert set(device.download(target, 4)) == {0xA5}, "capturing does nothing"
    for value in (3, 4):
        source[:] = value
        assert device.library.cuGraphUpload(ready, stream) == 0
        assert device.library.cuGraphLaunch(ready, stream) == 0
        device.synchronize(stream)
        assert set(device.download(target, 4)) == {value}
    assert device.library.cuGraphExecDestroy(ready) == 0
    assert device.library.cuGraphExecDestroy(ready) == INVALID_VALUE


def test_a_graph_whose_memory_was_freed_fails(device: Device) -> None:
    stream = device.stream()
    _, target = capture_of_a_copy(device, stream)
    ready = device.instantiate(device.end_capture(stream)[1])
    assert device.library.cuMemFree_v2(target) == 0
    assert device.library.cuGraphLaunch(ready, stream) == 0
    assert device.library.cuStreamSynchronize(stream) == ILLEGAL_ADDRESS


@pytest.mark.parametrize("call", ["allocate", "free", "synchronize", "query", "copy", "context"])
@pytest.mark.parametrize("mode", [GLOBAL, THREAD_LOCAL])
def test_a_call_that_allocates_or_waits_breaks_the_capture(device: Device, call: str, mode: int) -> None:
    stream, address, library = device.stream(), device.allocate(4), device.library
    assert library.cuStreamBeginCapture_v2(stream, mode) == 0
    made, array = ctypes.c_uint64(), np.zeros(4, np.uint8)
    code = {
        "allocate": lambda: library.cuMemAlloc_v2(ctypes.byref(made), 4),
        "free": lambda: library.cuMemFree_v2(address),
        "synchronize": lambda: library.cuStreamSynchronize(stream),
        "query": lambda: library.cuStreamQuery(stream),
        "copy": lambda: library.cuMemcpyDtoH_v2(array.ctypes.data, address, 4),
        "context": library.cuCtxSynchronize,
    }[call]()
    assert code == UNSUPPORTED
    status = ctypes.c_int()
    assert library.cuStreamIsCapturing(stream, ctypes.byref(status)) == 0 and status.value == 2
    assert library.cuMemcpyHtoDAsync_v2(address, array.ctypes.data, 4, stream) == INVALIDATED
    assert device.end_capture(stream) == (INVALIDATED, 0)
    assert library.cuMemFree_v2(address) == 0, "the stream is free again"


@pytest.mark.parametrize(("mode", "broken"), [(GLOBAL, True), (THREAD_LOCAL, False), (RELAXED, False)])
def test_another_thread_breaks_a_global_capture_alone(device: Device, mode: int, broken: bool) -> None:
    stream = device.stream()
    assert device.library.cuStreamBeginCapture_v2(stream, mode) == 0
    codes: list[int] = []

    def allocate() -> None:
        with device.cuda.context():
            codes.append(device.library.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), 4))

    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    assert codes == [UNSUPPORTED if broken else 0]
    assert device.end_capture(stream)[0] == (INVALIDATED if broken else 0)


def test_a_second_stream_joins_a_capture_by_events_and_must_come_back(device: Device) -> None:
    stream, other, forked, joined = device.stream(), device.stream(), device.event(2), device.event(2)
    library, seen = device.library, []
    note = HostFunction(seen.append)
    for comes_back in (False, True):
        assert library.cuStreamBeginCapture_v2(stream, THREAD_LOCAL) == 0
        library.cuEventRecord(forked, stream)
        assert library.cuStreamWaitEvent(other, forked, 0) == 0
        library.double_launch_host(other, note, 1)
        if comes_back:
            library.cuEventRecord(joined, other)
            assert library.cuStreamWaitEvent(stream, joined, 0) == 0
        code, graph = device.end_capture(stream)
        assert code == (0 if comes_back else 904)
    library.cuGraphLaunch(device.instantiate(graph), stream)
    device.synchronize(stream)
    assert seen == [1]


def test_a_capture_ends_in_its_own_stream_and_thread_and_never_begins_in_the_default_stream(device: Device) -> None:
    stream, codes = device.stream(), []
    assert device.library.cuStreamBeginCapture_v2(None, THREAD_LOCAL) == UNSUPPORTED
    assert device.end_capture(stream)[0] == 401
    assert device.library.cuStreamBeginCapture_v2(stream, THREAD_LOCAL) == 0
    assert device.library.cuStreamBeginCapture_v2(stream, THREAD_LOCAL) == 401

    def end() -> None:
        with device.cuda.context():
            codes.append(device.end_capture(stream)[0])

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert codes == [908]
    assert device.end_capture(stream)[0] == 0


# Handles and contexts


def test_handles_are_checked(device: Device) -> None:
    library, stream, event = device.library, device.stream(), device.event()
    assert library.cuStreamSynchronize(0x1234) == INVALID_HANDLE
    assert library.cuStreamSynchronize(event) == INVALID_HANDLE, "an event is no stream"
    assert library.cuEventRecord(event, 0x1234) == INVALID_HANDLE
    assert library.cuStreamDestroy_v2(stream) == 0
    assert library.cuStreamDestroy_v2(stream) == INVALID_HANDLE
    assert library.cuEventDestroy_v2(event) == 0
    assert library.cuEventDestroy_v2(event) == INVALID_HANDLE
    assert device.stream() != stream, "no handle is given twice"


def test_a_stream_of_another_device_is_refused(cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOUBLE_DEVICES", "2")
    device = Device(cuda)
    with cuda.context(0):
        stream = device.stream()
        with cuda.context(1):
            assert device.library.cuStreamSynchronize(stream) == INVALID_HANDLE
        device.synchronize(stream)


def test_without_a_current_context_nothing_works(cuda: CudaDouble) -> None:
    assert cuda.handle.cuInit(0) == 0
    assert cuda.handle.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), 4) == INVALID_CONTEXT
    assert cuda.handle.cuStreamCreate(ctypes.byref(ctypes.c_void_p()), 1) == INVALID_CONTEXT
    with cuda.context():
        pass
    assert cuda.handle.cuStreamSynchronize(None) == INVALID_CONTEXT


def test_what_a_released_context_takes_along_stays_held(cuda: CudaDouble) -> None:
    with cuda.context():
        Device(cuda).allocate(4)
        Device(cuda).stream()
    assert cuda.count("device_allocations") == cuda.count("streams") == 0
    assert cuda.held() == 2


# What tests ask for


def test_a_planned_call_fails_and_the_others_do_not(device: Device) -> None:
    device.cuda.fail("cuMemAlloc_v2", 2, 2)
    codes = [device.library.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), 4) for _ in range(3)]
    assert codes == [0, 2, 0]
    device.cuda.fail("cuMemAlloc_v2", 0, 701)
    codes = [device.library.cuMemAlloc_v2(ctypes.byref(ctypes.c_uint64()), 4) for _ in range(2)]
    assert codes == [701, 701]
    device.cuda.fail("cuMemAlloc_v2", 0, 0)
    device.allocate(4)
    assert device.cuda.count("cuMemAlloc_v2") == 6
    with pytest.raises(KeyError):
        device.cuda.fail("cuMemAllocate")
    with pytest.raises(KeyError):
        device.cuda.count("cuMemAllocate")


def test_a_process_finds_it_as_its_driver_and_this_one_does_not(cuda: CudaDouble) -> None:
    assert cuda.handle.cuInit(0) == 0
    ask = "from vae_edge.engine import gpus; print(gpus.probe().sentence())"
    environment = cuda.environment(DOUBLE_CC="87,86", DOUBLE_NAME="Orin,RTX A2000", DOUBLE_DEVICES=2)
    run = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("Orin (sm_87, 8.0 GiB), RTX A2000 (sm_86, 8.0 GiB); driver for CUDA 13.2")
    environment["DOUBLE_FAIL"] = "cuInit:0:999"
    run = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
    assert "does not start: error 999, unknown error" in run.stdout
    with pytest.raises(OSError, match="libcuda"):
        ctypes.CDLL("libcuda.so.1")


def test_many_threads_work_at_once(device: Device) -> None:
    rounds, threads, wrong = 200, 8, []

    def work(number: int) -> None:
        with device.cuda.context():
            stream, source, target = device.stream(), device.pinned(8), device.allocate(8)
            for k in range(rounds):
                source[:] = (number * rounds + k) % 251
                device.library.cuMemcpyHtoDAsync_v2(target, source.ctypes.data, 8, stream)
                device.library.cuMemcpyDtoHAsync_v2(source.ctypes.data, target, 8, stream)
                device.synchronize(stream)
                if set(source) != {(number * rounds + k) % 251}:
                    wrong.append((number, k))
            device.library.cuStreamDestroy_v2(stream)
            device.library.cuMemFree_v2(target)
            device.library.cuMemFreeHost(source.ctypes.data)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == [] and device.cuda.held() == 0 and device.cuda.faults() == []
