"""The network from the angle bins to the losses, its temperature, its circular mask, and its memory format."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.Image import Resampling
from scipy.stats import circmean, circvar

from vae_edge.errors import ConfigError
from vae_edge.model import (
    PRESETS,
    AngleVAE,
    LossWeights,
    compute_losses,
    create_config,
    network,
)
from vae_edge.model.network import OrientationEncoder, angle_targets, mutual_information
from vae_edge.ops.rotate import circular_mask


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 10), (64, 3, 4), (37, 1, 2)])
def test_every_preset_takes_every_size(preset: str, size: int, channels: int, classes: int):
    model = AngleVAE(create_config(preset, size=size, channels=channels, classes=classes)).eval()
    output = model(torch.rand(3, channels, size, size))
    assert output.logits.shape == (3, classes)
    assert output.upright.shape == (3, channels, size, size)
    assert output.reconstruction.shape == output.target.shape == (3, channels, *model.config.decoded_size)
    torch.testing.assert_close(output.orientation.cos**2 + output.orientation.sin**2, torch.ones(3))


@pytest.mark.parametrize(
    ("preset", "least", "most"), [("tiny", 40e3, 80e3), ("small", 180e3, 300e3), ("base", 0.9e6, 1.4e6)]
)
def test_presets_have_the_stated_number_of_parameters(preset: str, least: float, most: float):
    assert least <= sum(p.numel() for p in AngleVAE(create_config(preset)).parameters()) <= most


@pytest.mark.parametrize("angle", [0.0, 4.0, 93.0, 175.0, 181.0, 355.0])
def test_the_angle_is_read_from_the_bins_within_a_degree(angle: float):
    orientation_encoder = OrientationEncoder(create_config("tiny"))
    target = angle_targets(torch.tensor([math.radians(angle)]), 36)
    cos, sin, _ = orientation_encoder.decode_angle(target.log())
    read = math.degrees(math.atan2(sin.item(), cos.item()))
    assert abs((read - angle + 180) % 360 - 180) < 1.0


def test_the_angle_is_not_drawn_towards_a_second_mode():
    orientation_encoder = OrientationEncoder(create_config("tiny"))
    both = angle_targets(torch.tensor([math.radians(20.0), math.radians(200.0)]), 36)
    cos, sin, _ = orientation_encoder.decode_angle((0.6 * both[:1] + 0.4 * both[1:]).log())
    assert math.degrees(math.atan2(sin.item(), cos.item())) == pytest.approx(20.0, abs=1.0)


def test_no_gradient_runs_through_the_rotation():
    model = AngleVAE(create_config("tiny")).train()
    labels = torch.tensor([0, 1, 2, 3])
    output = model.forward_train(torch.rand(4, 1, 28, 28), labels, seed=1, offset=0)
    output.reconstruction.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.orientation.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())


def test_the_terms_of_the_loss_are_what_pytorch_computes():
    torch.manual_seed(0)
    model = AngleVAE(create_config("tiny")).train()
    image, labels, angle = torch.rand(6, 1, 28, 28), torch.arange(6), torch.linspace(-3, 3, 6)
    output = model.forward_train(image, labels, seed=3, offset=5)
    weights = LossWeights(beta=0.5, gamma=20.0, delta=7.0)
    terms = compute_losses(output, labels, angle, weights)
    posterior = torch.distributions.Normal(output.mu, (output.logvar / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(terms["kl"], kl, rtol=1e-4, atol=1e-4)
    seen = output.upright.clamp(1e-6, 1 - 1e-6)
    # relative entropy of two Bernoulli distributions, pixel by pixel, from its definition
    q = output.reconstruction.sigmoid()
    relative = (seen * (seen / q).log() + (1 - seen) * ((1 - seen) / (1 - q)).log()).flatten(1).sum(1).mean()
    torch.testing.assert_close(terms["reconstruction"], relative, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(terms["classes"], F.nll_loss(output.logits.log_softmax(1), labels))
    expected = terms["reconstruction"] + 0.5 * terms["kl"] + 20 * terms["classes"] + 7 * terms["angle"]
    orientation = output.orientation.logits
    for part, logits in (("orientation_classes", orientation), ("code_classes", output.logits - orientation)):
        torch.testing.assert_close(terms[part], F.nll_loss(logits.log_softmax(1), labels))
    parts = terms["orientation_classes"] + terms["code_classes"]
    torch.testing.assert_close(terms["total"], (expected + 10 * parts) / 20)


def test_mutual_information_is_what_scikit_learn_computes_from_counts():
    from sklearn.metrics import mutual_info_score

    rng = np.random.default_rng(0)
    first = rng.integers(0, 4, 5000)
    second = np.where(rng.random(5000) < 0.7, first, rng.integers(0, 4, 5000))
    counts = np.bincount(first * 4 + second, minlength=16).reshape(4, 4)
    counts = counts + counts.T
    rows = np.repeat(np.arange(16), counts.ravel())
    expected = mutual_info_score(rows // 4, rows % 4)
    joint = torch.from_numpy(counts / counts.sum()).float()
    assert mutual_information(joint).item() == pytest.approx(expected, abs=1e-4)
    assert mutual_information(torch.eye(4) / 4).item() == pytest.approx(math.log(4), abs=1e-3)  # agreed and balanced
    assert mutual_information(torch.full((4, 4), 1 / 16)).item() == pytest.approx(0, abs=1e-5)  # nothing in common


def test_without_rotation_there_is_no_orientation_encoder_and_the_angle_is_zero():
    model = AngleVAE(create_config("tiny", orientation=False)).eval()
    image = torch.rand(2, 1, 28, 28)
    output = model(image)
    assert model.orientation is None and output.orientation.bin_logits is None
    torch.testing.assert_close(output.orientation.sin, torch.zeros(2))
    torch.testing.assert_close(output.upright, image)
    terms = compute_losses(
        model.forward_train(image, torch.tensor([0, 1]), 0, 0), torch.tensor([0, 1]), None, LossWeights()
    )
    assert "angle" not in terms


@pytest.mark.parametrize("weights", [{"gamma": 0.0}, {"beta": -1.0}, {"delta": float("nan")}])
def test_weights_that_no_loss_can_have_are_refused(weights: dict):
    with pytest.raises(ConfigError, match=next(iter(weights))):
        LossWeights(**weights)


BINS = 36


def encoder() -> OrientationEncoder:
    return OrientationEncoder(create_config("tiny"))


def towards(*angles_deg: float) -> torch.Tensor:
    """Rows of a von Mises distribution over the bins, around each angle."""
    return angle_targets(torch.tensor([math.radians(angle) for angle in angles_deg]), BINS)


def counted(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of observed bins, a few directions preferred, and the angles of all observations in radians."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(500, rng.dirichlet(np.full(BINS, 0.2))) + 1
    return counts, np.repeat(np.arange(BINS) * 2 * np.pi / BINS, counts)


@pytest.mark.parametrize("seed", range(8))
def test_the_angle_confidence_is_scipys_mean_resultant_length(seed: int):
    counts, angles = counted(seed)
    _, _, uncertainty = encoder().decode_angle(torch.tensor(counts / counts.sum(), dtype=torch.float32).log()[None])
    assert uncertainty.confidence.item() == pytest.approx(1 - circvar(angles), abs=1e-5)


def test_any_angle_has_angle_confidence_zero_and_one_angle_has_one():
    sure = torch.full((1, BINS), -200.0)
    sure[0, 7] = 0.0
    _, _, uncertainty = encoder().decode_angle(torch.cat([torch.zeros(1, BINS), sure]))
    np.testing.assert_allclose(uncertainty.confidence, [0.0, 1.0], atol=1e-4)
    assert torch.isfinite(torch.stack([uncertainty.second_cos, uncertainty.second_sin, uncertainty.second_prob])).all()


@pytest.mark.parametrize("seed", range(8))
def test_the_second_best_angle_is_that_of_the_best_window_that_does_not_meet_the_first(seed: int):
    logits = np.random.default_rng(100 + seed).normal(0, 2, BINS)
    share = np.exp(logits) / np.exp(logits).sum()
    best = int(logits.argmax())
    others = [k for k in range(BINS) if min((k - best) % BINS, (best - k) % BINS) > 4]
    second = max(others, key=lambda k: logits[k])
    window = [(second + step) % BINS for step in range(-2, 3)]
    vector = sum(share[k] * np.exp(2j * np.pi * k / BINS) for k in window)
    _, _, uncertainty = encoder().decode_angle(torch.tensor(logits, dtype=torch.float32)[None])
    assert uncertainty.second_prob.item() == pytest.approx(share[window].sum(), abs=1e-6)
    assert math.atan2(uncertainty.second_sin.item(), uncertainty.second_cos.item()) == pytest.approx(
        np.angle(vector), abs=1e-4
    )


@pytest.mark.parametrize(("first", "second"), [(20, -160), (-5, 178), (176, 3), (90, 40), (-179, 125)])
def test_of_two_peaks_the_lower_one_is_the_second_angle(first: float, second: float):
    mixed = (0.6 * towards(first) + 0.4 * towards(second)).log()
    cos, sin, uncertainty = encoder().decode_angle(mixed)
    for angle, c, s in ((first, cos, sin), (second, uncertainty.second_cos, uncertainty.second_sin)):
        read = math.degrees(math.atan2(s.item(), c.item()))
        assert abs((read - angle + 180) % 360 - 180) < 1.0
    assert uncertainty.second_prob.item() == pytest.approx(0.4, abs=0.01)
    both = np.concatenate([np.full(6, math.radians(first)), np.full(4, math.radians(second))])
    assert uncertainty.confidence.item() == pytest.approx(1 - circvar(both), abs=0.01)


def test_one_peak_has_no_second_angle_to_speak_of():
    _, _, uncertainty = encoder().decode_angle(towards(33.0).log())
    assert uncertainty.second_prob.item() < 1e-4 and uncertainty.confidence.item() > 0.99


def test_a_peak_across_the_end_of_the_circle_is_read_whole():
    read = [
        math.atan2(s.item(), c.item())
        for c, s, _ in [encoder().decode_angle(towards(angle).log()) for angle in (-3, 357)]
    ]
    np.testing.assert_allclose(np.degrees(read), -3, atol=0.2)
    assert math.degrees(circmean(np.radians([359, 355]), high=math.pi, low=-math.pi)) == pytest.approx(-3)


def test_too_few_bins_for_a_second_angle_are_refused():
    with pytest.raises(ConfigError, match="expected 12 to"):
        create_config("tiny", angle_bins=11)
    narrow = OrientationEncoder(create_config("tiny", angle_bins=12))
    _, _, uncertainty = narrow.decode_angle(torch.eye(12) * 9)
    second = torch.atan2(uncertainty.second_sin, uncertainty.second_cos).rad2deg() - torch.arange(12) * 30.0
    assert ((second + 180) % 360 - 180).abs().min() > 90


@pytest.mark.parametrize("orientation", [True, False])
def test_a_temperature_changes_the_probabilities_and_nothing_else(orientation: bool):
    torch.manual_seed(0)
    model = AngleVAE(create_config("tiny", orientation=orientation)).eval()
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
def test_through_the_circular_mask_the_corners_do_not_matter(size: int):
    torch.manual_seed(0)
    image = to_tensor(photographs(3, size))
    line = torch.arange(size) + 0.5 - size / 2
    corner = torch.hypot(line[:, None], line[None, :]) >= size / 2
    other = torch.where(corner, torch.rand_like(image), image)
    labels = torch.arange(3)

    def outputs(window: bool, seen: torch.Tensor) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = AngleVAE(create_config("tiny", size=size, channels=3, circular_mask=window))
        trained = model.forward_train(seen, labels, seed=0, offset=0)
        judged = model.eval()(seen)
        return [trained.logits, trained.reconstruction, judged.logits, judged.reconstruction, judged.upright]

    assert corner.float().mean() > 0.15
    for one, same in zip(outputs(True, image), outputs(True, other), strict=True):
        torch.testing.assert_close(one, same)
    without = zip(outputs(False, image), outputs(False, other), strict=True)
    assert all((one - same).abs().max() > 1e-4 for one, same in without)


def test_through_the_circular_mask_a_rotated_image_looks_like_a_photograph_that_was_taken_rotated():
    wide = photographs(4, 120)
    frame = np.s_[:, 40:80, 40:80]
    for angle in (17, 45, -120):
        taken = np.stack([np.asarray(Image.fromarray(page).rotate(angle, Resampling.BILINEAR)) for page in wide])[frame]
        turned = np.stack([np.asarray(Image.fromarray(p).rotate(angle, Resampling.BILINEAR)) for p in wide[frame]])
        apart = (to_tensor(taken) - to_tensor(turned)).abs()
        assert apart.max() > 0.3, "their corners differ"
        assert (apart * circular_mask(40)).max() < 0.03


def test_without_an_orientation_encoder_there_is_no_mask():
    assert AngleVAE(create_config("tiny", orientation=False, circular_mask=True)).mask is None
    assert (
        AngleVAE(create_config("tiny", circular_mask=True, fill=1.0)).apply_mask(torch.zeros(1, 1, 28, 28))[0, 0, 0, 0]
        == 1.0
    )


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
        output = model.forward_train(image, labels, seed=0, offset=0)
        (output.reconstruction.square().mean() + output.logits.square().mean()).backward()
        return [output.logits, output.reconstruction, *(p.grad for p in model.parameters() if p.grad is not None)], last

    fast, layouts = run()
    assert all(layouts)
    monkeypatch.setattr(network, "channels_last", lambda image: image)
    plain, layouts = run()
    assert not any(layouts)
    for ours, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
