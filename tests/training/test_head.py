"""The head that a data set without a background in common gets: by whether places tell its classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vae_edge
from vae_edge.data import Dataset, LabelledImages, rotate_dataset
from vae_edge.preprocess import measure_input
from vae_edge.training.checkpoint import STATE, read_config
from vae_edge.training.config import TrainConfig
from vae_edge.training.data import describe_run, make_run_config, make_splits
from vae_edge.training.head import MIN_PROBED_IMAGES, choose_head, probe_accuracies

COUNT = 600


@pytest.fixture(scope="module")
def shapes(digits: Dataset) -> LabelledImages:
    """Digits, dark or bright, on grounds of any brightness with noise on them."""
    rng = np.random.default_rng(0)
    chosen = digits.train.take(rng.permutation(len(digits.train))[:COUNT]).in_memory()
    strokes = chosen.images.astype(np.float32) / 255
    ground = rng.uniform(0.1, 0.9, (COUNT, 1, 1, 1))
    ink = np.where(ground > 0.5, ground - 0.4, ground + 0.4)
    images = ground + strokes * (ink - ground) + rng.normal(0, 0.03, strokes.shape)
    return LabelledImages((images.clip(0, 1) * 255).astype(np.uint8), chosen.labels, chosen.classes)


def textures(height: int, width: int, channels: int) -> LabelledImages:
    """Stripes that run one of six ways, begin anywhere, and have any colour."""
    rng = np.random.default_rng(1)
    labels = np.arange(COUNT) % 6
    angle = (labels * np.pi / 6)[:, None, None]
    y, x = np.mgrid[:height, :width]
    waves = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 1.2 + rng.uniform(0, 7, (COUNT, 1, 1)))
    images = rng.uniform(60, 190, (COUNT, 1, 1, channels)) + 40 * waves[..., None]
    noisy = images + rng.normal(0, 8, images.shape)
    return LabelledImages(noisy.clip(0, 255).astype(np.uint8), labels, tuple("abcdef"))


def test_neither_has_a_background_in_common(shapes: LabelledImages):
    assert measure_input(shapes.images).background == measure_input(textures(32, 32, 1).images).background == "none"


def test_places_tell_shapes(shapes: LabelledImages):
    pooled, placed = probe_accuracies(shapes, 0.0, seed=0)
    assert placed > pooled + 0.05
    assert choose_head(shapes, 0.0, seed=0) == "code"


@pytest.mark.parametrize(("height", "width", "channels"), [(32, 32, 1), (28, 50, 3), (64, 64, 3)])
def test_places_tell_nothing_of_textures(height: int, width: int, channels: int):
    assert choose_head(textures(height, width, channels), 0.0, seed=0) == "pooled"


def test_rotated_images_are_looked_at_upright(shapes: LabelledImages):
    rotated = rotate_dataset(shapes, 180.0, seed=2)
    unknown = LabelledImages(rotated.images, rotated.labels, rotated.classes)
    assert choose_head(rotated, 0.0, seed=0) == "code"
    assert probe_accuracies(rotated, 0.0, seed=0)[1] > probe_accuracies(unknown, 0.0, seed=0)[1] + 0.1


def test_the_same_images_and_seed_give_the_same_answer(shapes: LabelledImages):
    assert probe_accuracies(shapes, 0.0, seed=3) == probe_accuracies(shapes, 0.0, seed=3)


def test_of_few_images_nothing_is_said(shapes: LabelledImages):
    assert choose_head(shapes.take(np.arange(MIN_PROBED_IMAGES - 1)), 0.0, seed=0) == "pooled"


def test_even_images_are_no_error():
    images = np.full((COUNT, 28, 28, 1), 90, np.uint8)
    assert choose_head(LabelledImages(images, np.arange(COUNT) % 2, ("a", "b")), 0.0, seed=0) == "pooled"


def test_a_run_gets_the_head_that_was_measured(shapes: LabelledImages):
    settings = TrainConfig()
    for images, head in ((shapes, "code"), (textures(32, 32, 1), "pooled")):
        dataset = Dataset("mine", "mine", images, None)
        splits = make_splits(dataset, settings)
        config = make_run_config(dataset, splits, "tiny", settings)
        assert config.model.head == head
        assert any(f"head {head}" in line for line in describe_run(dataset, config))
        other = "pooled" if head == "code" else "code"
        assert make_run_config(dataset, splits, "tiny", settings, head=other).model.head == other


def test_a_run_that_goes_on_keeps_its_head(
    shapes: LabelledImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, settings = Dataset("mine", "mine", shapes, None), TrainConfig(rotation="none", epochs=2, batch=128)
    monkeypatch.setattr("vae_edge.training.trainer.CHECKPOINT_INTERVAL_S", 0.0)

    def die(step: int, steps: int, terms: dict[str, float]) -> None:
        if step == steps - 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        vae_edge.train(dataset, tmp_path, settings, preset="tiny", progress=die)
    assert (tmp_path / STATE).exists() and read_config(tmp_path).model.head == "code"
    monkeypatch.setattr("vae_edge.training.data.choose_head", lambda *_: "pooled")  # as another version's answer
    vae_edge.train(dataset, tmp_path, settings, preset="tiny", resume=True, progress=None)
    assert read_config(tmp_path).model.head == "code"
