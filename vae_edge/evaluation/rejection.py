"""From the scores of known images to a threshold that rejects a given fraction of such images, and how sure that is.

The threshold is one of the scores, chosen by its rank. Of N exchangeable images it is the one of rank
⌈(N + 1)(1 - rate)⌉, so that a further image is rejected with a probability of at most `rate` (split conformal
prediction: Vovk, Gammerman and Shafer 2005; Lei et al. 2018, section 2.2). The fraction of all further images that this
threshold rejects follows a Beta distribution, whose quantiles are the interval.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import DataError

MIN_GROUPS = 3  # groups from which a threshold is tried on groups that it was not set on


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold, and what it does to the images that it was set on.

    Attributes:
        threshold: the largest accepted score.
        images: known images that it was set on.
        rejected: how many of them it rejects.
        interval: 95% interval of the fraction of further images of the same kind that it rejects.
    """

    threshold: float
    images: int
    rejected: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class GroupRejection:
    """Rejections of a group's images by the threshold that is set on the other groups, for each group.

    Attributes:
        groups: number of groups.
        mean: mean fraction rejected over the groups.
        worst: the largest one; worst_group: of that group.
    """

    groups: int
    mean: float
    worst: float
    worst_group: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "mean": round(self.mean, 5), "worst": round(self.worst, 5)}


def min_images(reject_rate: float) -> int:
    """The fewest images on which a threshold can be set that keeps a rate: 99 for 1%."""
    return math.ceil(1.0 / reject_rate - 1e-9) - 1


def choose_threshold(scores: NDArray[np.floating], reject_rate: float, force: bool = False) -> ThresholdChoice:
    """The threshold that rejects at most a fraction of further images like the given ones, on average.

    Args:
        scores: of known images that were not trained on [N].
        reject_rate: fraction to reject, above 0 and below 1.
        force: take the largest score where there are too few images for the rate.

    Raises:
        DataError: there are no images, a score is not finite, or there are too few images for the rate.
    """
    scores = _checked(scores)
    n, needed = len(scores), min_images(reject_rate)
    if n < needed and not force:
        raise DataError(
            f"{n} known images cannot set a threshold that rejects {reject_rate:.2%}: even the largest of their scores "
            f"rejects {1 / (n + 1):.2%} of further images on average. Give at least {needed} images, or a rate of at "
            f"least {math.ceil(1000 / (n + 1)) / 10:g}%, or insist on the largest score with --force (force=True)."
        )
    rank = min(n, math.ceil((n + 1) * (1.0 - reject_rate) - 1e-9))
    return threshold_at(scores, float(np.sort(scores)[rank - 1]))


def clear_of_ties(scores: NDArray[np.floating], threshold: float) -> float:
    """A threshold that accepts the same of these scores [N], and on which none of them lies.

    Halfway to the next larger score, or, above the largest, as far beyond it as the next smaller one is below; at most
    0.1% of the scores' spread. Else rounding, which differs from runtime to runtime, would decide on an image.
    """
    above, below = scores[scores > threshold], scores[scores < threshold]
    spread = float(scores.max() - scores.min())
    gap = (float(above.min()) - threshold) / 2 if len(above) else threshold - float(below.max()) if len(below) else 0.0
    return threshold + min(gap, 0.001 * spread)


def threshold_at(scores: NDArray[np.floating], threshold: float) -> ThresholdChoice:
    """What a threshold does to known images [N], of which one has this score or the next lower one."""
    rejected = int((scores > threshold).sum())
    n = len(scores)
    low = beta_quantile(0.025, rejected + 1, n - rejected) if rejected < n else 1.0
    high = beta_quantile(0.975, rejected + 1, n - rejected) if rejected < n else 1.0
    return ThresholdChoice(threshold, n, rejected, (low, high))


def balanced_threshold(known: NDArray[np.floating], unknown: NDArray[np.floating]) -> float:
    """The score at which the fraction of known images rejected is nearest to that of unknown images accepted.

    Args:
        known: scores [N]; unknown: scores [M].

    Raises:
        DataError: there are no images, or a score is not finite.
    """
    known, unknown = np.sort(_checked(known)), np.sort(_checked(unknown))
    rejected = 1.0 - np.arange(1, len(known) + 1) / len(known)
    accepted = np.searchsorted(unknown, known, side="right") / len(unknown)
    return float(known[np.abs(rejected - accepted).argmin()])


def leave_groups_out(
    scores: NDArray[np.floating], groups: NDArray[np.object_], reject_rate: float
) -> GroupRejection | None:
    """Set the threshold on all groups but one, and try it on that one, for each group in turn.

    This is what happens to images of a group that nobody had: another maker, font, camera or day.

    Args:
        scores: of known images [N]; groups: the group of each [N].
        reject_rate: fraction to reject, above 0 and below 1.

    Returns:
        None with fewer than three groups.
    """
    names = np.unique(groups)
    if len(names) < MIN_GROUPS:
        return None
    limits = [choose_threshold(scores[groups != name], reject_rate, force=True).threshold for name in names]
    rates = np.array([(scores[groups == name] > limit).mean() for name, limit in zip(names, limits, strict=True)])
    return GroupRejection(len(names), float(rates.mean()), float(rates.max()), str(names[rates.argmax()]))


def _checked(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    scores = np.asarray(scores)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise DataError(
            f"A threshold is set on finite scores [N] of at least one image, but {list(scores.shape)} came, or some "
            "are not finite."
        )
    return scores


def beta_quantile(probability: float, a: float, b: float) -> float:
    """The quantile of the Beta distribution with parameters `a` and `b`, both positive, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if incomplete_beta(a, b, middle) < probability else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # where the fraction converges slowly, that of the complement does not
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)

    # Lentz's method: the fraction is 1 / (1 + d1 / (1 + d2 / ...))
    tiny = 1e-300
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(1, 2000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / (1.0 + term * d or tiny)
        c = 1.0 + term / c or tiny
        fraction *= c * d
        if abs(c * d - 1.0) < 1e-13:
            break
    return math.exp(log_front) / (a * fraction)
