"""Symmetry from a model's angle errors: drawn errors of known orders, and shapes that a small model was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.stats import binom

from vae_edge.data import Dataset, LabelledImages, rotate_dataset
from vae_edge.evaluation.symmetry import MIN_ERRORS, binomial_tail, find_symmetry, symmetry_order
from vae_edge.metrics import wrap_degrees


def drawn_errors(order: int, n: int, seed: int, flipped: float = 1.0, spread_deg: float = 6.0) -> np.ndarray:
    """Errors of a model about a shape of an order, 3% of them anywhere; `flipped` of its images have the symmetry."""
    rng = np.random.default_rng(seed)
    if order == 0:
        return rng.uniform(-180, 180, n)
    errors = rng.normal(0, spread_deg, n) + (rng.random(n) < flipped) * rng.integers(0, order, n) * 360 / order
    anywhere = rng.random(n) < 0.03
    return wrap_degrees(np.where(anywhere, rng.uniform(-180, 180, n), errors))


@pytest.mark.parametrize("order", [0, 1, 2, 3, 4, 5, 6])
def test_each_order_is_told_from_enough_errors(order: int) -> None:
    found = [symmetry_order(drawn_errors(order, 200, seed)) for seed in range(40)]
    assert found.count(order) >= 38


@pytest.mark.parametrize("n", [5, MIN_ERRORS, 60, 200])
@pytest.mark.parametrize("flipped", [0.0, 0.1, 0.3])
def test_a_shape_with_one_way_up_is_never_called_symmetric(n: int, flipped: float) -> None:
    """Also where some of its images, or of the model's answers, are upside down."""
    found = {symmetry_order(drawn_errors(2, n, seed, flipped)) for seed in range(200)}
    assert found == {1}


def test_few_errors_say_nothing() -> None:
    assert {symmetry_order(drawn_errors(order, MIN_ERRORS - 1, 0)) for order in (0, 2, 3, 4)} == {1}


def test_a_vague_model_of_an_asymmetric_shape_finds_no_symmetry() -> None:
    assert {symmetry_order(drawn_errors(1, 100, seed, spread_deg=40)) for seed in range(50)} == {1}


def test_a_model_that_tells_no_angle_says_nothing_of_its_classes() -> None:
    images = LabelledImages(np.zeros((60, 28, 28, 1), np.uint8), np.arange(60) % 3, ("a", "b", "c"))
    rng = np.random.default_rng(0)
    right = np.repeat(np.arange(3), 1000)  # all classes, in the order in which they are shown
    assert find_symmetry(lambda pixels: (right, rng.uniform(-180, 180, len(pixels))), images, seed=0) == {}


def test_of_a_class_that_the_model_does_not_know_yet_nothing_is_said() -> None:
    """Both classes have errors like those of a bar; one is right in every image, the other in half of them."""
    images = LabelledImages(np.zeros((40, 28, 28, 1), np.uint8), np.arange(40) % 2, ("known", "not yet"))
    truth = np.repeat([0, 1], 1500)

    def predict(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        true_deg = rotate_dataset(images.take(np.concatenate(order)), 180.0, 0).angles_deg
        angles = wrap_degrees(true_deg + drawn_errors(2, 3000, 0))
        return np.where(np.arange(3000) % 2 * truth, 0, truth), angles

    order = [np.resize(np.flatnonzero(images.labels == k), 1500) for k in (0, 1)]
    assert find_symmetry(predict, images, seed=0) == {"known": 2}


def test_a_shape_that_is_mostly_read_upside_down_is_not_symmetric() -> None:
    """As an A that a model takes for a V upside down: its errors are near 180° far more often than near 0°."""
    errors = wrap_degrees(np.random.default_rng(0).normal(0, 5, 100) + 180 * (np.arange(100) >= 20))
    assert symmetry_order(errors) == 1 and symmetry_order(np.where(np.arange(100) < 50, 1.0, 179.0)) == 2


def test_classes_of_fewer_than_five_images_are_left_out() -> None:
    images = LabelledImages(np.zeros((14, 28, 28, 1), np.uint8), np.repeat([0, 1], [10, 4]), ("many", "few"))
    shown = []

    def predict(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shown.append(len(pixels))
        return np.zeros(len(pixels), np.int64), np.zeros(len(pixels))

    find_symmetry(predict, images, seed=0)
    assert shown == [3000]  # all of the one class
    assert find_symmetry(predict, images.take(np.arange(10, 14)), seed=0) == {} and len(shown) == 1


def test_the_binomial_tail_is_scipys() -> None:
    for hits, n, probability in ((0, 5, 0.3), (12, 24, 0.25), (90, 100, 0.5), (100, 100, 0.99)):
        assert binomial_tail(hits, n, probability) == pytest.approx(binom.sf(hits - 1, n, probability), rel=1e-9)


# Shapes whose symmetry is known

POLYGONS = {
    "bar": [(-9, -2), (9, -2), (9, 2), (-9, 2)],
    "square": [(-6, -6), (6, -6), (6, 6), (-6, 6)],
    "triangle": [(0, -9), (7.8, 4.5), (-7.8, 4.5)],
    "L": [(-5, -9), (-1, -9), (-1, 5), (7, 5), (7, 9), (-5, 9)],
    "arrow": [(0, -10), (7, -2), (2, -2), (2, 9), (-2, 9), (-2, -2), (-7, -2)],
}
NAMES = (*POLYGONS, "disc")


def drawn_shape(rng: np.random.Generator, name: str) -> np.ndarray:
    """uint8 [28, 28, 1]: dark on bright or bright on dark, with a contrast of 25 to 100 grey levels."""
    page, scale = Image.new("L", (112, 112), 0), 4 * rng.uniform(0.8, 1.1)
    pen = ImageDraw.Draw(page)
    if name == "disc":
        pen.ellipse([56 - 7 * scale, 56 - 7 * scale, 56 + 7 * scale, 56 + 7 * scale], fill=255)
    else:
        pen.polygon([(56 + x * scale, 56 + y * scale) for x, y in POLYGONS[name]], fill=255)
    mask = np.asarray(page.resize((28, 28), Image.Resampling.BOX)) / 255
    background = rng.uniform(40, 215)
    foreground = np.clip(background + rng.choice([-1, 1]) * rng.uniform(25, 100), 0, 255)
    pixels = background + (foreground - background) * mask + rng.normal(0, 2, mask.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)[..., None]


@pytest.mark.slow
def test_symmetric_shapes_of_either_polarity_are_found_and_others_are_not(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from vae_edge.training.checkpoint import load_checkpoint
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.data import make_run_config, make_splits
    from vae_edge.training.trainer import train

    rng = np.random.default_rng(0)
    labels = np.arange(120 * len(NAMES)) % len(NAMES)
    images = LabelledImages(np.stack([drawn_shape(rng, NAMES[k]) for k in labels]), labels.astype(np.int64), NAMES)
    data = Dataset("shapes", "shapes", images, None)
    settings = TrainConfig(epochs=28, batch=64, augment="light")
    splits = make_splits(data, settings)
    train(splits, make_run_config(data, splits, "tiny", settings, head="code"), tmp_path / "run")

    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.result.symmetry == {"bar": 2, "square": 4, "triangle": 3, "disc": 0}
    assert checkpoint.ambiguous == checkpoint.result.symmetry
    errors = checkpoint.result.validation["angle_error_deg"]
    assert errors["mean"] > 30 and errors["up_to_symmetry"]["mean"] < 5
