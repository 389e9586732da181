"""The classifier: its numbers against ONNX's reference evaluator, its forms of input, its life."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from PIL import Image
from small_models import classifier as classifier_model
from small_models import make_bundle, noise

import vae_edge
from vae_edge.bundle import Bundle, ModelEntry, add_model
from vae_edge.errors import BackendError, BundleError, ConfigError, DataError, VaeEdgeError
from vae_edge.preprocess import InputSpec, to_batch
from vae_edge.runtime.backends import installed_backends
from vae_edge.runtime.entries import find_entry
from vae_edge.spec import CLASSIFIER_OUTPUTS, UNCERTAINTY_OUTPUTS

BACKENDS = ["onnxruntime", "openvino"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_predictions_are_those_of_the_reference_evaluator(session_bundle: Bundle, backend: str, precision: str) -> None:
    images = noise(6, seed=7)  # of those that int8 was calibrated on: nothing saturates
    file = session_bundle.file(find_entry(session_bundle, "int8" if precision == "int8" else "fp32"))
    probabilities, angle, score = ReferenceEvaluator(onnx.load(file)).run(None, {"image": images})
    with vae_edge.load(session_bundle.path, backend, precision) as classifier:
        predictions = classifier(images)
    tolerance = {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.05}[precision]
    np.testing.assert_allclose(predictions.probabilities, probabilities, atol=tolerance)
    np.testing.assert_allclose(predictions.scores, score, atol=3 * tolerance)
    np.testing.assert_allclose(np.deg2rad(predictions.angles_deg), angle, atol=tolerance)
    np.testing.assert_array_equal(predictions.labels, probabilities.argmax(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_colour_and_another_size(tmp_path: Path, backend: str) -> None:
    bundle = make_bundle(tmp_path / "b", tmp_path / "w", size=33, channels=3, widths=(16, 16), precisions=("fp32",))
    images = noise(3, 33, 3)
    expected = ReferenceEvaluator(onnx.load(bundle.file(bundle.find()))).run(None, {"image": images})[0]
    with vae_edge.load(bundle.path, backend) as classifier:
        np.testing.assert_allclose(classifier(images).probabilities, expected, atol=1e-5)
        np.testing.assert_array_equal(classifier.reconstruct(images), 255 - images)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_batch_size_gives_each_image_the_same(session_bundle: Bundle, backend: str) -> None:
    images = noise(600)
    with vae_edge.load(session_bundle.path, backend, "fp32") as classifier:
        whole = classifier(images)  # three pieces
        assert len(whole) == 600 and whole.probabilities.shape == (600, 10)
        for n in (1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 1, 2):  # more sizes than a thread keeps buffers for
            some = classifier(images[:n])
            np.testing.assert_allclose(some.probabilities, whole.probabilities[:n], atol=1e-5)
        assert len(classifier.session._buffers.batch_sizes()) <= 8
        classifier.warmup(7)
        np.testing.assert_allclose(classifier(images[300:307]).scores, whole.scores[300:307], atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_predictions_stay_what_they_are_when_the_classifier_is_called_again(
    session_bundle: Bundle, backend: str
) -> None:
    with vae_edge.load(session_bundle.path, backend, "fp32") as classifier:
        first = classifier(noise(2, seed=1))
        kept = (first.probabilities.copy(), first.scores.copy(), first._angles_rad.copy())
        image = noise(2, seed=2)
        before = image.copy()
        classifier(image)
        for have, want in zip((first.probabilities, first.scores, first._angles_rad), kept, strict=True):
            np.testing.assert_array_equal(have, want)
        np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_threads_get_what_one_gets(session_bundle: Bundle, backend: str) -> None:
    sets = [noise(1 + seed % 4, seed=seed) for seed in range(8)]
    with vae_edge.load(session_bundle.path, backend, "fp32") as classifier:
        serial = [classifier(images).probabilities for images in sets]
        wrong: list[str] = []
        start = threading.Barrier(4)

        def work(offset: int) -> None:
            start.wait()
            for turn in range(100):
                k = (turn + offset) % len(sets)
                if not np.array_equal(classifier(sets[k]).probabilities, serial[k]):
                    wrong.append(f"thread {offset}, turn {turn}")

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("backend", BACKENDS)
def test_closing_while_other_threads_call_gives_them_an_error_of_ours(session_bundle: Bundle, backend: str) -> None:
    classifier = vae_edge.load(session_bundle.path, backend, "fp32")
    ended: list[type[BaseException]] = []
    images = noise(4)

    def work() -> None:
        try:
            while True:
                classifier(images)
        except Exception as error:
            ended.append(type(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    classifier.close()
    for thread in threads:
        thread.join(20)
    assert ended == [BackendError] * 3


def test_paths_images_arrays_and_lists_of_these_are_taken(session_bundle: Bundle, tmp_path: Path) -> None:
    pixels = noise(3, seed=5)
    Image.fromarray(pixels[0, :, :, 0]).save(tmp_path / "a.png")
    with vae_edge.load(session_bundle.path, "onnxruntime", "fp32") as classifier:
        expected = classifier(pixels).probabilities
        for images, want in [
            (tmp_path / "a.png", expected[:1]),
            (str(tmp_path / "a.png"), expected[:1]),
            (Image.fromarray(pixels[1, :, :, 0]), expected[1:2]),
            ([tmp_path / "a.png", pixels[1], Image.fromarray(pixels[2, :, :, 0])], expected),
            (pixels[:, :, :, 0], expected),
            (pixels[0], expected[:1]),
            (pixels[:, ::-1][:, ::-1], expected),  # not contiguous
        ]:
            np.testing.assert_array_equal(classifier(images).probabilities, want)
        inverted = classifier(255 - pixels, invert="always")
        np.testing.assert_array_equal(inverted.probabilities, expected)
        assert all(i.inverted for i in inverted.preprocess_info)
        assert "a.png" in classifier(tmp_path / "a.png").preprocess_info[0].source
        assert classifier(pixels).preprocess_info == to_batch(pixels, classifier.input)[1]
        wide = Image.new("RGBA", (200, 300), "white")
        assert "padded" in classifier(wide, fit="pad").preprocess_info[0].sentence()


def test_predictions_say_names_angles_and_acceptance(session_bundle: Bundle) -> None:
    with vae_edge.load(session_bundle.path, "onnxruntime", "fp32") as classifier:
        predictions = classifier(noise(50))
        assert (classifier.threshold, classifier.input) == (-3.5, InputSpec(28, 1, "dark"))
    assert predictions.labels.dtype == np.int64 and predictions.accepted.dtype == bool
    assert predictions.probabilities.dtype == predictions.angles_deg.dtype == predictions.scores.dtype == np.float32
    np.testing.assert_allclose(predictions.probabilities.sum(1), 1, atol=1e-5)
    assert predictions.names == [session_bundle.classes[i] for i in predictions.probabilities.argmax(1)]
    assert 0 < predictions.accepted.sum() < 50
    np.testing.assert_array_equal(predictions.accepted, predictions.scores <= -3.5)
    rows = predictions.to_dicts()
    assert rows[7]["name"] == predictions.names[7] and rows[7]["accepted"] == predictions.accepted[7]
    assert rows[7]["probability"] == max(rows[7]["probabilities"])
    assert "50 predictions" in repr(predictions)


SCHEMA_1 = ("concentration", "second_angle", "second_share")


@pytest.mark.parametrize("names", [tuple(UNCERTAINTY_OUTPUTS), SCHEMA_1], ids=["schema 2", "schema 1"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_uncertainty_of_the_angle_comes_along(tmp_path: Path, backend: str, names: tuple[str, ...]) -> None:
    bundle = make_bundle(
        tmp_path / "bundle",
        tmp_path / "work",
        widths=(16,),
        precisions=("fp32",),
        uncertainty=names,
    )
    images = noise(300)
    with vae_edge.load(bundle.path, backend, "fp32") as classifier:
        predictions = classifier(images)
        assert {info.name for info in classifier.outputs} == {*CLASSIFIER_OUTPUTS, *UNCERTAINTY_OUTPUTS}
    model = ReferenceEvaluator(onnx.load(bundle.file(bundle.find())))
    some = slice(None, None, 15)  # the evaluator is slow
    _, _, _, sure, second, share = model.run(None, {"image": images[some]})
    np.testing.assert_allclose(predictions.angle_confidences[some], sure, atol=1e-4)
    np.testing.assert_allclose(np.deg2rad(predictions.second_angles_deg[some]), second, atol=1e-3)
    np.testing.assert_allclose(predictions.second_angle_probabilities[some], share, atol=1e-3)
    row = predictions.to_dicts()[7]
    assert row["second_angle_deg"] == pytest.approx(-row["angle_deg"], abs=1e-3)
    assert (row["angle_confidence"], row["second_angle_probability"]) == (
        predictions.angle_confidences[7],
        predictions.second_angle_probabilities[7],
    )


def test_a_model_with_three_outputs_has_no_uncertainty(session_bundle: Bundle) -> None:
    with vae_edge.load(session_bundle.path, "onnxruntime", "fp32") as classifier:
        predictions = classifier(noise(2))
    assert (
        predictions.angle_confidences is predictions.second_angle_probabilities is predictions.second_angles_deg is None
    )
    assert [
        predictions.to_dicts()[1][name] for name in ("angle_confidence", "second_angle_deg", "second_angle_probability")
    ] == [None] * 3


def test_angles_are_wrapped_to_the_half_open_turn() -> None:
    from vae_edge.runtime import Predictions

    rad = np.array([0, 0.5, np.pi, -np.pi, 3.5, -3.5, 2 * np.pi, 7 * np.pi], np.float32)
    one = np.ones(len(rad), np.float32)
    about = {"classes": ("a",), "threshold": 0, "preprocess_info": lambda n: []}
    predictions = Predictions(one[:, None], rad, one, one, rad, one, **about)
    expected = [0, 28.6479, 180, 180, -159.4648, 159.4648, 0, 180]
    off = np.abs(predictions.angles_deg - np.array(expected, np.float32))
    assert np.minimum(off, 360 - off).max() < 1e-3
    assert (predictions.angles_deg > -180).all() and (predictions.angles_deg <= 180).all()
    np.testing.assert_array_equal(predictions.second_angles_deg, predictions.angles_deg)


def test_inputs_and_outputs_answer_in_onnx_runtimes_words(session_bundle: Bundle) -> None:
    import onnxruntime

    file = session_bundle.file(session_bundle.find())
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for backend in BACKENDS:
        with vae_edge.load(session_bundle.path, backend, "fp32") as classifier:
            for ours, theirs in (
                (classifier.inputs, session.get_inputs()),
                (classifier.outputs, session.get_outputs()),
            ):
                assert [(t.name, t.shape, t.type) for t in ours] == [(t.name, t.shape, t.type) for t in theirs]


def test_it_says_what_it_is(session_bundle: Bundle) -> None:
    classifier = vae_edge.load(session_bundle.path, "openvino", "int8", threads=2)
    assert (classifier.backend, classifier.precision, classifier.threads) == ("openvino", "int8", 2)
    assert "openvino, int8, threads=2, image uint8 [N, 28, 28, 1], 10 classes>" in repr(classifier)
    classifier.close()
    assert "closed" in repr(classifier)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_classifier_refuses_every_call_and_frees_its_engine(session_bundle: Bundle, backend: str) -> None:
    with vae_edge.load(session_bundle.path, backend, "fp32") as classifier:
        classifier(noise(1))
        session = weakref.ref(classifier.session)
    classifier.close()
    gc.collect()
    assert session() is None
    for call in (
        lambda: classifier(noise(1)),
        lambda: classifier.reconstruct(noise(1)),
        classifier.warmup,
        lambda: classifier.inputs,
    ):
        with pytest.raises(BackendError, match="was closed"):
            call()


def test_arrays_that_do_not_fit_are_refused(session_bundle: Bundle) -> None:
    with vae_edge.load(session_bundle.path, "onnxruntime", "fp32") as classifier:
        good = noise(2)
        for bad in (
            good.astype(np.float32) / 255,
            np.full((2, 28, 28, 1), np.nan),
            good[:0],
            good[:, :27],
            good[None],
            good.repeat(3, 3),
            [],
            None,
            [good, None],
        ):
            with pytest.raises(DataError):
                classifier(bad)
        for option in ({"invert": "maybe"}, {"fit": "stretch"}):
            with pytest.raises(VaeEdgeError):
                classifier(good, **option)
        for batch in (0, -1, 1.5, True):
            with pytest.raises(ConfigError, match="at least 1"):
                classifier.warmup(batch)


def test_what_is_not_there_is_refused_with_what_is_and_how_to_add_it(own_bundle: Bundle, tmp_path: Path) -> None:
    path = own_bundle.path
    only = make_bundle(tmp_path / "only", tmp_path / "w", widths=(16,), precisions=("fp32",))
    with pytest.raises(
        BundleError, match=r"no int8 classifier \(it has: fp32\).*`vae-edge quantize .*--precision int8"
    ):
        vae_edge.load(only.path, "onnxruntime", "int8")
    with pytest.raises(BackendError, match=r"no backend .cuda.; there are auto, onnxruntime, .*; installed: onnx"):
        vae_edge.load(path, "cuda")
    with pytest.raises(BackendError, match=r"'tensorrt' is not installed .*On a Jetson it is part of JetPack"):
        vae_edge.load(path, "tensorrt")
    with pytest.raises(ConfigError, match="precision is auto, fp32"):
        vae_edge.load(path, precision="int4")
    for threads in (0, -1, 1.5, True, "2"):
        with pytest.raises(ConfigError, match="threads is a whole number"):
            vae_edge.load(path, threads=threads)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="is not there"):
        vae_edge.load(tmp_path / "nowhere")


def test_a_backend_that_is_not_installed_is_refused_with_the_command(session_bundle: Bundle, tmp_path: Path) -> None:
    """In a process whose import system has no openvino."""
    code = f"""
