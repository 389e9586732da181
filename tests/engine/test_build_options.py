"""What a build is told beyond precision and batch: TF32, refit, marked outputs, a DLA, which GPU."""

from __future__ import annotations

import enum
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine_graphs import classifier, save

from vae_edge.bundle import ModelEntry, create_bundle, load_bundle
from vae_edge.engine import gpus
from vae_edge.engine.build import build_engine, inner_tensor_names, select_tensorrt
from vae_edge.engine.builder import mark_outputs
from vae_edge.engine.dla import DlaLayers, ask_dla
from vae_edge.engine.refit import is_stripped, refit, source_of
from vae_edge.engine.tensorrt import Adapter, BuildConfig, Log, TensorRTInstallation, open_adapter
from vae_edge.engine.worker import BuildRequest, _environment, run_worker
from vae_edge.errors import BundleError, EngineError
from vae_edge.preprocess import InputSpec
from vae_edge.probes import Expected, Probes, Tolerance
from vae_edge.probes import save as save_probes

PATH = Path("model.onnx")


def members(*names: str) -> type[enum.IntEnum]:
    return enum.IntEnum("Members", names, start=0)  # type: ignore[return-value]


def adapter(kind: str = "tensorrt", flags: tuple[str, ...] = ("TF32", "REFIT", "STRIP_PLAN")) -> Adapter:
    """One whose module has what `config_calls` asks for, and these builder flags."""
    config = SimpleNamespace(set_memory_pool_limit=0, profiling_verbosity=0)
    module = SimpleNamespace(
        BuilderFlag=members(*flags),
        MemoryPoolType=members("WORKSPACE"),
        ProfilingVerbosity=members("DETAILED"),
        IBuilderConfig=config,
        DataType=members("FLOAT"),
    )
    return Adapter(module, TensorRTInstallation(kind, "tensorrt", "10.3.0", True))


def flags_of(config: BuildConfig, made: Adapter) -> list[tuple[str, str]]:
    return [(call.action, call.name) for call in made.config_calls(config) if "flag" in call.action]


def test_an_fp32_engine_computes_in_fp32_unless_tf32_is_asked_for() -> None:
    assert flags_of(BuildConfig("fp32"), adapter()) == [("clear_flag", "TF32")]
    assert flags_of(BuildConfig("fp32", tf32=True), adapter()) == []
    assert flags_of(BuildConfig("int8"), adapter()) == []
    assert flags_of(BuildConfig("fp16", tf32=False), adapter()) == [("clear_flag", "TF32")]
    assert BuildConfig("fp32").for_manifest()["tf32"] is False


def test_stripped_weights_are_those_of_the_build_where_the_version_can_say_so() -> None:
    newest = adapter(flags=("TF32", "REFIT", "STRIP_PLAN", "REFIT_IDENTICAL"))
    assert flags_of(BuildConfig("int8", strip_weights=True), newest) == [
        *(("flag", "STRIP_PLAN"), ("flag", "REFIT_IDENTICAL"))
    ]
    assert flags_of(BuildConfig("int8", strip_weights=True), adapter()) == [("flag", "STRIP_PLAN"), ("flag", "REFIT")]
    assert flags_of(BuildConfig("int8", refit=True), newest) == [("flag", "REFIT")]
    assert flags_of(BuildConfig("int8", refit=True, strip_weights=True), newest) == [
        *(("flag", "STRIP_PLAN"), ("flag", "REFIT"))
    ]
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 has no BuilderFlag\.STRIP_PLAN"):
        flags_of(BuildConfig("int8", strip_weights=True), adapter(flags=("TF32", "REFIT")))


@pytest.mark.parametrize("options", [{"refit": True}, {"strip_weights": True}])
def test_rtx_refuses_what_it_builds_only_on_a_gpu(options: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="no use for refit or stripped weights"):
        adapter("tensorrt_rtx").config_calls(BuildConfig("int8", targets=("sm_86",), **options))


