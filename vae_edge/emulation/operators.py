"""The single operators on the emulated device, on the shapes of a preset's layers: what each launch costs.

The launchers are those of the PyTorch operators, on random tensors: what a kernel costs does not depend on them.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from vae_edge_kernels import KernelError, avg_pool, conv, heads, reconstruction_error, reparameterize, rotate
from vae_edge_kernels.analysis.roofline import DEVICES, LIMITS
from vae_edge_kernels.conv import ConvParams
from vae_edge_kernels.emulator.machine import Device
from vae_edge_kernels.emulator.timing import Estimate, MachineModel, estimate, estimate_full
from vae_edge_kernels.layout import Fc, NetworkLayout, padded

from vae_edge.emulation.launch import Compiled
from vae_edge.emulation.triton_launches import Emulation, emulated

SCALE = 1.0 / 255.0
FLOATS = {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}
STEM_CHANNELS = 16  # a convolution of fewer input channels is a stem
LARGE = (28, 128, 128, 1, 3)  # of `bench/kernel_cases.py`


@dataclass(frozen=True)
class OperatorCase:
    """An operator on some shape.

    Attributes:
        name: kernel and types, as the benchmark names them: "conv_int8".
        shape: in words.
        launch: makes the tensors and launches the kernel once.
        values: that it writes.
        bytes_moved: read and written for an image, each once, without weights: a large batch shares them.
        macs: multiply-accumulates of tensor cores.
    """

    name: str
    shape: str
    launch: Callable[[], None]
    values: int
    bytes_moved: int
    macs: int = 0


@dataclass(frozen=True)
class OperatorProfile:
    """What a case costs on one machine model.

    Attributes:
        case: that was launched.
        compiled: its kernel.
        device: with its counts.
        alone: modelled time of the launch.
        full: modelled time of one program where every multiprocessor is full.
        dram_us: of the bytes moved.
        roofline_us: lower bound on paper, where a large batch shares the weights.
    """

    case: OperatorCase
    compiled: Compiled
    device: Device
    alone: Estimate
    full: Estimate
    dram_us: float
    roofline_us: float

    @property
    def full_us(self) -> float:
        """Modelled time of the launch as a part of one that fills the GPU for long."""
        programs = self.device.grid[0] * self.device.grid[1] * self.device.grid[2]
        return max(self.full.us * programs, self.dram_us)

    @property
    def full_limit(self) -> str:
        """What limits it then."""
        return self.full.limit if self.full_us > self.dram_us else "DRAM"


def profile_case(case: OperatorCase, model: MachineModel) -> OperatorProfile:
    """Launch a case on the emulated device.

    Raises:
        KernelError: whatever the compiler or the emulator finds.
    """
    emulation = Emulation(model.architecture, None, model)
    with emulated(emulation):
        case.launch()
    (launch,) = emulation.launches
    compiled, device = launch.compiled, launch.device
    resident = max(1, round(compiled.stats.occupancy * LIMITS[compiled.architecture].warps / compiled.warps))
    paper = next(each for each in DEVICES if each.architecture == model.architecture)
    rate = paper.int8_macs_per_s if "int8" in case.name or "fp8" in case.name else paper.fp16_macs_per_s
    rate *= 0.5 if "fp32" in case.name else 1.0  # tf32
    dram_us = 1e6 * case.bytes_moved / paper.bytes_per_s
    return OperatorProfile(
        case,
        compiled,
        device,
        estimate(device, resident),
        estimate_full(device, resident),
        dram_us,
        max(dram_us, 1e6 * case.macs / rate),
    )


def operator_cases(layouts: dict[bool, NetworkLayout], pattern: str = "*") -> list[OperatorCase]:
    """The operators at batch 1 on the shapes of a preset's layers, and a large convolution.

    Args:
        layouts: of the preset, in fp16 (False) and int8 (True).
        pattern: of the names.

    Raises:
        KernelError: no name fits.
    """
    found = [case for case in _cases(layouts) if fnmatch.fnmatchcase(case.name, pattern)]
    if not found:
        names = ", ".join(sorted({case.name for case in _cases(layouts)}))
        raise KernelError(f"no operator fits {pattern}; there are {names}")
    return found


def _cases(layouts: dict[bool, NetworkLayout]) -> Iterator[OperatorCase]:
    net = layouts[False]
    shapes = [
        (each.height, each.in_channels, each.out_channels, each.stride, each.kernel_size)
        for each in net.layers
        if each.height == each.width
    ]
    shapes = list(dict.fromkeys([*shapes, LARGE]))
    for kernel in ("fp16", "int8"):
        yield from (_stem(shape, kernel) for shape in shapes if shape[1] < STEM_CHANNELS)
    for kernel in ("fp16", "int8", "fp32"):
        yield from (_conv(shape, kernel) for shape in shapes if shape[1] >= STEM_CHANNELS)
    image = (net.height, net.width, net.channels)
    for shape in dict.fromkeys((image, (64, 64, 3))):
        yield from (_rotate(shape, output, False) for output in ("fp16", "fp32", "int8"))
    yield _rotate(image, "fp16", True)
    for kernel in ("fp16", "fp32"):
        yield _reparameterize(256, net.latent, kernel)
    feature = next(each for each in net.layers if each.is_feature_layer)
    for kernel in ("fp16", "int8"):
        yield _avg_pool(feature.out_height, feature.out_channels, kernel)
    yield _reconstruction_error(net)
    for int8, layout in layouts.items():
        if layout.bins:
            yield _orientation_head(layout, "int8" if int8 else "fp16")
        yield _content_head(layout, "int8" if int8 else "fp16")


def _random(shape: tuple[int, ...], kernel: str) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    if kernel in ("int8", "u8"):
        low, high = (-127, 128) if kernel == "int8" else (0, 256)
        dtype = torch.int8 if kernel == "int8" else torch.uint8
        return torch.randint(low, high, shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator).to(FLOATS[kernel])


def _empty(shape: tuple[int, ...], kernel: str) -> Tensor:
    return torch.zeros(shape, dtype=torch.int8 if kernel == "int8" else FLOATS[kernel])


def _case(
    name: str, shape: str, launch: Callable[..., None], read: list[Tensor], written: list[Tensor], macs: int = 0
) -> OperatorCase:
    moved = sum(each.nbytes for each in (*read, *written))
    return OperatorCase(name, shape, launch, sum(each.numel() for each in written), moved, macs)


def _sizes(shape: tuple[int, int, int, int, int]) -> tuple[str, ConvParams, int, int]:
    side, inputs, outputs, stride, taps = shape
    out = -(-side // stride)
    words = f"{side}x{side}x{inputs} to {outputs}, {taps}x{taps}{' / 2' if stride == 2 else ''}"
    return words, ConvParams(taps, taps, stride, taps // 2, taps // 2), out, out * out * outputs * taps * taps * inputs


def _stem(shape: tuple[int, int, int, int, int], kernel: str) -> OperatorCase:
    words, params, out, macs = _sizes(shape)
    side, inputs, outputs, _, taps = shape
    x, bias, y = (
        _random((1, side, side, inputs), "u8"),
        _random((outputs,), "fp32"),
        _empty((1, out, out, outputs), kernel),
    )
    if kernel == "int8":
        w, scale = _random((outputs, taps, taps, inputs), kernel), torch.full((outputs,), 0.01)

        def launch() -> None:
            conv.stem_conv_int8_forward(x, w, scale, bias, y, params, True, 0.498)
    else:
        w = _random((taps, taps, inputs, outputs), kernel)

        def launch() -> None:
            conv.stem_conv_forward(x, w, bias, y, params, True, SCALE)

    return _case(f"stem_conv_{kernel}", words, launch, [x], [y], macs)


def _conv(shape: tuple[int, int, int, int, int], kernel: str) -> OperatorCase:
    words, params, out, macs = _sizes(shape)
    side, inputs, outputs, _, taps = shape
    x, bias = _random((1, side, side, inputs), kernel), _random((outputs,), "fp32")
    y = _empty((1, out, out, outputs), kernel)
    if kernel == "int8":
        w, scale = _random((taps, taps, outputs, inputs), kernel), torch.full((outputs,), 0.001)

        def launch() -> None:
            conv.conv_int8_forward(x, w, scale, bias, None, y, params, True, 1.0)
    else:
        w = _random((taps, taps, inputs, outputs), kernel)

        def launch() -> None:
            conv.conv_forward(x, w, bias, None, y, params, True)

    return _case(f"conv_{kernel}", words, launch, [x], [y], macs)


def _rotate(shape: tuple[int, int, int], output: str, masked: bool) -> OperatorCase:
    x, angle = _random((1, *shape), "u8"), torch.tensor([0.5])
    y, words = _empty((1, *shape), output), "x".join(map(str, shape))
    cos, sin = angle.cos(), angle.sin()

    def launch() -> None:
        rotate.forward(x, cos, sin, y, SCALE, 0.0, 127.0, masked, 0.0)

    return _case(f"rotate_u8_{output}{'_masked' if masked else ''}", words, launch, [x], [y])


def _reparameterize(rows: int, columns: int, kernel: str) -> OperatorCase:
    mu, logvar = _random((rows, columns), kernel), _random((rows, columns), kernel)
    z, kl = _empty((rows, columns), kernel), torch.zeros(rows)

    def launch() -> None:
        reparameterize.forward(mu, logvar, z, kl, 7, 0)

    return _case(f"reparameterize_{kernel}", f"{rows}x{columns}", launch, [mu, logvar], [z])


def _avg_pool(side: int, channels: int, kernel: str) -> OperatorCase:
    x, y = _random((1, side, side, channels), kernel), torch.zeros(1, channels)

    def launch() -> None:
        avg_pool.forward(x, y, 1.0)

    return _case(f"avg_pool_{kernel}", f"{side}x{side}x{channels}", launch, [x], [y])


def _reconstruction_error(net: NetworkLayout) -> OperatorCase:
    side, block = net.layers[-1].out_height, net.height // net.layers[-1].out_height
    decoded = _random((1, side, side, net.channels * block**2), "fp16")
    upright = _random((1, side * block, side * block, net.channels), "fp16")
    score, measure, total = torch.randn(1, 2), torch.randn(1), torch.zeros(1)

    def launch() -> None:
        reconstruction_error.forward(decoded, upright, score, measure, total, block)

    words = "x".join(map(str, upright.shape[1:]))
    return _case("reconstruction_error_fp16", words, launch, [decoded, upright], [total])


def _head_inputs(net: NetworkLayout, kernel: str) -> tuple[Tensor, Tensor, Tensor]:
    weights = _random((net.weights_size,), kernel)
    params = torch.rand(net.params_size, generator=torch.Generator().manual_seed(0)) / 16
    clusters, components = net.score.clusters, net.score.components
    return weights, params, torch.rand(clusters * components * padded(components)).half()


def _orientation_head(net: NetworkLayout, kernel: str) -> OperatorCase:
    weights, params, _ = _head_inputs(net, kernel)
    linear = net.linears[Fc.ORIENTATION]
    assert linear is not None
    features = _random((1, linear.in_features), kernel)
    logits, orientation = torch.zeros(1, net.classes), torch.zeros(1, 6)

    def launch() -> None:
        heads.orientation_forward(net, features, weights, params, logits, orientation)

    words = f"{linear.in_features} features"
    return _case(f"orientation_head_{kernel}", words, launch, [features], [logits, orientation])


def _content_head(net: NetworkLayout, kernel: str) -> OperatorCase:
    weights, params, whitening = _head_inputs(net, kernel)
    linear = net.linears[Fc.MU]
    assert linear is not None
    features = _random((1, linear.in_features), kernel)
    means, others = torch.rand(1, max(1, net.orientation_feature_channels)), torch.rand(1, net.feature_channels)
    logits, orientation = torch.rand(1, net.classes), torch.rand(1, 6) / 2
    probabilities, code, score = (
        torch.zeros(1, net.classes),
        torch.zeros(1, net.latent + net.classes),
        torch.zeros(1, 2),
    )

    def launch() -> None:
        heads.content_forward(
            net, features, means, others, logits, orientation, weights, params, whitening, probabilities, code, score
        )

    written = [probabilities, code, score]
    return _case(f"content_head_{kernel}", f"{linear.in_features} features", launch, [features], written)
