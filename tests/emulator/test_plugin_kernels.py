"""Plugins' kernels in TensorRT's order of arguments: assembled, and executed against the operators on the CPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from plugin_cases import (
    OUTPUTS,
    check_network,
    network_inputs,
    network_kernel,
    network_types,
    packed,
    type_of,
)
from synthetic_models import blotches
from torch import Tensor
from vae_edge_kernels import KernelError
from vae_edge_kernels.aot.plugin_operators import TensorType, describe
from vae_edge_kernels.aot.plugin_ptx import assemble, in_tensorrt_order, with_oldest_version
from vae_edge_kernels.aot.plugins import compile_plugin
from vae_edge_kernels.emulator.errors import EmulatorError, MemoryFault, PtxError
from vae_edge_kernels.emulator.parser import parse
from vae_edge_kernels.layout import to_json

import vae_edge.ops.conv
import vae_edge.ops.heads
import vae_edge.ops.reparameterize
import vae_edge.ops.rotate
from vae_edge.emulation.launch import compile_kernel
from vae_edge.emulation.plugins import run_plugin
from vae_edge.engine.plugins.kernel_file import Code, Kernel, evaluate, read_kernel
from vae_edge.errors import EngineError


@pytest.mark.parametrize(
    ("int8", "architecture", "count", "seed"),
    [
        (False, 87, 1, None),
        (False, 87, 3, 5),
        (True, 87, 1, 2),
        (True, 87, 3, None),
        (True, 120, 1, None),
        (False, 110, 1, None),
    ],
)
def test_a_network_in_tensorrts_order_gives_what_the_operators_give(
    int8: bool, architecture: int, count: int, seed: int | None
) -> None:
    """Memory for outputs and scratch holds nothing before: the emulator would tell a read of it."""
    kernel = network_kernel(int8, architecture)
    (code,) = kernel.for_architecture(architecture)
    inputs, expected = network_inputs(int8, count)
    check_network(run_plugin(kernel, code, inputs, seed=seed), expected)


def test_fewer_programs_than_images_take_turns_in_the_same_scratch() -> None:
    kernel = network_kernel(True, 87)
    (code,) = kernel.for_architecture(87)
    inputs, expected = network_inputs(True, 3)
    check_network(run_plugin(kernel, code, inputs, grid=(2, 1, 1)), expected)


@pytest.mark.slow
def test_pixels_may_be_bytes_too_and_give_the_same_bits() -> None:
    """TensorRT's plugins take no uint8; our own callers may pass it."""
    answers = []
    for dtype in ("u8", "fp16"):
        kernel = network_kernel(True, 87, dtype)
        (code,) = kernel.for_architecture(87)
        answers.append(run_plugin(kernel, code, network_inputs(True, 1, dtype)[0]))
    for name in OUTPUTS:
        np.testing.assert_array_equal(answers[0][name], answers[1][name])


@pytest.mark.slow
def test_each_variant_gives_the_same_answers() -> None:
    kernel = network_kernel(False, 87, quick=True)
    codes = kernel.for_architecture(87)
    inputs, expected = network_inputs(False, 1)
    assert [(code.variant, code.warps) for code in codes] == [(0, 4), (1, 8)]
    check_network(run_plugin(kernel, codes[1], inputs), expected)


def test_tensorrts_other_order_is_not_taken_for_this_one() -> None:
    """The case that the comparison must refuse: addresses in Triton's order."""
    kernel = network_kernel(False, 87)
    (code,) = kernel.for_architecture(87)
    swapped = Kernel(
        kernel.operator, kernel.inputs, (*kernel.scratch, *kernel.outputs), (), kernel.scalars, kernel.codes
    )
    inputs, _ = network_inputs(False, 1)
    with pytest.raises((EmulatorError, AssertionError)):
        run_plugin(swapped, code, inputs)


