"""Graphs of our own operators: ONNX Runtime runs their functions, and answers as the operators' CPU references do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from stub_builds import build

from vae_edge.bundle import load_bundle
from vae_edge.data import Dataset, rotate_dataset
from vae_edge.engine.build import build_engine
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.errors import BundleError, EngineError, ExportError
from vae_edge.exporting import kernel_file, network_file
from vae_edge.exporting.bundle import load_onnx
from vae_edge.exporting.kernel_file import (
    bundle_kernel_graph,
    inexact_layers,
    inline,
    without_functions,
    write_kernel_graph,
)
from vae_edge.exporting.kernel_functions import DOMAIN
from vae_edge.exporting.kernel_graph import finish, kernel_graph, network_functions
from vae_edge.exporting.onnx_file import get_metadata, open_session, run
from vae_edge.model import AngleVAE, create_config
from vae_edge.ops.network import forward_layerwise
from vae_edge.ops.packing import LayerParams, PackedNetwork, QuantizedNetwork, ScoreMode, fold_batchnorm, pack
from vae_edge.preprocess import InputSpec
from vae_edge.probes import compare
from vae_edge.probes import load as load_probes
from vae_edge.spec import CLASSIFIER_OUTPUTS, UNCERTAINTY_OUTPUTS

FORMS = ("network", "operators")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "upright": {"orientation": False},
    "few classes": {"classes": 3, "fill": 0.75},
    "masked": {"size": 32, "channels": 3, "circular_mask": True},
    "reduced": {"size": 64, "channels": 3, "circular_mask": True},
    "not square": {"size": (65, 98), "channels": 3, "circular_mask": True},
    "pooled": {"head": "pooled"},
    "upright, pooled": {"head": "pooled", "orientation": False},
    "second classifier": {"head": "code+pooled"},
}
CLOSE = {"fp16": 1.5e-3, "int8": 1e-5}  # fp16 rounds each feature map, and sums in another order may fall elsewhere
FAR, MAX_FAR = 0.01, 0.2  # int8: where a value next to a tie falls to its other side; fraction of such images


def small_model(changes: dict[str, Any]) -> AngleVAE:
    """A network with random weights, whose features are normalized on images, and a score with several clusters."""
    torch.manual_seed(0)
    config = create_config("tiny", **changes)
    if changes.get("fill") is not None:
        config = dataclasses.replace(config, fill=changes["fill"])
    model = AngleVAE(config).eval()
    score, size, clusters = model.score, model.score.components, 5
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # its statistics are those of the last batch
            elif isinstance(module, torch.nn.Linear) and "decoder" not in name:
                module.weight.mul_(2.0)
        model.train()(make_images(model, 32).permute(0, 3, 1, 2) / 255.0)
        model.eval()
    model.temperature.fill_(1.7)
    score.projection = torch.randn_like(score.projection) * 0.2
    score.offset = torch.randn(size + 1)
    score.max_expected_error = torch.full((1, 1), 0.1)
    score.nearest = torch.randn(size, clusters)
    score.nearest_offset = torch.randn(clusters)
    score.cluster_whitening = (torch.eye(size) + 0.1 * torch.randn(clusters, size, size)).half()
    score.cluster_offset = torch.randn(clusters, 1, size)
    score.loc, score.scale = torch.randn(len(score.terms)), torch.rand(len(score.terms)) + 0.5
    return model


def quantized(model: AngleVAE, images: torch.Tensor) -> QuantizedNetwork:
    """Its layers in int8, with the scales of what they read when they see some images."""
    read: dict[str, float] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, x, name=name: read.update({name: float(x[0].abs().max()) / 127}))
        for name, module in model.for_export().named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
    ]
    exported = model.for_export()
    if exported is not model:  # a copy has hooks of its own
        hooks += [
            module.register_forward_pre_hook(lambda _, x, name=name: read.update({name: float(x[0].abs().max()) / 127}))
            for name, module in exported.named_modules()
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))
        ]
    with torch.no_grad():
        exported(images.permute(0, 3, 1, 2) / 255.0)
    for hook in hooks:
        hook.remove()
    layers = {}
    for name, layer in fold_batchnorm(exported).items():
        scale = layer.weight.abs().flatten(1).amax(1) / 127 + 1e-8
        rows = scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        layers[name] = LayerParams((layer.weight / rows).round().to(torch.int8), layer.bias, scale, read[name])
    for name, reader in (("orientation.classifier", "orientation.angle_bins"), ("second_classifier", "mu")):
        if name in layers:  # they read the same tensor
            layers[name] = dataclasses.replace(layers[name], input_scale=layers[reader].input_scale)
    return QuantizedNetwork(layers)


def make_images(model: AngleVAE, count: int = 5) -> torch.Tensor:
    """Blurred noise: bytes [N, H, W, C] that are neither even nor without any structure."""
    config = model.config
    coarse = torch.rand(count, config.channels, 5, 5, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.interpolate(coarse, (config.height, config.width), mode="bicubic")
    return (smooth.permute(0, 2, 3, 1).clamp(0, 1) * 255).to(torch.uint8)


def make_network(
    changes: dict[str, Any], precision: str, score: ScoreMode = "full"
) -> tuple[PackedNetwork, torch.Tensor]:
    """A packed network, and images."""
    model = small_model(changes)
    images = make_images(model)
    return pack(model, quantized(model, images) if precision == "int8" else None, score), images


def answer(packed: PackedNetwork, images: torch.Tensor) -> dict[str, np.ndarray]:
    """What the operators' CPU references give."""
    outputs = forward_layerwise(packed.layout, images, packed.weights, packed.params, packed.whitening)
    probabilities, angle, score, uncertainty = (output.numpy() for output in outputs)
    named = dict(zip(CLASSIFIER_OUTPUTS, (probabilities, angle, score), strict=True))
    return named | (dict(zip(UNCERTAINTY_OUTPUTS, uncertainty.T, strict=True)) if packed.layout.bins else {})


