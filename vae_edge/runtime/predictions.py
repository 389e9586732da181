"""What a classifier says about a batch of images; whatever is not asked for is not computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from vae_edge.errors import BackendError, DataError
from vae_edge.preprocess import Interpretation


class Predictions:
    """The outputs of one call, owned by this object: they stay what they are when the classifier is called again.

    `probabilities` float32 [N, K]; `scores` float32 [N], the rejection score (higher is stranger). Of a model that was
    trained turned also `concentrations` float32 [N], how sure the angle is (0: any angle, 1: certain), and
    `second_shares` float32 [N], the probability of the second-best angle; else both are None.

    `errors` has, by row, the error of each image that could not be read and was not to cost the others: its numbers
    are NaN, its label is -1, its name empty, and it is not accepted.
    """

    def __init__(
        self,
        probabilities: np.ndarray,
        angles_rad: np.ndarray,
        scores: np.ndarray,
        angle_confidences: np.ndarray | None = None,
        second_angles_rad: np.ndarray | None = None,
        second_angle_probs: np.ndarray | None = None,
        *,
        classes: tuple[str, ...],
        threshold: float,
        interpret: Callable[[int], list[Interpretation]],
        errors: Mapping[int, DataError] | None = None,
    ) -> None:
        """Keep the arrays; `interpret(N)` tells, when asked, what was made of each input."""
        self.probabilities = probabilities
        self.scores = scores
        self.angle_confidences = angle_confidences
        self.second_angle_probs = second_angle_probs
        self.classes = classes
        self.threshold = threshold
        self.errors: Mapping[int, DataError] = errors or {}
        self._angles_rad = angles_rad
        self._second_angles_rad = second_angles_rad
        self._interpret = interpret

    def __len__(self) -> int:
        """The number of images."""
        return len(self.scores)

    def __repr__(self) -> str:
        """The first few names, and how many were rejected."""
        shown = ", ".join(name or "unreadable" for name in self.names[:5]) + (", …" if len(self) > 5 else "")
        unreadable = f", {len(self.errors)} unreadable" if self.errors else ""
        rejected = int((~self.accepted).sum()) - len(self.errors)
        return f"<{len(self)} predictions: {shown}; {rejected} rejected{unreadable}>"

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [N]: the index of the most probable class.

        Raises:
            BackendError: a probability is NaN or infinite.
        """
        finite = np.isfinite(self.probabilities).all(1)
        finite[list(self.errors)] = True
        if not finite.all():
            raise BackendError(
                f"A probability is NaN or infinite for image {int(finite.argmin())} of {len(self)}, counted from 0: "
                "the model is damaged, or fails on such images; export it again."
            )
        labels = self.probabilities.argmax(1).astype(np.int64, copy=False)
        labels[list(self.errors)] = -1
        return labels

    @cached_property
    def names(self) -> list[str]:
        """The name of the most probable class of each image."""
        return ["" if label < 0 else self.classes[label] for label in self.labels]

    @cached_property
    def angles_deg(self) -> np.ndarray:
        """float32 [N]: degrees counter-clockwise as displayed, upright is 0, in (-180, 180]."""
        return _to_degrees(self._angles_rad)

    @cached_property
    def second_angles_deg(self) -> np.ndarray | None:
        """float32 [N]: the second-best angle, in degrees as `angles_deg`; None where the model has none.

        It lies apart from the best one. Where its share is small, it says nothing.
        """
        return None if self._second_angles_rad is None else _to_degrees(self._second_angles_rad)

    @cached_property
    def accepted(self) -> np.ndarray:
        """bool [N]: whether the score is at most the bundle's threshold."""
        return self.scores <= np.float32(self.threshold)

    @cached_property
    def interpretations(self) -> list[Interpretation]:
        """What was made of each input (how it was decoded, resized, inverted)."""
        return self._interpret(len(self))

    def to_dicts(self) -> list[dict[str, Any]]:
        """One plain dictionary an image, for JSON. What the model does not have is None.

        Of an image that could not be read there is `error` alone.
        """
        doubts = {
            "concentration": self.angle_confidences,
            "second_angle_deg": self.second_angles_deg,
            "second_share": self.second_angle_probs,
        }
        return [
            {"error": str(self.errors[i])}
            if i in self.errors
            else {
                "label": int(self.labels[i]),
                "name": self.names[i],
                "probability": float(self.probabilities[i, self.labels[i]]),
                "probabilities": [float(p) for p in self.probabilities[i]],
                "angle_deg": float(self.angles_deg[i]),
                **{name: None if values is None else float(values[i]) for name, values in doubts.items()},
                "score": float(self.scores[i]),
                "accepted": bool(self.accepted[i]),
                "interpretation": self.interpretations[i].sentence(),
            }
            for i in range(len(self))
        ]


def _to_degrees(angles_rad: np.ndarray) -> np.ndarray:
    degrees = np.rad2deg(angles_rad.astype(np.float64))
    wrapped = (180.0 - np.mod(180.0 - degrees, 360.0)).astype(np.float32)
    wrapped[wrapped <= -180.0] = 180.0  # rounding to float32 may have reached the open end
    return wrapped
