import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score
from sklearn.metrics import roc_curve as reference_curve

from vae_edge.metrics import (
    angle_error,
    auroc,
    confusion,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
    roc_curve,
    summarize,
    wrap_degrees,
)


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


def test_the_curve_is_scikit_learns_and_its_area_is_the_auroc():
    rng = np.random.default_rng(1)
    known, unknown = rng.normal(size=200).round(1), rng.normal(0.7, size=300).round(1)
    false, true = roc_curve(known, unknown)
    labels, scores = np.r_[np.zeros(200), np.ones(300)], np.r_[known, unknown]
    expected_false, expected_true, _ = reference_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false, expected_false, atol=1e-12)
    np.testing.assert_allclose(true, expected_true, atol=1e-12)
    assert (np.diff(false) * (true[1:] + true[:-1]) / 2).sum() == pytest.approx(auroc(known, unknown), abs=1e-12)


def test_summary_gives_the_angle_error_without_ambiguous_classes():
    probabilities = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    labels = np.array([0, 1, 1, 1])
    result = summarize(
        probabilities, labels, ("o", "r"), np.array([90.0, 1.0, 2.0, 3.0]), np.zeros(4), np.arange(4.0), 1.5, ["o"]
    )
    assert result["n"] == 4 and result["accuracy"] == 0.75 and result["accepted"] == 0.5
    assert result["accuracy_by_class"] == {"o": 1.0, "r": pytest.approx(2 / 3, abs=1e-5)}
    assert result["angle_error_deg"]["without_ambiguous"]["mean"] == 2.0


def predictions(count: int = 400, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.full(classes, 0.4), count)
    return probabilities, rng.integers(0, classes, count)


def test_the_calibration_error_of_a_case_done_by_hand():
    # five images said with 0.9, of which three are right; five with 0.6, of which four are: gaps 0.3 and 0.2
    probabilities = np.array([[0.9, 0.1]] * 5 + [[0.6, 0.4]] * 5)
    labels = np.array([0, 0, 0, 1, 1, 0, 0, 0, 0, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx((5 * 0.3 + 5 * 0.2) / 10)
    assert expected_calibration_error(np.eye(2)[labels], labels) == 0.0
    assert expected_calibration_error(np.eye(2)[labels], 1 - labels) == 1.0


def test_certainty_and_empty_bins_have_their_place():
    table = reliability(np.array([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]]), np.array([0, 1, 1]), bins=5)
    np.testing.assert_array_equal(table["count"], [0, 0, 1, 1, 1])
    np.testing.assert_allclose(table["confidence"], [0, 0, 0.5, 0.8, 1.0])  # 0.8 is in (0.6, 0.8]
    np.testing.assert_allclose(table["accuracy"], [0, 0, 0, 1, 1])


def test_reliability_and_likelihood_agree_with_scikit_learn():
    probabilities, labels = predictions()
    table = reliability(probabilities, labels, bins=10)
    right = probabilities.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(1), n_bins=10)
    filled = table["count"] > 0
    np.testing.assert_allclose(table["accuracy"][filled], accuracy)
    np.testing.assert_allclose(table["confidence"][filled], confidence)
    assert table["count"].sum() == len(labels)
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(log_loss(labels, probabilities))
    assert np.isfinite(negative_log_likelihood(np.eye(2)[[0]], np.array([1])))


def test_summary_says_what_the_second_angle_and_the_concentration_are_worth():
    labels = np.zeros(4, np.int64)
    first, second = np.array([0.0, 170.0, 179.0, 4.0]), np.array([180.0, -8.0, -1.0, -176.0])
    result = summarize(
        np.eye(2)[labels],
        labels,
        ("o", "r"),
        first,
        np.zeros(4),
        second_angles_deg=second,
        angle_confidences=np.array([0.9, 0.1, 0.2, 0.8]),
    )
    errors = result["angle_error_deg"]
    assert errors["beyond_90"] == 0.5 and errors["either_of_two"]["beyond_90"] == 0.0
    assert errors["either_of_two"]["mean"] == pytest.approx((0 + 8 + 1 + 4) / 4)
    assert errors["by_concentration"] == {"median_of_the_surer_half": 2.0, "median_of_the_other_half": 174.5}
    assert result["expected_calibration_error"] == 0.0


def test_balanced_accuracy_is_scikit_learns():
    from sklearn.metrics import balanced_accuracy_score

    probabilities, labels = predictions(300, 6)
    labels = np.where(labels == 3, 2, labels)  # class 3 has no images
    result = summarize(probabilities, labels, tuple("abcdef"))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(labels, probabilities.argmax(1))
    assert result["balanced_accuracy"] == pytest.approx(expected, abs=1e-5)
    assert result["images_by_class"] == {name: int((labels == "abcdef".index(name)).sum()) for name in "abcef"}
