"""An engine built from a bundle's own ONNX file and added to it, with TensorRT-RTX where it is installed."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from engine_graphs import classifier, reconstruction, save

from vae_edge.bundle import ModelEntry, create_bundle, load_bundle
from vae_edge.engine import gpus
from vae_edge.engine.build import BuildConfig, build_bundle_engine, select_tensorrt
from vae_edge.engine.gpus import parse_targets
from vae_edge.engine.inspection import inspect_engine
from vae_edge.engine.tensorrt import TensorRTInstallation
from vae_edge.errors import BundleError, EngineError, VaeEdgeError
from vae_edge.preprocess import InputSpec

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    models = [
        (save(classifier("fp32"), tmp_path / "a.onnx"), ModelEntry("classifier", "fp32", opset=20)),
        (
            save(classifier("int8"), tmp_path / "b.onnx"),
            ModelEntry("classifier", "int8", opset=20, accuracy={"accuracy": 0.985, "n": 1000}, threshold=1.25),
        ),
        (save(reconstruction(), tmp_path / "c.onnx"), ModelEntry("reconstruction", "fp32", opset=20)),
    ]
    path = tmp_path / "bundle"
    create_bundle(
        path,
        name="digits",
        classes=[str(digit) for digit in range(10)],
        input=InputSpec(size=28, channels=1, background="dark"),
        threshold=1.0,
        reject_rate=0.01,
        models=models,
    )
    return path


def config(precision: str, targets: str, **others: Any) -> BuildConfig:
    return BuildConfig(precision, targets=parse_targets(targets), **others)


def state(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


class TestWithRtx:
    @pytest.fixture(autouse=True)
    def rtx(self) -> None:
        pytest.importorskip(
            "tensorrt_rtx_bindings",
            reason='TensorRT-RTX is not installed: pip install "vae-edge[rtx]"',
            exc_type=ImportError,
        )

    def test_the_engine_stands_in_the_manifest_with_where_it_came_from(self, bundle: Path) -> None:
        report = build_bundle_engine(bundle, config("int8", "sm_86+89")).to_json()
        loaded = load_bundle(bundle)
        entry = loaded.find("classifier", "tensorrt_rtx", "int8", "sm_86_89")
        source = loaded.find("classifier", "onnx", "int8")
        assert (report["file"], report["bytes"], report["target"]) == (entry.file, entry.bytes, "sm_86_89")
        json.dumps(report, allow_nan=False)
        assert entry.file.startswith("classifier.int8.sm_86_89.")
        assert inspect_engine(loaded.file(entry)).header.targets == ("sm_86", "sm_89")
        assert entry.accuracy == {}  # nobody measured the engine
        assert entry.threshold == 1.25, "its scores are those of the file that it was built from"
        provenance = entry.provenance
        assert provenance["onnx"] == {
            "file": source.file,
            "sha256": source.sha256,
            "accuracy": {"accuracy": 0.985, "n": 1000},
        }
        assert provenance["share"] == 1.0
        assert provenance["settings"]["batch"] == [1, 8, 64]
        assert provenance["versions"]["tensorrt"] == report["versions"]["tensorrt"]
        assert {layer["precision"] for layer in provenance["layers"] if layer["type"] in ("correlation", "gemm")} == {
            "int8"
        }
        assert str(bundle.parent) not in json.dumps(loaded.manifest)

    def test_building_again_replaces_and_other_targets_stand_beside(self, bundle: Path) -> None:
        build_bundle_engine(bundle, config("fp32", "sm_86", batch=(1, 1, 1)))
        build_bundle_engine(bundle, config("fp32", "sm_89"))
        build_bundle_engine(bundle, config("fp32", "sm_86", batch=(1, 2, 2)))
        engines = load_bundle(bundle).select(format="tensorrt_rtx")
        (entry,) = (engine for engine in engines if engine.target == "sm_86")
        assert sorted(engine.target for engine in engines) == ["sm_86", "sm_89"]
        assert entry.provenance["settings"]["batch"] == [1, 2, 2]
        assert len(list(bundle.iterdir())) == 3 + 2 + 1

    def test_the_reconstruction_builds_too(self, bundle: Path) -> None:
        build_bundle_engine(bundle, config("fp32", "sm_120", role="reconstruction"))
        assert load_bundle(bundle).find("reconstruction", "tensorrt_rtx", "fp32", "sm_120").bytes > 0

    def test_a_full_disk_leaves_the_bundle_as_it_was(self, bundle: Path) -> None:
        before = state(bundle)
        code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # no file may grow past this, as on a full disk
from vae_edge.engine import gpus
from vae_edge.engine.build import BuildConfig, build_bundle_engine, select_tensorrt
from vae_edge.engine.tensorrt import TensorRTInstallation
from vae_edge.errors import EngineError
try:
    build_bundle_engine({str(bundle)!r}, BuildConfig("fp32", targets=("sm_86",)))
except EngineError as error:
    print(error)
"""
        run = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        assert run.stdout.startswith("The engine was built but cannot be written to ")
        assert "File too large" in run.stdout
        assert state(bundle) == before