def test_stripped_weights_and_marked_outputs_exclude_each_other_and_a_gpu_has_a_number() -> None:
    with pytest.raises(EngineError, match="choose one of the two"):
        BuildConfig("int8", strip_weights=True, mark_outputs=("x",))
    with pytest.raises(EngineError, match="0 or more, but -1"):
        BuildConfig("int8", device=-1)


def test_all_options_survive_the_way_through_json_and_a_manifest_has_no_number_of_a_gpu() -> None:
    config = BuildConfig("int8", refit=True, mark_outputs=("a", "b"), device=1, targets=("rtx-4090",))
    assert BuildConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    kept = config.for_manifest()
    assert kept["mark_outputs"] == ["a", "b"] and kept["targets"] == ["sm_89"] and "device" not in kept


# Marked outputs


class Tensor:
    def __init__(self, name: str, dtype: str = "FLOAT") -> None:
        self.name, self.dtype = name, SimpleNamespace(name=dtype)


class Network:
    """A network of layers with one output each."""

    def __init__(self, *tensors: Tensor) -> None:
        self.layers = [self._layer(tensor) for tensor in tensors]
        self.marked: list[str] = []
        self.cast: list[str] = []

    @staticmethod
    def _layer(tensor: Tensor, kind: str = "CONVOLUTION") -> Any:
        return SimpleNamespace(num_outputs=1, get_output=lambda k: tensor, type=SimpleNamespace(name=kind))

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def get_layer(self, k: int) -> Any:
        return self.layers[k]

    def mark_output(self, tensor: Tensor) -> None:
        self.marked.append(f"{tensor.name}: {tensor.dtype.name}")

    def add_cast(self, tensor: Tensor, to: Any) -> Any:
        self.cast.append(tensor.name)
        return self._layer(Tensor("cast", to.name))


def test_tensors_are_marked_by_name_and_half_precision_ones_as_fp32() -> None:
    network = Network(Tensor("a"), Tensor("b", "HALF"), Tensor("c"))
    mark_outputs(adapter(), network, ("b", "a"), PATH)
    assert network.marked == ["b: FLOAT", "a: FLOAT"] and network.cast == ["b (half)"]
    assert [network.get_layer(k).get_output(0).name for k in range(3)] == ["a", "b (half)", "c"]
    untouched = Network(Tensor("a"))
    mark_outputs(adapter(), untouched, (), PATH)
    assert untouched.marked == []