def assert_close(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], precision: str, max_far: float = MAX_FAR
) -> None:
    assert list(found) == list(expected)
    far = np.zeros(len(expected["score"]), bool)
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == np.float32
        apart = np.abs(found[name] - value)
        if name in ("angle", "second_angle"):
            apart = np.minimum(apart, 2 * np.pi - apart)
        if name == "score":
            apart = apart / np.maximum(1.0, np.abs(value))
        apart = apart.reshape(len(apart), -1).max(1)
        assert apart.max() <= (FAR if precision == "int8" else CLOSE[precision]), (name, apart)
        far |= apart > CLOSE[precision]
    assert far.mean() <= max_far, far


# ---- The classifier -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["full", "fast"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_onnx_runtime_answers_as_the_operators_do(variant: str, precision: str, score: ScoreMode) -> None:
    packed, images = make_network(VARIANTS[variant], precision, score)
    expected = answer(packed, images)
    assert expected["probabilities"].std(0).max() > 1e-3 and expected["score"].std() > 1e-2  # they tell images apart
    if packed.layout.bins:
        assert expected["angle"].std() > 0.1
    for form in FORMS:
        model = kernel_graph(packed, form)
        few = run(model, images.numpy())
        assert_close(few, expected, precision)
        for name, value in run(model, images[:1].numpy()).items():
            np.testing.assert_allclose(value, few[name][:1], rtol=1e-4, atol=1e-4)


