"""Kernels compiled for sm_100 and sm_110, whose products lie in tensor memory, against NumPy; faults in their PTX."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
from emulator.tensor_kernels import attention_kernel, matmul_kernel
from vae_edge_kernels import conv
from vae_edge_kernels.emulator.errors import Deadlock, MemoryFault, PtxError
from vae_edge_kernels.emulator.timing import MODELS, estimate

from vae_edge.emulation.launch import Compiled, run
from vae_edge.emulation.triton_launches import Emulation, Launch, emulated

FP8 = torch.float8_e4m3fn
PRODUCTS = {
    torch.float16: "kind::f16",
    torch.bfloat16: "kind::f16",
    torch.float32: "kind::tf32",
    FP8: "kind::f8f6f4",
    torch.float8_e5m2: "kind::f8f6f4",
}


@dataclass(frozen=True)
class Matmul:
    """A product: tile, which factors are transposed, stages of the loop's pipeline, warps."""

    dtype: torch.dtype
    tile: tuple[int, int, int]
    transposed: tuple[bool, bool] = (False, False)
    stages: int = 3
    warps: int = 4
    sums: torch.dtype = torch.float32
    steps: int = 4
    programs: int = 1

    def launch(self, emulation: Emulation) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
        """C as it was computed, and what is right. All sums are whole numbers that the types hold exactly."""
        m, n, k = self.tile[0] * self.programs, self.tile[1], self.tile[2] * self.steps
        generator = torch.Generator().manual_seed(1)
        a, b = (torch.randint(-4, 5, shape, generator=generator) for shape in ((m, k), (k, n)))
        if self.transposed[0]:
            given_a = a.reshape(self.programs, -1, k).transpose(1, 2).reshape(-1, self.tile[0])
        else:
            given_a = a
        given_b = b.T if self.transposed[1] else b
        c = torch.zeros(m, n, dtype=self.sums)
        of_triton = {torch.float32: tl.float32, torch.float16: tl.float16, torch.int32: tl.int32}[self.sums]
        with emulated(emulation):
            matmul_kernel[(self.programs,)](
                c, given_a.contiguous().to(self.dtype), given_b.contiguous().to(self.dtype), k, *self.tile, of_triton,
                *self.transposed, num_warps=self.warps, num_stages=self.stages,
            )  # fmt: skip
        return c, a.numpy() @ b.numpy()


MATMULS = {
    "fp16": Matmul(torch.float16, (128, 64, 64), programs=2),
    "fp16, 64 rows": Matmul(torch.float16, (64, 64, 64)),
    "fp16, 64 rows, narrow": Matmul(torch.float16, (64, 16, 32), stages=1),
    "fp16, B transposed": Matmul(torch.float16, (128, 128, 64), (False, True), stages=2),
    "fp16, both transposed": Matmul(torch.float16, (128, 128, 32), (True, True), warps=8),
    "fp16, two tiles of 128 rows": Matmul(torch.float16, (256, 64, 64), stages=2, warps=8),
    "fp16, wide": Matmul(torch.float16, (128, 256, 32), stages=1),
    "fp16, one step": Matmul(torch.float16, (128, 32, 16), stages=1, steps=1),
    "fp16, float16 sums": Matmul(torch.float16, (128, 64, 32), sums=torch.float16, steps=2),
    "bf16": Matmul(torch.bfloat16, (128, 64, 64), stages=4),
    "bf16, A transposed": Matmul(torch.bfloat16, (64, 32, 64), (True, False), stages=2),
    "tf32": Matmul(torch.float32, (128, 64, 32)),
    "tf32, 64 rows": Matmul(torch.float32, (64, 32, 32), (False, True), stages=1),
    "tf32, both transposed": Matmul(torch.float32, (128, 16, 64), (True, True)),
    "e4m3": Matmul(FP8, (128, 64, 64)),
    "e4m3, 64 rows": Matmul(FP8, (64, 128, 128), stages=2, warps=8),
    "e4m3, both transposed": Matmul(FP8, (128, 128, 32), (True, True), warps=8),
    "e5m2": Matmul(torch.float8_e5m2, (128, 64, 64), (False, True), stages=2),
}


