from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vae_edge.data import Dataset
from vae_edge.experiments.comparison import estimate
from vae_edge.experiments.setup import (
    ExperimentConfig,
    ExperimentSetup,
    Trial,
)
from vae_edge.model import AngleVAE

TINY = ExperimentConfig(preset="tiny", images_seen=400)


def test_the_same_seed_gives_the_same_network_and_another_one_does_not(few_digits: Dataset, tmp_path: Path):
    setup = ExperimentSetup(few_digits, TINY)
    estimate(setup, [Trial("cnn-equal", "upright", False, 0)])  # must not move any random number
    first, again, other = (setup.network("cnn-equal", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_test_images_are_never_trained_on_and_are_others_with_each_seed(few_digits: Dataset):
    setup = ExperimentSetup(few_digits, TINY)
    parts = [setup.splits(seed) for seed in (0, 1)]
    for pool, held in parts:
        assert len(pool) == 360 and len(held) == 40
        assert not {image.tobytes() for image in pool.images} & {image.tobytes() for image in held.images}
    first, second = ({image.tobytes() for image in held.images} for _, held in parts)
    assert first != second


def test_generated_images_change_neither_batch_nor_augmentation(digits: Dataset):
    setup = ExperimentSetup(digits, replace(TINY, train_images=1900))
    real, mixed = (
        setup.training_config(Trial("cnn", "upright", kind, 0), count) for kind, count in ((0, 1900), (1, 2700))
    )
    assert real.augment == mixed.augment == "strong" and real.batch == mixed.batch


@pytest.mark.parametrize("preset", ["tiny", "small", "base"])
def test_the_control_is_as_large_and_trains_as_much_as_the_angle_vae(digits: Dataset, preset: str):
    setup = ExperimentSetup(digits, ExperimentConfig(preset=preset))
    trial = Trial("cnn-equal", "rotated", False, 0)
    network = setup.network("cnn-equal", 0)
    ours = setup.inference_cost("angle-vae", AngleVAE(setup.model_config()))
    theirs = setup.inference_cost("cnn-equal", network)
    assert theirs.parameters == pytest.approx(ours.parameters, rel=0.03)
    assert theirs.parameters == sum(parameter.numel() for parameter in network.parameters())
    steps, macs = setup.baseline_steps(trial, 3420, network)
    assert steps * macs == pytest.approx(setup.steps(trial, 3420) * setup.angle_vae_macs, rel=0.03)
    plain = setup.baseline_steps(replace(trial, model="cnn"), 3420, setup.network("cnn", 0))[0]
    assert plain == setup.steps(trial, 3420)


def test_images_of_a_light_background_are_rotated_on_a_light_one(few_digits: Dataset):
    light = replace(few_digits.train, images=255 - few_digits.train.images)
    setup = ExperimentSetup(Dataset("light", "light", light, None), TINY)
    assert setup.fill == 255 and setup.model_config().fill == 1.0
