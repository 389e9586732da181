"""What is read off the angle bins, the temperature, the round window, and the layout of training's activations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling
from scipy.stats import circmean, circvar

from vae_edge.errors import ConfigError
from vae_edge.model import AngleVAE, create_config, network
from vae_edge.model.losses import angle_targets
from vae_edge.model.network import PoseTrunk, circular_mask

BINS = 36


def trunk() -> PoseTrunk:
    return PoseTrunk(create_config("tiny"))


def towards(*angles_deg: float) -> torch.Tensor:
    """Rows of a von Mises distribution over the bins, around each angle."""
    return angle_targets(torch.tensor([math.radians(angle) for angle in angles_deg]), BINS)


def counted(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of observed bins, a few directions preferred, and the angles of all observations in radians."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(500, rng.dirichlet(np.full(BINS, 0.2))) + 1
    return counts, np.repeat(np.arange(BINS) * 2 * np.pi / BINS, counts)


@pytest.mark.parametrize("seed", range(8))
def test_the_concentration_is_scipys_mean_resultant_length(seed: int):
    counts, angles = counted(seed)
    _, _, doubt = trunk().read(torch.tensor(counts / counts.sum(), dtype=torch.float32).log()[None])
    assert doubt.concentration.item() == pytest.approx(1 - circvar(angles), abs=1e-5)


def test_any_angle_has_concentration_zero_and_one_angle_has_one():
    sure = torch.full((1, BINS), -200.0)
    sure[0, 7] = 0.0
    _, _, doubt = trunk().read(torch.cat([torch.zeros(1, BINS), sure]))
    np.testing.assert_allclose(doubt.concentration, [0.0, 1.0], atol=1e-4)
    assert torch.isfinite(torch.stack([doubt.cos, doubt.sin, doubt.share])).all()


@pytest.mark.parametrize("seed", range(8))
def test_the_second_best_angle_is_that_of_the_best_window_that_does_not_meet_the_first(seed: int):
    logits = np.random.default_rng(100 + seed).normal(0, 2, BINS)
    share = np.exp(logits) / np.exp(logits).sum()
    best = int(logits.argmax())
    others = [k for k in range(BINS) if min((k - best) % BINS, (best - k) % BINS) > 4]
    second = max(others, key=lambda k: logits[k])
    window = [(second + step) % BINS for step in range(-2, 3)]
    vector = sum(share[k] * np.exp(2j * np.pi * k / BINS) for k in window)
    _, _, doubt = trunk().read(torch.tensor(logits, dtype=torch.float32)[None])
    assert doubt.share.item() == pytest.approx(share[window].sum(), abs=1e-6)
    assert math.atan2(doubt.sin.item(), doubt.cos.item()) == pytest.approx(np.angle(vector), abs=1e-4)


@pytest.mark.parametrize(("first", "second"), [(20, -160), (-5, 178), (176, 3), (90, 40), (-179, 125)])
def test_of_two_peaks_the_lower_one_is_the_second_angle(first: float, second: float):
    mixed = (0.6 * towards(first) + 0.4 * towards(second)).log()
    cos, sin, doubt = trunk().read(mixed)
    for angle, c, s in ((first, cos, sin), (second, doubt.cos, doubt.sin)):
        read = math.degrees(math.atan2(s.item(), c.item()))
        assert abs((read - angle + 180) % 360 - 180) < 1.0
    assert doubt.share.item() == pytest.approx(0.4, abs=0.01)
    both = np.concatenate([np.full(6, math.radians(first)), np.full(4, math.radians(second))])
    assert doubt.concentration.item() == pytest.approx(1 - circvar(both), abs=0.01)


def test_one_peak_has_no_second_angle_to_speak_of():
    _, _, doubt = trunk().read(towards(33.0).log())
    assert doubt.share.item() < 1e-4 and doubt.concentration.item() > 0.99


def test_a_peak_across_the_end_of_the_circle_is_read_whole():
    read = [math.atan2(s.item(), c.item()) for c, s, _ in [trunk().read(towards(angle).log()) for angle in (-3, 357)]]
    np.testing.assert_allclose(np.degrees(read), -3, atol=0.2)
    assert math.degrees(circmean(np.radians([359, 355]), high=math.pi, low=-math.pi)) == pytest.approx(-3)


def test_too_few_bins_for_a_second_angle_are_refused():
    with pytest.raises(ConfigError, match="expected 12 to"):
        create_config("tiny", angle_bins=11)
    narrow = PoseTrunk(create_config("tiny", angle_bins=12))
    _, _, doubt = narrow.read(torch.eye(12) * 9)
    second = torch.atan2(doubt.sin, doubt.cos).rad2deg() - torch.arange(12) * 30.0
    assert ((second + 180) % 360 - 180).abs().min() > 90


@pytest.mark.parametrize("pose", [True, False])
def test_a_temperature_changes_the_probabilities_and_nothing_else(pose: bool):
    torch.manual_seed(0)
    model = AngleVAE(create_config("tiny", pose=pose)).eval()
    image = torch.rand(4, 1, 28, 28)
    before = model(image)
    torch.testing.assert_close(model.probabilities(before.logits), before.logits.softmax(1))
    model.temperature.fill_(2.5)
    after = model(image)
    assert torch.equal(after.logits, before.logits) and torch.equal(after.reconstruction, before.reconstruction)
    torch.testing.assert_close(model.probabilities(after.logits), (before.logits / 2.5).softmax(1))
    assert "temperature" in model.state_dict()


def photographs(count: int, side: int) -> np.ndarray:
    """Smooth colour noise, bright to the very corners: uint8 [N, S, S, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(90, 256, (count, 8, 8, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(page).resize((side, side), Resampling.BICUBIC)) for page in coarse])