def test_the_operator_itself_is_what_the_node_stands_for() -> None:
    from vae_edge_kernels.layout import to_json

    packed, images = make_network({}, "int8")
    model = kernel_graph(packed)
    node = next(node for node in model.graph.node if node.op_type == "VaeEdgeNetwork")
    given = {attribute.name: attribute.s.decode() for attribute in node.attribute}
    layout = given.pop("layout")
    assert given == {"plugin_namespace": "", "plugin_version": "1"}
    assert layout == to_json(packed.layout) and list(node.input) == ["image", "weights", "params", "whitening"]
    buffers = [torch.from_numpy(numpy_helper.to_array(value).copy()) for value in model.graph.initializer]
    outputs = torch.ops.vae_edge.network(images, *buffers, layout)
    found = run(model, images.numpy())
    torch.testing.assert_close(torch.from_numpy(found["probabilities"]), outputs[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(torch.from_numpy(found["angle"]), outputs[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_network_s_function_reads_every_weight_from_its_inputs(precision: str) -> None:
    """The file holds little beside the three buffers; and other buffers give what the operator gives for them."""
    packed, images = make_network({}, precision)
    model = kernel_graph(packed)
    assert [value.name for value in model.graph.initializer] == ["weights", "params", "whitening"]
    constants = [node for function in model.functions for node in function.node if node.op_type == "Constant"]
    tensors = [attribute.t for node in constants for attribute in node.attribute if attribute.HasField("t")]
    assert max(int(np.prod(tensor.dims)) for tensor in tensors) <= packed.layout.bins

    other = dataclasses.replace(packed, params=packed.params * 1.01, weights=packed.weights.flip(0))
    for value in model.graph.initializer:
        value.CopyFrom(numpy_helper.from_array(getattr(other, value.name).numpy(), value.name))
    assert_close(run(model, images.numpy()), answer(other, images), precision)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_no_operator_of_ours_is_named_like_a_standard_one(precision: str, form: str) -> None:
    packed, _ = make_network({}, precision)
    model = kernel_graph(packed, form)
    assert all(function.domain == DOMAIN for function in model.functions)
    for name in {*network_functions(packed.layout), *(function.name for function in model.functions)}:
        assert name.startswith("VaeEdge") and not onnx.defs.has(name)
    assert len({function.name for function in model.functions}) == len(model.functions)  # none is overloaded
    assert {node.op_type for node in model.graph.node if node.domain} <= {f.name for f in model.functions}
    assert (model.ir_version, {opset.domain: opset.version for opset in model.opset_import}) == (
        10,
        {"": 20, DOMAIN: 1},
    )


def test_without_optimizations_the_functions_give_the_same() -> None:
    packed, images = make_network({}, "int8")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for form in FORMS:
        model = kernel_graph(packed, form)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, {"image": images.numpy()}), strict=True))
        assert_close(found, answer(packed, images), "int8")


@pytest.mark.parametrize("form", FORMS)
def test_an_image_that_is_cast_gives_the_same(form: Any) -> None:
    packed, images = make_network(VARIANTS["masked"], "int8")
    bytes_read = run(kernel_graph(packed, form), images.numpy())
    for name, value in run(kernel_graph(packed, form, None, "float16"), images.numpy()).items():
        np.testing.assert_array_equal(value, bytes_read[name])


def test_an_unknown_form_is_refused() -> None:
    packed, _ = make_network({}, "fp16")
    with pytest.raises(ExportError, match="read the image as uint8 or float16, not 'int8'"):
        kernel_graph(packed, "network", None, "int8")
    with pytest.raises(ExportError, match=r"has the form network or operators, not 'layers'"):
        kernel_graph(packed, "layers")


# ---- Single operators -----------------------------------------------------------------------------------------------


def run_operator(op_type: str, inputs: dict[str, np.ndarray], output: int, **attributes: Any) -> np.ndarray:
    """A node of an operator, by its function."""
    packed, _ = make_network({}, "fp16")
    kinds = [helper.np_dtype_to_tensor_dtype(value.dtype) for value in inputs.values()]
    graph = helper.make_graph(
        [helper.make_node(op_type, list(inputs), ["y"], domain=DOMAIN, **attributes)],
        "operator",
        [
            helper.make_tensor_value_info(name, kind, value.shape)
            for kind, (name, value) in zip(kinds, inputs.items(), strict=True)
        ],
        [helper.make_tensor_value_info("y", output, ["n", "h", "w", "k"])],
    )
    (found,) = open_session(finish(graph, network_functions(packed.layout), {})).run(["y"], inputs)
    return found


def int8(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


GEOMETRIES = [(1, 1, 1), (2, 1, 0), (3, 0, 2)]  # stride, padding above and at the left


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("stride, top, left", GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.float16])
def test_int8_convolutions_have_the_bits_of_the_reference(
    dtype: torch.dtype, stride: int, top: int, left: int, relu: bool
) -> None:
    x, weight = int8(2, 9, 8, 20), int8(3, 3, 12, 20, seed=1)
    scale, bias = numbers(12).abs() * 1e-4, numbers(12, seed=2) * 20
    expected = torch.ops.vae_edge.conv_int8(x, weight, scale, bias, None, stride, top, left, relu, 1.0, dtype)
    to = helper.np_dtype_to_tensor_dtype(expected.numpy().dtype)
    geometry = {"stride": stride, "pad_top": top, "pad_left": left, "relu": int(relu)}
    inputs = {"x": x, "weight": weight, "scale": scale, "bias": bias}
    named = {name: value.numpy() for name, value in inputs.items()}
    found = run_operator("VaeEdgeConvInt8", named, to, **geometry, residual_scale=1.0, dtype=to)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 20


@pytest.mark.parametrize("pixels", ["bytes", "float16", "float32"])
@pytest.mark.parametrize("stride, top, left", GEOMETRIES)
def test_int8_stems_have_the_bits_of_the_reference(stride: int, top: int, left: int, pixels: str) -> None:
    x = numbers(2, 9, 8, 3)
    x = (x.abs() * 60).to(torch.uint8) if pixels == "bytes" else x.to(getattr(torch, pixels))
    weight, scale, bias = int8(12, 3, 3, 3, seed=1), numbers(12).abs() * 0.01, numbers(12, seed=2)
    factor = 0.8 if pixels == "bytes" else 50.0
    expected = torch.ops.vae_edge.stem_conv_int8(x, weight, scale, bias, stride, top, left, True, factor)
    inputs = {"x": x, "weight": weight, "scale": scale, "bias": bias}
    named = {name: value.numpy() for name, value in inputs.items()}
    geometry = {"stride": stride, "pad_top": top, "pad_left": left, "relu": 1}
    found = run_operator("VaeEdgeStemConvInt8", named, TensorProto.INT8, **geometry, inv_x_scale=factor)
    np.testing.assert_array_equal(found, expected)


def test_half_is_rounded_to_even_and_large_values_are_saturated() -> None:
    x = torch.arange(-3, 4, dtype=torch.int8).reshape(1, 1, 7, 1)
    for scale, expected in ((0.5, [-2, -1, 0, 0, 0, 1, 2]), (100.0, [-128, -128, -100, 0, 100, 127, 127])):
        inputs = {
            "x": x.numpy(),
            "weight": np.ones((1, 1, 1, 1), np.int8),
            "scale": np.array([scale], np.float32),
            "bias": np.zeros(1, np.float32),
        }
        geometry = {"stride": 1, "pad_top": 0, "pad_left": 0, "relu": 0}
        found = run_operator(
            "VaeEdgeConvInt8", inputs, TensorProto.INT8, **geometry, residual_scale=1.0, dtype=TensorProto.INT8
        )
        np.testing.assert_array_equal(found.reshape(-1), np.array(expected, np.int8))


def test_the_largest_sums_of_1024_products_are_exact_and_where_more_may_not_be_is_told() -> None:
    """2^24 + 1 is no float32. The largest sum of 1,024 products is 2^24 itself."""
    x, weight = torch.full((1, 1, 1, 1024), -128, dtype=torch.int8), torch.full((1, 1, 2, 1024), -128, dtype=torch.int8)
    weight[0, 0, 1, 0] = -127
    scale, bias = torch.ones(2), torch.zeros(2)
    expected = torch.ops.vae_edge.conv_int8(x, weight, scale, bias, None, 1, 0, 0, False, 1.0, torch.float32)
    assert expected.reshape(-1).tolist() == [2**24, 2**24 - 128]
    inputs = {"x": x, "weight": weight, "scale": scale, "bias": bias}
    named = {name: value.numpy() for name, value in inputs.items()}
    geometry = {"stride": 1, "pad_top": 0, "pad_left": 0, "relu": 0}
    found = run_operator("VaeEdgeConvInt8", named, TensorProto.FLOAT, **geometry, residual_scale=1.0, dtype=1)
    np.testing.assert_array_equal(found, expected)

    packed, _ = make_network({"widths": (16, 128, 128)}, "int8")
    assert inexact_layers(packed) == []
    wide = [k for k, layer in enumerate(packed.layout.layers) if layer.kernel_size**2 * layer.in_channels > 1024]
    full = dataclasses.replace(packed, weights=torch.full_like(packed.weights, -128))
    assert inexact_layers(full) == wide and wide
    assert inexact_layers(make_network({}, "fp16")[0]) == []


@pytest.mark.parametrize("stride, top, left", GEOMETRIES)
def test_fp16_convolutions_equal_the_reference(stride: int, top: int, left: int) -> None:
    x, weight, bias = numbers(2, 9, 8, 20).half(), numbers(3, 3, 20, 12, seed=1).half(), numbers(12)
    geometry = {"stride": stride, "pad_top": top, "pad_left": left, "relu": 1}
    expected = torch.ops.vae_edge.conv(x, weight, bias, None, stride, top, left, True)
    inputs = {"x": x.numpy(), "weight": weight.numpy(), "bias": bias.numpy()}
    found = run_operator("VaeEdgeConv", inputs, TensorProto.FLOAT16, **geometry)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    x, weight = (x[..., :3].abs() * 60).to(torch.uint8), weight[:, :, :3].contiguous()
    expected = torch.ops.vae_edge.stem_conv(x, weight, bias, stride, top, left, False, 1 / 255)
    inputs = {"x": x.numpy(), "weight": weight.numpy(), "bias": bias.numpy()}
    geometry["relu"] = 0
    found = run_operator("VaeEdgeStemConv", inputs, TensorProto.FLOAT16, **geometry, scale=1 / 255)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("input_scale", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int8])
