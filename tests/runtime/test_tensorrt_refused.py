"""Engines that cannot run here: each gets a sentence that says what is wrong and what to do. Against the doubles."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.loading import process_environment, write_package
from engines import KINDS, engine_bundle
from small_models import noise

import vae_edge
from vae_edge.bundle import Bundle, ModelEntry, add_models, load_bundle
from vae_edge.engine.plan import import_problem
from vae_edge.errors import BackendError, BundleError, VerificationError

Gpu = Callable[..., Any]
versions = pytest.mark.parametrize("version", list(KINDS))


def with_engine(bundle: Bundle, content: bytes, kind: str) -> Bundle:
    """The bundle with other bytes in its engine's place, as if they had been built."""
    (entry,) = bundle.select(format=kind)
    file = bundle.path.parent / "other.plan"
    file.write_bytes(content)
    add_models(bundle.path, [(file, dataclasses.replace(entry, file="", sha256="", bytes=0))])
    return load_bundle(bundle.path)


@versions
def test_what_is_not_a_whole_engine_is_refused(gpu: Gpu, session_bundle: Bundle, tmp_path: Path, version: str) -> None:
    double = gpu(version)
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    (entry,) = bundle.select(format=double.kind)
    plan = bundle.file(entry).read_bytes()
    flipped = bytearray(plan)
    flipped[len(plan) // 2] ^= 1
    onnx = bundle.file(bundle.find()).read_bytes()
    for content in (b"", b"no engine", onnx, plan[:40], plan[: len(plan) // 2], plan[:-1], bytes(flipped), plan + b"x"):
        with_engine(bundle, content, double.kind)
        with pytest.raises(BundleError) as refusal:
            vae_edge.load(bundle.path, double.kind, "fp32")
        sentence = str(refusal.value)
        assert bundle.path.name in sentence or ".engine" in sentence or ".rtx" in sentence
        assert "build it again" in sentence.lower() and sentence.endswith(".")


def test_an_engine_of_the_other_flavour_is_named(gpu: Gpu, session_bundle: Bundle, tmp_path: Path) -> None:
    rtx = gpu("rtx").make_engine(session_bundle.file(session_bundle.find()).read_bytes(), capabilities=(89,))
    double = gpu("10.3")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    with_engine(bundle, rtx, "tensorrt")
    with pytest.raises(BundleError, match=r"is an engine of TensorRT-RTX, not of TensorRT: use the backend"):
        vae_edge.load(bundle.path, "tensorrt", "fp32")


@pytest.mark.parametrize(("version", "other"), [("10.3", "10.13"), ("10.13", "11.4"), ("11.4", "10.3")])
def test_an_engine_of_another_version_is_refused_with_tensorrts_reason(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path, version: str, other: str
) -> None:
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", gpu(version), version=other)
    with pytest.raises(BundleError, match=r"can run here: it was built by another version of TensorRT.*Build it"):
        vae_edge.load(bundle.path, "tensorrt", "fp32")


@versions
def test_a_manifest_that_lies_about_the_gpu_is_found_out(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path, version: str
) -> None:
    double = gpu(version)
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double, capabilities=(86,))
    with pytest.raises(BundleError, match=r"is not an engine that TensorRT.* can run here") as refusal:
        vae_edge.load(bundle.path, double.kind, "fp32")
    if version != "rtx":
        assert "it was built for a GPU of compute capability 8.6, and this one has 8.7" in str(refusal.value)


def test_a_manifest_that_lies_about_the_precision_is_found_out_by_the_probes(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path
) -> None:
    double = gpu("10.3")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double, precisions=("int8",))
    onnx = bundle.file(bundle.find(precision="fp32")).read_bytes()
    with_engine(bundle, double.make_engine(onnx), "tensorrt")
    with pytest.raises(VerificationError, match="those of the fp32 model, so it does not compute in int8"):
        vae_edge.load(bundle.path, "tensorrt", "int8")


def test_an_engine_for_another_gpu_is_not_even_tried(gpu: Gpu, session_bundle: Bundle, tmp_path: Path) -> None:
    double = gpu("10.3")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double, capability=86)
    with pytest.raises(
        BundleError,
        match=r"no fp32 TensorRT engine for this GPU, Orin \(sm_87\); it has: fp32 for sm_86. Build one with "
        r"`vae-edge build .* --kind tensorrt --precision fp32`",
    ):
        vae_edge.load(bundle.path, "tensorrt", "fp32")
    assert "deserialize_cuda_engine" not in double.state.counts