def products(launch: Launch) -> int:
    counts = launch.device.counts.opcodes
    return sum(number for name, number in counts.items() if name.startswith("tcgen05.mma"))


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("name", MATMULS)
def test_a_product_of_matrices_is_numpys(name: str, seed: int | None) -> None:
    case, emulation = MATMULS[name], Emulation(110, seed)
    c, expected = case.launch(emulation)
    np.testing.assert_array_equal(c.to(torch.int64).numpy(), expected)
    (launch,) = emulation.launches
    k = 32 // case.dtype.itemsize
    tiles = max(1, case.tile[0] // 128) * max(1, case.tile[1] // 256) * case.programs
    assert products(launch) == tiles * case.steps * case.tile[2] // k
    assert {name for name in launch.device.counts.opcodes if "tcgen05.mma" in name} == {
        f"tcgen05.mma.cta_group::1.{PRODUCTS[case.dtype]}"
    }


@pytest.mark.parametrize("name", ["fp16", "tf32", "e4m3, 64 rows"])
def test_a_product_of_matrices_on_sm_100(name: str) -> None:
    emulation = Emulation(100)
    c, expected = MATMULS[name].launch(emulation)
    np.testing.assert_array_equal(c.to(torch.int64).numpy(), expected)
    assert products(emulation.launches[0])


def test_a_base_offset_is_refused() -> None:
    """Triton 3.9 sets one for bytes without a swizzle, N contiguous, where the descriptor should have none."""
    with pytest.raises(PtxError, match=r"PTX line \d+ \(tensor_kernels.py:\d+\): The matrix descriptor .* not known"):
        Matmul(FP8, (128, 16, 64)).launch(Emulation(110))


def test_bytes_are_multiplied_in_registers() -> None:
    """Triton does not use tensor memory for int8."""
    emulation = Emulation(110)
    c, expected = Matmul(torch.int8, (128, 64, 64), sums=torch.int32).launch(emulation)
    np.testing.assert_array_equal(c.numpy(), expected)
    assert not products(emulation.launches[0]) and emulation.launches[0].device.counts.totals["products"]


@pytest.mark.parametrize("seed", [None, 2])
@pytest.mark.parametrize(("rows", "keys", "features", "warps"), [(128, 64, 64, 4), (64, 64, 32, 4), (128, 128, 64, 8)])
def test_a_computed_factor_lies_in_tensor_memory(
    rows: int, keys: int, features: int, warps: int, seed: int | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, features), (features, keys), (keys, features)
    q, k, v = (torch.randn(shape, generator=generator).half() for shape in shapes)
    o, emulation = torch.zeros(rows, features), Emulation(110, seed)
    with emulated(emulation):
        attention_kernel[(1,)](o, q, k, v, rows, keys, features, num_warps=warps)
    logits = q.double() @ k.double()
    weights = torch.exp(logits - logits.max(1, keepdim=True).values).half()
    torch.testing.assert_close(o.double(), weights.double() @ v.double(), rtol=2e-3, atol=4e-3)
    text = emulation.launches[0].compiled.ptx
    assert re.search(r"tcgen05\.mma\S+ \[[^]]*\], \[", text)


# ------------------------------------------------------------------------------------------- the library's convolutions

ROUNDING = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 2e-2, FP8: 7e-2}  # float32: as tf32


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def convolved(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x [N, H, W, C] and w [3, 3, C, K], padded by 1: float64 [N, H, W, K]."""
    sums = F.conv2d(x.double().permute(0, 3, 1, 2), w.double().permute(3, 2, 0, 1), padding=1)
    return sums.permute(0, 2, 3, 1)


def in_tensor_memory(emulation: Emulation) -> bool:
    return all(products(launch) > 0 for launch in emulation.launches) and len(emulation.launches) == 1


@pytest.mark.parametrize("architecture", [110, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("dtype", "outputs"),
    [*((torch.float16, count) for count in (16, 32, 64)), (torch.bfloat16, 32), (torch.float32, 32)],
)
def test_a_convolution_is_that_of_float64(dtype: torch.dtype, outputs: int, architecture: int) -> None:
    x, w = normal(2, 6, 7, 64, seed=1).to(dtype), (normal(3, 3, 64, outputs, seed=2) / 24).to(dtype)
    bias, residual = normal(outputs, seed=3), normal(2, 6, 7, outputs, seed=4).to(dtype)
    y, emulation = torch.zeros(2, 6, 7, outputs, dtype=dtype), Emulation(architecture, seed=1)
    with emulated(emulation):
        conv.conv_forward(x, w, bias, residual, y, conv.ConvParams(3, 3, 1, 1, 1), True)
    expected = (convolved(x, w) + bias.double() + residual.double()).relu()
    torch.testing.assert_close(y.double(), expected, rtol=4 * ROUNDING[dtype], atol=4 * ROUNDING[dtype])
    assert in_tensor_memory(emulation)


@pytest.mark.parametrize("channels", [64, 63])  # 63: narrow loads and stores
@pytest.mark.parametrize(("dtype", "outputs"), [(FP8, 16), (FP8, 32), (FP8, 64), (torch.float16, 32)])
def test_an_fp8_convolution_is_that_of_float64(dtype: torch.dtype, outputs: int, channels: int) -> None:
    x, w = normal(2, 6, 7, channels, seed=1).to(FP8), normal(3, 3, outputs, channels, seed=2).to(FP8)
    scale, bias = normal(outputs, seed=3).abs() / 24, normal(outputs, seed=4)
    y, emulation = torch.zeros(2, 6, 7, outputs, dtype=dtype), Emulation(110)
    with emulated(emulation):
        conv.conv_fp8_forward(x, w, scale, bias, None, y, conv.ConvParams(3, 3, 1, 1, 1), False, 1.0)
    expected = convolved(x.float(), w.float().permute(0, 1, 3, 2)) * scale.double() + bias.double()
    torch.testing.assert_close(y.double(), expected, rtol=ROUNDING[dtype], atol=1e-2)
    assert in_tensor_memory(emulation)


@pytest.mark.parametrize(
    ("dtype", "outputs"),
    [*((torch.float16, count) for count in (16, 32, 64)), (torch.bfloat16, 32), (torch.float32, 32)],
)
def test_a_first_layer_is_that_of_float64(dtype: torch.dtype, outputs: int) -> None:
    x = torch.randint(0, 256, (2, 6, 7, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    w, bias = (normal(3, 3, 3, outputs, seed=2) / 3).to(dtype), normal(outputs, seed=3)
    y, emulation = torch.zeros(2, 6, 7, outputs, dtype=dtype), Emulation(110)
    with emulated(emulation):
        conv.stem_conv_forward(x, w, bias, y, conv.ConvParams(3, 3, 1, 1, 1), True, 1 / 255)
    expected = (convolved((x.float() / 255).to(dtype), w) + bias.double()).relu()
    torch.testing.assert_close(y.double(), expected, rtol=4 * ROUNDING[dtype], atol=8 * ROUNDING[dtype])
    assert in_tensor_memory(emulation)


def test_registers_are_used_before_the_wait_as_triton_has_it() -> None:
    """PTX forbids it; the assembler waits for the register."""
    x, w, bias = normal(2, 6, 7, 64, seed=1).half(), normal(3, 3, 64, 32, seed=2).half(), torch.zeros(32)
    y, emulation = torch.zeros(2, 6, 7, 32).half(), Emulation(110)
    with emulated(emulation):
        conv.conv_forward(x, w, bias, None, y, conv.ConvParams(3, 3, 1, 1, 1), True)
    uses = emulation.launches[0].device.early_uses
    assert uses and all(re.match(r"PTX line \d+ \(\w+\.py:\d+\)", place) for place in uses)
    emulation = Emulation(110)
    MATMULS["fp16"].launch(emulation)
    assert not emulation.launches[0].device.early_uses


# --------------------------------------------------------------------------------------------------- faults in the PTX

REMOVED = {  # lines that are left out, one at a time, and what part of them has to be found
    r"@%p\d+ tcgen05\.commit": 1.0,
    r"@%p\d+ tcgen05\.dealloc": 1.0,
    r"@%p\d+ mbarrier\.init": 1.0,
    r"@!complete bra\.uni waitLoop": 1.0,
    r"fence\.proxy\.async": 1.0,
    r"tcgen05\.wait::st": 1.0,
    r"tcgen05\.wait::ld": 1.0,
    r"cp\.async\.wait_group": 0.6,
    r"bar\.sync": 0.5,
}


def compiled_matmul(architecture: int = 110) -> Compiled:
    emulation = Emulation(architecture)
    Matmul(torch.float16, (128, 32, 32)).launch(emulation)
    return emulation.launches[0].compiled


def without(text: str, pattern: str) -> list[str]:
    """Texts that lack one line each; a guard that is all of a statement goes with it."""
    lines = text.split("\n")
    places = [number for number, line in enumerate(lines) if re.match(rf"\s*{pattern}", line)]
    return ["\n".join([*lines[:place], *lines[place + 1 :]]) for place in places]


@pytest.mark.parametrize("pattern", REMOVED)
def test_what_a_compiled_kernel_would_lack_is_found(pattern: str) -> None:
    compiled = compiled_matmul()
    mutants = without(compiled.ptx, pattern)
    found = sum(faulty(compiled.changed(text)) for text in mutants)
    assert mutants and found >= REMOVED[pattern] * len(mutants), f"{found} of {len(mutants)}"


def faulty(compiled: Compiled) -> bool:
    """Whether a fault is found, or the answer is wrong."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randint(-4, 5, shape, generator=generator).half() for shape in ((128, 128), (128, 32)))
    c = torch.zeros(128, 32)
    try:
        run(compiled, (1, 1, 1), {"c_ptr": c, "a_ptr": a, "b_ptr": b, "K": 128}, ("c_ptr",), max_steps=100_000)
    except (MemoryFault, Deadlock):
        return True
    return not torch.equal(c, a.float() @ b.float())


@pytest.mark.parametrize("architecture", [90, 110])
def test_a_right_kernel_is_not_faulty(architecture: int) -> None:
    assert not faulty(compiled_matmul(architecture))


def test_the_products_of_sm_90_need_the_proxy_fence_too() -> None:
    compiled = compiled_matmul(90)
    mutants = without(compiled.ptx, r"fence\.proxy\.async")
    assert "wgmma" in compiled.ptx and mutants and all(faulty(compiled.changed(text)) for text in mutants)


# ------------------------------------------------------------------------------------------------- counts and the model


def test_products_are_counted_and_bound_the_modelled_time() -> None:
    model, case = MODELS["thor"], Matmul(torch.float16, (128, 64, 64), programs=2)
    emulation = Emulation(110, model=model)
    case.launch(emulation)
    device = emulation.launches[0].device
    macs = 2 * 128 * 64 * 64 * case.steps
    assert device.counts.macs == {"f16": macs} and device.counts.totals["products"] == products(emulation.launches[0])
    modelled = estimate(device)
    seconds = macs / model.fp16_macs_per_s * model.multiprocessors / 2
    assert modelled.bounds["tensor cores"] == pytest.approx(1e6 * seconds)
    assert modelled.us == max(modelled.bounds.values()) and device.longest * 1e6 / model.clock_hz > 1e6 * seconds


def test_narrower_types_are_modelled_at_their_rates() -> None:
    model = MODELS["thor"]
    half = model.tensor_cycles("f16", 1 << 20)
    assert model.tensor_cycles("tf32", 1 << 20) == 2 * half
    assert model.tensor_cycles("f8f6f4", 1 << 20) == pytest.approx(half * model.fp16_macs_per_s / model.int8_macs_per_s)
