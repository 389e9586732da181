"""Generated images: their codes, their confidence, their classes and angles, and their files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_edge.data import Dataset, LabelledImages, load_dataset
from vae_edge.errors import ConfigError, DataError
from vae_edge.model import AngleVAE, create_config
from vae_edge.training.checkpoint import Checkpoint
from vae_edge.training.data import to_float
from vae_edge.training.evaluate import predict
from vae_edge.training.generate import MAX_TRIES, generate, generate_available, write_generated


@pytest.fixture(scope="module")
def codes(checkpoint: Checkpoint, digits: Dataset) -> dict[str, np.ndarray]:
    """Codes of twenty training images a class, as a run keeps them."""
    chosen = digits.train.take(np.concatenate([np.flatnonzero(digits.train.labels == k)[:20] for k in range(10)]))
    return {"codes": predict(checkpoint.model, chosen.images).codes.numpy(), "code_labels": chosen.labels}


def test_images_between_two_codes_are_what_the_decoder_makes_of_mixtures(
    checkpoint: Checkpoint, codes: dict[str, np.ndarray]
) -> None:
    """With two codes of a class, each image must lie on the line between their two, from 0.2 to 0.8."""
    own = np.flatnonzero(codes["code_labels"] == 3)[:2]
    pair = torch.from_numpy(codes["codes"][own])
    two = {"codes": codes["codes"][own], "code_labels": codes["code_labels"][own]}
    made = generate(checkpoint.model, checkpoint.config.classes, 40, wanted=["3"], confidence=0, **two)
    weights = torch.linspace(0.0, 1.0, 501)[:, None]
    onehot = torch.eye(10)[3].expand(501, -1)
    with torch.no_grad():
        line = checkpoint.model.decoder(pair[0] + weights * (pair[1] - pair[0]), onehot).sigmoid()
    apart = torch.cdist(to_float(made.images).flatten(1), line.flatten(1))
    nearest, where = apart.min(1)
    assert nearest.max() < 0.1  # of the pixels' rounding to 1/255, and the line's steps
    found = weights[where, 0]
    assert found.min() > 0.19 and found.max() < 0.81 and found.max() - found.min() > 0.4


def test_every_image_kept_is_recognized_with_the_confidence_asked(
    checkpoint: Checkpoint, codes: dict[str, np.ndarray]
) -> None:
    for method in ("interpolate", "gaussian"):
        made = generate(checkpoint.model, checkpoint.config.classes, 6, method=method, confidence=0.8, **codes)
        sure = predict(checkpoint.model, made.images).probabilities[np.arange(60), made.labels]
        assert sure.min() >= 0.799 and np.bincount(made.labels).tolist() == [6] * 10


def test_interpolation_is_the_default_where_there_are_codes_and_its_confidence_nine_tenths(
    checkpoint: Checkpoint, codes: dict[str, np.ndarray]
) -> None:
    model, classes = checkpoint.model, checkpoint.config.classes
    same = {"per_class": 4, "seed": 5}
    default = generate(model, classes, **same, **codes).images
    np.testing.assert_array_equal(
        default, generate(model, classes, method="interpolate", confidence=0.9, **same, **codes).images
    )
    around = generate(model, classes, **same).images
    np.testing.assert_array_equal(
        around, generate(model, classes, method="gaussian", confidence=0, **same, **codes).images
    )
    assert (default != around).any()
    few = {name: values[codes["code_labels"] != 4] for name, values in codes.items()}
    np.testing.assert_array_equal(around, generate(model, classes, **same, **few).images)


def test_a_class_is_generated_alike_whichever_others_are_wanted(
    checkpoint: Checkpoint, codes: dict[str, np.ndarray]
) -> None:
    model, classes = checkpoint.model, checkpoint.config.classes
    all_ten = generate(model, classes, 3, seed=2, **codes)
    alone = generate(model, classes, 3, wanted=["7", "7"], seed=2, **codes)
    np.testing.assert_array_equal(all_ten.images[all_ten.labels == 7], alone.images)


def test_rotated_images_are_the_same_ones_rotated(checkpoint: Checkpoint, codes: dict[str, np.ndarray]) -> None:
    model, classes = checkpoint.model, checkpoint.config.classes
    upright = generate(model, classes, 2, **codes)
    turned = generate(model, classes, 2, angles_deg=(90.0, 0.0), **codes)
    assert turned.angles_deg.tolist() == [90.0, 0.0] * 10
    np.testing.assert_array_equal(turned.images[1::2], upright.images[1::2])
    quarter = np.rot90(upright.images[::2], 1, axes=(1, 2)).astype(int)  # counter-clockwise
    assert np.abs(turned.images[::2] - quarter).max() <= 1


def test_too_few_recognized_ones_are_counted_and_named(checkpoint: Checkpoint, codes: dict[str, np.ndarray]) -> None:
    """The codes of ones are said to be those of eights: few of their mixtures can pass for eights."""
    lying = {"codes": codes["codes"][codes["code_labels"] == 1], "code_labels": np.full(20, 8)}
    words = r"class 8: (none|[1-4]) of 5; of \d+ decoded images .* recognized (none|[1-4]) with a confidence of 0\.99"
    with pytest.raises(DataError, match=words):
        generate(checkpoint.model, checkpoint.config.classes, 5, wanted=["8"], confidence=0.9999999, **lying)


def test_a_class_that_is_not_recognized_leaves_the_others(checkpoint: Checkpoint, codes: dict[str, np.ndarray]) -> None:
    model, classes = checkpoint.model, checkpoint.config.classes
    broken = {**codes, "codes": np.where((codes["code_labels"] == 8)[:, None], np.float32(50), codes["codes"])}
    seen: list[tuple[int, int]] = []
    found = generate_available(model, classes, 4, seed=2, **broken, progress=lambda *done: seen.append(done))
    assert seen == [(number, 10) for number in range(1, 11)]
    assert "8" in found.missing and re.match(r"none of 4; of 64 decoded images", found.missing["8"])
    counts = np.bincount(found.images.labels, minlength=10)
    assert [int(c) for c in np.flatnonzero(counts < 4)] == [classes.index(name) for name in found.missing]
    whole = [name for name in classes if name not in found.missing]
    assert len(whole) >= 5
    alone = generate_available(model, classes, 4, whole, seed=2, **broken)
    np.testing.assert_array_equal(
        alone.images.images, found.images.images[counts[found.images.labels] == 4]
    )  # whatever becomes of the others
    filled = generate_available(model, classes, 4, seed=2, **broken, top_up=True)
    assert not filled.missing and np.bincount(filled.images.labels).tolist() == [4] * 10
    assert filled.unrecognized >= 4


def test_a_class_with_a_single_code_is_generated_around_its_mean_or_said_to_be_missing(
    checkpoint: Checkpoint, codes: dict[str, np.ndarray]
) -> None:
    model, classes = checkpoint.model, checkpoint.config.classes
    one = {name: np.concatenate([values[:1], values[20:]]) for name, values in codes.items()}
    found = generate_available(model, classes, 2, **one)
    assert "0" not in found.missing and np.bincount(found.images.labels, minlength=10)[0] == 2
    mixed = generate_available(model, classes, 2, **one, method="interpolate", absent=["1"])
    assert mixed.missing["0"] == "two training codes are mixed, and it has 1"
    assert mixed.missing["1"] == "there were no training images of it"
    assert not set(mixed.images.labels.tolist()) & {0, 1}
    nothing = generate_available(model, classes, 2, ["0"], **one, method="interpolate")
    assert nothing.images.images.shape == (0, 28, 28, 1) and list(nothing.missing) == ["0"]


def test_the_angles_of_a_class_do_not_depend_on_what_is_missing_of_others(
    checkpoint: Checkpoint, codes: dict[str, np.ndarray]
) -> None:
    broken = {**codes, "codes": np.where((codes["code_labels"] == 8)[:, None], np.float32(50), codes["codes"])}
    found = generate_available(checkpoint.model, checkpoint.config.classes, 3, ["8", "1"], (0.0, 90.0), **broken)
    assert found.images.angles_deg is not None and list(found.missing) == ["8"]
    assert found.images.angles_deg.tolist() == [90.0, 0.0, 90.0]


def test_wrong_codes_and_numbers_are_refused(checkpoint: Checkpoint, codes: dict[str, np.ndarray]) -> None:
    model, classes = checkpoint.model, checkpoint.config.classes
    with pytest.raises(ConfigError, match=r"not two of 0, 1.*method gaussian"):
        generate(model, classes, 1, method="interpolate")
    one = {name: np.concatenate([values[:1], values[20:]]) for name, values in codes.items()}
    with pytest.raises(ConfigError, match="not two of 0;"):
        generate(model, classes, 1, method="interpolate", **one)
    with pytest.raises(ConfigError, match="'sideways'"):
        generate(model, classes, 1, method="sideways", **codes)
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="confidence"):
            generate(model, classes, 1, confidence=wrong, **codes)
    with pytest.raises(ConfigError, match="one row of"):
        generate(model, classes, 1, codes=codes["codes"][:, :5], code_labels=codes["code_labels"])


def test_a_class_called_unlabelled_comes_back_with_its_labels(tmp_path: Path) -> None:
    data = LabelledImages(
        np.zeros((4, 28, 28, 1), np.uint8), np.arange(4) % 2, ("Unlabelled", "x"), np.zeros(4, np.float32)
    )
    read = load_dataset(write_generated(data, tmp_path / "out"))
    assert read.unlabelled is None and read.classes == ("class_0_Unlabelled", "x")


def test_where_too_few_are_sure_the_surest_take_their_places(
    checkpoint: Checkpoint, codes: dict[str, np.ndarray]
) -> None:
    model, classes = checkpoint.model, checkpoint.config.classes
    asked = {"per_class": 5, "confidence": 0.9999, **codes}
    with pytest.raises(DataError, match="too few images could be generated"):
        generate(model, classes, **asked)
    made = generate(model, classes, **asked, top_up=True)
    anyhow = generate(model, classes, 5 * MAX_TRIES, confidence=0, method="interpolate", **codes)
    assert np.bincount(made.labels).tolist() == [5] * 10
    known = predict(model, made.images).probabilities[np.arange(50), made.labels].reshape(10, 5)
    others = predict(model, anyhow.images).probabilities[np.arange(50 * MAX_TRIES), anyhow.labels].reshape(10, -1)
    assert (known.min(1) > np.minimum(np.quantile(others, 0.5, axis=1), 0.9998)).all()


def test_a_class_is_found_by_either_form_of_its_name() -> None:
    model = AngleVAE(create_config("tiny", classes=2, size=28, channels=1, orientation=True, fill=0.0))
    made = generate(model, ("café", "dog"), 2, wanted=["cafe\u0301", "café"], method="gaussian", confidence=0)
    assert [made.classes[label] for label in made.labels] == ["café", "café"]
    with pytest.raises(ConfigError, match="unknown class cafe"):
        generate(model, ("café", "dog"), 1, wanted=["cafe"])


def test_generated_images_are_what_was_asked_for(checkpoint: Checkpoint):
    classes = checkpoint.config.classes
    made = generate(checkpoint.model, classes, 30, wanted=["3", "7"], angles_deg=(0.0, 90.0), seed=1)
    assert made.images.shape == (60, 28, 28, 1) and made.images.dtype == np.uint8
    assert np.bincount(made.labels, minlength=10).tolist() == [0, 0, 0, 30, 0, 0, 0, 30, 0, 0]
    assert sorted(set(made.angles_deg.tolist())) == [0.0, 90.0]
    typical = generate(checkpoint.model, classes, 20, temperature=0.3)
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
