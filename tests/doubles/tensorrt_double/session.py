"""Running an engine's ONNX file on the CPU, with what is wrong with it on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from .engine_file import Description

# dtype of TensorRT: of NumPy
NUMPY = {
    "FLOAT": np.float32, "HALF": np.float16, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_,
    "UINT8": np.uint8,
}  # fmt: skip
RUNTIME_PLANTS = ("swapped_outputs", "reversed_batch", "color_order", "fp16")


class Session:
    """An ONNX file in ONNX Runtime, as the double's engines run it. Safe from several threads."""

    def __init__(self, description: Description, onnx_model: bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", "1")  # int8 kernels that do not saturate
        # At full optimization this rewrite makes fp8 graphs silently wrong.
        disabled = ["ReluQuantRewrite"] if description.precision == "fp8" else None
        self._session = ort.InferenceSession(
            onnx_model, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
        self._outputs = [each["name"] for each in description.io if each["mode"] == "OUTPUT"]
        self._plants = description.plants

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs for the inputs, by name."""
        if "reversed_batch" in self._plants:
            inputs = {name: np.ascontiguousarray(array[::-1]) for name, array in inputs.items()}
        if "color_order" in self._plants:
            inputs = {name: np.ascontiguousarray(array[..., ::-1]) for name, array in inputs.items()}
        values = dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))
        if "swapped_outputs" in self._plants:
            first, second = same_shape(values)
            values[first], values[second] = values[second], values[first]
        if "fp16" in self._plants:
            values = {name: _rounded(array) for name, array in values.items()}
        return values


def same_shape(values: dict[str, Any]) -> tuple[str, str]:
    """The first two outputs of the same type and shape.

    Raises:
        ValueError: there are no such two.
    """
    names = list(values)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if (values[first].dtype, values[first].shape) == (values[second].dtype, values[second].shape):
                return first, second
    raise ValueError("This engine has no two outputs of the same type and shape.")


def _rounded(array: np.ndarray) -> np.ndarray:
    """As an engine that computed in fp16 throughout gives it: three digits, and an error that depends on the place."""
    if array.dtype != np.float32:
        return array
    wobble = 1 + 2e-3 * np.sin(np.arange(array.size, dtype=np.float32)).reshape(array.shape)
    return (array * wobble).astype(np.float16).astype(np.float32)


def other_last_bits(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same outputs with the last bits of each number moved, as another kernel gives them."""
    return {
        name: array * np.float32(1 + 2**-23) if array.dtype == np.float32 else array for name, array in values.items()
    }
