"""The TensorRT plugin in C++, without a GPU: answers, and engines of the real TensorRT-RTX.

It is compiled with NVIDIA's headers where TENSORRT_ROOT and CUDA_INCLUDE_DIR name them, else with the double of them.
Answers: a host in place of TensorRT runs the plugin over the driver's double, whose launches `doubles.emulated_gpu`
executes. Engines: TensorRT-RTX builds without a GPU, and calls all of the plugin but what runs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from doubles import emulated_gpu
from native_double import NativeBuild
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests/fixtures/schema1/bundle"
IMAGES = 3
PRECISIONS = ["int8", pytest.param("fp16", marks=pytest.mark.slow)]
OUTPUTS = ("probabilities", "angle", "score", "uncertainty")


@dataclass(frozen=True)
class PluginBuild:
    """The plugin's library, and that with the host."""

    library: Path
    host: Path


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> PluginBuild:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("needs CMake and a C++ compiler")
    double = str(ROOT / "tests/doubles/nvinfer")
    headers, cuda = os.environ.get("TENSORRT_ROOT", double), os.environ.get("CUDA_INCLUDE_DIR", double)
    build = tmp_path_factory.mktemp("plugin")
    options = [
        "-DVAE_EDGE_KERNELS=OFF",
        "-DVAE_EDGE_WERROR=ON",
        f"-DTENSORRT_ROOT={headers}",
        f"-DCUDA_INCLUDE_DIR={cuda}",
    ]
    subprocess.run(["cmake", "-S", ROOT, "-B", build, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    return PluginBuild(build / "lib/libvae_edge_tensorrt.so", build / "lib/libplugin_host.so")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "The TensorRT plugins are left out: -DTENSORRT_ROOT=... or -DTENSORRT_RTX_ROOT=... names a folder"),
        (["-DTENSORRT_RTX_ROOT={empty}"], "vae_edge_tensorrt_rtx is left out: {empty} has no NvInferRuntime.h"),
        (
            ["-DTENSORRT_ROOT={double}", "-DCUDA_INCLUDE_DIR=CUDA_INCLUDE_DIR-NOTFOUND", "-DCMAKE_PREFIX_PATH={empty}"],
            "vae_edge_tensorrt is left out: there is no cuda_runtime_api.h",
        ),
    ],
)
def test_without_headers_the_plugin_is_left_out_and_it_is_said(tmp_path: Path, options: list[str], said: str) -> None:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("needs CMake and a C++ compiler")
    if "cuda_runtime_api.h" in said and Path("/usr/local/cuda").exists():
        pytest.skip("this machine has a CUDA toolkit, which is found")
    places = {"empty": tmp_path / "empty", "double": ROOT / "tests/doubles/nvinfer"}
    places["empty"].mkdir()
    given = [option.format(**places) for option in options]
    command = ["cmake", "-S", ROOT, "-B", tmp_path / "build", "-DVAE_EDGE_KERNELS=OFF", *given]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert said.format(**places) in done.stdout


def packed_network(precision: str) -> Any:
    """The small network of three classes, out of its ONNX file."""
    from vae_edge.bundle import load_bundle
    from vae_edge.exporting.bundle import load_onnx
    from vae_edge.exporting.network_file import read_network

    opened = load_bundle(SMALL)
    return read_network(load_onnx(opened.file(opened.find(precision=precision))), opened.input)


