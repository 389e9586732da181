"""Building with the double of TensorRT: through the project's own worker process, and call by call."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from doubles.cuda_library import CudaDouble
from doubles.device import Device
from doubles.loading import VERSIONS, TensorRTDouble, load_tensorrt, process_environment, write_package
from doubles.running import MODEL, Running, assert_close, clean, make_logger, truth
from doubles.small_graph import images, small_graph

Use = Callable[[str], TensorRTDouble]
BUILD = """
import json, sys
from pathlib import Path
from vae_edge.engine.build import BuildConfig, build_engine
from vae_edge.errors import EngineError
model, out, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
try:
    built = build_engine(model, BuildConfig(**options))
except EngineError as error:
    print(json.dumps({"error": str(error)}))
else:
    out.write_bytes(built.engine)
    told = {"kind": built.kind, "target": built.target, "fraction": built.fraction, "warnings": list(built.warnings)}
    print(json.dumps(told))
"""


def build(
    cuda: CudaDouble, folder: Path, version: str, model: bytes, options: dict[str, Any], **settings: object
) -> tuple[dict[str, Any], Path]:
    """What the project's own build says, in a process with the doubles as TensorRT and driver; and the engine."""
    (folder / "model.onnx").write_bytes(model)
    environment = process_environment(write_package(folder / "packages", version), cuda.folder, **settings)
    command = [sys.executable, "-c", BUILD, folder / "model.onnx", folder / "engine", json.dumps(options)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), folder / "engine"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_projects_own_build_makes_an_engine_that_runs(
    use_tensorrt: Use, cuda: CudaDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, precision: str
) -> None:
    monkeypatch.setenv("DOUBLE_CC", "86")
    model = small_graph(quantized=precision == "int8")
    options = {"precision": precision, "batch": [1, 4, 16], "targets": ["sm_86"]}
    told, engine = build(cuda, tmp_path, version, model, options)
    kind = "tensorrt_rtx" if version == "rtx" else "tensorrt"
    assert told == {"kind": kind, "target": "sm_86", "fraction": 1.0, "warnings": []}
    double = use_tensorrt(version)
    with cuda.context():
        running = Running(Device(cuda), double, engine.read_bytes())
        assert running.engine.get_tensor_profile_shape("image", 0)[2][0] == 16
        assert_close(running.infer(images(3)), truth(model, images(3)))
        assert clean(double, Device(cuda))


def test_rtx_builds_without_a_driver_and_full_tensorrt_does_not(cuda: CudaDouble, tmp_path: Path) -> None:
    no_gpu = "cuInit:0:100"
    ahead = {"precision": "fp32", "targets": ["sm_89"], "kind": "auto"}
    assert build(cuda, tmp_path, "rtx", MODEL, ahead, DOUBLE_FAIL=no_gpu)[0]["target"] == "sm_89"
    here = {"precision": "fp32", "kind": "tensorrt"}
    assert "no GPU" in build(cuda, tmp_path, "10.3", MODEL, here, DOUBLE_FAIL=no_gpu)[0]["error"]


def test_a_parser_that_reads_nearest_is_put_right_and_what_it_left_shows_in_the_answers(
    use_tensorrt: Use, device: Device
) -> None:
    double = use_tensorrt("rtx")
    double.state.nearest_grid_samples = True
    wrong = Running(device, double, by_hand(double)).infer(images(2))
    assert np.abs(wrong["angle"] - truth(MODEL, images(2))["angle"]).max() > 1e-2

    def put_right(network: Any, config: Any) -> None:
        for k in range(network.num_layers):
            layer = network.get_layer(k)
            if layer.type.name == "GRID_SAMPLE":
                assert not hasattr(layer, "interpolation_mode"), "a network hands out plain layers"
                layer.__class__ = double.module.IGridSampleLayer
                assert layer.interpolation_mode.name == "NEAREST" and layer.sample_mode.name == "FILL"
                layer.interpolation_mode = double.module.InterpolationMode.LINEAR

    assert_close(Running(device, double, by_hand(double, put_right)).infer(images(2)), truth(MODEL, images(2)))


def by_hand(double: TensorRTDouble, change: Callable[[Any, Any], None] | None = None, model: bytes = MODEL) -> bytes:
    """An engine that is built call by call."""
    trt, log = double.module, []
    logger = make_logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model, "model.onnx"), parser.get_error(0).desc()
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    shape = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("image", (1, *shape), (1, *shape), (8, *shape))
    assert config.add_optimization_profile(profile) == 0
    if change is not None:
        change(network, config)
    made = builder.build_serialized_network(network, config)
    assert made is not None, log
    return bytes(made)