def test_scratch_that_is_too_small_is_a_fault() -> None:
    kernel = network_kernel(False, 87)
    (code,) = kernel.for_architecture(87)
    inputs, _ = network_inputs(False, 3)
    with pytest.raises(MemoryFault, match=r"activations|workspace"):
        run_plugin(
            Kernel(
                kernel.operator, kernel.inputs, kernel.outputs,
                tuple(type(each)(each.name, each.dtype, (1, each.shape[1])) for each in kernel.scratch),
                kernel.scalars, kernel.codes,
            ),
            code,
            inputs,
        )  # fmt: skip


# ---- The PTX --------------------------------------------------------------------------------------------------------


@cache
def sampling() -> tuple[str, tuple[str, ...]]:
    from vae_edge_kernels import reparameterize

    (spec,) = (s for s in reparameterize.kernel_specs(87) if s.name == "reparameterize_forward_fp32")
    made = compile_kernel(spec, 87)
    return made.ptx, made.arguments


POINTERS = (["mu_ptr", "logvar_ptr"], ["z_ptr", "kl_ptr"])


def test_what_tensorrt_cannot_pass_is_refused() -> None:
    ptx, names = sampling()
    with pytest.raises(KernelError, match=r"32-bit integers alone, and seed .* is declared as"):
        in_tensorrt_order(ptx, names, POINTERS[0], ["rows", "columns", "seed", "offset"], POINTERS[1])
    with pytest.raises(KernelError, match=r"uses its parameter seed, for which TensorRT has no argument"):
        in_tensorrt_order(ptx, names, POINTERS[0], ["rows", "columns"], POINTERS[1])
    with pytest.raises(KernelError, match=r"different ones of mu_ptr, .*; given were mu_ptr, mu_ptr"):
        in_tensorrt_order(ptx, names, ["mu_ptr", "mu_ptr"], [], [])
    with pytest.raises(KernelError, match="should have one entry; it has 0"):
        in_tensorrt_order("", names, [], [], [])
    with pytest.raises(KernelError, match="has 10 parameters, and 9 names were given"):
        in_tensorrt_order(ptx, names[:-1], [], [], [])


def test_scratch_of_triton_that_is_used_is_refused() -> None:
    mu, numbers = TensorType("fp32", (None, 24)), TensorType("i64", (1,))
    kernel = describe("VaeEdgeReparameterize", [mu, mu, numbers, numbers], {})
    made = compile_kernel(kernel.launch(87, 0)[0], 87)
    outputs = [buffer.name for buffer in kernel.outputs]
    in_tensorrt_order(made.ptx, made.arguments, kernel.inputs, ["rows"], outputs)
    number = len(made.arguments) - 2
    used = made.ptx.replace("\tret;", f"\tld.param.b64 %rd1, [{kernel_name(made.ptx)}_param_{number}];\n\tret;", 1)
    assert used != made.ptx
    with pytest.raises(KernelError, match="uses its parameter global_scratch"):
        in_tensorrt_order(used, made.arguments, kernel.inputs, ["rows"], outputs)


def kernel_name(ptx: str) -> str:
    return parse(ptx).entry.name


def test_products_and_sums_that_must_not_fuse_say_so_in_the_text() -> None:
    kernel = network_kernel(True, 87)
    text = kernel.for_architecture(87)[0].ptx.decode()
    assert not re.search(r"^\s*(?:@\S+ )?(?:add|sub|mul)(?:\.ftz)?\.f(?:16|32)", text, re.MULTILINE)
    assert "mul.rn.f32" in text
    fused = network_kernel(False, 87).for_architecture(87)[0].ptx.decode()
    assert re.search(r"\bmul\.f32", fused)


def test_functions_have_short_names_in_the_same_order() -> None:
    spec, _ = describe_network(False).launch(87, 0)
    made = compile_kernel(spec, 87)
    parsed = parse(made.ptx)
    text = network_kernel(False, 87).for_architecture(87)[0].ptx.decode()
    short = sorted(name for name in parse(text).functions if re.fullmatch(r"f\d{3}", name))
    assert len(short) == len([name for name in parsed.functions if name != "network"]) > 5
    assert len(text) < len(made.ptx) / 5
    assert assemble(text, 87)[:4] == b"\x7fELF"


