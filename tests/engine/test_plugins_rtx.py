"""Kernels as `IPluginV3` of TensorRT-RTX: real builds, and launches on the double of the driver.

Builds need the extra `rtx` and no GPU. A launch goes to the driver's double and is executed by the emulator
(`doubles.emulated_gpu`): machine code, arguments, grid and stream are the plugin's, the execution is of its PTX.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from doubles import emulated_gpu
from doubles.cuda_library import CudaDouble
from doubles.device import Device

from vae_edge.engine import cuda
from vae_edge.engine.build import build_engine
from vae_edge.engine.inspection import parse_header
from vae_edge.engine.plugins import layered
from vae_edge.engine.plugins.kernel_file import SUFFIX, Kernel, read_folder, read_kernel
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.errors import EngineError

trt = pytest.importorskip(
    "tensorrt_rtx_bindings", reason='TensorRT-RTX is not installed: pip install "vae-edge[rtx]"', exc_type=ImportError
)
pytestmark = pytest.mark.skipif(bool(emulated_gpu.why_not()), reason=emulated_gpu.why_not())


# ---- Builds ---------------------------------------------------------------------------------------------------------


def write_graph(folder: Path, int8: bool, architectures: tuple[int, ...]) -> Path:
    """A graph of the network `tiny` in one node, and its kernel."""
    from plugin_cases import packed

    from vae_edge.exporting.kernel_graph import kernel_graph
    from vae_edge.exporting.plugin_graph import with_plugins

    graph = with_plugins(kernel_graph(packed(int8)), architectures, quick=False)
    for name, content in graph.kernels.items():
        (folder / f"{name}{SUFFIX}").write_bytes(content)
    onnx.save(graph.model, str(folder / "network.onnx"))
    return folder / "network.onnx"


@pytest.mark.parametrize(("precision", "targets"), [("fp16", ("sm_86", "sm_120")), ("int8", ("sm_86",))])
def test_an_engine_with_the_network_in_one_kernel_builds(
    tmp_path: Path, precision: str, targets: tuple[str, ...]
) -> None:
    path = write_graph(tmp_path, precision == "int8", tuple(int(each[3:]) for each in targets))
    config = BuildConfig(precision, targets=targets, kind="tensorrt_rtx", kernels="network", batch=(1, 4, 16))
    result = build_engine(path, config, plugins=tmp_path)
    (layer,) = (layer for layer in result.layers if layer.type == "custom_layer")
    assert layer.inputs == ("fp16",) and layer.outputs[:4] == ("fp32",) * 4
    assert parse_header(result.engine[:64], len(result.engine)).targets == targets
    assert "its network is one kernel of the toolkit" in result.summary()
    assert result.provenance()["settings"]["kernels"] == "network"

    (kernel,) = read_folder(tmp_path).values()
    for code in kernel.codes:
        assert code.cubin in result.engine  # the machine code travels in the engine, and the PTX does not
        assert code.ptx not in result.engine
    _, scratch = kernel.scratch_offsets(lambda number, axis: 16)
    (told,) = re.findall(r"Max Scratch Memory: (\d+) bytes", "\n".join(result.log))
    assert scratch <= int(told) < scratch + 100_000  # beside it, the image as float16


def test_other_operators_build(tmp_path: Path) -> None:
    """A rotation, and a sampling whose seed and offset are int64 inputs of the plugin."""
    from onnx import TensorProto, helper

    from vae_edge.exporting.plugin_graph import with_plugins

    def info(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    turn = {"scale": 1 / 255, "fill": 0.0, "masked": 0, "dtype": "float32"}
    turn |= {"inv_output_scale": 1.0, "input_scale": 0.0}
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["cos"], keepdims=0),
        helper.make_node("VaeEdgeRotate", ["image", "cos", "cos"], ["turned"], domain="vae_edge", name="turn", **turn),
        helper.make_node("Reshape", ["turned", "rows"], ["mu"]),
        helper.make_node(
            "VaeEdgeReparameterize", ["mu", "mu", "seed", "offset"], ["z", "kl"], domain="vae_edge", name="sample"
        ),
        helper.make_node("Softmax", ["z"], ["probabilities"]),
        helper.make_node("Identity", ["kl"], ["angle"]),
        helper.make_node("Neg", ["kl"], ["score"]),
    ]
    constants = {"axes": [1, 2, 3], "rows": [-1, 784], "seed": [7], "offset": [0]}
    graph = helper.make_graph(
        nodes,
        "operators",
        [info("image", TensorProto.UINT8, ["N", 28, 28, 1])],
        [info("probabilities", TensorProto.FLOAT, ["N", 784])]
        + [info(name, TensorProto.FLOAT, ["N"]) for name in ("angle", "score")],
        [onnx.numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("vae_edge", 1)]
    made = with_plugins(helper.make_model(graph, opset_imports=opsets, ir_version=10), (86,), quick=False)
    assert [name.split("_")[0] for name in made.kernels] == ["VaeEdgeRotate", "VaeEdgeReparameterize"]
    for name, content in made.kernels.items():
        (tmp_path / f"{name}{SUFFIX}").write_bytes(content)
    onnx.save(made.model, str(tmp_path / "model.onnx"))
    config = BuildConfig("fp16", targets=("sm_86",), kind="tensorrt_rtx", kernels="network")
    result = build_engine(tmp_path / "model.onnx", config, plugins=tmp_path)
    assert [layer.type for layer in result.layers].count("custom_layer") == 2


def test_a_node_without_its_kernel_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = write_graph(tmp_path, False, (86,))
    (file,) = tmp_path.glob(f"*{SUFFIX}")
    other = file.with_name(f"VaeEdgeNetwork_other{SUFFIX}")
    file.rename(other)
    config = BuildConfig("fp16", targets=("sm_86",), kind="tensorrt_rtx", kernels="network")
    with pytest.raises(EngineError, match="operator that TensorRT does not know and that no plugin brings"):
        build_engine(path, config, plugins=tmp_path)
    other.write_bytes(b"no kernel")
    with pytest.raises(EngineError, match="holds no plugin kernel that this version reads"):
        build_engine(path, config, plugins=tmp_path)
    other.unlink()
    with pytest.raises(EngineError, match="There are no kernel files in"):
        build_engine(path, config, plugins=tmp_path)
    with pytest.raises(EngineError, match="is built from a bundle: `vae-edge build BUNDLE --kernels network`"):
        build_engine(path, config)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernels": "triton"}, "'triton' are unknown: choose one of tensorrt, network, operators, auto"),
        ({"precision": "fp32"}, "are for classifiers in fp16 or int8, but fp32 of the role classifier"),
        ({"role": "reconstruction"}, "but fp16 of the role reconstruction"),
        ({"dla_core": 0, "batch": (1, 1, 1)}, "no use for a DLA"),
        ({"strip_weights": True}, "no use for refit or stripped weights"),
        ({"mark_outputs": ("x",)}, "no use for marked outputs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        BuildConfig(**{"precision": "fp16", "kernels": "network", **options})


# ---- Launches -------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(cuda: CudaDouble, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The driver's double, an Orin, with a current context."""
    monkeypatch.setattr("vae_edge.engine.cuda.LIBRARY", str(cuda.library))
    with cuda.context():
        yield Device(cuda)