import sys, importlib.abc
class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "openvino":
            raise ModuleNotFoundError(name)
real = __import__("importlib.util").util.find_spec
import importlib.util
importlib.util.find_spec = lambda n, p=None: None if n == "openvino" else real(n, p)
import vae_edge
from vae_edge.errors import BackendError
try:
    vae_edge.load({str(session_bundle.path)!r}, "openvino")
except BackendError as error:
    print(error)
print(vae_edge.load({str(session_bundle.path)!r}, precision="fp32").backend)
"""
    there = ", ".join(name for name in installed_backends() if name != "openvino")
    assert _python(code).splitlines() == [
        f"The backend 'openvino' is not installed (installed: {there}): run `pip install \"vae-edge[openvino]\"`.",
        "onnxruntime",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_models_that_are_not_ours_are_refused(own_bundle: Bundle, tmp_path: Path, backend: str) -> None:
    file = tmp_path / "other.onnx"

    def swap(content: bytes) -> None:
        file.write_bytes(content)
        add_model(own_bundle.path, file, ModelEntry("classifier", "fp32"))

    wrong = [
        (classifier_model(size=32, widths=(16,)).SerializeToString(), "inputs should be image"),
        (classifier_model(classes=7, widths=(16,)).SerializeToString(), "outputs should be probabilities"),
        (own_bundle.file(own_bundle.find("reconstruction")).read_bytes(), "outputs should be probabilities"),
        (
            classifier_model(widths=(16,), uncertainty=tuple(UNCERTAINTY_OUTPUTS)[:2]).SerializeToString(),
            "outputs .* second_angle_probability",
        ),
        (b"not an ONNX file at all", f"is not a model that {backend} .* can load"),
        (classifier_model(widths=(16,)).SerializeToString()[:3000], f"is not a model that {backend} .* can load"),
    ]
    fixed = classifier_model(widths=(16,))
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    wrong.append((fixed.SerializeToString(), "inputs should be image"))
    for content, says in wrong:
        swap(content)
        with pytest.raises(BundleError, match=says):
            vae_edge.load(own_bundle.path, backend, "fp32")


def test_a_bundle_without_a_reconstruction_says_so(tmp_path: Path, own_bundle: Bundle) -> None:
    from vae_edge.bundle import create_bundle

    bundle = create_bundle(
        tmp_path / "plain",
        name="plain",
        classes=own_bundle.classes,
        input=own_bundle.input,
        threshold=0,
        reject_rate=0.05,
        models=[(own_bundle.file(own_bundle.find()), ModelEntry("classifier", "fp32"))],
    )
    with (
        vae_edge.load(bundle.path, "onnxruntime") as classifier,
        pytest.raises(BundleError, match="no reconstruction model"),
    ):
        classifier.reconstruct(noise(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_reconstruction_is_the_models(session_bundle: Bundle, backend: str) -> None:
    images = noise(300)
    with vae_edge.load(session_bundle.path, backend, "int8") as classifier:
        assert classifier._reconstructor is None, "it is loaded when first asked for"
        np.testing.assert_array_equal(classifier.reconstruct(images), 255 - images)


def test_neither_torch_nor_triton_nor_the_other_backend_is_imported(session_bundle: Bundle) -> None:
    code = f"""
import sys, numpy as np, vae_edge
with vae_edge.load({str(session_bundle.path)!r}, {{backend!r}}, "fp32") as classifier:
    classifier(np.arange(784, dtype=np.uint8).reshape(1, 28, 28, 1)).to_dicts()
print([m for m in ("torch", "triton", "onnx", "onnxruntime", "openvino", "rich") if m in sys.modules])
"""
    for backend in BACKENDS:
        assert _python(code.format(backend=backend)).strip() == str([backend])


def _python(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_labels_of_probabilities_that_are_no_numbers_are_an_error(wrong: float) -> None:
    from vae_edge.runtime import Predictions

    probabilities = np.full((3, 4), 0.25, np.float32)
    probabilities[1, 2] = wrong
    numbers = np.zeros(3, np.float32)
    known = {"classes": ("a", "b", "c", "d"), "threshold": 1.0, "preprocess_info": lambda count: []}
    with pytest.raises(BackendError, match="for image 1 of 3, counted from 0"):
        _ = Predictions(probabilities, numbers, numbers, **known).names
    unreadable = Predictions(probabilities, numbers, numbers, **known, errors={1: DataError("no image")})
    assert unreadable.labels.tolist() == [0, -1, 0]
