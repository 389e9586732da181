"""The anomaly score: its terms against NumPy, its clusters, and what few images do to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vae_edge.metrics import auroc
from vae_edge.model import AnomalyScore
from vae_edge.model.score import reconstruction_error


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
    parts = score.raw_terms(torch.zeros(len(features), 1), features, torch.zeros(len(features), score.classes))
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
    surplus = score.raw_terms(expected + 0.2, features, torch.zeros(5000, 3))[:, 0]
    assert (surplus - 0.2).abs().quantile(0.99) < 5e-3
    strange = features.clone()
    strange[:, 6] += 50.0  # a code beyond all that were seen excuses no more than they did
    assert score.raw_terms(expected, strange, torch.zeros(5000, 3))[:, 0].min() > expected.min() - expected.max() - 0.05


@pytest.mark.parametrize("angle", [False, True])
def test_the_score_is_the_weighted_sum_of_its_standardized_terms_and_the_fast_one_leaves_the_reconstruction_out(
    angle: bool,
):
    torch.manual_seed(0)
    score = AnomalyScore(3, 4, 9 + angle, angle)
    image, other = torch.rand(600, 1, 28, 28), torch.rand(600, 1, 28, 28)
    features, logits = torch.randn(600, 9 + angle), torch.randn(600, 3)
    errors = reconstruction_error(image, other)
    assert reconstruction_error(image, image).abs().max() == 0
    score.fit_terms(features, errors, torch.arange(600) % 3)
    parts = score.raw_terms(errors, features, logits)
    torch.testing.assert_close(parts[:, 2], -logits.exp().sum(1).log())
    assert parts.shape == (600, 3 + angle)
    if angle:
        torch.testing.assert_close(parts[:, 3], features[:, 9])
    score.fit_scale(parts)
    low, middle, high = np.quantile(parts.numpy(), [0.1, 0.5, 0.9], axis=0)
    expected = (parts.numpy() - middle) / (high - low) * np.array([1.0, 2.0, 1.5, 1.0][: 3 + angle])
    whole, light = score(image, other, features, logits), score.score_without_reconstruction(features, logits)
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
        low, high = np.quantile(distances(score, features[2000:]) / score.scale[1].item(), [0.1, 0.9])
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
