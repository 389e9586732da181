"""Running an engine of the double by hand, call by call, for the doubles' own tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from doubles.device import Device
from doubles.loading import TensorRTDouble
from doubles.small_graph import small_graph

MODEL = small_graph()


def engine(double: TensorRTDouble, model: bytes = MODEL, **options: Any) -> bytes:
    """An engine for the double's device, an Orin. TensorRT-RTX has no such target: it gets all of them."""
    return double.make_engine(model, **{"capabilities": () if double.kind == "tensorrt_rtx" else (87,), **options})


def truth(model: bytes, batch: np.ndarray) -> dict[str, np.ndarray]:
    """What ONNX Runtime answers, asked directly."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": batch}), strict=True))


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same outputs with the same values, but for rounding."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def clean(double: TensorRTDouble, device: Device) -> bool:
    """Whether nothing was done wrong."""
    return double.faults() == [] and device.cuda.faults() == []


class Running:
    """An engine with one context, one stream, and device memory for the largest batch.

    Attributes:
        log: the errors that TensorRT told its logger.
    """

    def __init__(self, device: Device, double: TensorRTDouble, plan: bytes, config: Any = None) -> None:
        self.device, self.double, trt = device, double, double.module
        self.log: list[str] = []
        self.runtime = trt.Runtime(make_logger(trt, self.log))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        assert self.engine is not None, self.log
        made = config(self.engine) if config is not None else None
        self.context = self.engine.create_execution_context(*([made] if made is not None else []))
        assert self.context is not None, self.log
        self.names = [self.engine.get_tensor_name(k) for k in range(self.engine.num_io_tensors)]
        self.stream = device.stream()
        largest = self.engine.get_tensor_profile_shape("image", 0)[2][0]
        self.memory = {name: device.allocate(self.size(name, largest)) for name in self.names}
        for name, address in self.memory.items():
            assert self.context.set_tensor_address(name, address)

    def dtype(self, name: str) -> Any:
        """NumPy's type of a tensor."""
        return np.dtype(self.double.module.nptype(self.engine.get_tensor_dtype(name)))

    def shape(self, name: str, batch: int) -> tuple[int, ...]:
        """The shape of a tensor for a batch."""
        return tuple(batch if side == -1 else side for side in self.engine.get_tensor_shape(name))

    def size(self, name: str, batch: int) -> int:
        """Bytes of a tensor for a batch."""
        return int(np.prod(self.shape(name, batch))) * int(self.dtype(name).itemsize)

    def upload(self, images: np.ndarray) -> None:
        """Put images into the device's memory."""
        array = np.ascontiguousarray(images)
        code = self.device.library.cuMemcpyHtoD_v2(self.memory["image"], array.ctypes.data, array.nbytes)
        assert code == 0, code

    def read(self, batch: int) -> dict[str, np.ndarray]:
        """The outputs in the device's memory."""
        return {
            name: self.device.download(self.memory[name], self.size(name, batch))
            .view(self.dtype(name))
            .reshape(self.shape(name, batch))
            for name in self.names[1:]
        }

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Everything that one call needs, done right."""
        self.upload(images)
        assert self.context.set_input_shape("image", images.shape), self.log
        assert self.context.infer_shapes() == []
        assert self.context.execute_async_v3(self.stream), self.log
        self.device.synchronize(self.stream)
        return self.read(len(images))

    def capture(self) -> int:
        """The graph exec of one enqueue."""
        assert self.device.library.cuStreamBeginCapture_v2(self.stream, 1) == 0
        assert self.context.execute_async_v3(self.stream), self.log
        code, graph = self.device.end_capture(self.stream)
        assert code == 0
        return self.device.instantiate(graph)

    def replay(self, ready: int) -> None:
        """Launch a graph exec and wait for it."""
        assert self.device.library.cuGraphLaunch(ready, self.stream) == 0
        self.device.synchronize(self.stream)


def make_logger(trt: Any, log: list[str]) -> Any:
    """A logger that keeps the errors."""

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity.name.endswith("ERROR"):
                log.append(msg)

    return Collector()


def in_thread(work: Callable[[], None]) -> None:
    """Do something in another thread, and wait."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
