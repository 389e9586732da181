"""Real builds with TensorRT-RTX for named architectures, without a GPU. Skipped where the extra `rtx` is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
from engine_graphs import classifier, reconstruction, save

from vae_edge.engine import gpus
from vae_edge.engine.build import build_engine
from vae_edge.engine.builder import build_in_process
from vae_edge.engine.gpus import parse_targets
from vae_edge.engine.inspection import inspect_engine, parse_header
from vae_edge.engine.tensorrt import BuildConfig, Log, open_adapter
from vae_edge.errors import EngineError

pytest.importorskip(
    "tensorrt_rtx_bindings", reason='TensorRT-RTX is not installed: pip install "vae-edge[rtx]"', exc_type=ImportError
)
TARGETS = "sm_80+86+89+120"
COMPUTE_NODES = ("conv0", "conv1", "conv2", "logits", "turn")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_each_precision_builds_and_every_compute_layer_runs_in_it(tmp_path: Path, precision: str) -> None:
    path = save(classifier(precision), tmp_path / "model.onnx")
    result = build_engine(path, BuildConfig(precision, targets=parse_targets(TARGETS)))
    assert (result.kind, result.target, result.fraction) == ("tensorrt_rtx", "sm_80_86_89_120", 1.0)
    compute = [layer for layer in result.layers if layer.is_compute]
    for name in COMPUTE_NODES:
        assert any(name in layer.name for layer in compute), name
    assert {layer.precision for layer in compute} == {precision}
    (tmp_path / "model.rtx").write_bytes(result.engine)
    told = inspect_engine(tmp_path / "model.rtx")
    assert told.header.targets == ("sm_80", "sm_86", "sm_89", "sm_120")
    assert told.header.version == result.versions["tensorrt"]
    assert f"100% of its {len(compute)} convolutions and matrix products run in {precision}" in result.summary()
    json.dumps(result.provenance(), allow_nan=False)


def test_the_version_is_not_below_the_bound_that_these_tests_hold_for() -> None:
    """Older ones fail `test_each_precision_builds_and_every_compute_layer_runs_in_it` with int8 files."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    bounds = re.findall(r'"tensorrt-rtx-cu13-(?:libs|bindings)>=([\d.]+)"', project)
    assert len(bounds) == 2 and len(set(bounds)) == 1
    have = open_adapter("tensorrt_rtx").installation.version
    assert [int(part) for part in have.split(".")[:2]] >= [int(part) for part in bounds[0].split(".")]


@pytest.mark.parametrize(
    ("precision", "targets", "names"),
    [
        ("fp8", "sm_89+120+121", ("sm_89", "sm_120", "sm_121")),
        ("fp16", "sm_75", ("sm_75",)),
        ("int8", "sm_121", ("sm_121",)),
    ],
)
def test_an_engine_claims_the_targets_asked_and_no_other(
    tmp_path: Path, precision: str, targets: str, names: tuple[str, ...]
) -> None:
    result = build_engine(
        save(classifier(precision), tmp_path / "m.onnx"), BuildConfig(precision, targets=parse_targets(targets))
    )
    header = parse_header(result.engine[:64], len(result.engine))
    assert header.targets == names
    assert result.fraction == 1.0


def test_colour_images_other_sizes_and_the_reconstruction_build(tmp_path: Path) -> None:
    path = save(classifier("int8", size=64, channels=3, classes=43), tmp_path / "colour.onnx")
    assert build_engine(path, BuildConfig("int8", targets=("sm_86",), batch=(1, 1, 1))).fraction == 1.0
    path = save(reconstruction(), tmp_path / "reconstruction.onnx")
    result = build_engine(path, BuildConfig("fp32", targets=("sm_86",), role="reconstruction"))
    assert result.engine


def test_layers_without_q_dq_lower_the_fraction_and_are_named(tmp_path: Path) -> None:
    path = save(classifier("int8", skip=("conv1",)), tmp_path / "model.onnx")
    result = build_engine(path, BuildConfig("int8", targets=("sm_86",)))
    assert result.fraction is not None
    assert 0.5 < result.fraction < 1.0
    named = [reason for reason in result.reasons if "conv1" in reason]
    assert len(named) == 1
    assert "runs in fp32: the ONNX file has no int8 Q/DQ pairs on both of its inputs" in named[0]


def test_the_configuration_reaches_the_builder(tmp_path: Path) -> None:
    path = save(classifier("fp32"), tmp_path / "model.onnx")
    config = BuildConfig(
        "fp32", batch=(2, 4, 16), targets=("sm_86",), workspace_bytes=1 << 24, optimization_level=5, tf32=False
    )
    result = build_engine(path, config)
    log = "\n".join(result.log)
    assert "MinShape: [2,28,28,1], OptShape: [4,28,28,1], MaxShape: [16,28,28,1]" in log
    calls = {(call.action, call.name): call.value for call in result.config_calls}
    assert calls["memory", "WORKSPACE"] == 1 << 24
    assert calls["set", "builder_optimization_level"] == 5
    assert ("clear_flag", "TF32") in calls
    assert result.provenance()["settings"]["batch"] == [2, 4, 16]


