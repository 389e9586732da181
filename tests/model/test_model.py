import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vae_edge.errors import ConfigError
from vae_edge.metrics import auroc
from vae_edge.model import PRESETS, AngleVAE, AnomalyScore, LossWeights, ModelConfig, compute_losses, create_config
from vae_edge.model.network import OrientationEncoder, angle_targets, mutual_information
from vae_edge.model.score import reconstruction_error


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 10), (64, 3, 4), (37, 1, 2)])
def test_every_preset_takes_every_size(preset: str, size: int, channels: int, classes: int):
    model = AngleVAE(create_config(preset, size=size, channels=channels, classes=classes)).eval()
    output = model(torch.rand(3, channels, size, size))
    assert output.logits.shape == (3, classes)
    assert output.reconstruction.shape == output.upright.shape == (3, channels, size, size)
    torch.testing.assert_close(output.orientation.cos**2 + output.orientation.sin**2, torch.ones(3))


@pytest.mark.parametrize(
    ("preset", "least", "most"), [("tiny", 40e3, 80e3), ("small", 180e3, 300e3), ("base", 0.9e6, 1.4e6)]
)
def test_presets_have_the_stated_number_of_parameters(preset: str, least: float, most: float):
    assert least <= sum(p.numel() for p in AngleVAE(create_config(preset)).parameters()) <= most


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"size": 27}, "28 to 64"),
        ({"size": 65}, "28 to 64"),
        ({"channels": 2}, "channels"),
        ({"classes": 1}, "at least two"),
        ({"widths": (16, 20)}, "multiples of 16"),
        ({"angle_bins": 4}, "angle bins"),
        ({"depth": 3}, "depth"),
    ],
)
def test_a_configuration_out_of_range_is_refused(options: dict, word: str):
    with pytest.raises(ConfigError, match=word):
        create_config("small", **options)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="tiny, small, base"):
        create_config("huge")


def test_a_configuration_survives_json():
    config = create_config("base", classes=3)
    stored = {**vars(config), "widths": list(config.widths), "pose_widths": list(config.orientation_widths)}
    assert ModelConfig.from_dict(stored) == config
    with pytest.raises(ConfigError, match="latent"):
        ModelConfig.from_dict({name: value for name, value in stored.items() if name != "latent"})


@pytest.mark.parametrize("angle", [0.0, 4.0, 93.0, 175.0, 181.0, 355.0])
def test_the_angle_is_read_from_the_bins_within_a_degree(angle: float):
    trunk = OrientationEncoder(create_config("tiny"))
    target = angle_targets(torch.tensor([math.radians(angle)]), 36)
    cos, sin, _ = trunk.read(target.log())
    read = math.degrees(math.atan2(sin.item(), cos.item()))
    assert abs((read - angle + 180) % 360 - 180) < 1.0


def test_the_angle_is_not_drawn_towards_a_second_mode():
    trunk = OrientationEncoder(create_config("tiny"))
    both = angle_targets(torch.tensor([math.radians(20.0), math.radians(200.0)]), 36)
    cos, sin, _ = trunk.read((0.6 * both[:1] + 0.4 * both[1:]).log())
    assert math.degrees(math.atan2(sin.item(), cos.item())) == pytest.approx(20.0, abs=1.0)


def test_no_gradient_runs_through_the_turning():
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
    torch.testing.assert_close(terms["total"], (expected + 10 * terms["pose_classes"]) / 20)


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


def test_without_rotation_there_is_no_pose_trunk_and_the_angle_is_zero():
    model = AngleVAE(create_config("tiny", pose=False)).eval()
    image = torch.rand(2, 1, 28, 28)
    output = model(image)
    assert model.orientation is None and output.orientation.bins is None
    torch.testing.assert_close(output.orientation.sin, torch.zeros(2))
    torch.testing.assert_close(output.upright, image)
    terms = compute_losses(
        model.forward_train(image, torch.tensor([0, 1]), 0, 0), torch.tensor([0, 1]), None, LossWeights()
    )
    assert "angle" not in terms


