"""The outputs of one call of a classifier. What is not asked for of them is not computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from vae_edge.errors import BackendError, DataError
from vae_edge.metrics import wrap_degrees
from vae_edge.preprocess import PreprocessInfo


class Predictions:
    """The outputs of one call. They belong to this object and do not change when the classifier is called again.

    Attributes:
        probabilities: float32 [N, K], of each class.
        scores: float32 [N], the anomaly score; higher is more anomalous.
        angle_confidences: float32 [N], the mean resultant length of the angle's distribution: 0 is any angle, 1 is
            certain. None if the model was not trained on rotated images.
        second_angle_probabilities: float32 [N], of the second most probable angle; or None.
        classes: the class names, K of them.
        threshold: the largest score that is accepted.
        has_angle: whether the model tells the orientation; without it all angles are 0.
        errors: by row, the error of each image that could not be read (`errors="coerce"`). Its numbers are NaN, its
            label is -1, its name is empty, and it is not accepted.
    """

    def __init__(
        self,
        probabilities: np.ndarray,
        angles_rad: np.ndarray,
        scores: np.ndarray,
        angle_confidences: np.ndarray | None = None,
        second_angles_rad: np.ndarray | None = None,
        second_angle_probabilities: np.ndarray | None = None,
        *,
        classes: tuple[str, ...],
        threshold: float,
        preprocess_info: Callable[[int], list[PreprocessInfo]],
        errors: Mapping[int, DataError] | None = None,
        has_angle: bool = True,
    ) -> None:
        """Keep the arrays; `preprocess_info(N)` is called when somebody asks what was done to the N inputs."""
        self.probabilities = probabilities
        self.scores = scores
        self.angle_confidences = angle_confidences
        self.second_angle_probabilities = second_angle_probabilities
        self.classes = classes
        self.threshold = threshold
        self.has_angle = has_angle
        self.errors: Mapping[int, DataError] = errors or {}
        self._angles_rad = angles_rad
        self._second_angles_rad = second_angles_rad
        self._preprocess_info = preprocess_info

    def __len__(self) -> int:
        """The number of images."""
        return len(self.scores)

    def __repr__(self) -> str:
        """The first names, and how many images were rejected."""
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
        """float32 [N]: the second most probable angle, in degrees as `angles_deg`; None if the model has none.

        It is well apart from the first one. Where its probability is small, it means nothing.
        """
        return None if self._second_angles_rad is None else _to_degrees(self._second_angles_rad)

    @cached_property
    def accepted(self) -> np.ndarray:
        """bool [N]: whether the score is at most the bundle's threshold."""
        return self.scores <= np.float32(self.threshold)

    @cached_property
    def preprocess_info(self) -> list[PreprocessInfo]:
        """How each input was decoded, cropped, resized and inverted."""
        return self._preprocess_info(len(self))

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary per image, for JSON. What the model does not have is None.

        An image that could not be read has `error` alone.
        """
        uncertainty = {
            "angle_confidence": self.angle_confidences,
            "second_angle_deg": self.second_angles_deg,
            "second_angle_probability": self.second_angle_probabilities,
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
                **{name: None if values is None else float(values[i]) for name, values in uncertainty.items()},
                "score": float(self.scores[i]),
                "accepted": bool(self.accepted[i]),
                "preprocess_info": self.preprocess_info[i].sentence(),
            }
            for i in range(len(self))
        ]


def _to_degrees(angles_rad: np.ndarray) -> np.ndarray:
    degrees = np.rad2deg(angles_rad.astype(np.float64))
    wrapped = wrap_degrees(degrees).astype(np.float32)
    wrapped[wrapped <= -180.0] = 180.0  # rounding to float32 may have reached the open end
    return wrapped