def test_a_marked_tensor_becomes_an_output(double: TensorRTDouble, device: Device) -> None:
    def mark(network: Any, config: Any) -> None:
        (layer,) = [network.get_layer(k) for k in range(network.num_layers) if network.get_layer(k).name == "n_relu"]
        network.mark_output(layer.get_output(0))

    running = Running(device, double, by_hand(double, mark))
    assert running.names == ["image", "probabilities", "angle", "score", "relu"]
    found = running.infer(images(2))["relu"]
    proto = onnx.load_model_from_string(MODEL)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("relu", onnx.TensorProto.FLOAT, None))
    np.testing.assert_allclose(found, truth(proto.SerializeToString(), images(2))["relu"], rtol=1e-5)


def test_a_weakly_typed_network_is_a_fault_where_there_can_be_one(double: TensorRTDouble, device: Device) -> None:
    trt = double.module
    builder = trt.Builder(make_logger(trt, []))
    network = builder.create_network()
    assert trt.OnnxParser(network, builder.logger).parse(MODEL)
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None, "and it has no profile"
    weak = ["The network is not strongly typed, so the builder chooses the precision."]
    assert double.faults() == (weak if double.name in ("10.3", "10.13") else [])


def test_the_parser_tells_what_it_does_not_take(double: TensorRTDouble, device: Device) -> None:
    trt = double.module
    builder = trt.Builder(make_logger(trt, []))
    unknown = onnx.load_model_from_string(MODEL)
    unknown.graph.node[0].op_type = "Bernoulli"
    foreign = onnx.load_model_from_string(MODEL)
    foreign.graph.node[0].op_type = "OursAlone"
    for model, code, operator in (
        (b"no model at all", "MODEL_DESERIALIZE_FAILED", ""),
        (unknown.SerializeToString(), "UNSUPPORTED_NODE", "Bernoulli"),
        (foreign.SerializeToString(), "INVALID_NODE", "OursAlone"),
    ):
        network = builder.create_network(1)
        parser = trt.OnnxParser(network, builder.logger)
        assert parser.parse(model) is False
        error = parser.get_error(0)
        assert (parser.num_errors, error.code().name, error.node_operator()) == (1, code, operator)


def test_a_parser_whose_network_nobody_holds_is_a_fault(double: TensorRTDouble, device: Device) -> None:
    builder = double.module.Builder(make_logger(double.module, []))
    parser = double.module.OnnxParser(builder.create_network(1), builder.logger)
    with pytest.raises(RuntimeError, match="the network is gone"):
        parser.parse(MODEL)
    assert "ends with a crash" in double.faults()[0]


def test_an_image_that_is_read_as_it_is_does_not_build(double: TensorRTDouble, device: Device) -> None:
    proto = onnx.load_model_from_string(MODEL)
    names = [node.op_type for node in proto.graph.node]
    cast, transpose = (proto.graph.node[names.index(name)] for name in ("Cast", "Transpose"))
    cast.input[0], transpose.input[0], transpose.output[0] = "moved", "image", "moved"
    cast.output[0] = "nchw"
    nodes = [transpose, cast, *(node for node in proto.graph.node if node.op_type not in ("Cast", "Transpose"))]
    copied = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copied)
    with pytest.raises(AssertionError, match="n_nchw: first input has type UInt8"):
        by_hand(double, model=proto.SerializeToString())


def test_a_progress_monitor_sees_the_build_and_can_end_it(double: TensorRTDouble, device: Device) -> None:
    trt, seen = double.module, []

    class Monitor(trt.IProgressMonitor):
        def __init__(self, last: int) -> None:
            trt.IProgressMonitor.__init__(self)
            self.last = last

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            seen.append(num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            seen.append(step)
            return step < self.last

        def phase_finish(self, phase_name: str) -> None:
            seen.append("end")

    by_hand(double, lambda network, config: setattr(config, "progress_monitor", Monitor(9)))
    assert seen == [4, 0, 1, 2, 3, "end"]
    with pytest.raises(AssertionError, match="Cancelled"):
        by_hand(double, lambda network, config: setattr(config, "progress_monitor", Monitor(1)))


def test_a_timing_cache_belongs_to_its_gpu(double: TensorRTDouble, device: Device, monkeypatch: Any) -> None:
    trt = double.module
    config = trt.Builder(make_logger(trt, [])).create_builder_config()
    saved: list[bytes] = []

    def with_cache(network: Any, config: Any) -> None:
        cache = config.create_timing_cache(saved[-1] if saved else b"")
        assert config.set_timing_cache(cache, False)
        caches.append(cache)

    caches: list[Any] = []
    by_hand(double, with_cache)
    saved.append(bytes(caches[0].serialize()))
    assert len(json.loads(saved[0])["entries"]) == 1
    assert json.loads(bytes(config.create_timing_cache(b"no cache").serialize()))["entries"] == [], "an empty one"
    monkeypatch.setenv("DOUBLE_CC", "86")
    other = config.create_timing_cache(saved[0])
    assert config.set_timing_cache(other, False) is False
    assert config.set_timing_cache(other, True) is True


def test_an_orin_has_a_dla_that_takes_some_layers_in_int8(use_tensorrt: Use, device: Device) -> None:
    double = use_tensorrt("10.3")
    trt, model = double.module, small_graph(quantized=True)
    taken: dict[str, bool] = {}

    def for_dla(network: Any, config: Any) -> None:
        config.default_device_type, config.DLA_core = trt.DeviceType.DLA, 0
        layers = [network.get_layer(k) for k in range(network.num_layers)]
        taken.update({layer.type.name: config.can_run_on_DLA(layer) for layer in layers})

    with pytest.raises(AssertionError, match="no DLA takes this layer"):
        by_hand(double, for_dla, model)
    assert taken["CONVOLUTION"] and not taken["GRID_SAMPLE"] and not taken["GATHER"]

    def with_fallback(network: Any, config: Any) -> None:
        for_dla(network, config)
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)

    with pytest.raises(AssertionError, match="min, opt and max must be equal"):
        by_hand(double, with_fallback, model)