def to_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("size", [28, 45, 64])
def test_through_the_round_window_the_corners_do_not_matter(size: int):
    torch.manual_seed(0)
    image = to_tensor(photographs(3, size))
    line = torch.arange(size) + 0.5 - size / 2
    corner = torch.hypot(line[:, None], line[None, :]) >= size / 2
    other = torch.where(corner, torch.rand_like(image), image)
    labels = torch.arange(3)

    def outputs(window: bool, seen: torch.Tensor) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = AngleVAE(create_config("tiny", size=size, channels=3, window=window))
        trained = model.training_pass(seen, labels, seed=0, offset=0)
        judged = model.eval()(seen)
        return [trained.logits, trained.reconstruction, judged.logits, judged.reconstruction, judged.upright]

    assert corner.float().mean() > 0.15
    for one, same in zip(outputs(True, image), outputs(True, other), strict=True):
        torch.testing.assert_close(one, same)
    without = zip(outputs(False, image), outputs(False, other), strict=True)
    assert all((one - same).abs().max() > 1e-4 for one, same in without)


def test_through_the_round_window_a_turned_image_looks_like_a_photograph_that_was_taken_turned():
    wide = photographs(4, 120)
    frame = np.s_[:, 40:80, 40:80]
    for angle in (17, 45, -120):
        taken = np.stack([np.asarray(Image.fromarray(page).rotate(angle, Resampling.BILINEAR)) for page in wide])[frame]
        turned = np.stack([np.asarray(Image.fromarray(p).rotate(angle, Resampling.BILINEAR)) for p in wide[frame]])
        apart = (to_tensor(taken) - to_tensor(turned)).abs()
        assert apart.max() > 0.3, "their corners differ"
        assert (apart * circular_mask(40)).max() < 0.03


def test_without_a_pose_trunk_there_is_no_window():
    assert AngleVAE(create_config("tiny", pose=False, window=True)).frame is None
    assert AngleVAE(create_config("tiny", window=True, fill=1.0)).see(torch.zeros(1, 1, 28, 28))[0, 0, 0, 0] == 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_training_runs_with_channels_last_to_the_same_numbers(channels: int, monkeypatch: pytest.MonkeyPatch):
    image, labels = torch.rand(8, channels, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(8)

    def run() -> tuple[list[torch.Tensor], list[bool]]:
        torch.manual_seed(0)
        model = AngleVAE(create_config("tiny", channels=channels))
        last: list[bool] = []
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.register_forward_hook(
                    lambda _, __, out: last.append(out.is_contiguous(memory_format=torch.channels_last))
                )
        output = model.training_pass(image, labels, seed=0, offset=0)
        (output.reconstruction.square().mean() + output.logits.square().mean()).backward()
        return [output.logits, output.reconstruction, *(p.grad for p in model.parameters() if p.grad is not None)], last

    fast, layouts = run()
    assert all(layouts)
    monkeypatch.setattr(network, "channels_last", lambda image: image)
    plain, layouts = run()
    assert not any(layouts)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