def save_ptx(kernel: Kernel, folder: Path) -> None:
    """For the emulated GPU: the PTX of each machine code, and its arguments."""
    types = {f"input {number}": "*" for number in range(len(kernel.inputs))}
    types |= {f"scalar {number}": "i32" for number in range(len(kernel.scalars))}
    types |= {each.name: "*" for each in (*kernel.outputs, *kernel.scratch)}
    lines = {}
    for code in kernel.codes:
        image = ctypes.create_string_buffer(code.cubin)  # the double tells machine code by what its ELF header reaches
        digest = hashlib.sha256(emulated_gpu.machine_code(ctypes.addressof(image))).hexdigest()
        (folder / f"{digest}.ptx").write_bytes(code.ptx)
        lines[digest] = {"kernel": kernel.operator, "arguments": types}
    (folder / emulated_gpu.LINES).write_text(json.dumps(lines))


def describe(arrays: list[np.ndarray]) -> list[Any]:
    """As TensorRT describes tensors to `enqueue`."""
    made = []
    for array in arrays:
        desc = trt.PluginTensorDesc()
        desc.dims = trt.Dims(array.shape)
        made.append(desc)
    return made


def run_plugin(kernel: Kernel, device: Device, inputs: list[np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Serialize a plugin, make it again as an engine does, and enqueue it on a stream."""
    built = layered.make_plugin(trt, "VaeEdgeNetwork_x", kernel)
    (field,) = built.get_fields_to_serialize()
    assert field.name == layered.FIELD
    plugin = layered.make_plugin(trt, "VaeEdgeNetwork_x", read_kernel(field.data.tobytes(), "it"))
    attached = plugin.attach_to_context(None)
    assert attached.on_shape_change([], []) == 0 and attached.clone().launcher is attached.launcher

    addresses = [device.upload(each) for each in inputs]
    shapes = [tuple(count if side == ["dim", 0, 0] else side for side in each.shape) for each in kernel.outputs]
    made = [np.zeros(shape, buffer.dtype) for shape, buffer in zip(shapes, kernel.outputs, strict=True)]
    results = [device.allocate(each.nbytes) for each in made]
    _, size = kernel.scratch_offsets(lambda number, axis: inputs[number].shape[axis])
    workspace, stream = device.allocate(size), device.stream()
    assert attached.enqueue(describe(inputs), describe(made), addresses, results, workspace, stream) == 0
    device.library.cuStreamSynchronize(stream)
    assert device.cuda.faults() == []
    return {
        buffer.name: device.download(address, each.nbytes).view(each.dtype).reshape(each.shape)
        for buffer, address, each in zip(kernel.outputs, results, made, strict=True)
    }


@pytest.mark.parametrize(("int8", "count"), [(False, 1), (True, 3)])
def test_a_launch_gives_what_the_operators_give(tmp_path: Path, device: Device, int8: bool, count: int) -> None:
    from plugin_cases import check_network, network_inputs, network_kernel

    kernel = network_kernel(int8, 87)
    save_ptx(kernel, tmp_path)
    gpu = emulated_gpu.EmulatedGpu(tmp_path, device.library)
    inputs, expected = network_inputs(int8, count)
    check_network(run_plugin(kernel, device, inputs, count), expected)
    assert dict(gpu.launches) == {("VaeEdgeNetwork", 87, count, 1): 1}
    assert device.cuda.faults() == []


def test_the_emulated_gpu_refuses_a_workspace_that_is_too_small(tmp_path: Path, device: Device) -> None:
    """The case that the launch above must refuse."""
    from plugin_cases import network_inputs, network_kernel

    kernel = network_kernel(False, 87)
    save_ptx(kernel, tmp_path)
    emulated_gpu.EmulatedGpu(tmp_path, device.library)
    inputs, _ = network_inputs(False, 1)
    attached = layered.make_plugin(trt, "VaeEdgeNetwork_x", kernel).attach_to_context(None)
    results = [device.allocate(64) for _ in kernel.outputs]
    addresses = [device.upload(each) for each in inputs]
    stream = device.stream()
    attached.enqueue(describe(inputs), [], addresses, results, device.allocate(256), stream)
    assert device.library.cuStreamSynchronize(stream) == emulated_gpu.ILLEGAL_ADDRESS
    assert any("failed" in fault for fault in device.cuda.faults())


def test_an_empty_batch_launches_nothing(device: Device) -> None:
    from plugin_cases import network_inputs, network_kernel

    inputs, _ = network_inputs(False, 1)
    empty = [inputs[0][:0], *inputs[1:]]
    attached = layered.make_plugin(trt, "VaeEdgeNetwork_x", network_kernel(False, 87)).attach_to_context(None)
    assert attached.enqueue(describe(empty), [], [0] * 4, [0] * 4, 0, device.stream()) == 0
    assert device.cuda.count("cuLaunchKernel") == 0


def test_code_is_chosen_by_the_gpu(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    from plugin_cases import network_kernel

    kernel = network_kernel(False, 87)
    assert cuda.current_architecture() == 87
    assert layered.choose_code(kernel, 89).architecture == 87  # code of sm_87 runs on later ones of its generation
    for other in (86, 90, 80):
        with pytest.raises(EngineError, match=f"was compiled for sm_87, and the GPU is sm_{other}"):
            layered.choose_code(kernel, other)
    plugin = layered.make_plugin(trt, "VaeEdgeNetwork_x", kernel)
    with pytest.raises(EngineError, match="runs without an execution context"):
        plugin.enqueue([], [], [], [], 0, 0)
    monkeypatch.setenv("DOUBLE_CC", "86")
    with pytest.raises(EngineError, match="was compiled for sm_87, and the GPU is sm_86"):
        plugin.attach_to_context(None)


def test_a_driver_that_refuses_is_told(device: Device) -> None:
    from plugin_cases import network_kernel

    kernel = network_kernel(False, 87)
    device.cuda.fail("cuLibraryLoadData", code=209)
    with pytest.raises(cuda.CudaError, match="cuLibraryLoadData failed with error 209"):
        layered.make_plugin(trt, "VaeEdgeNetwork_x", kernel).attach_to_context(None)
    attached = layered.make_plugin(trt, "VaeEdgeNetwork_x", kernel).attach_to_context(None)
    device.cuda.fail("cuLaunchKernel", code=701)
    with pytest.raises(cuda.CudaError, match="cuLaunchKernel failed with error 701"):
        image = np.zeros((1, 28, 28, 1), np.float16)
        attached.enqueue(describe([image] * 4), [], [0] * 4, [0] * 4, 0, device.stream())


def test_code_is_unloaded_with_its_last_plugin(device: Device) -> None:
    from plugin_cases import network_kernel

    kernel = network_kernel(False, 87)
    (code,) = kernel.codes
    loaded = cuda.KernelCode(code.cubin, code.entry)
    assert device.cuda.count("libraries") == 1
    del loaded
    assert device.cuda.count("libraries") == 0


def test_what_an_engine_carries_is_checked(device: Device) -> None:
    from plugin_cases import network_kernel

    lean = network_kernel(False, 87, quick=True)
    with pytest.raises(EngineError, match="was compiled without machine code"):
        layered.make_plugin(trt, "VaeEdgeNetwork_x", lean)
    with pytest.raises(EngineError, match="was registered to run, and not to build with"):
        layered.find_kernel("VaeEdgeNetwork_y")


def test_the_creator_makes_a_plugin_of_an_engines_bytes() -> None:
    from plugin_cases import network_kernel

    kernel = network_kernel(False, 87)
    layered.register(trt, ["VaeEdgeNetwork_of_this_test"], {"VaeEdgeNetwork_of_this_test": kernel})
    layered.register(trt, ["VaeEdgeNetwork_of_this_test"])  # again: nothing happens
    creator = trt.get_plugin_registry().get_creator("VaeEdgeNetwork_of_this_test", "1", "vae_edge")
    assert creator is not None
    none = trt.PluginFieldCollection([])
    built = creator.create_plugin("node", none, trt.TensorRTPhase.BUILD)
    again = creator.create_plugin("node", built.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
    assert again.num_outputs == 4 and again.plugin_name == "VaeEdgeNetwork_of_this_test"
    with pytest.raises(EngineError, match="The plugin VaeEdgeNetwork_of_this_test of the engine holds no plugin"):
        creator.create_plugin("node", none, trt.TensorRTPhase.RUNTIME)