def test_progress_is_told_and_ends_at_the_last_step(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = save(classifier("fp32"), tmp_path / "model.onnx")
    build_engine(path, BuildConfig("fp32", targets=("sm_86",)), progress=lambda *step: seen.append(step))
    whole = [step for step in seen if step[0] == "Building engine"]
    assert whole[0][1] == 0
    assert whole[-1][1] == whole[-1][2] > 1
    assert all(0 <= step <= steps for _, step, steps in seen)


def test_a_build_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(classifier("fp32"), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    build_engine("model.onnx", BuildConfig("fp32", targets=("sm_86",)))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": "sm_101"}, "Use sm_110"),
        ({"targets": "sm_87"}, "on the Jetson itself"),
        ({"targets": "sm_86", "precision": "int4"}, "'int4' is unknown"),
        ({"targets": "sm_86", "precision": "fp8"}, "no fp8 arithmetic"),
        ({"targets": "sm_75"}, "no fp32 matrix product on sm_75"),
        ({"targets": "sm_86", "dla_core": 0, "batch": (1, 1, 1)}, "no use for a DLA"),
        ({"targets": "sm_86", "version_compatible": True}, "no use for version compatibility"),
        ({"targets": "sm_86", "hardware_compatibility": "ampere_plus"}, "name several targets instead"),
        ({"targets": "sm_86", "timing_cache": "cache"}, "no use for a timing cache"),
        ({"targets": "sm_86", "precision": "int8"}, "is no int8 file: of its 5 .* there are 5 in fp32"),
        ({"targets": "sm_86", "precision": "fp16"}, "is no fp16 file"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(tmp_path: Path, options: dict[str, object], words: str) -> None:
    path = save(classifier("fp32"), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match=words):
        build_engine(path, BuildConfig(**{"precision": "fp32", **options}))  # type: ignore[arg-type]


@pytest.mark.skipif(gpus.probe().device_count > 0, reason="there is a GPU to build for")
def test_without_a_gpu_the_targets_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no GPU to build for .*name one or more of sm_"):
        build_engine(save(classifier("fp32"), tmp_path / "model.onnx"), BuildConfig("fp32"))


def test_an_int8_or_fp16_file_is_no_fp32_file(tmp_path: Path) -> None:
    for precision in ("int8", "fp16"):
        path = save(classifier(precision), tmp_path / f"{precision}.onnx")
        with pytest.raises(EngineError, match=f"is no fp32 file: .* 5 in {precision}.*`vae-edge export` writes fp32"):
            build_engine(path, BuildConfig("fp32", targets=("sm_86",)))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            classifier(rename={"image": "input"}),
            r"its one input should be image, uint8 \[N, H, W, 1 or 3\], but it has input",
        ),
        (classifier(rename={"angle": "theta"}), r"its outputs should be probabilities .* but it has .*theta"),
        (
            classifier(doubts=["second_angle"]),
            r"should be .*angle_confidence .*second_angle_probability .* but it has .*second_angle",
        ),
        (classifier(batch=4), "has the fixed batch 4"),
        (classifier(channels=2), r"image, uint8 \[N, 28, 28, 2\]"),
        (reconstruction(), "is no classifier of ours"),
        (classifier(cast_first=False), "reads the uint8 image as it is: cast it to a float type"),
    ],
    ids=["input", "output", "doubts", "batch", "channels", "role", "transpose"],
)
def test_an_onnx_file_that_is_not_ours_is_refused(tmp_path: Path, model: onnx.ModelProto, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        build_engine(save(model, tmp_path / "foreign.onnx"), BuildConfig("fp32", targets=("sm_86",)))


def test_every_unknown_operator_is_named(tmp_path: Path) -> None:
    model = classifier()
    for operator, strange in (("Neg", "Strange"), ("Softmax", "Odd")):
        node = next(node for node in model.graph.node if node.op_type == operator)
        node.op_type, node.domain = strange, "somewhere"
    model.opset_import.append(onnx.helper.make_opsetid("somewhere", 1))
    with pytest.raises(EngineError) as error:
        build_engine(save(model, tmp_path / "model.onnx"), BuildConfig("fp32", targets=("sm_86",)))
    assert "no plugin brings" in str(error.value)
    assert str(error.value).endswith("does not take: probabilities_node (Odd), score_node (Strange).")


@pytest.mark.parametrize("keep", [0, 10, 0.5, -3])
def test_a_truncated_onnx_file_is_refused(tmp_path: Path, keep: float) -> None:
    content = classifier().SerializeToString()
    cut = content[: int(keep * len(content))] if keep == 0.5 else content[: int(keep)]
    path = tmp_path / "cut.onnx"
    path.write_bytes(cut)
    with pytest.raises(EngineError, match="cut short"):
        build_engine(path, BuildConfig("fp32", targets=("sm_86",)))


def test_files_that_are_no_onnx_or_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_bytes(b"hello world, this is no model " * 20)
    with pytest.raises(EngineError, match="no ONNX model"):
        build_engine(path, BuildConfig("fp32", targets=("sm_86",)))
    with pytest.raises(EngineError, match=re.escape(f"There is no ONNX file at {tmp_path / 'no.onnx'}")):
        build_engine(tmp_path / "no.onnx", BuildConfig("fp32", targets=("sm_86",)))
    with pytest.raises(EngineError, match="There is no ONNX file at"):
        build_engine(tmp_path, BuildConfig("fp32", targets=("sm_86",)))


def test_what_slips_through_the_checks_is_told_by_the_builder_in_our_words(tmp_path: Path) -> None:
    path = save(classifier("int8"), tmp_path / "model.onnx")
    adapter = open_adapter("tensorrt_rtx")
    with pytest.raises(EngineError, match=r"could not build model\.onnx: the matrix product '\w+' is fp32"):
        build_in_process(adapter, path, BuildConfig("int8", targets=("sm_75",)), Log())
    with pytest.raises(
        EngineError, match="does not build for sm_90; it builds for sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"
    ):
        adapter.config_calls(BuildConfig("int8", targets=("sm_90",)))
    with pytest.raises(EngineError, match="needs the targets by name"):
        adapter.config_calls(BuildConfig("int8"))