def describe_network(int8: bool) -> Any:
    return describe("VaeEdgeNetwork", network_types(int8), {"layout": to_json(packed(int8).layout)})


@pytest.mark.parametrize(("architecture", "int8", "newest"), [(87, False, "7.8"), (120, True, "8.8")])
def test_the_text_asks_for_no_newer_ptx_than_it_needs(architecture: int, int8: bool, newest: str) -> None:
    """Of CUDA 11.8 for sm_87 (the oldest that knows it) and of CUDA 12.9 for sm_120; Triton wrote its own ptxas's."""
    (code,) = network_kernel(int8, architecture).for_architecture(architecture)
    assert re.findall(rb"^\.version (\S+)", code.ptx, re.MULTILINE) == [newest.encode()]


def test_a_text_that_ptxas_takes_in_no_version_is_refused() -> None:
    with pytest.raises(KernelError, match="says no version"):
        with_oldest_version("no PTX", 87)
    with pytest.raises(KernelError, match="ptxas refuses the PTX"):
        with_oldest_version(".version 8.0\n.target sm_87\nnonsense", 87)


def test_ptxas_refuses_in_a_sentence() -> None:
    with pytest.raises(KernelError, match="ptxas refuses the PTX for sm_87"):
        assemble("no PTX", 87)


def test_a_damaged_text_is_not_executed() -> None:
    kernel = network_kernel(False, 87)
    (code,) = kernel.for_architecture(87)
    broken = Code(**{**vars(code), "ptx": code.ptx.replace(b"mul.lo.s32", b"mul.so.s32")})
    with pytest.raises(PtxError):
        run_plugin(kernel, broken, network_inputs(False, 1)[0])


# ---- Other operators ------------------------------------------------------------------------------------------------


def run_operator(operator: str, inputs: Sequence[Tensor], batched: int, **attributes: Any) -> dict[str, np.ndarray]:
    """Compile a node for sm_87 and execute it; the first `batched` inputs have the batch as their first axis."""
    types = [type_of(each, batch=number < batched) for number, each in enumerate(inputs)]
    made = read_kernel(compile_plugin(operator, types, attributes, [87], cubins=False), operator)
    (code,) = made.for_architecture(87)
    return run_plugin(made, code, [each.numpy() for each in inputs])


@pytest.mark.parametrize("count", [1, 3])
def test_rotation(count: int) -> None:
    x = blotches(count, (20, 28), 3, seed=2)
    angle = torch.linspace(0.3, 2.0, count)
    attributes = {"scale": 1 / 255, "fill": 0.25, "masked": True, "inv_output_scale": 1.0, "input_scale": 0.0}
    answers = run_operator("VaeEdgeRotate", (x.half(), angle.cos(), angle.sin()), 3, dtype="fp16", **attributes)
    wanted = torch.ops.vae_edge.rotate_pixels(x, angle.cos(), angle.sin(), 1 / 255, 0.25, True, torch.float16, 1.0, 0.0)
    torch.testing.assert_close(torch.from_numpy(answers["y"]), wanted, rtol=0, atol=2e-3)


def test_sampling_reads_seed_and_offset_from_memory() -> None:
    mu, logvar = torch.randn(2, 21, 24, generator=torch.Generator().manual_seed(0))
    seed, offset = torch.tensor([7]), torch.tensor([3 << 33])
    answers = run_operator("VaeEdgeReparameterize", (mu, logvar, seed, offset), 2)
    wanted = torch.ops.vae_edge.reparameterize(mu, logvar, 7, 3 << 33)
    for name, expected in zip(("z", "kl"), wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(answers[name]), expected, rtol=1e-6, atol=1e-5)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _bytes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


PLACE = {"stride": 2, "pad_top": 1, "pad_left": 1, "relu": True}


