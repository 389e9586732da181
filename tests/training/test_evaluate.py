from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vae_edge.data import Dataset, LabelledImages, align_classes, load_dataset, rotated
from vae_edge.errors import ConfigError, DataError
from vae_edge.metrics import wrap_degrees
from vae_edge.training.checkpoint import Checkpoint, load_checkpoint
from vae_edge.training.config import TrainConfig
from vae_edge.training.data import ambiguous_classes, plan
from vae_edge.training.evaluate import arrays, evaluate, predict
from vae_edge.training.generate import generate, write_generated
from vae_edge.training.trainer import train


def clear_digits(digits: Dataset) -> LabelledImages:
    """Test digits of the classes that have one way up."""
    return digits.test.take(np.flatnonzero(np.isin(digits.test.labels, [2, 3, 4, 5, 7])))


@pytest.mark.parametrize(("quarters", "expected"), [(0, 0), (1, 90), (2, 180), (3, -90)])
def test_digits_turned_by_quarters_counter_clockwise_as_displayed_have_positive_angles(
    checkpoint: Checkpoint, digits: Dataset, quarters: int, expected: int
):
    """`rot90` turns rows, which go down, and columns, which go right: counter-clockwise as a person sees them."""
    mark = np.zeros((28, 28), np.uint8)
    mark[2, 13] = 255  # at the top; a quarter turn counter-clockwise takes it to the left
    assert np.rot90(mark, 1)[14, 2] == 255
    turned = np.rot90(clear_digits(digits).images, quarters, axes=(1, 2))
    told = predict(checkpoint.model, np.ascontiguousarray(turned))
    apart = np.abs(wrap_degrees(told.angles_deg - expected))
    assert np.median(apart) < 15 and (apart > 90).mean() < 0.1
    assert (told.angles_deg > -180).all() and (told.angles_deg <= 180).all()


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(degrees=st.floats(-180, 180, exclude_min=True))
@example(degrees=180.0)
@example(degrees=-179.9)
@example(degrees=179.0)
@example(degrees=-90.0)
def test_turning_the_input_turns_the_reported_angle_by_as_much(checkpoint: Checkpoint, digits: Dataset, degrees: float):
    """For classes that have one way up, within the median error that the run states for all."""
    clear = clear_digits(digits).take(np.arange(150))
    upright = predict(checkpoint.model, clear.images)
    pages = [np.asarray(Image.fromarray(i[..., 0]).rotate(degrees, Image.Resampling.BILINEAR)) for i in clear.images]
    turned = predict(checkpoint.model, np.stack(pages)[..., None])
    apart = np.abs(wrap_degrees(turned.angles_deg - upright.angles_deg - degrees))
    stated = checkpoint.result.validation["angle_error_deg"]["median"]
    assert np.median(apart) <= stated
    if stated < abs(degrees) < 180 - stated:
        other_way = np.abs(wrap_degrees(turned.angles_deg - upright.angles_deg + degrees))
        assert np.median(other_way) > stated


def test_the_second_angle_and_the_concentration_say_something(checkpoint: Checkpoint, digits: Dataset):
    turned = rotated(digits.test, 180.0, seed=4)
    outputs = predict(checkpoint.model, turned.images)
    result = evaluate(lambda images: arrays(predict(checkpoint.model, images)), turned, digits.classes, 0.0, 180.0)
    errors = result["angle_error_deg"]
    assert errors["either_of_two"]["beyond_90"] < 0.6 * errors["beyond_90"]
    halves = errors["by_concentration"]
    assert halves["median_of_the_surer_half"] < 0.8 * halves["median_of_the_other_half"]
    apart = np.abs(wrap_degrees(outputs.second_angles_deg - outputs.angles_deg))
    assert apart.min() > 5 and ((outputs.second_angle_probs >= 0) & (outputs.second_angle_probs < 0.5)).all()
    assert ((outputs.angle_confidences >= 0) & (outputs.angle_confidences <= 1 + 1e-6)).all()


@pytest.mark.slow
def test_a_restricted_range_is_read_at_least_as_precisely_as_the_full_circle(
    checkpoint: Checkpoint, digits: Dataset, tmp_path: Path
):
    """The bins span the whole circle either way: those that never occur cost nothing."""
    config = plan(digits, "tiny", TrainConfig(rotation="30", epochs=12, batch=128))
    train(digits, config, tmp_path / "run")
    narrow = load_checkpoint(tmp_path / "run")
    full = checkpoint.result.validation["angle_error_deg"]
    assert narrow.result["validation"]["angle_error_deg"]["median"] <= full["median"]
    outputs = predict(narrow.model, rotated(digits.test, 30.0, seed=1).images)
    assert np.mean(np.abs(outputs.angles_deg) < 45) > 0.98