def test_the_codes_are_described_by_the_covariance_that_numpy_measures():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    codes = (rng.normal(size=(600, 5)) @ rng.normal(size=(5, 5)) + 4 * rng.normal(size=(3, 5))[labels]).astype(
        np.float32
    )
    score = AnomalyScore(3, 5, 10, angle=False)
    score.fit_codes(torch.from_numpy(codes), torch.from_numpy(labels))
    means = np.stack([codes[labels == k].mean(0) for k in range(3)])
    centred = codes - means[labels]
    precision = np.linalg.inv(centred.T @ centred / 597)
    np.testing.assert_allclose(score.means.numpy(), means, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose((score.whitening @ score.whitening.T).numpy(), precision, rtol=2e-2, atol=2e-3)


def test_the_distance_of_features_is_that_to_the_nearest_of_normal_distributions():
    """One cluster a class, as there are few images of each."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 30, 9000)
    spread = np.eye(7) * rng.choice([0.5, 1, 2], 30)[:, None, None] + 0.1 * rng.normal(size=(30, 7, 7))
    features = (
        np.einsum("nf,nfg->ng", rng.normal(size=(9000, 7)), spread[labels]) + 9 * rng.normal(size=(30, 7))[labels]
    )
    score = AnomalyScore(30, 5, 7 + 30, angle=False)
    given = torch.cat([torch.from_numpy(features).float(), torch.rand(9000, 30)], 1)
    score.fit_terms(given, torch.zeros(len(given), 1), torch.from_numpy(labels))
    assert score.nearest.shape == (7, 30)
    squared = []
    for k in range(30):
        own = features[labels == k]
        apart = features - own.mean(0)
        squared.append(np.einsum("nf,fg,ng->n", apart, np.linalg.inv(np.cov(own.T)), apart))
    expected = np.sqrt(np.min(squared, 0))
    found = distances(score, given)
    assert np.corrcoef(found, expected)[0, 1] > 0.8
    assert np.median(np.abs(found / expected - 1)) < 0.1  # but for the ridge and the shrinkage


def distances(score: AnomalyScore, features: torch.Tensor) -> np.ndarray:
    parts = score.parts(torch.zeros(len(features), 1), features, torch.zeros(len(features), score.classes))
    return parts[:, 1].numpy()


def test_a_class_of_several_groups_has_several_clusters():
    """What lies between two groups of one class is near to their mean, and yet like none of them."""
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 2000)
    features = rng.normal(size=(4000, 6))
    features[:, 0] += np.where(np.arange(4000) % 2, 8.0, -8.0)
    features[labels == 1, 1] += 30.0
    given = torch.from_numpy(np.c_[features, np.zeros((4000, 2))]).float()
    score = AnomalyScore(2, 3, 8, angle=False)
    score.fit_terms(given, torch.zeros(len(given), 1), torch.from_numpy(labels))
    assert 4 <= score.nearest.shape[1] <= 20
    known = distances(score, given)
    between = given.clone()
    between[:, 0] = 0.0
    assert auroc(known, distances(score, between)) > 0.85
    again = AnomalyScore(2, 3, 8, angle=False)
    again.load_state_dict(score.state_dict())
    np.testing.assert_array_equal(distances(again, given), known)


def test_a_reconstruction_error_counts_as_far_as_the_code_did_not_foretell_it():
    torch.manual_seed(0)
    mu, classes = torch.randn(5000, 4), torch.rand(5000, 3)
    expected = 0.3 + 0.05 * mu[:, :1] + 0.1 * classes[:, 1:2]
    features = torch.cat([torch.randn(5000, 6), mu, classes], 1)
    score = AnomalyScore(3, 4, 13, angle=False)
    score.fit_terms(features, expected + 0.01 * torch.randn(5000, 1), torch.arange(5000) % 3)
    surplus = score.parts(expected + 0.2, features, torch.zeros(5000, 3))[:, 0]
    assert (surplus - 0.2).abs().quantile(0.99) < 5e-3
    strange = features.clone()
    strange[:, 6] += 50.0  # a code beyond all that were seen excuses no more than they did
    assert score.parts(expected, strange, torch.zeros(5000, 3))[:, 0].min() > expected.min() - expected.max() - 0.05


@pytest.mark.parametrize("angle", [False, True])
def test_the_score_is_the_weighted_sum_of_its_standardized_parts_and_the_light_one_leaves_the_reconstruction_out(
    angle: bool,
):
    torch.manual_seed(0)
    score = AnomalyScore(3, 4, 9 + angle, angle)
    image, other = torch.rand(600, 1, 28, 28), torch.rand(600, 1, 28, 28)
    features, logits = torch.randn(600, 9 + angle), torch.randn(600, 3)
    errors = reconstruction_error(image, other)
    assert reconstruction_error(image, image).abs().max() == 0
    score.fit_terms(features, errors, torch.arange(600) % 3)
    parts = score.parts(errors, features, logits)
    torch.testing.assert_close(parts[:, 2], -logits.exp().sum(1).log())
    assert parts.shape == (600, 3 + angle)
    if angle:
        torch.testing.assert_close(parts[:, 3], features[:, 9])
    score.fit_scale(parts)
    low, middle, high = np.quantile(parts.numpy(), [0.1, 0.5, 0.9], axis=0)
    expected = (parts.numpy() - middle) / (high - low) * np.array([1.0, 2.0, 1.5, 1.0][: 3 + angle])
    whole, light = score(image, other, features, logits), score.light(features, logits)
    np.testing.assert_allclose(whole.numpy(), expected.sum(1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(light.numpy(), expected[:, 1:].sum(1), rtol=1e-3, atol=1e-3)


def fit_to(score: AnomalyScore, features: torch.Tensor, labels: torch.Tensor) -> None:
    count = len(labels)
    score.fit(
        torch.randn(count, score.latent), features, torch.rand(count, 1), torch.randn(count, score.classes), labels
    )


def test_known_images_differ_as_the_scale_says_even_if_few_were_fitted_on():
    torch.manual_seed(0)
    labels = torch.arange(3000) % 10
    features = torch.randn(3000, 60) + 3 * torch.randn(10, 60)[labels]
    for count in (100, 300, 2000):
        score = AnomalyScore(10, 8, 60, angle=False)
        fit_to(score, features[:count], labels[:count])
        low, high = np.quantile(distances(score, features[2000:]) / score.spread[1].item(), [0.1, 0.9])
        assert 0.4 < high - low < 1.6, count


def test_repeated_images_give_finite_scores():
    torch.manual_seed(0)
    pictures, labels = torch.randn(4, 40), torch.tensor([0, 0, 1, 1])
    chosen = torch.randint(4, (800,))
    score = AnomalyScore(2, 8, 40, angle=False)
    fit_to(score, pictures[chosen], labels[chosen])
    new = torch.cat([pictures, pictures + torch.randn(4, 40), 10 * torch.randn(4, 40)])
    assert np.isfinite(distances(score, new)).all()


def test_a_class_with_few_images_or_none_is_fitted_all_the_same():
    torch.manual_seed(0)
    score = AnomalyScore(4, 5, 64, angle=False)
    labels = torch.tensor([0] * 40 + [1] * 2 + [2])  # class 3 has none
    features = torch.randn(43, 64)
    score.fit_terms(features, torch.zeros(43, 1), labels)
    known = distances(score, features)
    assert np.isfinite(known).all()
    assert distances(score, features + 50).min() > known.max()