@pytest.mark.parametrize("has_residual", [False, True])
def test_convolution_of_floats(has_residual: bool) -> None:
    x, weight, bias = _normal(2, 9, 7, 16).half(), _normal(3, 3, 16, 32, seed=1).half() / 8, _normal(32, seed=2)
    residual = _normal(2, 5, 4, 32, seed=3).half()
    inputs = (x, weight, bias, *((residual,) if has_residual else ()))
    types = [type_of(each, batch=number in (0, 3)) for number, each in enumerate(inputs)]
    made = read_kernel(compile_plugin("VaeEdgeConv", types, PLACE, [87], cubins=False), "conv")
    answers = run_plugin(made, made.for_architecture(87)[0], [each.numpy() for each in inputs])
    wanted = torch.ops.vae_edge.conv(x, weight, bias, residual if has_residual else None, 2, 1, 1, True)
    torch.testing.assert_close(torch.from_numpy(answers["y"]), wanted, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("has_residual", [False, True])
def test_convolution_of_int8_to_the_last_bit(has_residual: bool) -> None:
    x, weight = _bytes(2, 9, 7, 16), _bytes(3, 3, 32, 16, seed=1)
    scale, bias = _normal(32, seed=2).abs() / 500, _normal(32, seed=3)
    residual = _bytes(2, 5, 4, 32, seed=4)
    inputs = (x, weight, scale, bias, *((residual,) if has_residual else ()))
    types = [type_of(each, batch=number in (0, 4)) for number, each in enumerate(inputs)]
    attributes = {**PLACE, "residual_scale": 0.3, "dtype": "i8"}
    made = read_kernel(compile_plugin("VaeEdgeConvInt8", types, attributes, [87], cubins=False), "conv")
    answers = run_plugin(made, made.for_architecture(87)[0], [each.numpy() for each in inputs])
    wanted = torch.ops.vae_edge.conv_int8(
        x, weight, scale, bias, residual if has_residual else None, 2, 1, 1, True, 0.3, torch.int8
    )
    np.testing.assert_array_equal(answers["y"], wanted.numpy())


def test_first_layers() -> None:
    x, bias = blotches(2, (9, 7), 3, seed=2), _normal(16, seed=2)
    weight = _normal(3, 3, 3, 16, seed=1).half()
    answers = run_operator("VaeEdgeStemConv", (x.half(), weight, bias), 1, **PLACE, scale=1 / 255)
    wanted = torch.ops.vae_edge.stem_conv(x, weight, bias, 2, 1, 1, True, 1 / 255)
    torch.testing.assert_close(torch.from_numpy(answers["y"]), wanted, rtol=1e-3, atol=5e-3)

    weight, scale = _bytes(16, 3, 3, 3, seed=1), _normal(16, seed=3).abs() / 100
    answers = run_operator("VaeEdgeStemConvInt8", (x.half(), weight, scale, bias), 1, **PLACE, inv_x_scale=0.4)
    wanted = torch.ops.vae_edge.stem_conv_int8(x, weight, scale, bias, 2, 1, 1, True, 0.4)
    np.testing.assert_array_equal(answers["y"], wanted.numpy())


@pytest.mark.parametrize("int8", [False, True])
def test_heads_one_after_the_other(int8: bool) -> None:
    """As a graph of operators has them: each on what the operators before it gave."""
    made = packed(int8)
    net, layout = made.layout, to_json(made.layout)
    n, generator = 2, torch.Generator().manual_seed(0)
    maps = torch.randn(n, 4, 4, 16, generator=generator)
    features = (maps * 20).to(torch.int8) if int8 else maps.half()
    rtol, atol = (1e-4, 1e-4) if int8 else (2e-3, 2e-3)

    pooled = run_operator("VaeEdgeAvgPool", (features,), 1, scale=0.5)["y"]
    means = vae_edge.ops.heads.avg_pool(features, 0.5)
    torch.testing.assert_close(torch.from_numpy(pooled), means, rtol=1e-5, atol=1e-5)

    flat = features.flatten(1)
    found = run_operator("VaeEdgeOrientationHead", (flat, made.weights, made.params), 1, layout=layout)
    logits, orientation = vae_edge.ops.heads.orientation_head(flat, made.weights, made.params, layout)
    for name, wanted in (("logits", logits), ("orientation", orientation)):
        torch.testing.assert_close(torch.from_numpy(found[name]), wanted, rtol=rtol, atol=atol)

    given = (flat, means, means, logits, orientation, made.weights, made.params, made.whitening)
    found = run_operator("VaeEdgeContentHead", given, 5, layout=layout)
    wanted_of = dict(
        zip(("probabilities", "code", "score"), vae_edge.ops.heads.content_head(*given, layout), strict=True)
    )
    for name, wanted in wanted_of.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), wanted, rtol=2e-2, atol=2e-2)

    decoded = torch.randn(n, net.grid_height, net.grid_width, net.block**2, generator=generator)
    upright, weight = torch.rand(n, net.height, net.width, 1, generator=generator), torch.tensor([0.7])
    given = (decoded, upright, wanted_of["score"], weight)
    found = run_operator("VaeEdgeReconstructionError", given, 3, block=net.block)
    wanted = vae_edge.ops.heads.reconstruction_error(*given, net.block)
    torch.testing.assert_close(torch.from_numpy(found["total"]), wanted, rtol=1e-4, atol=1e-4)