def test_a_tensor_that_the_network_lacks_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match=r"has no tensor 'z' to mark.*without mark_outputs"):
        mark_outputs(adapter(), Network(Tensor("a")), ("z",), PATH)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_real_network_marks_every_tensor_as_fp32(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", exc_type=ImportError)
    real = open_adapter("tensorrt_rtx")
    builder, logger = real.builder(Log())
    network = builder.create_network(real.network_flags())
    parser = real.module.OnnxParser(network, logger)
    assert parser.parse(save(classifier(precision), tmp_path / "model.onnx").read_bytes(), "model.onnx")
    outputs = {network.get_output(k).name for k in range(network.num_outputs)}
    inner: dict[str, str] = {}
    for k in range(network.num_layers):
        tensor = network.get_layer(k).get_output(0)
        if tensor.name not in outputs and tensor.dtype.name in ("FLOAT", "HALF"):
            inner[tensor.name] = tensor.dtype.name
    assert len(inner) > 5 and ("HALF" in inner.values()) == (precision == "fp16")
    mark_outputs(real, network, tuple(inner), PATH)
    found = {network.get_output(k).name: network.get_output(k).dtype.name for k in range(network.num_outputs)}
    assert set(found) == outputs | set(inner)
    assert {found[name] for name in inner} == {"FLOAT"}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_real_engine_is_built_with_the_tensors_that_probes_know(precision: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", exc_type=ImportError)
    onnx = pytest.importorskip("onnx")
    from vae_edge.exporting.probes import inner_tensor_names as names_of

    file = save(classifier(precision), tmp_path / "model.onnx")
    names = tuple(names_of(onnx.load(file)))
    plain = build_engine(file, BuildConfig(precision, targets=("sm_89",)))
    marked = build_engine(file, BuildConfig(precision, targets=("sm_89",), mark_outputs=names))
    assert len(names) > 3 and len(marked.engine) > len(plain.engine)
    assert marked.provenance()["settings"]["mark_outputs"] == list(names)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    file = save(classifier("fp32"), tmp_path / "a.onnx")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    prints = {name: np.zeros((2, 5), np.float32) for name in ("first", "second")}
    known = Expected(
        {"score": np.zeros(2, np.float32)}, {"score": Tolerance(1.0, 1.0)}, prints, dict.fromkeys(prints, 1.0)
    )
    save_probes(tmp_path / "p.npz", Probes(np.zeros((2, 28, 28, 1), np.uint8), {digest: known}))
    create_bundle(
        tmp_path / "bundle",
        name="digits",
        classes=[str(digit) for digit in range(10)],
        input=InputSpec(size=28, channels=1, background="dark"),
        threshold=1.0,
        reject_rate=0.01,
        models=[(file, ModelEntry("classifier", "fp32", opset=20))],
        probes=tmp_path / "p.npz",
    )
    return tmp_path / "bundle"


def test_the_tensors_to_mark_are_those_that_the_probes_know_in_the_graphs_order(bundle: Path) -> None:
    assert inner_tensor_names(load_bundle(bundle), "classifier", "fp32") == ("first", "second")
    with pytest.raises(EngineError, match="no int8 ONNX classifier"):
        inner_tensor_names(load_bundle(bundle), "classifier", "int8")


# A DLA


def test_a_dla_is_asked_of_each_layer_and_the_table_counts_by_type() -> None:
    layers = [("CONVOLUTION", True), ("CONVOLUTION", True), ("GRID_SAMPLE", False), ("CONVOLUTION", False)]
    network = SimpleNamespace(
        num_layers=len(layers),
        get_layer=lambda k: SimpleNamespace(type=SimpleNamespace(name=layers[k][0]), can=layers[k][1]),
    )
    found = ask_dla(network, SimpleNamespace(can_run_on_DLA=lambda layer: layer.can))
    assert found.table() == [
        "A DLA takes 2 of 4 layers; the others run on the GPU:",
        "  CONVOLUTION    2 of 3",
        "  GRID_SAMPLE    0 of 1",
    ]
    assert DlaLayers.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_after_the_build_the_log_tells_what_runs_on_the_dla() -> None:
    before = DlaLayers({"CONVOLUTION": (1, 2)})
    assert before.after(["nothing of it"]).sentences() == [
        "The builder's log does not tell which layers run on the DLA."
    ]
    after = before.after(
        [
            "---------- Layers Running on DLA ----------",
            "[DlaLayer] {ForeignNode[conv1...relu5]}",
            "---------- Layers Running on GPU ----------",
            "[GpuLayer] SHUFFLE: image",
            "[GpuLayer] GRID_SAMPLE: sample",
        ]
    )
    assert after.on_dla == ("{ForeignNode[conv1...relu5]}",)
    assert after.on_gpu == ("SHUFFLE: image", "GRID_SAMPLE: sample")
    assert after.sentences()[0] == "1 parts of the engine run on the DLA, 2 on the GPU."


def test_lines_for_the_user_arrive_before_the_build_is_over_and_are_no_lines_of_the_log() -> None:
    code = """
import os, sys
from vae_edge.engine import worker
def build_in_process(*args, notice, **options):
    worker._write_log("INFO", "began")
    notice('A DLA takes 1 of "2"')
    os.write(2, b'N "cut')
    os.abort()
worker.open_adapter = lambda kind: None
worker.build_in_process = build_in_process
worker.main()
"""
    seen: list[str] = []
    request = BuildRequest("/nowhere/model.onnx", BuildConfig("fp32"))
    with pytest.raises(EngineError, match=r"SIGABRT") as error:
        run_worker(request, command=[sys.executable, "-c", code], notice=seen.append)
    assert seen == ['A DLA takes 1 of "2"']
    assert "A DLA takes" not in str(error.value) and 'N "cut' in str(error.value)


# Which GPU

TWO = gpus.Driver(
    (13, 0),
    (gpus.Device(0, "A", (8, 6), 26, 12 << 30, False), gpus.Device(1, "B", (8, 9), 128, 24 << 30, False)),
)


def test_full_tensorrt_builds_on_and_for_the_gpu_that_is_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vae_edge.engine.build.discover", lambda: [TensorRTInstallation("tensorrt", "tensorrt", "10.3.0", True)]
    )
    assert select_tensorrt(BuildConfig("int8", device=1), TWO) == ("tensorrt", ("sm_89",))
    assert select_tensorrt(BuildConfig("int8"), TWO) == ("tensorrt", ("sm_86",))
    with pytest.raises(EngineError, match=r"no GPU number 2 .*there are A \(sm_86"):
        select_tensorrt(BuildConfig("int8", device=2), TWO)


def test_the_worker_sees_that_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "CUDA_VISIBLE_DEVICES" not in _environment(0)
    assert _environment(1)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    assert _environment(1)["CUDA_VISIBLE_DEVICES"] == "GPU-abc"
    assert _environment(0)["CUDA_VISIBLE_DEVICES"] == "3,GPU-abc"


# Refit


class Refitter:
    missing: tuple[str, ...] = ()

    def __init__(self, engine: Any, logger: Any) -> None:
        self.engine = engine

    def refit_cuda_engine(self) -> bool:
        self.engine.weights = None if self.missing else self.engine.offered
        return not self.missing

    def get_missing_weights(self) -> list[str]:
        return list(self.missing)


class OnnxParserRefitter:
    num_errors = 0

    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self.refitter = refitter

    def refit_from_bytes(self, model: bytes) -> bool:
        self.refitter.engine.offered = model
        return model != b"other"


def test_weights_are_put_in_from_the_onnx_file_or_the_sentence_says_which_lack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = SimpleNamespace(Refitter=Refitter, OnnxParserRefitter=OnnxParserRefitter)
    engine = SimpleNamespace(weights=None)
    refit(module, engine, b"model", None, Log(), "x.engine")
    assert engine.weights == b"model"
    with pytest.raises(BundleError, match=r"x\.engine does not take the weights of its ONNX file"):
        refit(module, engine, b"other", None, Log(), "x.engine")
    monkeypatch.setattr(Refitter, "missing", tuple(f"w{k}" for k in range(7)))
    with pytest.raises(BundleError, match=r"7 are missing \(w0, w1, w2, w3, w4, \.\.\.\)"):
        refit(module, engine, b"model", None, Log(), "x.engine")
    with pytest.raises(BundleError, match="this TensorRT cannot put them in"):
        refit(SimpleNamespace(), engine, b"model", None, Log(), "x.engine")


def test_the_weights_come_from_the_very_file_that_the_engine_was_built_from(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"model")
    digest = hashlib.sha256(b"model").hexdigest()
    onnx = {"file": "a.onnx", "sha256": digest}

    def entry(**source: Any) -> ModelEntry:
        settings = {"strip_weights": True}
        return ModelEntry("classifier", "int8", "tensorrt", provenance={"settings": settings, "onnx": source})

    assert is_stripped(entry()) and not is_stripped(ModelEntry("classifier", "int8", "tensorrt"))
    assert source_of(tmp_path / "x.engine", entry(**onnx)) == b"model"
    for wrong, words in (
        ({}, "does not name the ONNX file"),
        ({**onnx, "file": "../a.onnx"}, "does not name the ONNX file"),
        ({**onnx, "file": "b.onnx"}, "cannot be read"),
        ({**onnx, "sha256": "0" * 64}, "not the file that it was built from"),
    ):
        with pytest.raises(BundleError, match=words):
            source_of(tmp_path / "x.engine", entry(**wrong))
