"""The double of TensorRT runs engines, and refuses what is no engine for it, in TensorRT's words, in all versions."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from doubles.device import Device
from doubles.loading import TensorRTDouble
from doubles.running import MODEL, Running, assert_close, clean, engine, make_logger, truth
from doubles.small_graph import SIZE, images, small_graph

Use = Callable[[str], TensorRTDouble]


# What works


def test_an_engine_gives_the_answers_of_its_file(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    for count in (1, 8, 3):
        assert_close(running.infer(images(count)), truth(MODEL, images(count)))
    assert clean(double, device)


def test_an_int8_engine_and_a_static_one_run_too(double: TensorRTDouble, device: Device) -> None:
    quantized = small_graph(quantized=True)
    assert_close(Running(device, double, engine(double, quantized)).infer(images(4)), truth(quantized, images(4)))
    static = small_graph(batch=2)
    running = Running(device, double, engine(double, static))
    assert tuple(running.context.get_tensor_shape("probabilities")) == (2, 3), "known from the start"
    running.upload(images(2))
    assert running.context.execute_async_v3(running.stream)
    device.synchronize(running.stream)
    assert_close(running.read(2), truth(static, images(2)))
    assert clean(double, device)


def test_a_graph_replays_what_was_captured(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(2, seed=1))
    ready = running.capture()
    running.upload(images(2, seed=2))
    running.replay(ready)
    assert_close(running.read(2), truth(MODEL, images(2, seed=2)))
    assert clean(double, device)


def test_nothing_is_done_before_the_synchronization(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(1, seed=1))
    before = running.read(1)
    running.upload(images(1, seed=2))
    assert running.context.execute_async_v3(running.stream)
    assert_close(running.read(1), before)
    device.synchronize(running.stream)
    assert_close(running.read(1), truth(MODEL, images(1, seed=2)))


def test_everything_is_given_back(double: TensorRTDouble, device: Device) -> None:
    for _ in range(2):
        running = Running(device, double, engine(double))
        running.infer(images(1))
        ready = running.capture()
        library = device.library
        assert library.cuGraphExecDestroy(ready) == 0
        for address in running.memory.values():
            assert library.cuMemFree_v2(address) == 0
        assert library.cuStreamDestroy_v2(running.stream) == 0
        del running
    assert device.cuda.count("device_allocations") == 0 and device.cuda.held() == 2, "the two graphs alone"
    assert double.part("state").calls_kept() == 0 and clean(double, device)


def test_mapped_memory_needs_no_copies(double: TensorRTDouble, device: Device) -> None:
    running = Running(device, double, engine(double))
    running.infer(images(2))
    host = {name: device.pinned(running.size(name, 2)) for name in running.names}
    for name, array in host.items():
        assert running.context.set_tensor_address(name, device.mapped(array.ctypes.data))
    host["image"][:] = images(2, seed=3).reshape(-1)
    assert running.context.execute_async_v3(running.stream)
    device.synchronize(running.stream)
    np.testing.assert_allclose(host["angle"].view(np.float32), truth(MODEL, images(2, seed=3))["angle"], rtol=1e-5)
    assert clean(double, device)


# Engines that are refused


def refusal(double: TensorRTDouble, plan: bytes, **settings: Any) -> str:
    log: list[str] = []
    runtime = double.module.Runtime(make_logger(double.module, log))
    for name, value in settings.items():
        setattr(runtime, name, value)
    assert runtime.deserialize_cuda_engine(plan) is None
    assert len(log) == 1
    return log[0]


@pytest.mark.parametrize(
    "damage", ["not an engine", "short", "truncated", "longer", "flipped", "flipped in the header"]
)
def test_a_file_that_is_no_whole_engine_is_refused(double: TensorRTDouble, damage: str) -> None:
    plan = engine(double)
    other = bytearray(plan)
    other[40 if damage == "flipped in the header" else len(plan) // 2] ^= 1
    wrong = {"not an engine": MODEL, "short": b"f", "truncated": plan[:-1], "longer": plan + b"\0"}.get(
        damage, bytes(other)
    )
    assert "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion" in refusal(
        double, wrong
    )


def test_every_flipped_byte_is_found(use_tensorrt: Use, device: Device) -> None:
    double = use_tensorrt("10.3")
    plan = engine(double)
    runtime = double.module.Runtime(make_logger(double.module, []))
    for place in np.random.default_rng(0).choice(len(plan), 60, replace=False):
        wrong = bytearray(plan)
        wrong[place] ^= 1 << int(place) % 8
        assert runtime.deserialize_cuda_engine(bytes(wrong)) is None, place


def test_an_engine_of_another_version_is_refused_in_the_words_of_this_one(double: TensorRTDouble) -> None:
    other = "10.13" if double.name == "10.3" else "10.3"
    said = refusal(double, engine(double, version="1.6.1.120" if double.name == "rtx" else other))
    if double.name == "10.3":
        assert re.search(
            r"Version tag does not match. Note: Current Version: 239, Serialized Engine Version: 243\)$", said
        )
    else:
        assert f"expecting library version {double.version} got " in said


def test_an_engine_of_the_other_flavour_is_refused(double: TensorRTDouble, use_tensorrt: Use) -> None:
    other = use_tensorrt("10.3" if double.name == "rtx" else "rtx")
    assert "magicTag == kEXPECTED_MAGIC_TAG failed" in refusal(double, engine(other))


def test_an_engine_for_another_capability_is_refused(double: TensorRTDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(double, engine(double, capabilities=(86,)))
    assert "generated on an incompatible device, expecting compute 8.7 got compute 8.6, please rebuild" in said
    monkeypatch.setenv("DOUBLE_CC", "86")
    assert double.module.Runtime(make_logger(double.module, [])).deserialize_cuda_engine(
        engine(double, capabilities=(86,))
    )


def test_an_engine_for_another_system_is_refused(double: TensorRTDouble) -> None:
    assert "Platform specific tag mismatch" in refusal(double, engine(double, platform="windows"))


def test_a_version_compatible_engine_needs_the_permission_for_host_code(use_tensorrt: Use, device: Device) -> None:
    older = engine(use_tensorrt("10.13"), version_compatible=True)
    double = use_tensorrt("11.4")
    assert "engineHostCodeAllowed is false" in refusal(double, older)
    runtime = double.module.Runtime(make_logger(double.module, []))
    runtime.engine_host_code_allowed = True
    assert runtime.deserialize_cuda_engine(older) is not None
    newer = engine(double, version_compatible=True)
    assert "expecting library version" in refusal(use_tensorrt("10.13"), newer, engine_host_code_allowed=True)


def test_without_a_driver_or_with_an_old_one_nothing_runs(
    double: TensorRTDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    plan = engine(double)
    for what in ("old", "none"):
        if what == "old":
            monkeypatch.setenv("DOUBLE_DRIVER_VERSION", "11080")
        else:
            double.state.cuda_library = "libcuda-that-is-not-there.so.1"
        if double.name == "rtx":  # which builds without a driver, and whose runtime waits for the first engine
            runtime = double.module.Runtime(make_logger(double.module, log))
            assert runtime.deserialize_cuda_engine(plan) is None
            assert "cudaError 35: CUDA driver version is insufficient" in log[-1]
            assert runtime.get_engine_validity(plan) == (double.module.EngineValidity.INVALID, 0)
        else:
            with pytest.raises(TypeError, match="factory function returned nullptr"):
                double.module.Runtime(make_logger(double.module, log))
            assert "CUDA initialization failure with error: 35" in log[-1]


def test_a_second_logger_is_warned_of_and_used_nevertheless(double: TensorRTDouble, device: Device) -> None:
    trt, said = double.module, []

    class Logger(trt.ILogger):
        def __init__(self, name: str) -> None:
            trt.ILogger.__init__(self)
            self.name = name

        def log(self, severity: Any, msg: str) -> None:
            said.append((self.name, severity.name, msg.partition(" The logger")[0]))

    first = trt.Runtime(Logger("a"))
    second = trt.Runtime(Logger("b"))
    assert said == [("b", "WARNING", "WARNING")]
    second.deserialize_cuda_engine(b"nothing")
    assert [name for name, severity, _ in said if severity == "ERROR"] == ["b"]
    del first, second, said[:]
    assert trt.Runtime(Logger("c")) is not None and said == []


def test_rtx_tells_the_validity_from_the_header_alone(
    use_tensorrt: Use, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = use_tensorrt("rtx")
    trt = double.module
    runtime = trt.Runtime(make_logger(trt, []))

    def validity(plan: bytes) -> tuple[str, list[str]]:
        valid, bits = runtime.get_engine_validity(plan[: runtime.engine_header_size])
        return valid.name, [n for n, v in trt.EngineInvalidityDiagnostics.__members__.items() if bits & v.value]

    assert validity(engine(double)) == ("VALID", [])
    monkeypatch.setenv("DOUBLE_CC", "86")
    assert validity(engine(double, capabilities=(86, 89))) == ("VALID", [])
    assert validity(engine(double, capabilities=(120,))) == ("INVALID", ["UNSUPPORTED_CC"])
    assert validity(engine(double, capabilities=(86,), version="1.6.1.120")) == ("INVALID", ["VERSION_MISMATCH"])
    assert validity(MODEL) == validity(b"") == ("INVALID", ["MALFORMED_ENGINE"])


# TensorRT-RTX


def test_a_lazy_kernel_differs_in_the_last_bits_at_first(use_tensorrt: Use, device: Device) -> None:
    double = use_tensorrt("rtx")
    trt = double.module

    def config(strategy: Any) -> Callable[[Any], Any]:
        def make(one: Any) -> Any:
            made = one.create_runtime_config()
            made.dynamic_shapes_kernel_specialization_strategy = strategy
            return made

        return make

    strategies = trt.DynamicShapesKernelSpecializationStrategy
    lazy = Running(device, double, engine(double), config(strategies.LAZY))
    eager = Running(device, double, engine(double), config(strategies.EAGER))
    expected = eager.infer(images(2))["score"]
    found = [lazy.infer(images(2))["score"] for _ in range(double.state.lazy_calls + 1)]
    assert not (found[0] == expected).any() and (found[-1] == expected).all()
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_a_runtime_cache_saves_the_compilation_and_is_refused_elsewhere(
    use_tensorrt: Use, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = use_tensorrt("rtx")
    trt, plan = double.module, engine(double)
    runtime = trt.Runtime(make_logger(trt, []))
    one = runtime.deserialize_cuda_engine(plan)

    def make_context(saved: bytes) -> tuple[bool, Any, Any]:
        config = one.create_runtime_config()
        cache = config.create_runtime_cache()
        taken = cache.deserialize(saved) if saved else False
        assert config.set_runtime_cache(cache) is True
        return taken, one.create_execution_context(config), cache

    _, context, cache = make_context(b"")
    saved = bytes(cache.serialize())
    assert double.state.counts["jit_compilations"] == 1
    taken, again, second = make_context(saved)
    assert taken and double.state.counts["jit_compilations"] == 1
    for wrong in (b"", b"no cache", saved[:-3], json.dumps([1]).encode()):
        assert second.deserialize(wrong) is False
    monkeypatch.setenv("DOUBLE_CC", "86")
    assert second.deserialize(saved) is False, "another GPU"
    monkeypatch.delenv("DOUBLE_CC")
    del cache
    context.set_input_shape("image", (1, SIZE, SIZE, 1))
    context = None
    assert "A runtime cache was destroyed before an execution context" in double.faults()[0]
    del again, second


def test_a_graph_that_rtx_captures_itself_leaves_the_stream_to_it(use_tensorrt: Use, device: Device) -> None:
    double = use_tensorrt("rtx")

    def config(one: Any) -> Any:
        made = one.create_runtime_config()
        made.cuda_graph_strategy = double.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return made

    running = Running(device, double, engine(double), config)
    running.infer(images(1))
    assert running.context.is_stream_capturable(running.stream) is False
    assert device.library.cuStreamBeginCapture_v2(running.stream, 1) == 0
    assert running.context.execute_async_v3(running.stream) is False
    assert device.end_capture(running.stream)[0] == 901
    ours = Running(device, double, engine(double))
    assert ours.context.is_stream_capturable(ours.stream) is False
    ours.infer(images(1))
    assert ours.context.is_stream_capturable(ours.stream) is True


# Wrong on purpose, and free of cost


@pytest.mark.parametrize(
    ("kind", "channels", "quantized"),
    [
        ("weight", 1, False), ("weight", 1, True), ("nearest", 1, False), ("swapped_outputs", 1, False),
        ("reversed_batch", 1, False), ("color_order", 3, False), ("fp32", 1, True), ("fp16", 1, False),
    ],
)  # fmt: skip
def test_a_planted_engine_loads_and_answers_wrong(
    double: TensorRTDouble, device: Device, kind: str, channels: int, quantized: bool
) -> None:
    model = small_graph(channels, quantized)
    plan = double.plant(engine(double, model), kind)
    found, expected = Running(device, double, plan).infer(images(4, channels)), truth(model, images(4, channels))
    gap = max(float(np.abs(found[name] - expected[name]).max()) for name in expected)
    assert gap > (1e-4 if kind in ("fp32", "fp16") else 1e-2)
    assert clean(double, device)


def test_what_cannot_be_planted_is_refused(double: TensorRTDouble) -> None:
    for kind, words in (("color_order", "three channels"), ("fp32", "no pair"), ("bias", "unknown")):
        with pytest.raises(ValueError, match=words):
            double.plant(engine(double), kind)


def test_a_free_engine_answers_the_first_time_and_then_costs_nothing(double: TensorRTDouble, device: Device) -> None:
    double.state.free_engines = True
    running = Running(device, double, engine(double))
    first = running.infer(images(1, seed=1))
    assert_close(first, truth(MODEL, images(1, seed=1)))
    assert_close(running.infer(images(1, seed=2)), first)
    assert double.part("state").calls_kept() == 0
    double.state.engine_cost_us = lambda batch: 20_000 * batch
    start = time.perf_counter()
    running.infer(images(1))
    assert time.perf_counter() - start >= 0.02


def test_the_inspector_writes_as_its_version_does(double: TensorRTDouble, device: Device) -> None:
    tensor = {"Name": "x", "Dimensions": [1], "Datatype": "Int8", "Format": "(Linear) Row major linear format"}
    layer = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [tensor], "Outputs": [tensor]}
    one = Running(device, double, engine(double, layers=[layer])).engine
    formats = double.module.LayerInformationFormat
    told = json.loads(one.create_engine_inspector().get_engine_information(formats.JSON))
    old = double.name in ("10.3", "10.13")
    assert told["Bindings" if old else "I/O Tensors"] == ["image", "probabilities", "angle", "score"]
    assert ("Format/Datatype" in told["Layers"][0]["Inputs"][0]) == old
    assert ("Datatype" in told["Layers"][0]["Inputs"][0]) == (not old)
    assert one.create_engine_inspector().get_layer_information(0, formats.ONELINE) == "conv"
