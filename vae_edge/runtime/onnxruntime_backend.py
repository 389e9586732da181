"""ONNX Runtime, on the CPU or through its providers for CUDA and TensorRT: one session, and one I/O binding for each
thread and batch size, which later calls reuse.

The providers for GPUs are not verified on hardware.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from vae_edge.bundle import ModelEntry
from vae_edge.engine import gpus
from vae_edge.environment import available_cpus
from vae_edge.errors import BackendError
from vae_edge.files import read_bytes
from vae_edge.runtime.backends import LoadOptions, OpenedModel, TensorInfo, backend_version, read_model
from vae_edge.runtime.buffers import BufferCache, refuse_closed
from vae_edge.spec import MAX_MODEL_BYTES, output_name

log = logging.getLogger(__name__)


def session_options(threads: int) -> ort.SessionOptions:
    """The options of every session of ours."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    if threads > 1 and threads > available_cpus():  # a thread that spins takes the CPU from the one it waits for
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


class OnnxRuntimeBackend:
    """A model in ONNX Runtime's CPU provider."""

    device = ""

    def __init__(self, file: Path, entry: ModelEntry, options: LoadOptions) -> None:
        """Load `file`; raises what `read_model` raises, and whatever ONNX Runtime raises for a model it refuses."""
        self._open(file, entry, session_options(options.threads), ["CPUExecutionProvider"])

    def _open(self, file: Path, entry: ModelEntry, options: ort.SessionOptions, providers: list[Any]) -> None:
        if entry.precision == "int8" and entry.target == "any":
            log.info("%s is the int8 file for TensorRT, slow here: `vae-edge quantize` adds the files for CPUs.", file)
            options.add_session_config_entry("session.x64quantprecision", "1")  # kernels that do not saturate
        # At full optimization this rewrite makes fp8 graphs silently wrong.
        disabled = ["ReluQuantRewrite"] if entry.precision == "fp8" else None

        self.session = ort.InferenceSession(
            read_model(file, entry), options, providers=providers, disabled_optimizers=disabled
        )
        self.inputs = tuple(TensorInfo(t.name, t.shape, t.type) for t in self.session.get_inputs())
        self.outputs = tuple(TensorInfo(output_name(t.name), t.shape, t.type) for t in self.session.get_outputs())
        self.version = backend_version("onnxruntime")
        self._buffers = BufferCache(self.inputs, self.outputs, self._bind)

    def infer(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run uint8 [N, S, S, C]. The arrays, in the order of `outputs`, are valid until this thread's next call."""
        buffers = self._buffers.get(len(image))
        buffers.image[...] = image
        buffers.run()
        return buffers.outputs

    def warm_up(self, batch: int) -> None:
        """Bind this thread's buffers of a batch size."""
        self._buffers.get(batch)

    def close(self) -> None:
        """Release the session and all bindings."""
        self._buffers = BufferCache(self.inputs, self.outputs, refuse_closed)
        self.session = None

    @staticmethod
    def inner_tensors(model: OpenedModel, tensors: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
        """Tensors inside the graph by name, for images uint8 [N, S, S, C]."""
        content = _with_outputs(read_bytes(model.file, MAX_MODEL_BYTES), tensors)
        session = ort.InferenceSession(
            content, session_options(model.options.threads), providers=["CPUExecutionProvider"]
        )
        values = session.run(list(tensors), {session.get_inputs()[0].name: images})
        return dict(zip(tensors, values, strict=True))

    def _bind(self, image: np.ndarray, outputs: tuple[np.ndarray, ...]) -> tuple[Callable[[], object], object]:
        session, binding = self.session, self.session.io_binding()
        binding.bind_input(self.inputs[0].name, "cpu", 0, image.dtype, image.shape, image.ctypes.data)
        for output, array in zip(session.get_outputs(), outputs, strict=True):
            binding.bind_output(output.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

        def run() -> None:
            session.run_with_iobinding(binding)

        return run, binding


class OnnxRuntimeCudaBackend(OnnxRuntimeBackend):
    """A model in ONNX Runtime's CUDA provider; arrays stay in the host's memory, and the provider copies them."""

    provider = "CUDAExecutionProvider"

    def __init__(self, file: Path, entry: ModelEntry, options: LoadOptions) -> None:
        """As `OnnxRuntimeBackend`.

        Raises:
            BackendError: the provider cannot be used here; ONNX Runtime would silently compute on the processor.
        """
        self.device = f"{options.device} of {gpus.probe().sentence()}"
        settings = {"device_id": str(options.device), **self.settings()}
        self._open(file, entry, session_options(options.threads), [(self.provider, settings), "CPUExecutionProvider"])
        used = self.session.get_providers()
        if self.provider not in used:
            raise BackendError(
                f"ONNX Runtime {self.version} cannot use its {self.provider} here and took {', '.join(used)} instead: "
                "its CUDA, cuDNN or TensorRT libraries are missing or of another version; see docs/engines.md."
            )

    @staticmethod
    def settings() -> dict[str, str]:
        """The provider's options besides the device."""
        return {"use_tf32": "0"}

    @staticmethod
    def inner_tensors(model: OpenedModel, tensors: Sequence[str], images: np.ndarray) -> dict[str, np.ndarray]:
        """Tensors inside the graph by name, for images uint8 [N, S, S, C]."""
        content = _with_outputs(read_bytes(model.file, MAX_MODEL_BYTES), tensors)
        providers = [("CUDAExecutionProvider", {"device_id": str(model.options.device), "use_tf32": "0"})]
        session = ort.InferenceSession(content, session_options(model.options.threads), providers=providers)
        values = session.run(list(tensors), {session.get_inputs()[0].name: images})
        return dict(zip(tensors, values, strict=True))


class OnnxRuntimeTensorRTBackend(OnnxRuntimeCudaBackend):
    """A model in ONNX Runtime's TensorRT provider, which builds an engine while it loads: that takes seconds."""

    provider = "TensorrtExecutionProvider"

    @staticmethod
    def settings() -> dict[str, str]:
        """The provider's options besides the device."""
        return {}


def _with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """A serialized ONNX model with more outputs, without the package onnx.

    Protocol Buffers merge messages whose bytes follow one another: what is appended is a ModelProto (graph is field 7)
    whose GraphProto (output is field 12) has the names alone (field 1 of ValueInfoProto); ONNX Runtime infers types.
    """

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2]) + _varint(len(content)) + content

    return model + field(7, b"".join(field(12, field(1, name.encode())) for name in names))


def _varint(number: int) -> bytes:
    head = b""
    while number > 0x7F:
        head += bytes([number & 0x7F | 0x80])
        number >>= 7
    return head + bytes([number])
