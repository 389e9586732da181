"""Nothing of the held-out images gets into what is fitted; and the threshold that they set holds on fresh ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_edge.data import Dataset, LabelledImages, holdout, rotated
from vae_edge.errors import DataError
from vae_edge.training import data as training_data
from vae_edge.training.checkpoint import MODEL, Checkpoint, load_samples, read_tensors
from vae_edge.training.config import TrainConfig
from vae_edge.training.data import make_splits, plan
from vae_edge.training.evaluate import predict
from vae_edge.training.trainer import train

SETTINGS = TrainConfig(epochs=2, batch=64, patience=1, rotation="none")
SET_ON_HELD_OUT = {"temperature"}  # and, in the result's metadata, the thresholds


def fit(data: Dataset, out: Path, settings: TrainConfig = SETTINGS) -> tuple[dict[str, torch.Tensor], dict]:
    train(data, plan(data, "tiny", settings), out)
    return read_tensors(out / MODEL)


def test_other_held_out_images_change_the_thresholds_and_no_weight(few_digits: Dataset, tmp_path: Path):
    _, held = holdout(few_digits.train, SETTINGS.holdout, SETTINGS.seed)
    known = {image.tobytes() for image in held.images}
    places = [i for i, image in enumerate(few_digits.train.images) if image.tobytes() in known]
    assert len(places) == len(held)
    images = few_digits.train.images.copy()
    images[places] = np.random.default_rng(0).integers(0, 256, images[places].shape, dtype=np.uint8)
    other = Dataset("other", "other", replace(few_digits.train, images=images), None)
    ours, result = fit(few_digits, tmp_path / "a")
    theirs, changed = fit(other, tmp_path / "b")
    for name in ours.keys() - SET_ON_HELD_OUT:
        assert torch.equal(ours[name], theirs[name]), name
    assert changed["threshold"] > result["threshold"] + 1
    for name in ("codes", "code_labels"):
        assert torch.equal(load_samples(tmp_path / "a")[name], load_samples(tmp_path / "b")[name])


def test_a_planted_leak_is_caught(few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A split that leaves one held-out image among the kept ones, as a mistake in it would."""

    def leaky(data: LabelledImages, fraction: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
        kept, held = holdout(data, fraction, seed)
        images = kept.images.copy()
        images[5] = held.images[3]
        return replace(kept, images=images), held

    monkeypatch.setattr(training_data, "holdout", leaky)
    with pytest.raises(DataError, match="1 of"):
        plan(few_digits, "tiny", replace(SETTINGS, patience=None))


def test_unlabelled_copies_of_what_is_held_out_or_watched_are_left_out(few_digits: Dataset):
    everything = replace(few_digits, unlabelled=few_digits.train.images)
    material = make_splits(everything, SETTINGS)
    taught = {image.tobytes() for image in np.concatenate([material.labelled.images, material.unlabelled])}
    assert material.watched is not None and len(material.unlabelled) > 0
    for apart in (material.held, material.watched):
        assert not taught & {image.tobytes() for image in apart.images}


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_the_threshold_rejects_its_rate_of_fresh_images(checkpoint: Checkpoint, digits: Dataset, rate: float):
    """Set on the images that training held out, judged on the test half: within three standard errors of both draws."""
    _, held = holdout(digits.train, checkpoint.config.training.holdout, checkpoint.config.training.seed)
    fresh = rotated(digits.test, 180.0, 7)
    threshold = np.quantile(predict(checkpoint.model, rotated(held, 180.0, 1).images).scores, 1 - rate)
    rejected = (predict(checkpoint.model, fresh.images).scores > threshold).mean()
    error = np.sqrt(rate * (1 - rate) * (1 / len(held) + 1 / len(fresh)))
    assert abs(rejected - rate) < 3 * error
    assert error < 0.02  # so that the test can fail