def test_an_engine_that_carries_code_for_the_processor_needs_trust(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path
) -> None:
    double = gpu("10.3")
    settings = {"version_compatible": True}
    honest = engine_bundle(session_bundle, tmp_path / "honest", double, version_compatible=True, settings=settings)
    with pytest.raises(BundleError, match=r"carries code for the processor.*load it with trusted=True"):
        vae_edge.load(honest.path, "tensorrt", "fp32")
    with vae_edge.load(honest.path, "tensorrt", "fp32", trusted=True) as classifier:
        assert len(classifier(noise(2))) == 2
    silent = engine_bundle(session_bundle, tmp_path / "silent", double, version_compatible=True)
    for trusted in (False, True):  # what the manifest does not say is not allowed
        with pytest.raises(BundleError, match="is not an engine that TensorRT"):
            vae_edge.load(silent.path, "tensorrt", "fp32", trusted=trusted)
    assert double.faults() == []


def test_a_tensorrt_that_cannot_be_imported_says_why(gpu: Gpu, session_bundle: Bundle, tmp_path: Path) -> None:
    """In a process where `import tensorrt` fails as it does where libraries are missing."""
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", gpu("10.3"))
    package = tmp_path / "site-packages" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise ImportError('libnvinfer.so.10: cannot open shared object file: No such file or directory')\n"
    )
    said = load_elsewhere(bundle, {"PYTHONPATH": f"{package.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    assert said.startswith("BackendError") and "no NVIDIA driver is installed" in said
    assert "libnvinfer.so.10: cannot open" in import_problem("ImportError: libnvinfer.so.10: cannot open shared object")
    assert "JetPack 7.2" in import_problem("ImportError: libnvdla_compiler.so: cannot open shared object file")


def test_auto_goes_on_without_a_tensorrt_that_cannot_be_imported(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path, cuda: Any
) -> None:
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", gpu("10.3"))
    package = write_package(tmp_path / "packages", "10.3") / "tensorrt" / "__init__.py"
    package.write_text("raise ImportError('libnvdla_compiler.so: cannot open shared object file')\n")
    code = f"""
    import vae_edge
    with vae_edge.load({str(bundle.path)!r}, precision="fp32") as classifier:
        print(classifier.backend)
    print(vae_edge.verify({str(bundle.path)!r}).machine["versions"]["tensorrt"])
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=process_environment(package.parents[1], cuda.folder, DOUBLE_CC=87),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    backend, version = run.stdout.split()
    assert backend != "tensorrt" and version == "unknown"
    assert "auto: tensorrt fp32 is left out" in run.stderr and "JetPack 7.2" in run.stderr


def test_a_bundle_without_an_engine_does_not_start_the_driver(gpu: Gpu, session_bundle: Bundle, cuda: Any) -> None:
    """That takes up to seconds, and a process that is forked afterwards cannot use its GPU."""
    gpu("10.3")
    with vae_edge.load(session_bundle.path):
        assert cuda.count("cuInit") == 0


def load_elsewhere(bundle: Bundle, environment: dict[str, str], backend: str = "tensorrt") -> str:
    """What `load` raises in another process."""
    code = f"""
    import vae_edge
    try:
        vae_edge.load({str(bundle.path)!r}, {backend!r}, "fp32")
    except vae_edge.errors.VaeEdgeError as error:
        print(type(error).__name__, error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent("import vae_edge.errors") + textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        ({"DOUBLE_FAIL": "cuInit:0:999"}, r"does not start: error 999"),
        ({"DOUBLE_DEVICES": "0"}, "sees no GPU"),
    ],
)
def test_a_driver_that_does_not_work_is_named(
    gpu: Gpu, cuda: Any, session_bundle: Bundle, tmp_path: Path, problem: dict[str, str], sentence: str
) -> None:
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", gpu("10.3"))
    environment = process_environment(write_package(tmp_path / "packages", "10.3"), cuda.folder, **problem)
    said = load_elsewhere(bundle, environment)
    assert said.startswith("BackendError The backend 'tensorrt' needs an NVIDIA GPU") and re.search(sentence, said)


def test_tensorrt_broken_beside_a_working_driver_is_named(
    gpu: Gpu, cuda: Any, session_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", gpu("10.3"))
    package = tmp_path / "site-packages" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libnvdla_compiler.so: cannot open shared object file')\n")
    path = f"{package.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    said = load_elsewhere(bundle, {**cuda.environment(), "PYTHONPATH": path})
    assert "BackendError The module tensorrt is installed, but it cannot be imported" in said
    assert "JetPack 7.2" in said


def test_a_gpu_of_another_number_is_named(gpu: Gpu, session_bundle: Bundle, tmp_path: Path) -> None:
    double = gpu("10.3")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    with pytest.raises(BackendError, match="There is no GPU number 1 for the backend 'tensorrt'"):
        vae_edge.load(bundle.path, "tensorrt", "fp32", device=1)


def test_a_model_without_probes_is_loaded_and_one_with_damaged_probes_is_not(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path
) -> None:
    double = gpu("10.3")
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    assert bundle.probes is not None
    probes = bundle.file(bundle.probes)
    content = probes.read_bytes()
    probes.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"probes\.npz should have the SHA-256"):
        vae_edge.load(bundle.path, "tensorrt", "fp32")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    del manifest["probes"]
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with vae_edge.load(bundle.path, "tensorrt", "fp32") as classifier:
        assert len(classifier(noise(1))) == 1
    assert vae_edge.verify(bundle.path, ["tensorrt"]).right is None, "it says that it cannot tell"


class TestRuntimeCache:
    """What TensorRT-RTX compiled is kept; what cannot be kept or read is compiled again."""

    def compiled(self, double: Any) -> int:
        return int(double.state.counts.get("jit_compilations", 0))

    def test_it_is_kept_beside_the_bundle(self, gpu: Gpu, session_bundle: Bundle, tmp_path: Path) -> None:
        double = gpu("rtx")
        bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
        vae_edge.load(bundle.path, "tensorrt_rtx", "fp32").close()
        (cache,) = bundle.path.glob(".*.rtx-cache")
        first = self.compiled(double)
        assert first > 0 and load_bundle(bundle.path) == bundle
        vae_edge.load(bundle.path, "tensorrt_rtx", "fp32").close()
        assert self.compiled(double) == first, "nothing was compiled again"
        cache.write_bytes(b"not a cache")
        with vae_edge.load(bundle.path, "tensorrt_rtx", "fp32") as classifier:
            assert len(classifier(noise(1))) == 1
        assert self.compiled(double) > first and cache.read_bytes() != b"not a cache", "it was made anew"

    def test_a_folder_that_cannot_be_written_to_is_not(
        self, gpu: Gpu, session_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        double = gpu("rtx")
        bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("vae_edge.runtime.probing.os.access", lambda path, mode: False)
        vae_edge.load(bundle.path, "tensorrt_rtx", "fp32").close()
        assert not list(bundle.path.glob(".*.rtx-cache"))
        assert len(list((tmp_path / "cache").rglob("*.rtx-cache"))) == 1

    def test_a_full_disk_is_said_and_leaves_nothing_behind(
        self,
        gpu: Gpu,
        session_bundle: Bundle,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        double = gpu("rtx")
        bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)

        def full(path: Any, content: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("vae_edge.runtime.runtime_cache.files.write_bytes", full)
        with caplog.at_level("INFO"), vae_edge.load(bundle.path, "tensorrt_rtx", "fp32") as classifier:
            assert len(classifier(noise(1))) == 1
        assert "cannot be written" in caplog.text and "No space left" in caplog.text
        assert not [path for path in bundle.path.iterdir() if path.name.startswith(".")]


@versions
def test_a_read_only_bundle_runs(gpu: Gpu, session_bundle: Bundle, tmp_path: Path, version: str) -> None:
    double = gpu(version)
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    for path in [bundle.path, *bundle.path.iterdir()]:
        path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
    with vae_edge.load(bundle.path, double.kind, "fp32") as classifier:
        assert len(classifier(noise(2))) == 2
    for path in [bundle.path, *bundle.path.iterdir()]:
        path.chmod(stat.S_IRWXU)
    shutil.rmtree(bundle.path)


@versions
def test_an_engine_with_other_outputs_is_not_ours(
    gpu: Gpu, session_bundle: Bundle, tmp_path: Path, version: str
) -> None:
    double = gpu(version)
    bundle = engine_bundle(session_bundle, tmp_path / "bundle", double)
    reconstruction = bundle.file(bundle.find("reconstruction")).read_bytes()
    capability = 87 if double.kind == "tensorrt" else 89
    with_engine(bundle, double.make_engine(reconstruction, capabilities=(capability,)), double.kind)
    with pytest.raises(BundleError, match=r"is not a model of ours: its outputs should be probabilities"):
        vae_edge.load(bundle.path, double.kind, "fp32")


def test_what_an_entry_needs_is_in_the_manifest() -> None:
    """`settings` of a manifest that others wrote may be anything."""
    from vae_edge.engine import gpus
    from vae_edge.runtime.entries import runs_on

    orin = gpus.Device(0, "Orin", (8, 7), 8, 1, True)
    a2000 = gpus.Device(0, "A2000", (8, 6), 8, 1, False)
    for settings in (None, 3, [], {"hardware_compatibility": "none"}):
        entry = ModelEntry("classifier", "fp32", "tensorrt", "sm_80", provenance={"settings": settings})
        assert not runs_on(entry, a2000)
    ampere = dataclasses.replace(entry, provenance={"settings": {"hardware_compatibility": "ampere_plus"}})
    assert runs_on(ampere, a2000) and not runs_on(ampere, orin)
