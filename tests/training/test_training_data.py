"""Splits without leaks, the run config, classes that look the same rotated or mirrored, and the batch's composition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import prepare

from vae_edge.data import Dataset, LabelledImages, holdout, rotate_dataset
from vae_edge.errors import ConfigError, DataError
from vae_edge.exporting.onnx_file import ClassifierGraph, run, to_onnx
from vae_edge.model import AngleVAE
from vae_edge.training import data as training_data
from vae_edge.training.config import TrainConfig
from vae_edge.training.data import (
    BatchComposition,
    InMemoryDataset,
    balanced_weights,
    build_batch,
    compose_batch,
    flip_invariance,
    make_splits,
    to_float,
)

SETTINGS = TrainConfig(epochs=3, batch=64)


EARLY_STOPPING = TrainConfig(epochs=2, batch=64, patience=1, rotation="none")


def test_rotated_images_of_a_light_background_stay_light_in_the_corners(few_digits: Dataset):
    light = replace(few_digits.train, images=255 - few_digits.train.images)
    config = prepare(Dataset("light", "light", light, None), SETTINGS)[1]
    assert config.input.background == "light" and config.model.fill == 1.0
    assert prepare(few_digits, SETTINGS)[1].model.fill == 0.0
    turned = rotate_dataset(light, 180.0, 0, config.input.fill).images
    assert turned[:, 0, 0].min() > 200
    model = AngleVAE(config.model).eval()
    assert model(to_float(turned)).upright[:, 0, 0, 0].min() > 0.8


def test_too_few_images_are_refused_before_anything_is_written(few_digits: Dataset):
    few = Dataset("few", "few", few_digits.train.take(np.array([0, 1, 2, 40, 41, 42])), None)
    with pytest.raises(DataError, match="at least 16"):
        prepare(few, SETTINGS)[1]


def test_generated_images_need_two_of_some_class(few_digits: Dataset):
    half = few_digits.train
    with pytest.raises(ConfigError, match="no class has two labelled"):
        prepare(few_digits, replace(SETTINGS, synthetic_ratio=0.5, labels_per_class=1))
    none = half.take(np.flatnonzero(half.labels != 3))  # a class without any is drawn not at all
    assert prepare(Dataset("few", "digits", none, None), replace(SETTINGS, synthetic_ratio=0.5))[1].data.absent == (
        "3",
    )


def test_images_of_the_test_half_are_not_learnt_from_without_labels(few_digits: Dataset, digits: Dataset):
    others = np.concatenate([digits.test.images[:30], digits.train.images[-20:]])
    dataset = Dataset("both", "digits", few_digits.train, digits.test, others)
    splits = make_splits(dataset, SETTINGS)
    assert len(splits.unlabelled) == 20
    repeated = Dataset("leaky", "digits", few_digits.train, few_digits.train.take(np.arange(40)))
    assert 30 <= prepare(repeated, SETTINGS)[1].data.in_test <= 40  # but for those that are held out


def test_other_angles_are_other_data(few_digits: Dataset):
    angles = np.zeros(len(few_digits.train), np.float32)
    one, other = (
        Dataset("few", "digits", replace(few_digits.train, angles_deg=angles + turn), None).fingerprint()
        for turn in (0, 90)
    )
    assert one != other


def test_one_class_and_no_training_half_are_refused(digits: Dataset):
    one = digits.train.take(np.flatnonzero(digits.train.labels == 3))
    single = LabelledImages(one.images, np.zeros_like(one.labels), ("three",))
    with pytest.raises(DataError, match=r"one class|two classes"):
        prepare(Dataset("one", "one", single, None), SETTINGS)[1]
    with pytest.raises(DataError, match="training half"):
        prepare(Dataset("t", "t", None, digits.test), SETTINGS)[1]


def test_mirroring_says_which_classes_it_makes_unlike(digits: Dataset):
    assert prepare(digits, SETTINGS)[1].data.unlike_mirrored == ()
    strange = prepare(digits, replace(SETTINGS, mirror=True))[1].data.unlike_mirrored
    assert {"2", "3", "5", "7"} <= set(strange) and "8" not in strange


def test_a_planted_leak_is_caught(few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A split that leaves one held-out image among the kept ones, as a mistake in it would."""

    def leaky(data: LabelledImages, fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
        kept, held = holdout(data, fraction, seed)
        images = kept.images.copy()
        images[5] = held.images[3]
        return replace(kept, images=images), held

    monkeypatch.setattr(training_data, "holdout", leaky)
    with pytest.raises(DataError, match="1 of"):
        prepare(few_digits, replace(EARLY_STOPPING, patience=None))[1]


def test_unlabelled_duplicates_of_what_is_held_out_or_used_for_validation_are_left_out(few_digits: Dataset):
    everything = replace(few_digits, unlabelled=few_digits.train.images)
    splits = make_splits(everything, EARLY_STOPPING)
    taught = {image.tobytes() for image in np.concatenate([splits.train.images, splits.unlabelled])}
    assert splits.val is not None and len(splits.unlabelled) > 0
    for apart in (splits.held_out, splits.val):
        assert not taught & {image.tobytes() for image in apart.images}


def shapes(count: int = 400) -> LabelledImages:
    """Tees, which a mirror leaves alone; Ls, which it turns into no L; and hooks that open to either side."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, 28, 28, 1), np.uint8)
    labels = np.arange(count) % 4
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        y, ink = rng.integers(4, 9), rng.integers(150, 255)
        image[y : y + 14, 13:15] = ink
        if label == 0:
            image[y : y + 2, 8:20] = ink
        else:
            to_the_right = label == 1 or (label == 2 and index % 8 < 4)
            image[y + 12 : y + 14, slice(13, 22) if to_the_right else slice(6, 15)] = ink
    return LabelledImages(images, labels.astype(np.int64), ("tee", "L", "either side", "mirrored L"))


def test_a_class_passes_mirrored_only_where_its_own_images_look_so() -> None:
    share = flip_invariance(shapes())
    assert share["tee"] > 0.75 and share["either side"] > 0.75
    assert share["L"] == 0 and share["mirrored L"] == 0  # each is an image of the other class


def test_classes_of_a_few_images_are_left_out_and_a_seed_repeats(few_digits: Dataset) -> None:
    data = shapes(36)
    assert flip_invariance(data) == {}
    relabelled = replace(few_digits.train, labels=few_digits.train.labels + 1, classes=("none", *few_digits.classes))
    share = flip_invariance(relabelled, seed=3)
    assert "none" not in share and set(share) == set("0123456789")
    assert share == flip_invariance(relabelled, seed=3)
    assert share["8"] > share["7"]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_process_gets_some_of_each_kind(processes: int):
    composition = compose_batch(256, 100, 50_000, synthetic_ratio=0.25, processes=processes)
    assert composition.total == 256 and composition.labelled + composition.generated == 64
    assert all(
        count % processes == 0 for count in (composition.labelled, composition.unlabelled, composition.generated)
    )
    assert composition.generated == 16
    with pytest.raises(ConfigError, match="--batch"):
        compose_batch(2, 10, 10, synthetic_ratio=0.5, processes=2)


def test_a_few_images_without_labels_take_no_more_than_their_part_of_a_batch():
    assert compose_batch(256, 60_000, 20, synthetic_ratio=0.0, processes=1) == BatchComposition(255, 1, 0)
    assert compose_batch(256, 30_000, 30_000, synthetic_ratio=0.0, processes=2) == BatchComposition(128, 128, 0)
    assert compose_batch(256, 60_000, 0, synthetic_ratio=0.5, processes=1) == BatchComposition(128, 0, 128)


def photographs(even: bool) -> Dataset:
    """Forty colour images of two classes, of noise to the corners or of a square on black."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    if even:
        images[:, :8] = images[:, 24:] = images[:, :, :8] = images[:, :, 24:] = 0
    data = LabelledImages(images, np.arange(40) % 2, ("a", "b"))
    return Dataset("photographs", "photographs", data, None)


@pytest.mark.parametrize(
    ("even", "rotation", "window"),
    [(False, "full", True), (False, "30", True), (False, "none", False), (True, "full", False)],
)
def test_the_mask_is_for_rotated_images_without_an_even_background(even: bool, rotation: str, window: bool):
    model = prepare(photographs(even), TrainConfig(rotation=rotation))[1].model
    assert model.circular_mask is window
    assert model.head == ("code" if even else "pooled")


@pytest.mark.parametrize(
    ("rotation", "grey", "head"), [("none", False, "code+pooled"), ("none", True, "code"), ("full", False, "code")]
)
def test_upright_drawings_in_colour_get_a_second_classifier(rotation: str, grey: bool, head: str):
    dataset = photographs(even=True)
    assert dataset.train is not None
    if grey:
        images = np.ascontiguousarray(dataset.train.images[..., :1])
        dataset = replace(dataset, train=replace(dataset.train, images=images))
    assert prepare(dataset, TrainConfig(rotation=rotation))[1].model.head == head


def test_the_exported_graph_does_not_look_at_the_corners():
    torch.manual_seed(0)
    config = prepare(photographs(False), TrainConfig())[1].model
    graph = ClassifierGraph(AngleVAE(config).eval())
    images = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    line = np.arange(32) - 15.5
    other = np.where((np.hypot(line[:, None], line[None, :]) >= 16)[..., None], 255 - images, images)
    model = to_onnx(graph, 32, 3, graph.outputs, {})
    here, there = run(model, images), run(model, other.astype(np.uint8))
    for name in graph.outputs:
        np.testing.assert_allclose(here[name], there[name], atol=1e-5)


def test_labels_count_by_the_balance_of_their_classes() -> None:
    labels = np.repeat([0, 1, 3], [90, 9, 1])  # of class 2 there is none
    equal_classes, between = balanced_weights(labels, 1.0), balanced_weights(labels, 0.5)
    torch.testing.assert_close(equal_classes[[0, 1, 3]] * torch.tensor([90.0, 9, 1]), torch.full((3,), 100 / 3))
    torch.testing.assert_close(between[1] / between[0], torch.tensor(10**0.5))
    for weights in (equal_classes, between):
        torch.testing.assert_close(weights[labels].mean(), torch.tensor(1.0))


@pytest.mark.parametrize("unlabelled", [0, 16])
def test_a_batch_has_the_weights_of_its_labels(digits: Dataset, unlabelled: int) -> None:
    assert digits.train is not None
    rare = np.flatnonzero(digits.train.labels == 3)[:4]
    images = digits.train.take(np.concatenate([np.flatnonzero(digits.train.labels != 3)[:200], rare]))
    _, config = prepare(digits, TrainConfig(rotation="none"))
    composition = BatchComposition(64, unlabelled)
    found = {}
    for balance in (0.0, 1.0):
        labelled = InMemoryDataset.from_arrays(
            images.images, images.labels, None, 0, 0, torch.device("cpu"), class_balance=balance
        )
        others = InMemoryDataset.from_arrays(images.images, None, None, 0, 1, torch.device("cpu"))
        datasets = {"labelled": labelled, "unlabelled": others}
        batch = build_batch(datasets, composition, 0, config, 1.0, 0, 1, lambda x: torch.ones(len(x), 10) / 10)
        found[balance] = batch.sample_weight
        labels = batch.labels[:64]
    assert (found[0.0] is None) == (unlabelled == 0)
    plain = torch.ones(64) if found[0.0] is None else found[0.0][:64]
    torch.testing.assert_close(found[1.0][:64], plain * balanced_weights(images.labels, 1.0)[labels])
