"""A backend that is wrong on this machine is found out at the first load, whatever it is that it does wrong."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import make_bundle, noise

import vae_edge
from vae_edge.bundle import Bundle, ModelEntry, load_bundle
from vae_edge.bundle_schema import VERIFIED_FILE
from vae_edge.cli import main
from vae_edge.environment import ISA_VARIABLE, _cpu_flags, int8_saturates
from vae_edge.errors import ConfigError, VerificationError
from vae_edge.probes import load as load_probes
from vae_edge.runtime import autoselect, backends, probing, verification
from vae_edge.runtime.backends import LoadOptions
from vae_edge.runtime.onnxruntime_backend import OnnxRuntimeBackend

pytest.importorskip("torch", reason="the exact answers are computed with PyTorch")

Mutate = Callable[[onnx.ModelProto], None]
FELT = (0, 4)
"""Layers in which the sign of one weight matters more than all rounding to int8: the first of each trunk."""


class Wrong(OnnxRuntimeBackend):
    """ONNX Runtime with a fault: another model than the file's, or something done to images or outputs."""

    mutate: Mutate | None = None
    before: Callable[[np.ndarray], np.ndarray] | None = None
    after: Callable[[tuple[np.ndarray, ...]], tuple[np.ndarray, ...]] | None = None

    def __init__(self, file: Path, entry: ModelEntry, options: LoadOptions) -> None:
        of_no_manifest = dataclasses.replace(entry, sha256="")  # else the file's sum would give the fault away
        super().__init__(self._spoilt(file), of_no_manifest, options)

    def infer(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        cls = type(self)
        outputs = super().infer(image if cls.before is None else cls.before(image))
        return outputs if cls.after is None else cls.after(outputs)

    @classmethod
    def _spoilt(cls, file: Path) -> Path:
        if cls.mutate is None:
            return file
        model = onnx.load(file)
        cls.mutate(model)
        copy = file.with_name(f"spoilt-{file.name}")
        onnx.save(model, copy)
        return copy

    @classmethod
    def inner_tensors(cls, model: Any, tensors: Sequence[str], images: np.ndarray) -> dict[str, Any]:
        spoilt = dataclasses.replace(model, file=cls._spoilt(model.file))
        return OnnxRuntimeBackend.inner_tensors(spoilt, tensors, images)


@pytest.fixture(scope="session")
def proving(session_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with probe images, in a folder of these tests' own."""
    folder = tmp_path_factory.mktemp("proving") / "bundle"
    shutil.copytree(session_bundle.path, folder)
    return load_bundle(folder)


@pytest.fixture(autouse=True)
def nothing_is_remembered(request: pytest.FixtureRequest) -> None:
    if "proving" in request.fixturenames:
        for memory in ("auto.json", VERIFIED_FILE):
            (request.getfixturevalue("proving").path / memory).unlink(missing_ok=True)


@pytest.fixture
def plant(proving: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a faulty backend in ONNX Runtime's place, and forget what was found out before."""

    def do(**faults: Any) -> None:
        (proving.path / VERIFIED_FILE).unlink(missing_ok=True)
        kind = type("Planted", (Wrong,), {name: staticmethod(fault) for name, fault in faults.items()})
        monkeypatch.setattr(backends, "_backend_class", lambda name: kind)

    return do


def flip_weight(number: int) -> Mutate:
    """Change the sign of the largest weight of the layer of this number."""

    def mutate(model: onnx.ModelProto) -> None:
        layer = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")][number]
        made_by = {name: node for node in model.graph.node for name in node.output}
        name = made_by[layer.input[1]].input[0] if layer.input[1] in made_by else layer.input[1]
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(weight).copy()
        place = np.unravel_index(np.abs(values.astype(np.float32)).argmax(), values.shape)
        values[place] = -values[place]
        weight.CopyFrom(numpy_helper.from_array(values, name))

    return mutate


def sample_nearest(model: onnx.ModelProto) -> None:
    (node,) = [node for node in model.graph.node if node.op_type == "GridSample"]
    mode = next(a for a in node.attribute if a.name == "mode")
    mode.s = b"nearest"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("layer", FELT)
def test_one_weight_changed_is_refused(proving: Bundle, plant: Callable[..., None], precision: str, layer: int) -> None:
    plant(mutate=flip_weight(layer))
    with pytest.raises(VerificationError, match=r"gives wrong answers: \w+ is off by .* probe images \(allowed: "):
        vae_edge.load(proving.path, "onnxruntime", precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nearest_instead_of_bilinear_is_refused(proving: Bundle, plant: Callable[..., None], precision: str) -> None:
    plant(mutate=sample_nearest)
    with pytest.raises(VerificationError, match="wrong answers"):
        vae_edge.load(proving.path, "onnxruntime", precision)


def test_swapped_outputs_are_refused(proving: Bundle, plant: Callable[..., None]) -> None:
    plant(after=lambda outputs: (outputs[0], outputs[2], outputs[1]))
    with pytest.raises(VerificationError, match="wrong answers"):
        vae_edge.load(proving.path, "onnxruntime", "fp32")


def test_outputs_that_are_not_numbers_are_refused(proving: Bundle, plant: Callable[..., None]) -> None:
    plant(after=lambda outputs: (outputs[0] * np.nan, *outputs[1:]))
    with pytest.raises(VerificationError, match="probabilities holds values that are not finite"):
        vae_edge.load(proving.path, "onnxruntime", "fp32")


def test_swapped_channels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "b", tmp_path / "w", channels=3, widths=(16,), precisions=("fp32",), proving=True)
    vae_edge.load(bundle.path, "onnxruntime", "fp32").close()
    (bundle.path / VERIFIED_FILE).unlink()
    kind = type("Planted", (Wrong,), {"before": staticmethod(lambda image: image[..., ::-1])})
    monkeypatch.setattr(backends, "_backend_class", lambda name: kind)
    with pytest.raises(VerificationError, match="wrong answers"):
        vae_edge.load(bundle.path, "onnxruntime", "fp32")


def test_int8_that_saturates_is_refused(
    proving: Bundle, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, with the file that processors with VNNI get."""
    monkeypatch.setenv(ISA_VARIABLE, "vnni")
    file = proving.file(proving.find(precision="int8", target="cpu"))
    answers = {image.tobytes(): row for image, row in _saturated_answers(proving, file)}
    plant(before=lambda image: image)
    monkeypatch.setattr(Wrong, "infer", lambda self, image: tuple(answers[image.tobytes()]))
    with pytest.raises(VerificationError, match=r"classifier\.int8\.cpu\.onnx .*wrong answers"):
        vae_edge.load(proving.path, "onnxruntime", "int8")


def _saturated_answers(bundle: Bundle, file: Path) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    from saturating import saturate

    images = load_probes(bundle.file(bundle.probes)).images
    values = list(saturate(onnx.load(file), images).values())
    return [(images[k : k + 1], [value[k : k + 1] for value in values]) for k in range(len(images))]


@pytest.mark.skipif(not int8_saturates(), reason="this processor has int8 dot products")
def test_int8_that_saturates_on_this_very_processor_is_refused(
    proving: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(proving.path, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["models"] = [m for m in manifest["models"] if m["target"] == "any"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv(ISA_VARIABLE, "vnni")
    with pytest.raises(VerificationError, match=r"openvino .*wrong answers"):
        vae_edge.load(folder, "openvino", "int8")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_backend_of_this_machine_is_right_and_that_is_remembered(
    proving: Bundle, tmp_path: Path, backend: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(proving.path, folder)
    (folder / VERIFIED_FILE).unlink(missing_ok=True)
    with vae_edge.load(folder, backend, precision) as classifier:
        classifier.reconstruct(noise(2))
        model = classifier.entry.sha256
    records = json.loads((folder / VERIFIED_FILE).read_text())["records"]
    assert [record["right"] for record in records] == [True, True]
    assert model in {record["key"]["model"] for record in records}
    monkeypatch.setattr(probing, "run_probes", lambda *arguments: pytest.fail("the probe images were run again"))
    with vae_edge.load(folder, backend, precision) as classifier:
        classifier.reconstruct(noise(2))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"records": [{}]}', b"\xff"])
def test_a_damaged_memory_is_found_out_anew(proving: Bundle, content: bytes) -> None:
    (proving.path / VERIFIED_FILE).write_bytes(content)
    vae_edge.load(proving.path, "onnxruntime", "fp32").close()
    assert len(json.loads((proving.path / VERIFIED_FILE).read_text())["records"]) == 1


def test_warn_says_it_and_off_does_not_ask(
    proving: Bundle, plant: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    plant(mutate=flip_weight(0))
    with caplog.at_level(logging.WARNING), vae_edge.load(proving.path, "onnxruntime", "fp32", verify="warn") as model:
        assert len(model(noise(1))) == 1
    assert "wrong answers" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING), vae_edge.load(proving.path, "onnxruntime", "fp32", verify="off"):
        assert "wrong answers" not in caplog.text
    with pytest.raises(ConfigError, match="verify is one of error, warn, off"):
        vae_edge.load(proving.path, verify="maybe")


def test_auto_leaves_out_what_is_wrong_and_takes_what_is_right(
    proving: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = backends._backend_class
    kind = type("Planted", (Wrong,), {"mutate": staticmethod(flip_weight(4))})
    monkeypatch.setattr(backends, "_backend_class", lambda name: kind if name == "onnxruntime" else real(name))
    monkeypatch.setattr(
        autoselect, "_benchmark", lambda opened, bundle, batch: {c.name: float(k) for k, c in enumerate(opened, 1)}
    )
    with caplog.at_level(logging.WARNING), vae_edge.load(proving.path, precision="fp32") as classifier:
        assert classifier.backend == "openvino"
    assert "auto: onnxruntime fp32 is left out" in caplog.text
    (record,) = json.loads((proving.path / "auto.json").read_text())["records"]
    assert record["wrong"] == ["onnxruntime fp32"]


def test_where_all_are_wrong_auto_refuses_or_warns(
    proving: Bundle, plant: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    plant(mutate=flip_weight(4))
    with pytest.raises(VerificationError, match="wrong answers"):
        vae_edge.load(proving.path)
    with caplog.at_level(logging.WARNING), vae_edge.load(proving.path, "onnxruntime", verify="warn") as classifier:
        assert len(classifier(noise(1))) == 1 and classifier._options.verify == "warn"
    assert "wrong answers" in caplog.text
    with vae_edge.load(proving.path, verify="off") as classifier:
        assert len(classifier(noise(1))) == 1


def test_an_order_of_the_batch_that_is_wrong_is_found_at_the_first_load(
    proving: Bundle, plant: Callable[..., None]
) -> None:
    plant(after=lambda outputs: (outputs[0][::-1], *outputs[1:]))  # a single image stays where it is
    with pytest.raises(VerificationError, match=r"wrong answers in batches of \d+: probabilities"):
        vae_edge.load(proving.path, "onnxruntime", "fp32")


def test_verify_replaces_what_was_remembered(proving: Bundle, plant: Callable[..., None]) -> None:
    path = proving.path / VERIFIED_FILE
    vae_edge.load(proving.path, "onnxruntime", "fp32").close()
    remembered = path.read_bytes()
    plant(mutate=flip_weight(0))
    path.write_bytes(remembered)
    vae_edge.load(proving.path, "onnxruntime", "fp32").close()
    assert vae_edge.verify(proving.path, ["onnxruntime"]).right is False
    with pytest.raises(VerificationError, match=r"`vae-edge verify .*` asks again"):
        vae_edge.load(proving.path, "onnxruntime", "fp32")
    assert False in {record["right"] for record in json.loads(path.read_text())["records"]}


def test_a_bundle_that_cannot_be_written_to_is_remembered_in_the_users_cache(
    proving: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("vae_edge.runtime.probing.os.access", lambda path, mode: False)
    vae_edge.load(proving.path).close()
    assert {file.name for file in tmp_path.rglob("*.json")} == {"auto.json", VERIFIED_FILE}
    assert not (proving.path / VERIFIED_FILE).exists()
    monkeypatch.setattr(probing, "run_probes", lambda *arguments: pytest.fail("the probe images were run again"))
    vae_edge.load(proving.path).close()


def test_verify_survives_a_backend_that_fails(
    proving: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no memory left")

    kind = type("Planted", (Wrong,), {"mutate": staticmethod(flip_weight(0)), "inner_tensors": staticmethod(fail)})
    monkeypatch.setattr(backends, "_backend_class", lambda name: kind)
    monkeypatch.setattr(verification, "verify_in_subprocess", verification.verify)  # the fault is in this process alone
    assert main(["verify", str(proving.path), "--backend", "onnxruntime", "--out", str(tmp_path)]) == 1
    assert "inner tensors cannot be shown" in capsys.readouterr().out
    monkeypatch.setattr(kind, "infer", fail)
    assert main(["verify", str(proving.path), "--backend", "onnxruntime", "--out", str(tmp_path)]) == 1
    assert "no memory left" in (tmp_path / "verification.md").read_text()


def test_a_bundle_of_an_earlier_version_is_right_on_onnxruntime_and_refused_on_openvino_where_int8_saturates(
    own_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = json.loads((own_bundle.path / "manifest.json").read_text())
    manifest["models"] = [m for m in manifest["models"] if m["target"] == "any"]
    (own_bundle.path / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv(ISA_VARIABLE, "avx2")
    images = noise(16, seed=7)
    with vae_edge.load(own_bundle.path, "onnxruntime", "int8") as classifier:
        answers = classifier(images)
    exact = pytest.importorskip("vae_edge.exporting.probes")
    right = exact.evaluate(onnx.load(own_bundle.file(own_bundle.find(precision="int8"))), images)
    np.testing.assert_allclose(answers.scores, right["score"], atol=0.2)
    with pytest.raises(VerificationError, match="made for TensorRT; add those for CPUs with `vae-edge quantize"):
        vae_edge.load(own_bundle.path, "openvino", "int8")
    with caplog.at_level(logging.WARNING), vae_edge.load(own_bundle.path, "openvino", "int8", verify="warn"):
        assert "made for TensorRT" in caplog.text


def test_a_bundle_without_probe_images_still_loads(own_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), vae_edge.load(own_bundle.path, "onnxruntime", "fp32") as classifier:
        assert len(classifier(noise(1))) == 1
    assert "has no probe images" in caplog.text
    assert vae_edge.verify(own_bundle.path).right is None


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("layer", [0, 1, 4, 5])
def test_verify_names_the_first_tensor_that_departs(
    proving: Bundle, plant: Callable[..., None], layer: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(proving.file(proving.find()))
    changed = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")][layer]
    (relu,) = [node for node in model.graph.node if changed.output[0] in node.input]
    real = backends._backend_class(backend)
    base = type("Planted", (real,), {})

    def spoilt(file: Path) -> Path:
        return type("Spoil", (Wrong,), {"mutate": staticmethod(flip_weight(layer))})._spoilt(file)

    base.__init__ = lambda self, file, entry, options: real.__init__(
        self, spoilt(file), dataclasses.replace(entry, sha256=""), options
    )
    base.inner_tensors = staticmethod(
        lambda model, tensors, images: real.inner_tensors(
            dataclasses.replace(model, file=spoilt(model.file)), tensors, images
        )
    )
    monkeypatch.setattr(backends, "_backend_class", lambda name: base)
    model = backends.open_model(proving, backend, proving.find(), LoadOptions())
    found = probing.report(proving, model)
    model.session.close()
    assert found.right is False and found.first_wrong_tensor == relu.output[0]
    assert relu.output[0] in found.sentence


def test_the_command_writes_json_and_markdown_and_says_by_its_code_whether_all_is_right(
    proving: Bundle,
    plant: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["verify", str(proving.path), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "gives right answers" in out and "for TensorRT" in out
    result = json.loads((tmp_path / "verification.json").read_text())
    assert result["right"] is True and len(result["models"]) == 8
    assert {row["batch"] for row in result["models"][0]["outputs"]["score"]} == {1, 64}
    page = (tmp_path / "verification.md").read_text()
    assert "All answers are right" in page and page.count("| right |") == 8
    plant(mutate=flip_weight(4))
    monkeypatch.setattr(verification, "verify_in_subprocess", verification.verify)  # the fault is in this process alone
    assert main(["verify", str(proving.path), "--backend", "onnxruntime", "--out", str(tmp_path), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["right"] is False and "**wrong**" in (tmp_path / "verification.md").read_text()
    assert main(["verify", str(proving.path), "--backend", "cuda", "--out", str(tmp_path)]) == 2


def test_probe_images_that_are_damaged_are_a_sentence(
    proving: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vae_edge.files import sha256

    for content in (b"", b"no zip", b"PK\x05\x06" + bytes(18)):
        folder = tmp_path / f"bundle{len(content)}"
        shutil.copytree(proving.path, folder)
        (folder / VERIFIED_FILE).unlink(missing_ok=True)
        (folder / "probes.npz").write_bytes(content)
        manifest = json.loads((folder / "manifest.json").read_text())
        assert main(["predict", str(folder), "x.png"]) == 2
        assert "damaged or was changed" in capsys.readouterr().err
        manifest["probes"] |= {"sha256": sha256(folder / "probes.npz"), "bytes": len(content)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert main(["predict", str(folder), "x.png", "--backend", "onnxruntime", "--precision", "fp32"]) == 2
        assert "does not hold readable probe images" in capsys.readouterr().err


@pytest.mark.alone
def test_the_first_load_costs_little_more(proving: Bundle) -> None:
    taken: dict[str, list[float]] = {"off": [], "error": []}
    image = noise(1)
    for _ in range(7):
        for mode, times in taken.items():
            (proving.path / VERIFIED_FILE).unlink(missing_ok=True)
            start = time.perf_counter()
            with vae_edge.load(proving.path, "onnxruntime", "fp32", verify=mode) as classifier:
                classifier(image)
            times.append(time.perf_counter() - start)
    assert np.median(taken["error"]) - np.median(taken["off"]) < 0.1


def test_int8_needs_no_package_onnx(proving: Bundle) -> None:
    code = f"""
import sys
sys.modules["onnx"] = None  # an import would fail
import numpy as np, vae_edge
images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)
for backend in ("onnxruntime", "openvino"):
    with vae_edge.load({str(proving.path)!r}, backend, "int8") as classifier:
        print(len(classifier(images)), classifier.entry.target)
del sys.modules["onnx"]
print(any(name == "onnx" or name.startswith("onnx.") for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    target = "cpu_reduced_range" if int8_saturates() else "cpu"
    assert done.stdout.splitlines() == [f"4 {target}", f"4 {target}", "False"]


def test_processes_that_load_at_the_same_time_choose_once(proving: Bundle) -> None:
    code = f"""
import logging, vae_edge
logging.basicConfig(level=logging.INFO)
classifier = vae_edge.load({str(proving.path)!r})
print(classifier.backend, classifier.precision)
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert len({out for out, _ in said}) == 1
    assert sum("INFO:vae_edge.runtime.autoselect:auto: " in err for _, err in said) == 1, "one race, read by the others"
    assert len(json.loads((proving.path / "auto.json").read_text())["records"]) == 1


@pytest.mark.parametrize(
    ("machine", "flags", "environment", "expected"),
    [
        ("x86_64", {"avx2"}, {}, True),
        ("x86_64", set(), {}, True),
        ("AMD64", {"avx2", "avx_vnni"}, {}, False),
        ("x86_64", {"avx512f", "avx512_vnni"}, {}, False),
        ("x86_64", {"avx512f"}, {}, True),
        ("x86_64", {"avx512_vnni"}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, True),
        ("x86_64", {"avx512_vnni"}, {"ONEDNN_MAX_CPU_ISA": "avx512_core_vnni"}, False),
        ("aarch64", set(), {}, False),
        ("x86_64", {"avx512_vnni"}, {ISA_VARIABLE: "avx2"}, True),
        ("x86_64", {"avx2"}, {ISA_VARIABLE: "VNNI"}, False),
    ],
)
def test_the_instruction_set_is_found_out_and_can_be_forced(
    machine: str, flags: set[str], environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (ISA_VARIABLE, "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("vae_edge.environment._cpu_flags", lambda: flags)
    assert int8_saturates() is expected


def test_an_unknown_instruction_set_is_refused_and_flags_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(ConfigError, match="avx2 or vnni"):
        int8_saturates()
    info = Path("/proc/cpuinfo")
    if info.is_file() and "flags" in info.read_text():
        assert "sse2" in _cpu_flags()


@pytest.mark.parametrize("isa", ["avx2", "vnni"])
def test_each_kind_of_processor_gets_its_own_file(proving: Bundle, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, isa)
    target = {"avx2": "cpu_reduced_range", "vnni": "cpu"}[isa]
    with vae_edge.load(proving.path, "onnxruntime", "int8", verify="off") as classifier:
        assert classifier.entry.target == target