def test_a_build_fails_in_another_process_and_plants_there_too(
    use_tensorrt: Use, cuda: CudaDouble, tmp_path: Path
) -> None:
    options = {"precision": "fp32", "kind": "tensorrt"}
    told, _ = build(cuda, tmp_path, "10.3", MODEL, options, DOUBLE_TENSORRT_FAIL="build_serialized_network:1")
    assert "the memory did not suffice" in told["error"]
    _, engine = build(cuda, tmp_path, "10.3", MODEL, options, DOUBLE_TENSORRT_PLANTS="nearest")
    double = use_tensorrt("10.3")
    with cuda.context():
        found = Running(Device(cuda), double, engine.read_bytes()).infer(images(2))
    assert np.abs(found["angle"] - truth(MODEL, images(2))["angle"]).max() > 1e-2


def test_the_package_for_other_processes_offers_what_the_module_does(cuda: CudaDouble, tmp_path: Path) -> None:
    for version in VERSIONS:
        double = load_tensorrt(version)
        ask = f"import {double.kind} as trt; print(trt.__version__, *(n for n in vars(trt) if not n.startswith('_')))"
        environment = process_environment(write_package(tmp_path, version), cuda.folder)
        run = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
        said = run.stdout.split()
        assert said[0] == double.version
        assert set(double.exports()) - {"__version__"} <= set(said[1:])


def test_the_faults_of_another_process_are_written_to_a_file(cuda: CudaDouble, tmp_path: Path) -> None:
    file = tmp_path / "faults"
    do = (
        "import tensorrt as trt\n"
        "builder = trt.Builder(trt.Logger())\n"
        "network = builder.create_network()\n"
        f"trt.OnnxParser(network, builder.logger).parse(open({str(tmp_path / 'model.onnx')!r}, 'rb').read())\n"
        "builder.build_serialized_network(network, builder.create_builder_config())\n"
    )
    (tmp_path / "model.onnx").write_bytes(MODEL)
    packages = write_package(tmp_path / "packages", "10.3")
    environment = process_environment(packages, cuda.folder, DOUBLE_TENSORRT_FAULTS=file)
    subprocess.run([sys.executable, "-c", do], env=environment, check=True, capture_output=True)
    assert file.read_text() == "The network is not strongly typed, so the builder chooses the precision.\n"


def test_a_process_may_end_with_everything_open(cuda: CudaDouble, tmp_path: Path) -> None:
    do = (
        "import sys\n"
        "from pathlib import Path\n"
        "import tensorrt as trt\n"
        "from doubles.cuda_library import open_cuda_double, CudaDouble\n"
        "from doubles.device import Device\n"
        "from doubles.loading import load_tensorrt\n"
        "from doubles.running import Running, engine\n"
        "from doubles.small_graph import images\n"
        "cuda = CudaDouble(Path('libcuda.so.1'), Path('libcuda.so.1'))\n"
        "held = cuda.context()\n"
        "held.__enter__()\n"
        "running = Running(Device(cuda), load_tensorrt('10.3'), engine(load_tensorrt('10.3')))\n"
        "print(running.infer(images(2))['angle'].shape)\n"
    )
    environment = process_environment(write_package(tmp_path, "10.3"), cuda.folder)
    run = subprocess.run([sys.executable, "-c", do], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "(2,)\n", "")
