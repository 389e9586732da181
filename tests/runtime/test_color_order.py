"""Arrays in OpenCV's order, BGR: taken where it is said, noticed where it is not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_models import make_bundle, noise

import vae_edge
from vae_edge.bundle import Bundle
from vae_edge.errors import ConfigError
from vae_edge.preprocess import InputSpec, to_batch
from vae_edge.runtime import Classifier
from vae_edge.runtime.color_order import ColorOrderCheck


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("colour")
    return make_bundle(folder / "bundle", folder / "work", size=32, channels=3, widths=(16,), precisions=("fp32",))


def opened(bundle: Bundle) -> Classifier:
    return vae_edge.load(bundle.path, "onnxruntime", "fp32")


def test_bgr_arrays_are_predicted_as_their_rgb_files(colour: Bundle, tmp_path: Path) -> None:
    rgb = noise(6, 32, 3)
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    Image.fromarray(rgb[0]).save(tmp_path / "x.png")
    with opened(colour) as classifier:
        expected = classifier(rgb)
        for images in (bgr, rgb[..., ::-1], list(bgr), [tmp_path / "x.png", *bgr[1:]]):
            got = classifier(images, color="bgr")
            np.testing.assert_array_equal(got.scores, expected.scores)
        assert not np.array_equal(classifier(bgr).scores, expected.scores)
        assert "from BGR to RGB" in classifier(bgr, color="bgr").preprocess_info[0].sentence()
        assert "BGR" not in classifier(tmp_path / "x.png", color="bgr").preprocess_info[0].sentence()
        np.testing.assert_array_equal(classifier.reconstruct(bgr, color="bgr"), classifier.reconstruct(rgb))
        with pytest.raises(ConfigError, match="color is one of rgb, bgr, but 'gbr' came"):
            classifier(rgb, color="gbr")


def test_the_users_array_stays_and_grey_has_no_order() -> None:
    bgr = noise(2, 32, 3)
    before = bgr.copy()
    batch, _ = to_batch(bgr, InputSpec(32, 3), color="bgr")
    assert (bgr == before).all() and (batch == bgr[..., ::-1]).all() and batch.flags.c_contiguous
    grey = noise(2)
    assert to_batch(grey, InputSpec(28, 1), color="bgr")[0] is grey


def frames(classifier: Classifier, known: bool) -> np.ndarray:
    """Images in BGR, unknown as they come, and known or unknown as RGB; the threshold is set between."""
    rgb = noise(400, 32, 3, seed=3)
    right, wrong = classifier(rgb, color="rgb").scores, classifier(rgb[..., ::-1], color="rgb").scores
    classifier.threshold = float(np.median(right))
    chosen = (wrong > classifier.threshold) & ((right <= classifier.threshold) == known)
    assert chosen.sum() >= 40
    return np.ascontiguousarray(rgb[chosen][:40, ..., ::-1])


@pytest.mark.parametrize("each", [1, 40], ids=["one by one", "together"])
def test_unknown_frames_that_are_known_as_bgr_are_warned_about_once(
    colour: Bundle, caplog: pytest.LogCaptureFixture, each: int
) -> None:
    with opened(colour) as classifier, caplog.at_level(logging.WARNING):
        bgr = frames(classifier, known=True)
        for _ in range(2):
            for start in range(0, len(bgr), each):
                classifier(bgr[start : start + each])
        assert len(caplog.records) == 1 and 'color="bgr"' in caplog.text and "RGB" in caplog.text


def test_outputs_that_are_not_copied_are_not_those_of_the_exchanged_images(colour: Bundle) -> None:
    with opened(colour) as classifier:
        bgr = frames(classifier, known=True)
        right = classifier(bgr, color="rgb").scores
        for image, score in zip(bgr, right, strict=True):
            np.testing.assert_allclose(classifier(image[None], copy=False).scores, score, rtol=1e-4)


def test_nothing_is_said_where_exchanging_does_not_help_or_the_order_is_told(
    colour: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(colour) as classifier, caplog.at_level(logging.WARNING):
        for image in frames(classifier, known=False):
            classifier(image[None])
    with opened(colour) as classifier, caplog.at_level(logging.WARNING):
        bgr = frames(classifier, known=True)
        Image.fromarray(bgr[0]).save(tmp_path / "x.png")
        for _ in range(8):
            classifier(bgr, color="rgb")
            classifier(bgr, color="bgr")
            classifier(tmp_path / "x.png")
    assert not caplog.records


def test_what_is_looked_at_is_bounded() -> None:
    swaps: list[int] = []

    def score(images: np.ndarray) -> np.ndarray:
        swaps.append(len(images))
        return np.ones(len(images))

    images, strange = np.zeros((3, 4, 4, 3), np.uint8), np.array([1.0, 0.0, np.nan])
    check = ColorOrderCheck(3)
    for _ in range(50):
        if check.active:
            check.check(images, strange, 0.5, score)
    assert swaps == [2] * 8 and not check.active
    check = ColorOrderCheck(3)
    calls = 0
    while check.active:
        check.check(images, np.zeros(3), 0.5, score)
        calls += 1
    assert calls == 100 and len(swaps) == 8
    assert not ColorOrderCheck(1).active
