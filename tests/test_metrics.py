import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from vae_edge.metrics import angle_error, auroc, confusion, summarize, wrap_degrees


def test_wrapping_stays_within_half_a_turn():
    given = np.array([0.0, 180.0, -180.0, 181.0, -181.0, 359.0, 720.0, 540.0])
    np.testing.assert_allclose(wrap_degrees(given), [0, 180, 180, -179, 179, -1, 0, 180])


def test_angle_error_takes_the_short_way_round():
    error = angle_error(np.array([179.0, -179.0, 10.0]), np.array([-179.0, 179.0, 350.0]))
    assert error == {"median": 2.0, "mean": pytest.approx(8.0), "p90": pytest.approx(16.4), "beyond_90": 0.0}
    assert angle_error(np.array([0.0, 0.0]), np.array([180.0, 0.0]))["beyond_90"] == 0.5


def test_auroc_and_confusion_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(size=200).round(1), rng.normal(0.7, size=300).round(1)  # rounding makes ties
    expected = roc_auc_score(np.r_[np.zeros(200), np.ones(300)], np.r_[known, unknown])
    assert auroc(known, unknown) == pytest.approx(expected, abs=1e-12)
    labels, predicted = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    np.testing.assert_array_equal(confusion(labels, predicted, 4), confusion_matrix(labels, predicted))


def test_summary_gives_the_angle_error_without_ambiguous_classes():
    probabilities = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    labels = np.array([0, 1, 1, 1])
    result = summarize(
        probabilities, labels, ("o", "r"), np.array([90.0, 1.0, 2.0, 3.0]), np.zeros(4), np.arange(4.0), 1.5, ["o"]
    )
    assert result["n"] == 4 and result["accuracy"] == 0.75 and result["accepted"] == 0.5
    assert result["accuracy_by_class"] == {"o": 1.0, "r": pytest.approx(2 / 3, abs=1e-5)}
    assert result["angle_error_deg"]["without_ambiguous"]["mean"] == 2.0
