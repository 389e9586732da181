"""A network file out of a bundle's ONNX file: the same buffers as from the trained network, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from vae_edge_kernels import aot
from vae_edge_kernels.layout import to_json

import vae_edge
from vae_edge.bundle import load_bundle
from vae_edge.cli import main
from vae_edge.engine.network_file import read_network_file
from vae_edge.errors import ConfigError, EngineError, ExportError, VaeEdgeError
from vae_edge.exporting import network_file
from vae_edge.exporting.bundle import load_onnx
from vae_edge.exporting.network_file import build_bundle_network, check_answers, default_precision, read_network
from vae_edge.exporting.onnx_file import ClassifierGraph, to_fp16, to_onnx
from vae_edge.exporting.probes import expect
from vae_edge.exporting.quantize import read_qdq_layers
from vae_edge.model import AngleVAE, create_config
from vae_edge.ops.network import FusedModel
from vae_edge.ops.packing import PackedNetwork, pack
from vae_edge.preprocess import InputSpec
from vae_edge.probes import load as load_probes
from vae_edge.training.checkpoint import Checkpoint

SCHEMA_1 = Path(__file__).parents[1] / "fixtures/schema1"


def apart(one: PackedNetwork, other: PackedNetwork) -> dict[str, float]:
    """The largest difference of each buffer of two networks of the same layout."""
    assert to_json(one.layout) == to_json(other.layout)
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in ("weights", "params", "whitening")}
    finite = {name: [torch.nan_to_num(part.float(), posinf=1e30) for part in pair] for name, pair in pairs.items()}
    return {name: float((a - b).abs().max()) for name, (a, b) in finite.items()}


# ---- Reading --------------------------------------------------------------------------------------------------------


def test_an_int8_file_gives_the_buffers_of_the_network_that_it_was_made_of(
    checkpoint: Checkpoint, bundle: Path
) -> None:
    model = load_onnx(bundle / "classifier.int8.onnx")
    found = read_network(model, load_bundle(bundle).input)
    assert found.layout.int8
    assert max(apart(found, pack(checkpoint.model, read_qdq_layers(model))).values()) < 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_float_file_gives_the_buffers_of_the_trained_network(
    checkpoint: Checkpoint, bundle: Path, precision: str
) -> None:
    found = read_network(load_onnx(bundle / f"classifier.{precision}.onnx"), load_bundle(bundle).input)
    different = apart(found, pack(checkpoint.model))
    # Export folds the batch normalization in float32, and the packer in float64: a weight may be rounded otherwise.
    assert different["weights"] < 2e-3 and different["whitening"] == 0.0
    assert different["params"] < (1e-4 if precision == "fp32" else 1e-2)


SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("tiny", {"orientation": False}),
    ("base", {"classes": 3, "fill": 1.0}),
    ("small", {"size": 64, "channels": 3, "circular_mask": True}),
    ("tiny", {"size": 96, "channels": 3}),
    ("tiny", {"size": (65, 98), "channels": 3, "circular_mask": True}),
    ("tiny", {"size": 224}),
    ("tiny", {"head": "pooled"}),
    ("small", {"size": (65, 98), "channels": 3, "head": "pooled", "orientation": False}),
    ("tiny", {"head": "code+pooled"}),
    ("small", {"size": (65, 98), "channels": 3, "head": "code+pooled", "orientation": False}),
    ("tiny", {"size": 224, "head": "pooled", "widths": (16, 32)}),
    ("tiny", {"size": 64, "head": "pooled", "stem_halvings": 0, "fill": 1.0}),
    ("tiny", {"size": 40, "widths": (16, 32), "orientation_widths": (32, 16, 48), "angle_bins": 20}),
]


@pytest.mark.parametrize("score_mode", ["full", "fast"])
@pytest.mark.parametrize("preset, changes", SHAPES)
def test_any_shape_of_network_is_read(preset: str, changes: dict[str, Any], score_mode: str) -> None:
    torch.manual_seed(0)
    model = AngleVAE(create_config(preset, **changes)).eval()
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        if values.dtype == torch.float32 and "score" in name:
            torch.nn.init.uniform_(values.data, 0.5, 1.0)
    model.temperature.fill_(1.7)
    config = model.config
    graph = ClassifierGraph(model, score_mode)
    exported = to_onnx(graph, config.size, config.channels, graph.outputs, {})
    background = "none" if config.circular_mask else ("light" if config.fill else "dark")
    spec = InputSpec(config.size, config.channels, background)
    expected = pack(model, score=score_mode)  # type: ignore[arg-type]
    if score_mode == "fast":  # the file has no cap of an error that is not there
        expected.params[expected.layout.score.max_expected_error] = torch.inf
    different = apart(read_network(exported, spec), expected)
    assert different["weights"] < 2e-3 and different["params"] < 1e-4 and different["whitening"] == 0.0
    half = apart(read_network(to_fp16(exported), spec), expected)
    assert half["weights"] < 2e-3 and half["params"] < 1e-2


def without_constant(model: onnx.ModelProto, ending: str) -> None:
    kept = [constant for constant in model.graph.initializer if not constant.name.endswith(ending)]
    assert len(kept) < len(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def of_another_shape(model: onnx.ModelProto, ending: str) -> None:
    (constant,) = [constant for constant in model.graph.initializer if constant.name.endswith(ending)]
    values = numpy_helper.to_array(constant)
    constant.CopyFrom(numpy_helper.from_array(np.concatenate([values, values]), constant.name))


@pytest.mark.parametrize(
    "edit, ending, words",
    [
        (without_constant, "model.mu.weight", "it has no layer mu"),
        (without_constant, "score.nearest", r"it has no score\.nearest"),
        (without_constant, "encoder.layers.3.0.weight", "widths"),
        (of_another_shape, "score.nearest_offset", r"the score's nearest_offset should be"),
        (
            of_another_shape,
            "model.classifier.0.weight",
            r"the layer classifier\.0 should be \[64, 16\] with biases \[64\]",
        ),
        (of_another_shape, "mu.bias", r"the layer mu should be \[16, 256\] with biases \[16\], and is .* and \[32\]"),
    ],
)
def test_a_file_that_lacks_something_or_has_another_shape_is_refused(
    bundle: Path, edit: Any, ending: str, words: str
) -> None:
    model = load_onnx(bundle / "classifier.fp32.onnx")
    edit(model, ending)
    with pytest.raises(ExportError, match=words):
        read_network(model, load_bundle(bundle).input)


def test_a_graph_that_computes_its_score_otherwise_is_refused(bundle: Path) -> None:
    model = load_onnx(bundle / "classifier.fp32.onnx")
    (node,) = [node for node in model.graph.node if "score" in node.output]
    node.op_type = "Add"
    with pytest.raises(ExportError, match="score should be computed by Sub, and is by Add"):
        read_network(model, load_bundle(bundle).input)


# ---- Building -------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "own"))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """In place of the compiler: machine code of zeros. The list has what was asked for."""
    calls: list[dict[str, Any]] = []

    def compile_all(folder: str, architectures: Any, **options: Any) -> dict[str, Any]:
        calls.append({"architectures": tuple(architectures), **options})
        (Path(folder) / "x.cubin").write_bytes(b"\0" * 100)
        for number in architectures:
            options["progress"](f"sm_{number}: 1 kernels")
        names = ["network", "network_multi_cta"][: 1 + (options["ctas_per_image"] > 1)]
        return {
            "kernels": [
                {
                    "name": name,
                    "entry": name,
                    "cubins": [
                        {"architecture": n, "warps": 8, "shared_bytes": 0, "file": "x.cubin"} for n in architectures
                    ],
                }
                for name in names
            ]
        }

    monkeypatch.setattr(aot, "compile_all", compile_all)
    return calls


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_network_file_is_added_with_its_target_threshold_and_provenance(
    own: Path, compiled: list[dict[str, Any]]
) -> None:
    seen: list[tuple[str, int, int]] = []
    made = build_bundle_network(own, ["orin", "sm_110"], progress=lambda *step: seen.append(step))
    assert [call["architectures"] for call in compiled] == [(87, 110)]
    bundle = load_bundle(own)
    source, entry = bundle.find(precision="int8"), bundle.find("classifier", "native", "int8", "sm_87_110")
    assert (entry.file, made.file) == ("classifier.int8.sm_87_110.ve",) * 2
    assert entry.threshold == bundle.threshold_of(source) and dict(entry.accuracy) == {}
    assert entry.provenance["onnx"] == {
        "file": source.file,
        "sha256": source.sha256,
        "accuracy": dict(source.accuracy),
    }
    assert entry.provenance["settings"] == {"precision": "int8", "targets": ["sm_87", "sm_110"], "ctas_per_image": 1}
    differences = entry.provenance["reference_differences"]
    assert set(differences) == set(load_probes(bundle.file(bundle.probes)).models[source.sha256].tolerance)
    assert all(
        0 <= d["mean"] <= d["allowed_mean"] and d["largest"] <= d["allowed_largest"] for d in differences.values()
    )
    assert [step[1:] for step in seen] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]

    header = read_network_file(own / entry.file)
    assert (header.classes, header.size, header.channels, header.precision) == (
        bundle.classes,
        bundle.input.size,
        bundle.input.channels,
        "int8",
    )
    assert header.threshold == float(np.float32(entry.threshold)) and header.targets == ("sm_87", "sm_110")
    assert "a network file" not in made.summary() and "int8 network file" in made.summary()


def test_the_default_is_int8_where_there_is_one_and_fp16_of_the_fp32_file_otherwise(
    own: Path, compiled: list[dict[str, Any]]
) -> None:
    bundle = load_bundle(own)
    assert default_precision(bundle) == "int8"
    manifest = json.loads((own / "manifest.json").read_text())
    manifest["models"] = [model for model in manifest["models"] if model["precision"] == "fp32"]
    (own / "manifest.json").write_text(json.dumps(manifest))
    assert default_precision(load_bundle(own)) == "fp16"
    made = build_bundle_network(own, ["87"], ctas_per_image=4)
    assert (made.precision, made.onnx, made.file) == ("fp16", "classifier.fp32.onnx", "classifier.fp16.sm_87.ve")
    assert dict(read_network_file(own / made.file).ctas_per_image) == {"sm_87": 4}

    # It is held against the answers of the fp16 file that export would make, here and on the device.
    bundle = load_bundle(own)
    fp32, native = bundle.find(precision="fp32"), bundle.find("classifier", "native", "fp16", "sm_87")
    probes = load_probes(bundle.file(bundle.probes))
    fp16 = to_fp16(load_onnx(bundle.file(fp32)))
    expected = expect(fp16, "fp16", probes.images)
    assert set(probes.models) <= {entry.sha256 for entry in bundle.models}
    for name, tolerance in probes.models[native.sha256].tolerance.items():
        assert tolerance.mean == pytest.approx(expected.tolerance[name].mean, rel=1e-6)
        assert tolerance.mean == pytest.approx(made.differences[name]["allowed_mean"], rel=1e-6)
        assert tolerance.mean > 1.5 * probes.models[fp32.sha256].tolerance[name].mean


def test_a_second_build_replaces_the_first(own: Path, compiled: list[dict[str, Any]]) -> None:
    for _ in range(2):
        build_bundle_network(own, ["thor"], "fp16")
    assert len(load_bundle(own).select(format="native")) == 1
    assert len(list(own.glob("*.ve"))) == 1


@pytest.mark.parametrize(
    "targets, precision, words",
    [
        (["sm_75"], "int8", r"No network file can be made for sm_75 \(Turing.*: choose of sm_80 .* or a device that"),
        (["pluto"], "int8", r"'pluto'"),
        ([], "int8", r"needs to be told its targets, since this machine has no GPU"),
        (["orin"], "fp32", r"A network file is fp16 or int8, not fp32"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_done(
    own: Path, compiled: list[dict[str, Any]], targets: list[str], precision: str, words: str
) -> None:
    before = state(own)
    with pytest.raises(EngineError, match=words):
        build_bundle_network(own, targets, precision)
    assert state(own) == before and compiled == []


def test_a_bundle_without_the_precision_or_without_probes_says_what_to_do(
    own: Path, compiled: list[dict[str, Any]]
) -> None:
    manifest = json.loads((own / "manifest.json").read_text())
    kept = [model for model in manifest["models"] if model["precision"] != "int8"]
    (own / "manifest.json").write_text(json.dumps({**manifest, "models": kept}))
    with pytest.raises(EngineError, match=r"has no int8 ONNX classifier .*`vae-edge quantize .* --precision int8"):
        build_bundle_network(own, ["orin"], "int8")
    (own / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "probes"}))
    with pytest.raises(EngineError, match=r"has no probe images, and a network that nothing proves is not added"):
        build_bundle_network(own, ["orin"], "int8")
    assert compiled == []


def test_a_network_whose_answers_are_wrong_is_not_added(
    own: Path, compiled: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = network_file.read_network

    def planted(model: onnx.ModelProto, image: InputSpec) -> PackedNetwork:
        packed = real(model, image)
        packed.weights[packed.weights[:144].float().abs().argmax()] *= -1  # one weight of the first layer
        return packed

    before = state(own)
    monkeypatch.setattr(network_file, "read_network", planted)
    with pytest.raises(
        EngineError, match=r"read out of classifier\.int8\.onnx would give wrong answers: .* is off by .* at most"
    ):
        build_bundle_network(own, ["orin"])
    assert state(own) == before and compiled == []


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_each_kind_of_wrong_constant_shows_in_the_answers(bundle: Path, precision: str) -> None:
    """The probes see the image's background, the temperature, the score's terms, and the last layer of the decoder.

    In int8 roundings move the score of a network that was trained this shortly by up to 8% in the mean, and three
    times that is allowed: only larger faults are certain to show there.
    """
    opened = load_bundle(bundle)
    source = opened.find(precision=precision)
    probes = load_probes(opened.file(opened.probes))
    packed = read_network(load_onnx(opened.file(source)), opened.input)
    net = packed.layout
    factor, added = (5.0, 20.0) if precision == "int8" else (1.5, 2.0)
    faults = [
        (net.inverse_temperature, 0.25, 0.0, "temperature"),
        (net.score.terms, factor, added, "reconstruction's weight"),
        (net.score.terms + 4, factor, added, "what is subtracted"),
        (net.layers[-1].bias, factor, added, "a bias of the decoder"),
    ]
    if precision == "int8":
        faults.append((net.upright_scale, factor, added, "a scale"))
    for offset, factor, added, what in faults:
        params = packed.params.clone()
        params[offset] = params[offset] * factor + added
        with pytest.raises(EngineError, match="would give wrong answers"):
            check_answers(
                FusedModel(dataclasses.replace(packed, params=params)),
                probes.images,
                probes.models[source.sha256],
                what,
            )
    light = dataclasses.replace(opened.input, background="light")
    wrong = read_network(load_onnx(opened.file(source)), light)
    with pytest.raises(EngineError, match="would give wrong answers"):
        check_answers(FusedModel(wrong), probes.images, probes.models[source.sha256], "background")


def test_without_triton_or_space_the_bundle_stays_as_it_is(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(own)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "triton", None)
        with pytest.raises(
            EngineError, match=r"No network file can be made .* Triton cannot be imported .* pip install"
        ):
            build_bundle_network(own, ["orin"])
    with monkeypatch.context() as patch:
        patch.setattr(
            FusedModel, "save", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(EngineError, match=r"cannot be written to .* \(No space left on device\): free some space"):
            build_bundle_network(own, ["orin"])
    assert state(own) == before


def test_an_onnx_file_that_is_none_of_ours_is_refused(tmp_path: Path, compiled: list[dict[str, Any]]) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
    try:
        from small_models import make_bundle
    finally:
        sys.path.pop(0)
    foreign = make_bundle(tmp_path / "bundle", tmp_path / "work", widths=(16, 32), precisions=("fp32",), proving=True)
    with pytest.raises(
        EngineError, match=r"is not a network of ours \(score should be computed by .*\): export it again"
    ):
        build_bundle_network(foreign.path, ["orin"], "fp16")


# ---- The command ----------------------------------------------------------------------------------------------------


def test_the_command_builds_and_inspect_shows_it(
    own: Path, compiled: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(own), "--kind", "native", "--target", "orin", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["kind"], made["precision"], made["target"]) == ("native", "int8", "sm_87")
    assert main(["inspect", str(own / made["file"]), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["targets"], shown["precision"]) == ("network file", ["sm_87"], "int8")
    assert main(["inspect", str(own), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["network_files"]
    assert listed["digest"] == shown["digest"]
    assert main(["build", str(own), "--kind", "native", "--target", "orin", "--precision", "fp16"]) == 0
    assert "fp16 network file" in capsys.readouterr().out


def test_the_command_refuses_what_a_network_file_has_not(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(own), "--kind", "native", "--target", "orin", "--batch", "1,8,64"]) == 2
    assert "takes neither --batch nor --workspace" in capsys.readouterr().err
    (own / "broken.ve").write_bytes(b"no network file")
    assert main(["inspect", str(own / "broken.ve")]) == 2
    assert "is not a whole network file" in capsys.readouterr().err


def test_an_engine_of_a_bare_onnx_file_cannot_be_native(bundle: Path) -> None:
    from vae_edge.engine.build import build_engine

    with pytest.raises(EngineError, match="A network file is made from a bundle"):
        build_engine(bundle / "classifier.int8.onnx", vae_edge.BuildConfig("int8", kind="native"))
    with pytest.raises((EngineError, ConfigError, VaeEdgeError), match="unknown"):
        vae_edge.BuildConfig("int8", kind="natives")


@pytest.mark.slow
def test_a_bundle_of_schema_1_gets_a_network_file_with_real_machine_code(tmp_path: Path) -> None:
    own = Path(shutil.copytree(SCHEMA_1 / "bundle", tmp_path / "bundle"))
    made = vae_edge.build_engine(own, precision="int8", kind="native", targets=("orin",))
    found = read_network_file(own / made.file)
    assert found.targets == ("sm_87",) and found.tensors["cubin.87"] > 10_000
