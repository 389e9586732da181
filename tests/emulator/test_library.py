"""Every kernel of the native library, executed for every GPU, against the operators' references on the CPU.

A kernel gets batches of none, one and three images, sizes that fill no tile, and memory that is aligned as badly as it
allows: 16 bytes where it is promised that, else a single element. Where the emulator does not know an instruction the
kernel is reported as an expected failure, by name and with the instruction: it is unchecked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor
from vae_edge_kernels.aot.worker import kernel_specs
from vae_edge_kernels.config import KernelSpec
from vae_edge_kernels.emulator.errors import MemoryFault, PtxError

from vae_edge.emulation.launch import Compiled, compile_kernel, run
from vae_edge.ops import conv, heads, reparameterize
from vae_edge.ops.rotate import rotate_pixels

ARCHITECTURES = (87, 90, 110, 120)
BATCHES = (0, 1, 3)
TYPES = {
    "*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16, "*fp8e4nv": torch.float8_e4m3fn,
    "*i8": torch.int8, "*u8": torch.uint8,
}  # fmt: skip
TOLERANCES = {  # of what is written, absolute and relative; float32 factors are tf32 on tensor cores
    torch.float32: 8e-3, torch.float16: 8e-3, torch.bfloat16: 8e-2, torch.float8_e4m3fn: 7e-2, torch.int8: 0.0,
}  # fmt: skip
SEED = 2**40 + 12345  # of the noise


@dataclass(frozen=True)
class Case:
    """A launch: the grid, the arguments by name, and what is right for those that are written, with the tolerance."""

    grid: tuple[int, int, int]
    arguments: dict[str, Tensor | int | float]
    expected: dict[str, tuple[Tensor, float]]


def made(spec: KernelSpec, name: str, *shape: int) -> Tensor:
    """Random numbers of an argument's type."""
    dtype = TYPES[spec.types[name]]
    generator = torch.Generator().manual_seed(sum(name.encode()))
    if dtype in (torch.int8, torch.uint8):
        low = -128 if dtype == torch.int8 else 0
        return torch.randint(low, low + 256, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def tiles(size: int, block: int) -> int:
    """At least one: a launch without work must do nothing."""
    return max(1, -(-size // block))


# ---- A case of each operator ----------------------------------------------------------------------------------------


def convolution_case(spec: KernelSpec, images: int) -> Case:
    """3×3 pixels, 135 or 9 of them made, over two blocks of output channels; with residual and ReLU in a batch."""
    stem, block_m, block_n = spec.name.startswith("stem"), spec.constants["BLOCK_M"], spec.constants["BLOCK_N"]
    channels = 3 if stem else 48 if "in_channels" in spec.aligned else 13
    made_channels = block_n + (16 if "out_channels" in spec.aligned else 5)
    stride, relu = (2, False) if images == 1 else (1, True)
    height, width, pads = 9, 7, (1, 0)
    out = (images, (height - 1) // stride + 1, (width - 3) // stride + 1, made_channels)
    m = out[0] * out[1] * out[2]

    x, output = made(spec, "x_ptr", images, height, width, channels), TYPES[spec.types["y_ptr"]]
    quantized = "scale_ptr" in spec.types
    shape = {(True, True): (made_channels, 3, 3, channels), (True, False): (3, 3, made_channels, channels)}
    w = made(spec, "w_ptr", *shape.get((quantized, stem), (3, 3, channels, made_channels)))
    w = w if quantized else (w.float() / (9 * channels) ** 0.5).to(w.dtype)
    bias = made(spec, "bias_ptr", made_channels) * (20.0 if output == torch.int8 else 1.0)
    residual = None if stem or images == 1 else made(spec, "residual_ptr", *out)
    arguments: dict[str, Tensor | int | float] = {"x_ptr": x, "w_ptr": w, "bias_ptr": bias}
    rest = (stride, *pads, relu)
    if quantized:
        size = 1.0 if x.dtype == torch.float8_e4m3fn else 5000.0 if output != torch.int8 else 200.0
        scale = made(spec, "scale_ptr", made_channels).abs() / (size * (9 * channels) ** 0.5)
        arguments |= {"scale_ptr": scale}
    if stem:
        factor = 0.4983 if quantized else 1 / 255
        arguments |= {"inv_x_scale" if quantized else "scale": factor}
        operator = conv.StemConvInt8(x, w, scale, bias, *rest, factor) if quantized else (
            conv.StemConv(x, w, bias, *rest, factor)
        )  # fmt: skip
    elif quantized:
        arguments |= {"residual_scale": 0.0 if residual is None else 0.59375}
        kind = conv.ConvFp8 if x.dtype == torch.float8_e4m3fn else conv.ConvInt8
        operator = kind(x, w, scale, bias, residual, *rest, 0.59375, output)
    else:
        operator = conv.Conv(x, w, bias, residual, *rest)
    if not stem:
        arguments |= {"residual_ptr": x if residual is None else residual, "has_residual": int(residual is not None)}
    sizes = ("M", "height", "width", "in_channels", "out_height", "out_width", "out_channels")
    arguments |= dict(zip(sizes, (m, height, width, channels, *out[1:]), strict=True))
    arguments |= {"kernel_h": 3, "kernel_w": 3, "stride": stride, "pad_top": 1, "pad_left": 0, "apply_relu": int(relu)}
    expected = operator.reference() if images else torch.empty(out, dtype=output)
    exact = x.dtype == torch.int8 or (stem and quantized)
    grid = (tiles(m, block_m), tiles(made_channels, block_n), 1)
    return Case(grid, arguments, {"y_ptr": (expected, 0.0 if exact else TOLERANCES[output])})


def rotation_case(spec: KernelSpec, images: int) -> Case:
    """Images in colour that are not square, of more elements than a program takes."""
    height, width, channels = (24, 16, 3) if "size" in spec.aligned else (23, 17, 3)
    x, angle = made(spec, "x_ptr", images, height, width, channels), torch.linspace(-2.0, 3.0, images)
    cos, sin, masked, output = angle.cos(), angle.sin(), bool(spec.constants["MASKED"]), TYPES[spec.types["y_ptr"]]
    size = height * width * channels
    arguments = {"x_ptr": x, "cos_ptr": cos, "sin_ptr": sin, "size": size, "width": width, "channels": channels}
    arguments |= {"scale": 1 / 255, "fill": 0.5, "inv_input_scale": 1.0, "inv_output_scale": 127.0}
    expected = rotate_pixels(x, cos, sin, 1 / 255, 0.5, masked, output, 127.0)
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.int8: 1.0}[output]
    return Case((images, tiles(size, spec.constants["BLOCK_SIZE"]), 1), arguments, {"y_ptr": (expected, tolerance)})


def pooling_case(spec: KernelSpec, images: int) -> Case:
    """More pixels and channels than a tile has."""
    block_n = spec.constants["BLOCK_N"]
    x = made(spec, "x_ptr", images, 9, 11, block_n + 16)
    arguments = {"x_ptr": x, "pixels": 99, "channels": block_n + 16, "scale": 0.5}
    expected = torch.ops.vae_edge.avg_pool(x, 0.5)
    return Case((images, tiles(block_n + 16, block_n), 1), arguments, {"y_ptr": (expected, 1e-5)})


def reconstruction_case(spec: KernelSpec, images: int) -> Case:
    """Images in colour whose side is no multiple of the block."""
    side, block, channels = 33, 8, 3
    decoded = made(spec, "decoded_ptr", images, 5, 5, channels * block * block)
    image, score = made(spec, "image_ptr", images, side, side, channels).abs(), made(spec, "score_ptr", images, 2)
    weight = torch.tensor([3.0])
    arguments = {"decoded_ptr": decoded, "image_ptr": image, "score_ptr": score, "weight_ptr": weight}
    arguments |= {"grid": 5, "block": block, "side": side, "channels": channels}
    expected = heads.reconstruction_error(decoded, image, score, weight, block)
    return Case((images, 1, 1), arguments, {"total_ptr": (expected, 2e-5)})


def sampling_case(spec: KernelSpec, images: int) -> Case:
    """Seven rows an image, over more columns than a tile has, and noise from beyond 32 bits."""
    quads, rows = bool(spec.constants["QUADS"]), 7 * images
    columns, offset = (36, 2**33 + 8) if quads else (37, 2**33 + 3)
    mu, logvar = made(spec, "mu_ptr", rows, columns), made(spec, "logvar_ptr", rows, columns)
    arguments = {"mu_ptr": mu, "logvar_ptr": logvar, "rows": rows, "columns": columns, "seed": SEED, "offset": offset}
    if "grad_z_ptr" in spec.types:
        grad_z, grad_kl = made(spec, "grad_z_ptr", rows, columns), made(spec, "grad_kl_ptr", rows)
        arguments |= {"grad_z_ptr": grad_z, "grad_kl_ptr": grad_kl}
        found = torch.ops.vae_edge.reparameterize_backward(grad_z, grad_kl, mu, logvar, SEED, offset)
        names = ("grad_mu_ptr", "grad_logvar_ptr")
    else:
        found, names = reparameterize.reparameterize(mu, logvar, SEED, offset), ("z_ptr", "kl_ptr")
    tolerances = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
    expected = {name: (each, tolerances[each.dtype]) for name, each in zip(names, found, strict=True)}
    return Case((tiles(rows, spec.constants["ROWS"]), 1, 1), arguments, expected)


CASES: dict[str, Callable[[KernelSpec, int], Case]] = {
    "conv": convolution_case,
    "rotate": rotation_case,
    "avg_pool": pooling_case,
    "reconstruction_error": reconstruction_case,
    "reparameterize": sampling_case,
}


# ---- The tests ------------------------------------------------------------------------------------------------------


@cache
def specs(architecture: int) -> dict[str, KernelSpec]:
    return {spec.name: spec for spec in kernel_specs(architecture)}


@cache
def compiled(architecture: int, name: str) -> Compiled:
    return compile_kernel(specs(architecture)[name], architecture)


def offsets(spec: KernelSpec, arguments: dict[str, Tensor | int | float]) -> dict[str, int]:
    """Bytes by which each tensor is off an alignment of 256: the least that the kernel allows."""
    tensors = {name: given for name, given in arguments.items() if isinstance(given, Tensor)}
    return {name: 16 if name in spec.aligned else given.element_size() for name, given in tensors.items()}


def launch(architecture: int, name: str, images: int, badly_aligned: bool, seed: int | None) -> None:
    """Run a kernel, and hold what it wrote against what is right."""
    spec = specs(architecture)[name]
    case = CASES[spec.operator](spec, images)
    if 0 in case.grid:
        return  # a grid with a program an image
    outputs = {name: torch.empty_like(expected) for name, (expected, _) in case.expected.items()}
    arguments = {**case.arguments, **outputs}
    places = offsets(spec, arguments) if badly_aligned else {}
    device = run(compiled(architecture, name), case.grid, arguments, outputs, seed=seed, offset=places)
    assert not device.disagreements
    for buffer in device.memory.buffers:
        assert buffer.defined.all(), f"{buffer.name} was not written everywhere"
    for output, (expected, tolerance) in case.expected.items():
        torch.testing.assert_close(outputs[output].float(), expected.float(), rtol=tolerance, atol=tolerance)


def unchecked(error: PtxError) -> str:
    """The instruction that the emulator does not know."""
    found = re.search(r"does not know the instruction '(?:@!?%\w+ )?([\w.:]+).*'", str(error))
    return f"unchecked: {found[1] if found else error}"


@pytest.mark.slow
@pytest.mark.parametrize("name", specs(87))
def test_a_kernel_gives_what_its_operator_gives(name: str) -> None:
    launch(87, name, 3, True, None)


def variants() -> Iterator[tuple[int, str]]:
    for architecture in ARCHITECTURES:
        for name in specs(architecture):
            yield architecture, name


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(("architecture", "name"), list(variants()))
def test_every_kernel_on_every_gpu_with_every_batch_and_alignment(architecture: int, name: str) -> None:
    try:
        for images in BATCHES:
            for badly_aligned in (False, True):
                launch(architecture, name, images, badly_aligned, images if badly_aligned else None)
    except PtxError as error:
        if architecture != 110:
            raise
        pytest.xfail(unchecked(error))


@pytest.mark.parametrize("name", ["conv_fp16_32_aligned", "reparameterize_forward_fp32_quads", "avg_pool_i8_16"])
def test_memory_that_is_less_aligned_than_promised_is_told(name: str) -> None:
    spec = specs(87)[name]
    case = CASES[spec.operator](spec, 1)
    outputs = {name: torch.empty_like(expected) for name, (expected, _) in case.expected.items()}
    arguments = {**case.arguments, **outputs}
    with pytest.raises(MemoryFault, match="misaligned"):
        run(compiled(87, name), case.grid, arguments, outputs, offset=4)