# ---- What does not fit ----------------------------------------------------------------------------------------------


def test_nodes_that_do_not_fit_are_refused_with_their_names() -> None:
    layout = {"layout": to_json(packed(False).layout)}
    image, *rest, whitening = network_types(False)
    with pytest.raises(KernelError, match="There is no plugin Softmax: there are VaeEdgeNetwork"):
        describe("Softmax", [image], {})
    with pytest.raises(KernelError, match="VaeEdgeNetwork has at least 4 inputs; the node has 1"):
        describe("VaeEdgeNetwork", [image], layout)
    with pytest.raises(KernelError, match="has no attribute 'layout'"):
        describe("VaeEdgeNetwork", [image, *rest, whitening], {})
    with pytest.raises(KernelError, match=r"takes image as u8 or fp16 \[None, 28, 28, 1\]; the node has fp32"):
        describe("VaeEdgeNetwork", [TensorType("fp32", (None, 28, 28, 1)), *rest, whitening], layout)
    with pytest.raises(KernelError, match=r"takes weights as fp16 \[73024\]; the node has fp16 \[5\]"):
        describe("VaeEdgeNetwork", [image, TensorType("fp16", (5,)), rest[1], whitening], layout)
    with pytest.raises(KernelError, match="No kernel can be compiled for sm_75"):
        compile_plugin("VaeEdgeNetwork", [image, *rest, whitening], layout, [75])


def test_a_kernel_file_reads_back_and_a_damaged_one_is_refused() -> None:
    kernel = network_kernel(False, 87)
    content = kernel.to_bytes()
    assert read_kernel(content, "it") == kernel
    lean = read_kernel(kernel.without_ptx().to_bytes(), "it")
    assert not lean.codes[0].ptx and lean.codes[0].cubin == kernel.codes[0].cubin
    for damaged in (b"", content[:40], content[:-1], content + b"x", content.replace(b'"min"', b'"pow"')):
        with pytest.raises(EngineError, match="it holds no plugin kernel that this version reads"):
            read_kernel(damaged, "it")
    with pytest.raises(EngineError, match="was compiled for sm_87, and the GPU is sm_86"):
        kernel.for_architecture(86)


def test_expressions_are_evaluated() -> None:
    sizes = {(0, 0): 7, (1, 1): 5}
    for expression, wanted in (
        (["cdiv", ["dim", 0, 0], 4], 2),
        (["cdiv", ["dim", 0, 0], 7], 1),
        (["min", ["dim", 0, 0], 6], 6),
        (["*", ["-", ["dim", 0, 0], 1], ["//", ["dim", 1, 1], 2]], 12),
        (["+", 1, 2], 3),
    ):
        assert evaluate(expression, lambda *at: sizes[at]) == wanted