@pytest.mark.parametrize(
    ("precision", "options", "words"),
    [
        (
            "fp16",
            {},
            r"no fp16 ONNX classifier to build from \(it has: fp32, int8\).*quantize \S+ --precision fp16 --data PATH`",
        ),
        ("int5", {}, "'int5' is unknown"),
        ("int8", {"role": "reconstruction"}, r"no int8 ONNX reconstruction .*\(it has: fp32\)"),
        ("int8", {"targets": "sm_101"}, "Use sm_110"),
        ("int8", {"targets": "sm_87", "kind": "tensorrt_rtx"}, "on the Jetson itself"),
    ],
)
def test_a_refused_build_leaves_the_bundle_as_it_was(
    bundle: Path, precision: str, options: dict[str, str], words: str
) -> None:
    before = state(bundle)
    with pytest.raises(EngineError, match=words):
        build_bundle_engine(bundle, BuildConfig(precision, **options))  # type: ignore[arg-type]
    assert state(bundle) == before


def test_without_tensorrt_the_bundle_stays_and_the_sentence_says_what_to_install(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    before = state(bundle)
    with pytest.raises(EngineError, match=r'pip install "vae-edge\[rtx\]"'):
        build_bundle_engine(bundle, config("int8", "sm_86"))
    assert state(bundle) == before


def test_a_damaged_bundle_or_none_is_refused_before_anything_is_built(bundle: Path, tmp_path: Path) -> None:
    file = bundle / load_bundle(bundle).find("classifier", "onnx", "int8").file
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="SHA-256"):
        build_bundle_engine(bundle, config("int8", "sm_86"))
    with pytest.raises(VaeEdgeError):
        build_bundle_engine(tmp_path / "nothing", config("int8", "sm_86"))


FULL = TensorRTInstallation("tensorrt", "tensorrt", "10.3.0", True)
RTX = TensorRTInstallation("tensorrt_rtx", "tensorrt_rtx", "1.7.1", True)
ORIN = gpus.Driver((12, 6), (gpus.Device(0, "Orin", (8, 7), 8, 8 << 30, True),))
DESKTOP = gpus.Driver((13, 0), (gpus.Device(0, "RTX A2000", (8, 6), 26, 12 << 30, False),))
NO_GPU = gpus.Driver(None, (), "no NVIDIA driver is installed")


def chosen(
    monkeypatch: pytest.MonkeyPatch,
    installed: list[TensorRTInstallation],
    driver: gpus.Driver,
    kind: str = "auto",
    targets: str = "",
) -> tuple[str, tuple[str, ...]]:
    monkeypatch.setattr("vae_edge.engine.build.discover", lambda: installed)
    return select_tensorrt(BuildConfig("int8", targets=parse_targets(targets), kind=kind), driver)


def test_full_tensorrt_builds_for_the_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, [FULL], ORIN) == ("tensorrt", ("sm_87",))
    assert chosen(monkeypatch, [FULL, RTX], DESKTOP) == ("tensorrt", ("sm_86",))
    assert chosen(monkeypatch, [FULL, RTX], DESKTOP, targets="sm_86") == ("tensorrt", ("sm_86",))


def test_rtx_builds_where_asked_by_kind_or_target_or_where_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert chosen(monkeypatch, [FULL, RTX], DESKTOP, kind="tensorrt_rtx") == ("tensorrt_rtx", ("sm_86",))
    assert chosen(monkeypatch, [FULL, RTX], DESKTOP, targets="sm_89") == ("tensorrt_rtx", ("sm_89",))
    assert chosen(monkeypatch, [RTX], DESKTOP) == ("tensorrt_rtx", ("sm_86",))
    assert chosen(monkeypatch, [RTX], NO_GPU, targets="sm_80+120") == ("tensorrt_rtx", ("sm_80", "sm_120"))


@pytest.mark.parametrize(
    ("installed", "driver", "asked", "words"),
    [
        ([RTX], NO_GPU, ("auto", ""), "no GPU to build for .*name one or more of sm_"),
        ([FULL], NO_GPU, ("auto", ""), "only where there is a GPU.*vae-edge\\[rtx\\]"),
        ([FULL], NO_GPU, ("tensorrt", "sm_86"), "builds only on a machine with a GPU"),
        ([FULL], ORIN, ("auto", "sm_86"), "only for the GPU of this machine \\(sm_87\\).*vae-edge\\[rtx\\]"),
        ([FULL], ORIN, ("tensorrt", "sm_86"), "sm_87, not for sm_86"),
        ([FULL], ORIN, ("tensorrt_rtx", ""), "TensorRT-RTX is not installed"),
        ([RTX], ORIN, ("auto", ""), "on the Jetson itself"),
        ([RTX], NO_GPU, ("auto", "sm_87"), "on the Jetson itself"),
        ([RTX], NO_GPU, ("tensorrt", ""), "TensorRT is not installed.*JetPack.*pip install tensorrt"),
        ([], NO_GPU, ("auto", "sm_86"), "Neither TensorRT nor TensorRT-RTX is installed"),
        ([RTX], NO_GPU, ("tensorflow", ""), "'tensorflow' is unknown"),
    ],
)
def test_where_nothing_can_build_the_sentence_says_what_can(
    monkeypatch: pytest.MonkeyPatch,
    installed: list[TensorRTInstallation],
    driver: gpus.Driver,
    asked: tuple[str, str],
    words: str,
) -> None:
    kind, targets = asked
    with pytest.raises(EngineError, match=re.compile(words, re.DOTALL)):
        chosen(monkeypatch, installed, driver, kind=kind, targets=targets)