def kernel_model(packed: Any) -> onnx.ModelProto:
    """The network as one node, its constants in the file."""
    from vae_edge_kernels.layout import to_json

    net = packed.layout
    constants = {name: getattr(packed, name).numpy() for name in ("weights", "params", "whitening")}
    node = helper.make_node(
        "VaeEdgeNetwork", ["image", *constants], OUTPUTS, name="network", domain="vae_edge", layout=to_json(net)
    )
    shapes = (["batch", net.classes], ["batch"], ["batch"], ["batch", 3])
    graph = helper.make_graph(
        [node],
        "network",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", net.height, net.width, net.channels])],
        [helper.make_tensor_value_info(*pair) for pair in zip(OUTPUTS, [TensorProto.FLOAT] * 4, shapes, strict=True)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("vae_edge", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


# ---- Answers --------------------------------------------------------------------------------------------------------

RUN = """
import ctypes, sys
from pathlib import Path
import numpy as np
from doubles.emulated_gpu import EmulatedGpu
from native_double import double, faults
from vae_edge.engine import cuda

given, (plugin, host, ptx, result) = np.load(sys.argv[1]), sys.argv[2:]
d, Pointer, Size, Pointers = double(), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p * 4
gpu, context = EmulatedGpu(Path(ptx), d), cuda.open_context()
resources = cuda.Resources(context)
run, Allocate = ctypes.CDLL(host, mode=ctypes.RTLD_GLOBAL).host_run, ctypes.CFUNCTYPE(Pointer, Size)
run.argtypes = (
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64, Pointer, ctypes.c_int64,
    ctypes.c_int64, Pointers, Pointers, Allocate, Pointer, Pointer, ctypes.c_char_p, Size)
arrays = [np.ascontiguousarray(given[name]) for name in ("image", "weights", "params", "whitening")]
image, weights, params, whitening = arrays
n = len(image)
found = [np.empty(shape, np.float32) for shape in ((n, int(given["classes"])), n, n, (n, 3))]
sizes = np.array(
    [*image.shape[1:], weights.size, params.size, *whitening.shape, weights.dtype == np.int8], np.int64)
layout, code, text = given["layout"].tobytes(), given["code"].tobytes(), ctypes.create_string_buffer(10000)
wait = ctypes.cast(d.cuStreamSynchronize, Pointer)
with context.current():
    inputs, outputs = ([resources.device_memory(array.nbytes) for array in part] for part in (arrays, found))
    for pointer, array in zip(inputs, arrays):
        assert d.cuMemcpyHtoD_v2(pointer, array.ctypes.data, array.nbytes) == 0
    step = run(
        plugin.encode(), layout, len(layout), code, len(code), sizes.ctypes.data, 4, n, Pointers(*inputs),
        Pointers(*outputs), Allocate(resources.device_memory), wait, resources.stream(), text, len(text))
    for pointer, array in zip(outputs, found):
        assert d.cuMemcpyDtoH_v2(array.ctypes.data, pointer, array.nbytes) == 0
    resources.close()
np.savez(result, *found)
print(step, text.value.decode(), faults(), dict(gpu.launches), d.double_count(b"libraries"))
"""


@pytest.mark.skipif(bool(emulated_gpu.why_not()), reason=emulated_gpu.why_not())
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_plugins_answers_are_the_references(
    native: NativeBuild, plugin: PluginBuild, tmp_path: Path, precision: str
) -> None:
    """One multiprocessor has two slots, which work on three images."""
    import torch
    from vae_edge_kernels.layout import to_json

    from vae_edge.exporting.plugin_code import make_plugin_model
    from vae_edge.ops.network import network

    packed = packed_network(precision)
    net, layout = packed.layout, to_json(packed.layout)
    with emulated_gpu.keep_ptx(tmp_path / "ptx"):
        model = make_plugin_model(kernel_model(packed), "orin")
    (code,) = [attribute.s for attribute in model.graph.node[0].attribute if attribute.name == "machine_code"]
    images = np.random.default_rng(3).integers(0, 256, (IMAGES, net.height, net.width, net.channels), np.uint8)
    np.savez(
        tmp_path / "given.npz",
        image=images,
        classes=net.classes,
        layout=np.frombuffer(layout.encode(), np.uint8),
        code=np.frombuffer(code, np.uint8),
        **{name: getattr(packed, name).numpy() for name in ("weights", "params", "whitening")},
    )
    script = tmp_path / "run.py"
    script.write_text(RUN)
    files = (tmp_path / "given.npz", plugin.library, plugin.host, tmp_path / "ptx", tmp_path / "found.npz")
    done = subprocess.run(
        [sys.executable, script, *files],
        env=native.environment(DOUBLE_MULTIPROCESSORS="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0  [] {('network', 87, 2, 1): 1} 0\n"

    expected = network(torch.from_numpy(images), packed.weights, packed.params, packed.whitening, layout)
    with np.load(tmp_path / "found.npz") as found:
        for number, (name, exact) in enumerate(zip(OUTPUTS, expected, strict=True)):
            difference = np.abs(found[f"arr_{number}"] - exact.numpy()).max()
            assert difference < 2e-3 * max(1.0, np.abs(exact.numpy()).max()), name


# ---- Engines of the real TensorRT-RTX -------------------------------------------------------------------------------

BUILD = """
import sys
import tensorrt_rtx_bindings as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.ERROR or message.startswith("Layers:"):
            print(message)

log = Log()
path, library, engine = sys.argv[1:]
assert trt.get_plugin_registry().load_library(library) is not None
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
with open(path, "rb") as file:
    if not parser.parse(file.read()):
        sys.exit("not parsed")
config = builder.create_builder_config()
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
config.num_compute_capabilities = 1
assert config.set_compute_capability(trt.ComputeCapability.SM86, 0)
shape = tuple(network.get_input(0).shape)[1:]
profile = builder.create_optimization_profile()
profile.set_shape("image", (1, *shape), (4, *shape), (64, *shape))
config.add_optimization_profile(profile)
made = builder.build_serialized_network(network, config)
with open(engine, "wb") as file:
    file.write(bytes(made))
print([(network.get_output(k).name, tuple(network.get_output(k).shape)) for k in range(network.num_outputs)])
"""


def build_with_rtx(model: onnx.ModelProto, library: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build an engine in a process that can load the parser: it opens libtensorrt_rtx.so, which the package lacks."""
    libs = pytest.importorskip("tensorrt_rtx_libs", reason='TensorRT-RTX is not installed: pip install "vae-edge[rtx]"')
    (Path(folder) / "lib").mkdir()
    (folder / "lib/libtensorrt_rtx.so").symlink_to(Path(libs.__file__).parent / "libtensorrt_rtx.so.1")
    onnx.save(model, folder / "model.onnx")
    return subprocess.run(
        [sys.executable, "-c", BUILD, folder / "model.onnx", library, folder / "model.rtx"],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder / "lib")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_rtx_builds_an_engine_of_one_layer_that_has_the_code(
    plugin: PluginBuild, tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("triton")
    from vae_edge.exporting.plugin_code import make_plugin_model

    packed = packed_network(precision)
    model = make_plugin_model(kernel_model(packed), "sm_86")
    done = build_with_rtx(model, plugin.library, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    layers = [line for line in done.stdout.splitlines() if line.startswith("Name: ")]
    assert ["shape_call" in line for line in layers] == [True, False]
    assert "LayerType: custom_layer, Inputs: [ { Name: image" in layers[1]
    assert f"[('probabilities', (-1, {packed.layout.classes})), ('angle', (-1,)), ('score', (-1,))," in done.stdout
    (code,) = [attribute.s for attribute in model.graph.node[0].attribute if attribute.name == "machine_code"]
    assert code in (tmp_path / "model.rtx").read_bytes()


def test_what_the_plugin_refuses_is_said_where_the_engine_is_built(plugin: PluginBuild, tmp_path: Path) -> None:
    from vae_edge.exporting.plugin_code import make_plugin_model

    pytest.importorskip("triton")
    model = make_plugin_model(kernel_model(packed_network("fp16")), "sm_86")
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    done = build_with_rtx(model, plugin.library, tmp_path)
    assert done.returncode == 1
    assert "VaeEdgeNetwork: image is uint8, of which TensorRT gives no tensor to a plugin" in done.stdout + done.stderr
