"""The threshold of a rejection rate: compared with SciPy's Beta distribution, and with what further images do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import betainc
from scipy.stats import beta

from vae_edge.errors import DataError
from vae_edge.evaluation.rejection import (
    balanced_threshold,
    beta_quantile,
    choose_threshold,
    clear_of_ties,
    incomplete_beta,
    leave_groups_out,
    min_images,
    threshold_at,
)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 99), (5, 396), (400, 2), (61, 6000), (1, 100_000), (30_000, 30_001)])
def test_the_beta_distribution_is_scipys(a: float, b: float) -> None:
    for probability in (0.025, 0.5, 0.975):
        assert beta_quantile(probability, a, b) == pytest.approx(beta.ppf(probability, a, b), abs=1e-9)
    for x in (0.0, 1e-6, 0.01, 0.5, 0.99, 1.0):
        assert incomplete_beta(a, b, x) == pytest.approx(betainc(a, b, x), abs=1e-9)


@pytest.mark.parametrize(("n", "rate"), [(99, 0.01), (400, 0.01), (57, 0.05), (1000, 0.2)])
def test_further_images_are_rejected_at_the_rate_and_within_the_interval(n: int, rate: float) -> None:
    """Scores are uniform, so that the true fraction that a threshold t rejects is 1 - t."""
    rng = np.random.default_rng(n)
    choices = [choose_threshold(rng.uniform(size=n), rate) for _ in range(2000)]
    true = np.array([1.0 - choice.threshold for choice in choices])
    error = true.std() / np.sqrt(len(true))
    assert true.mean() <= rate + 3 * error and true.mean() >= rate - 1 / (n + 1) - 3 * error
    inside = np.mean(
        [low <= rate_of <= high for (low, high), rate_of in zip((c.interval for c in choices), true, strict=True)]
    )
    assert 0.93 < inside < 0.97


def test_too_few_images_are_refused_with_what_they_could_set() -> None:
    scores = np.arange(50.0)
    assert min_images(0.01) == 99 and min_images(0.001) == 999 and min_images(0.05) == 19
    with pytest.raises(
        DataError, match=r"50 known images cannot set a threshold that rejects 0\.10%.*at least 999.*2%"
    ):
        choose_threshold(scores, 0.001)
    choose_threshold(scores, 0.02)
    forced = choose_threshold(scores, 0.001, force=True)
    assert forced.threshold == 49.0 and forced.rejected == 0 and forced.interval[1] == pytest.approx(0.07, abs=0.01)


@pytest.mark.parametrize("scores", [[], [1.0, np.nan], [np.inf], [[1.0, 2.0]]])
def test_scores_that_are_none_or_not_finite_are_refused(scores: list) -> None:
    with pytest.raises(DataError, match="finite scores"):
        choose_threshold(np.array(scores, float), 0.5)


def test_the_threshold_is_a_score_so_that_equal_ones_are_accepted_together() -> None:
    scores = np.repeat([1.0, 2.0], [150, 50])
    assert choose_threshold(scores, 0.01).threshold == 2.0 and choose_threshold(scores, 0.01).rejected == 0
    assert threshold_at(scores, 1.0).rejected == 50


def test_balance_rejects_as_many_known_images_as_unknown_ones_are_accepted() -> None:
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(size=800), rng.normal(1.5, 1, 300)
    threshold = balanced_threshold(known, unknown)
    assert abs((known > threshold).mean() - (unknown <= threshold).mean()) < 1 / 300
    best = min(known, key=lambda limit: abs((known > limit).mean() - (unknown <= limit).mean()))
    assert threshold == best


def test_a_group_that_is_unlike_the_others_is_told() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.array(["apple", "google", "twitter", "new"], object), 200)
    scores = rng.normal(size=800) + 3.0 * (groups == "new")
    found = leave_groups_out(scores, groups, 0.01)
    assert found is not None and found.groups == 4 and found.worst_group == "new"
    limit = choose_threshold(scores[groups != "new"], 0.01).threshold
    assert found.worst == (scores[groups == "new"] > limit).mean() > 0.5
    assert found.mean < 0.25
    assert found.to_json()["worst_group"] == "new"
    assert leave_groups_out(scores[:400], groups[:400], 0.01) is None


def test_no_score_lies_on_a_threshold_that_is_clear_of_ties() -> None:
    scores = np.array([0.0, 3.0, 1.0, 2.0, 100.0])
    for threshold, expected in ((1.0, 1.1), (3.0, 3.1), (100.0, 100.1)):
        found = clear_of_ties(scores, threshold)
        assert found == pytest.approx(expected) and ((scores <= found) == (scores <= threshold)).all()
    assert clear_of_ties(np.array([5.0]), 5.0) == 5.0
    assert clear_of_ties(np.array([5.0, 5.0]), 5.0) == 5.0