def test_evaluation_turns_the_images_and_measures_the_upright_ones_too(checkpoint: Checkpoint, digits: Dataset):
    def run(images):
        return arrays(predict(checkpoint.model, images))

    result = evaluate(run, digits.test, digits.classes, checkpoint.result.threshold, 180.0, seed=4)
    assert result["n"] == result["upright"]["n"] == 1000
    assert np.array(result["confusion"]).sum() == 1000
    turned = rotated(digits.test, 180.0, seed=4)
    by_hand = (predict(checkpoint.model, turned.images).probabilities.argmax(1) == turned.labels).mean()
    assert result["accuracy"] == pytest.approx(by_hand, abs=1e-5)
    given = evaluate(run, turned, digits.classes, checkpoint.result.threshold, 180.0, seed=99)
    assert given["angle_error_deg"] == result["angle_error_deg"] and "upright" not in given


def test_classes_are_matched_by_name_and_unknown_ones_refused():
    images = np.zeros((3, 28, 28, 1), np.uint8)
    data = LabelledImages(images, np.array([0, 1, 1]), ("dog", "cat"))
    assert align_classes(data, ("cat", "cow", "dog")).labels.tolist() == [2, 0, 0]
    with pytest.raises(DataError, match="dog"):
        align_classes(data, ("cat", "cow"))


def test_symmetric_shapes_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    images = np.zeros((240, 28, 28, 1), np.uint8)
    labels = np.arange(240) % 3
    for image, label in zip(images, labels, strict=True):
        y, x = rng.integers(8, 11, 2)
        if label == 0:
            image[y : y + 10, 13:15] = 255  # a bar
        elif label == 1:
            image[13:15, x : x + 10] = 200  # a lying bar
        else:
            image[4 : y + 6, 12:15] = 255  # an L with its foot
            image[y + 4 : y + 7, 12:24] = 255
    data = LabelledImages(images, labels.astype(np.int64), ("bar", "lying", "L"))
    assert ambiguous_classes(data) == ["bar", "lying"]


def test_generated_images_are_what_was_asked_for(checkpoint: Checkpoint):
    classes = checkpoint.config.classes
    made = generate(checkpoint.model, classes, 30, wanted=["3", "7"], angles_deg=(0.0, 90.0), seed=1)
    assert made.images.shape == (60, 28, 28, 1) and made.images.dtype == np.uint8
    assert np.bincount(made.labels, minlength=10).tolist() == [0, 0, 0, 30, 0, 0, 0, 30, 0, 0]
    assert sorted(set(made.angles_deg.tolist())) == [0.0, 90.0]
    typical = generate(checkpoint.model, classes, 20, spread=0.3)
    assert (predict(checkpoint.model, typical.images).probabilities.argmax(1) == typical.labels).mean() > 0.6
    again = generate(checkpoint.model, classes, 30, wanted=["3", "7"], angles_deg=(0.0, 90.0), seed=1)
    np.testing.assert_array_equal(made.images, again.images)
    with pytest.raises(ConfigError, match="eleven"):
        generate(checkpoint.model, classes, 1, wanted=["eleven"])


@pytest.mark.parametrize("name", ["out.npz", "folder"])
def test_generated_images_are_a_data_set_again(checkpoint: Checkpoint, tmp_path: Path, name: str):
    made = generate(checkpoint.model, checkpoint.config.classes, 4, angles_deg=(10.0,))
    out = write_generated(made, tmp_path / name)
    read = load_dataset(out)
    half = read.train if read.train is not None else read.test
    assert len(half) == 40 and tuple(half.classes) == checkpoint.config.classes
    assert sorted(i.tobytes() for i in half.images) == sorted(i.tobytes() for i in made.images)
    with pytest.raises(DataError, match="exists"):
        write_generated(made, tmp_path / name)


def test_class_names_come_back_as_they_were(tmp_path: Path):
    names = ("3.5", "3,5", "St. Bernard, großer", "犬")
    images = np.full((8, 28, 28, 1), 9, np.uint8)
    data = LabelledImages(images, np.arange(8) % 4, names, np.zeros(8, np.float32))
    read = load_dataset(write_generated(data, tmp_path / "out"))
    assert set(read.classes) == set(names)
    assert np.bincount(read.train.labels).tolist() == [2, 2, 2, 2]


def test_nothing_is_written_over_a_contact_sheet(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(b"mine")
    data = LabelledImages(np.zeros((2, 28, 28, 1), np.uint8), np.arange(2), ("a", "b"), np.zeros(2, np.float32))
    with pytest.raises(DataError, match=r"x\.png"):
        write_generated(data, tmp_path / "x.npz")
    assert (tmp_path / "x.png").read_bytes() == b"mine" and not (tmp_path / "x.npz").exists()


def test_class_names_cannot_lead_out_of_the_folder(tmp_path: Path):
    images = np.zeros((2, 28, 28, 1), np.uint8)
    data = LabelledImages(images, np.array([0, 1]), ("../../evil", ".."), np.zeros(2, np.float32))
    out = write_generated(data, tmp_path / "inner" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inner"]
    assert len([p for p in out.iterdir() if p.is_dir()]) == 2
