"""`vae-edge build --kernels`: engines of a bundle's network in one kernel, built for real with TensorRT-RTX."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.emulated_gpu import why_not

from vae_edge import deployment
from vae_edge.bundle import load_bundle
from vae_edge.cli import main
from vae_edge.engine import gpus
from vae_edge.engine.build import BuildResult
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.errors import ConfigError, EngineError
from vae_edge.exporting import plugin_engine
from vae_edge.exporting.plugin_engine import build_plugin_engine, time_engine
from vae_edge.probes import load as load_probes

pytest.importorskip(
    "tensorrt_rtx_bindings", reason='TensorRT-RTX is not installed: pip install "vae-edge[rtx]"', exc_type=ImportError
)
pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

NO_GPU = gpus.Driver(None, (), "no NVIDIA driver is installed")
CARD = gpus.Driver((13, 0), (gpus.Device(0, "RTX 3090", (8, 6), 82, 24 << 30, False),))


@pytest.fixture
def own(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle with fp32, fp16 and int8, on a machine without a GPU."""
    monkeypatch.setattr(gpus, "probe", lambda *_: NO_GPU)
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["build", *words]) == 2
    return capsys.readouterr().err


def test_the_command_adds_an_engine_of_the_networks_kernel(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(own), "--kernels", "network", "--target", "sm_86", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "TensorRT-RTX" in told["summary"] and "its network is one kernel of the toolkit" in told["summary"]
    entry = load_bundle(own).find("classifier", "tensorrt_rtx", "int8", "sm_86")  # as a network file, int8 by default
    provenance = entry.provenance
    assert provenance["settings"]["kernels"] == "network"
    (plugin,) = provenance["plugins"]
    assert plugin.startswith("VaeEdgeNetwork_")
    assert provenance["onnx"]["file"] == "classifier.int8.onnx"
    assert provenance["reference_differences"]["probabilities"]["largest"] < 0.1
    assert "custom_layer" in [layer["type"] for layer in provenance["layers"]]
    assert plugin.encode() in (own / entry.file).read_bytes()
    assert main(["inspect", str(own), "--json"]) == 0


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_engine_of_the_operators_kernels_has_one_for_each(own: Path, precision: str) -> None:
    built = build_plugin_engine(own, BuildConfig(precision, targets=("sm_86",), kernels="operators"))
    assert "its operators are kernels of the toolkit" in built.build.summary()
    provenance = load_bundle(own).find("classifier", "tensorrt_rtx", precision, "sm_86").provenance
    kinds = {name.rpartition("_")[0] for name in provenance["plugins"]}
    conv = "VaeEdgeConvInt8" if precision == "int8" else "VaeEdgeConv"
    assert {conv, "VaeEdgeRotate", "VaeEdgeOrientationHead", "VaeEdgeContentHead"} <= kinds
    assert [layer["type"] for layer in provenance["layers"]].count("custom_layer") > 15


def test_fp16_is_made_of_an_fp32_file_too_and_proved_by_its_own_answers(own: Path) -> None:
    manifest = own / "manifest.json"
    content = json.loads(manifest.read_text())
    content["models"] = [model for model in content["models"] if model["precision"] != "fp16"]
    manifest.write_text(json.dumps(content))
    config = BuildConfig("fp16", targets=("sm_86",), kernels="network")
    built = build_plugin_engine(own, config)
    bundle = load_bundle(own)
    entry = bundle.find("classifier", "tensorrt_rtx", "fp16", "sm_86")
    assert built.file == entry.file and entry.provenance["onnx"]["file"] == "classifier.fp32.onnx"
    assert bundle.probes is not None
    assert entry.sha256 in load_probes(bundle.file(bundle.probes)).models


def test_what_cannot_be_built_is_refused_before_anything_is_compiled(
    own: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_edge.exporting.plugin_graph.compile_plugin", None)
    folder = str(own)
    said = refusal(capsys, folder, "--kernels", "auto", "--target", "sm_86")
    assert "has no GPU to measure on (no NVIDIA driver is installed): choose `--kernels tensorrt`" in said
    said = refusal(capsys, folder, "--kernels", "network", "--target", "sm_86", "--precision", "fp32")
    assert "are for classifiers in fp16 or int8, but fp32" in said
    said = refusal(capsys, folder, "--kernels", "network", "--kind", "native", "--target", "orin")
    assert "a network file has the toolkit's kernels always" in said
    said = refusal(capsys, folder, "--kernels", "network", "--target", "orin-nano")
    assert "a kit for orin-nano brings none" in said
    with pytest.raises(ConfigError, match="has no tensors inside to mark"):
        deployment.build_engine(own, precision="int8", kernels="network", targets=("sm_86",), mark_outputs=True)


def test_an_architecture_without_kernels_is_refused(own: Path) -> None:
    for precision, target in (("fp16", "sm_75"), ("int8", "sm_121")):
        config = BuildConfig(precision, targets=(target,), kernels="network")
        with pytest.raises(EngineError, match=rf"No engine of the toolkit's kernels .* compiled for {target}; known"):
            build_plugin_engine(own, config)
    assert not load_bundle(own).select(format="tensorrt_rtx")


def test_wrong_answers_of_the_reference_add_nothing(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_edge.exporting import network_file

    read = network_file.read_network

    def read_wrongly(model: Any, image: Any) -> Any:
        made = read(model, image)
        made.params[:64] += 1.0
        return made

    monkeypatch.setattr(network_file, "read_network", read_wrongly)
    with pytest.raises(EngineError, match="would give wrong answers"):
        build_plugin_engine(own, BuildConfig("int8", targets=("sm_86",), kernels="network"))


@pytest.mark.parametrize(("network_us", "faster"), [(10.0, "network"), (30.0, "tensorrt")])
def test_of_both_the_faster_one_is_added(
    own: Path, monkeypatch: pytest.MonkeyPatch, network_us: float, faster: str
) -> None:
    times = {"network": network_us, "tensorrt": 20.0}
    timed: list[str] = []

    def time_it(result: BuildResult, checked: Any, plugins: tuple[str, ...]) -> float:
        kernels = result.config.kernels
        assert bool(plugins) == (kernels == "network")
        timed.append(kernels)
        return times[kernels] / 1e6

    monkeypatch.setattr(gpus, "probe", lambda *_: CARD)
    monkeypatch.setattr(plugin_engine, "time_engine", time_it)
    config = BuildConfig("int8", kind="tensorrt_rtx", kernels="auto")
    result = build_plugin_engine(own, config).build
    assert result.config.kernels == faster and sorted(timed) == ["network", "tensorrt"]
    provenance = load_bundle(own).find("classifier", "tensorrt_rtx", "int8", "sm_86").provenance
    assert provenance["settings"]["kernels"] == faster
    assert provenance["kernels_us"] == {"network": network_us, "tensorrt": 20.0}
    assert ("plugins" in provenance) == (faster == "network")


def test_an_engine_is_timed_at_its_optimum_batch(
    own: Path, cuda: Any, use_tensorrt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the doubles of TensorRT and of the driver."""
    double = use_tensorrt("10.13")
    monkeypatch.undo()  # gpus.probe asks the double
    monkeypatch.setenv("DOUBLE_CC", "87")
    monkeypatch.setattr("vae_edge.engine.cuda.LIBRARY", str(cuda.library))
    monkeypatch.setattr("vae_edge.engine.cuda._contexts", {})
    bundle = load_bundle(own)
    source = bundle.find("classifier", "onnx", "fp32", "any")
    engine = double.make_engine(bundle.file(source).read_bytes(), batch=(1, 4, 8), capabilities=(87,))
    config = BuildConfig("fp32", batch=(1, 4, 8), kind="tensorrt", targets=("sm_87",))
    result = BuildResult(
        engine, "tensorrt", "sm_87", config, (), None, (), 0.0, (), {"tensorrt": "10.13"}, source.sha256, (), ()
    )

    class Checked:
        probes = load_probes(bundle.file(bundle.probes)) if bundle.probes else None

    ticks = iter(np.cumsum(np.tile([1.0, 3.0], plugin_engine.TIMED_CALLS)))
    assert time_engine(result, Checked(), (), clock=lambda: float(next(ticks))) == 3.0  # type: ignore[arg-type]
    assert double.faults() == [] and cuda.faults() == []


def test_full_tensorrt_without_such_plugins_is_refused(
    own: Path, use_tensorrt: Any, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tensorrt("10.3")
    monkeypatch.setattr(gpus, "probe", lambda *_: CARD)
    config = BuildConfig("int8", kind="tensorrt", kernels="network")
    with pytest.raises(EngineError, match=r"TensorRT 10\.3.* takes no kernels compiled ahead of time into an engine"):
        build_plugin_engine(own, config)
    assert dataclasses.asdict(config)["kernels"] == "network"