def test_rotations_equal_the_reference(dtype: torch.dtype, input_scale: float, masked: bool) -> None:
    x = torch.randint(0, 256, (3, 28, 28, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    angle = torch.tensor([0.0, 1.0, -2.5])
    cos, sin = angle.cos(), angle.sin()
    expected = torch.ops.vae_edge.rotate_pixels(x, cos, sin, 1 / 255, 0.25, masked, dtype, 100.0, input_scale)
    to = helper.np_dtype_to_tensor_dtype(expected.numpy().dtype)
    found = run_operator(
        "VaeEdgeRotate",
        {"x": x.numpy(), "cos": cos.numpy(), "sin": sin.numpy()},
        to,
        scale=1 / 255,
        fill=0.25,
        masked=int(masked),
        dtype=to,
        inv_output_scale=100.0,
        input_scale=input_scale,
    )
    apart = np.abs(found.astype(np.float64) - expected.numpy().astype(np.float64))
    if dtype == torch.int8:
        assert apart.max() <= 1 and (apart > 0).mean() < 0.01  # a value next to a tie
    else:
        assert apart.max() <= (1e-3 if dtype == torch.float16 else 2e-6)


# ---- Without functions, and other runtimes --------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("variant", ["plain", "upright", "not square"])
def test_openvino_runs_the_inlined_file_and_refuses_functions(variant: str, precision: str, form: str) -> None:
    openvino = pytest.importorskip("openvino")
    packed, images = make_network(VARIANTS[variant], precision)
    model = kernel_graph(packed, form)
    core = openvino.Core()
    with pytest.raises(Exception, match=r"(?s)No conversion rule found for operations: .*vae_edge\.VaeEdge"):
        core.read_model(model.SerializeToString())

    plain = inline(model)
    assert not plain.functions and all(not node.domain and node.op_type != "If" for node in plain.graph.node)
    assert [opset.domain for opset in plain.opset_import] == [""]
    assert get_metadata(plain) == get_metadata(model)
    same = run(model, images.numpy())
    for name, value in run(plain, images.numpy()).items():
        np.testing.assert_array_equal(value, same[name])

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(plain.SerializeToString()), "CPU", settings)
    outputs = compiled(images.numpy())
    # It computes float64 in float32, so that a requantization is rounded twice.
    assert_close({name: outputs[name] for name in same}, answer(packed, images), precision, max_far=2 * MAX_FAR)


def test_the_strict_reader_of_bundles_refuses_functions(tmp_path: Path) -> None:
    packed, _ = make_network({}, "fp16")
    model = kernel_graph(packed)
    write_kernel_graph(model, tmp_path / "own.onnx")
    with pytest.raises(BundleError, match="it holds functions of its own"):
        load_onnx(tmp_path / "own.onnx")
    write_kernel_graph(inline(model), tmp_path / "plain.onnx")
    assert len(load_onnx(tmp_path / "plain.onnx").graph.input) == 1


class TestWithRtx:
    """TensorRT-RTX parses and builds; nothing is run. Its plugins here compute nothing."""

    @pytest.fixture(autouse=True)
    def rtx(self) -> None:
        pytest.importorskip(
            "tensorrt_rtx_bindings",
            reason='TensorRT-RTX is not installed: pip install "vae-edge[rtx]"',
            exc_type=ImportError,
        )

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("precision", ["fp16", "int8"])
    def test_a_plugin_goes_before_the_function_of_its_node(self, tmp_path: Path, precision: str, form: Any) -> None:
        packed, _ = make_network({}, precision)
        model = kernel_graph(packed, form, None, "float16")
        nodes = sum(node.domain == DOMAIN for node in model.graph.node)
        for file in (model, without_functions(model)):
            found = build(file, tmp_path)
            assert found["plugins"] == nodes and found["engine"] > 10_000

    def test_without_its_attributes_a_node_is_its_function_there(self, tmp_path: Path) -> None:
        packed, _ = make_network({}, "fp16")
        model = kernel_graph(packed, "network", None, "float16")
        node = next(node for node in model.graph.node if node.domain == DOMAIN)
        kept = [attribute for attribute in node.attribute if not attribute.name.startswith("plugin_")]
        del node.attribute[:]
        node.attribute.extend(kept)
        found = build(model, tmp_path)
        assert found["plugins"] == 0 and found["layers"] > 1000
        assert build(without_functions(model), tmp_path)["plugins"] == 1

    def test_bytes_are_given_to_no_plugin(self, tmp_path: Path) -> None:
        packed, _ = make_network({}, "fp16")
        assert build(kernel_graph(packed), tmp_path) == {"layers": 19, "plugins": 1, "engine": 0}

    def test_an_inlined_file_builds_in_fp16_and_not_in_int8(self, bundle: Path, tmp_path: Path) -> None:
        config = BuildConfig("fp32", targets=("sm_89",))  # what the bodies of functions compute in
        for precision in ("fp16", "int8"):
            model, _ = bundle_kernel_graph(bundle, precision)
            write_kernel_graph(inline(model), tmp_path / f"{precision}.onnx")
        assert build_engine(tmp_path / "fp16.onnx", config).engine
        with pytest.raises(EngineError, match=r"Quantized constant .* is only allowed before DQ or PLUGIN"):
            build_engine(tmp_path / "int8.onnx", config)


# ---- A trained network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bundle_s_kernel_graph_answers_as_its_onnx_file_on_a_hundred_digits(
    bundle: Path, digits: Dataset, precision: str, form: Any
) -> None:
    assert digits.test is not None
    images = rotate_dataset(digits.test.take(np.arange(100))).images
    opened = load_bundle(bundle)
    source = opened.find("classifier", "onnx", precision)
    probes = load_probes(opened.file(opened.probes))
    model, differences = bundle_kernel_graph(bundle, precision, form)
    assert set(differences) == set(probes.models[source.sha256].tolerance)

    found, expected = run(model, images), run(load_onnx(opened.file(source)), images)
    allowed = dataclasses.replace(probes.models[source.sha256], outputs=expected)
    assert compare(allowed, found) == []
    assert (found["probabilities"].argmax(1) == expected["probabilities"].argmax(1)).mean() >= 0.98
    wrong = {**found, "probabilities": np.roll(found["probabilities"], 1, axis=1)}
    assert [mismatch.output for mismatch in compare(allowed, wrong)] == ["probabilities"]

    openvino = pytest.importorskip("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    outputs = core.compile_model(core.read_model(inline(model).SerializeToString()), "CPU", settings)(images)
    assert compare(allowed, {name: outputs[name] for name in found}) == []


def test_the_metadata_are_those_of_the_bundle_s_file(bundle: Path) -> None:
    opened = load_bundle(bundle)
    source = opened.find("classifier", "onnx", "int8", "any")
    model, _ = bundle_kernel_graph(bundle, "int8", "operators")
    metadata, ours = get_metadata(load_onnx(opened.file(source))), get_metadata(model)
    assert ours.pop("kernel_graph") == {"form": "operators", "precision": "int8"}
    assert ours == {**metadata, "threshold": opened.threshold_of(source)}


def test_the_largest_digits_sums_are_exact(bundle: Path) -> None:
    opened = load_bundle(bundle)
    model = load_onnx(opened.file(opened.find(precision="int8", format="onnx", target="any")))
    assert inexact_layers(network_file.read_network(model, opened.input)) == []


def test_a_graph_whose_answers_are_wrong_is_not_given_out(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[[onnx.ModelProto, InputSpec], PackedNetwork] = network_file.read_network

    def planted(model: onnx.ModelProto, image: InputSpec) -> PackedNetwork:
        packed = real(model, image)
        packed.weights[packed.weights[:144].float().abs().argmax()] *= -1  # one weight of the first layer
        return packed

    monkeypatch.setattr(kernel_file, "read_network", planted)
    with pytest.raises(EngineError, match=r"The kernel graph made of .* would give wrong answers: .*was written"):
        bundle_kernel_graph(bundle, "int8")


def test_without_the_precision_the_message_says_what_to_do(bundle: Path) -> None:
    with pytest.raises(EngineError, match="A kernel graph is fp16 or int8, not fp32"):
        bundle_kernel_graph(bundle, "fp32")
    with pytest.raises(ExportError, match="has the form network or operators"):
        bundle_kernel_graph(bundle, "fp16", "layers")
