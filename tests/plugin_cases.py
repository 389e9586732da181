"""The network `tiny` as a plugin's kernel, its inputs, and the answers of the operators on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vae_edge_kernels.aot.plugin_operators import TensorType
from vae_edge_kernels.aot.plugins import compile_plugin
from vae_edge_kernels.layout import to_json

import vae_edge.ops.network
from vae_edge.engine.plugins.kernel_file import Kernel, read_kernel
from vae_edge.ops.packing import PackedNetwork, pack

sys.path.append(str(Path(__file__).parents[1] / "bench"))

from synthetic_models import blotches, quantized, untrained

OUTPUTS = ("probabilities", "angle", "score", "uncertainty")
TYPES = {torch.uint8: "u8", torch.int8: "i8", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64"}


def type_of(tensor: Tensor, *, batch: bool) -> TensorType:
    """A tensor's type; with `batch`, its first axis is free."""
    shape: list[int | None] = list(tensor.shape)
    return TensorType(TYPES[tensor.dtype], (None, *shape[1:]) if batch else (*shape,))


@cache
def packed(int8: bool) -> PackedNetwork:
    """The network, whose outputs differ from image to image."""
    model = untrained("tiny")
    return pack(model, quantized(model) if int8 else None)


def network_types(int8: bool, dtype: str = "fp16") -> list[TensorType]:
    """Types of the inputs of its node."""
    made = packed(int8)
    net = made.layout
    image = TensorType(dtype, (None, net.height, net.width, net.channels))
    return [image, *(type_of(each, batch=False) for each in (made.weights, made.params, made.whitening))]


@cache
def network_file(int8: bool, architecture: int, dtype: str = "fp16", quick: bool = False) -> bytes:
    """Its kernel file, with PTX and machine code; if `quick`, with PTX of all variants."""
    layout = {"layout": to_json(packed(int8).layout)}
    types = network_types(int8, dtype)
    return compile_plugin("VaeEdgeNetwork", types, layout, [architecture], variants=quick, cubins=not quick)


def network_kernel(int8: bool, architecture: int, dtype: str = "fp16", quick: bool = False) -> Kernel:
    """The same, read."""
    return read_kernel(network_file(int8, architecture, dtype, quick), "the network's")


def network_inputs(int8: bool, count: int, dtype: str = "fp16") -> tuple[list[np.ndarray], list[Tensor]]:
    """The inputs of the plugin, and the answers of the operators."""
    made = packed(int8)
    net = made.layout
    image = blotches(count, (net.height, net.width), net.channels, seed=1)
    buffers = (made.weights, made.params, made.whitening)
    expected = vae_edge.ops.network.network(image, *buffers, to_json(net), 1)
    pixels = image.numpy() if dtype == "u8" else image.numpy().astype(np.float16)
    return [pixels, *(each.numpy() for each in buffers)], list(expected)


def check_network(answers: Mapping[str, np.ndarray], expected: Sequence[Tensor]) -> None:
    """Tolerances as of the compiled networks in `tests/emulator`."""
    tolerances = {"probabilities": 2e-3, "angle": 5e-3, "score": 4e-2, "uncertainty": 2e-3}
    for name, wanted in zip(OUTPUTS, expected, strict=True):
        rtol = 2e-2 if name == "score" else 0
        torch.testing.assert_close(torch.from_numpy(answers[name]), wanted, rtol=rtol, atol=tolerances[name])
