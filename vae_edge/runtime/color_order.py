"""Whether arrays are in OpenCV's channel order, found out from the images that a classifier rejects."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

_MAX_CALLS, _MAX_CHECKS, _MAX_IMAGES = 100, 8, 16
_MIN_REJECTED = 4


class ColorOrderCheck:
    """Warns once if arrays seem to be in OpenCV's channel order, BGR, where the model takes RGB.

    It runs rejected images of the first calls again with red and blue exchanged: at most 100 calls, 8 of them with
    rejected images, and 16 images in all. It warns if at least four were rejected and most of them are accepted when
    exchanged. Images that are accepted in the wrong order are not noticed.

    Attributes:
        active: whether it still checks; after that a call costs nothing.
    """

    def __init__(self, channels: int) -> None:
        """`channels`: of the model's images; grey images have no order."""
        self._calls, self._checks, self._images = _MAX_CALLS, _MAX_CHECKS, _MAX_IMAGES
        self._rejected = self._accepted = 0
        self.active = channels == 3

    def check(
        self, batch: np.ndarray, scores: np.ndarray, threshold: float, score: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Check uint8 [N, S, S, 3] and its scores [N]; `score` gives the scores of other images."""
        rejected = np.flatnonzero(~(scores <= threshold))[: self._images]
        self._calls -= 1
        if len(rejected):
            self._checks -= 1
            self._images -= len(rejected)
            self._rejected += len(rejected)
            swapped = np.ascontiguousarray(batch[rejected][..., ::-1])
            self._accepted += int((score(swapped) <= threshold).sum())
        self.active = self._calls > 0 and self._checks > 0 and self._images > 0
        if self._rejected >= _MIN_REJECTED and 2 * self._accepted > self._rejected:
            self.active = False
            logging.getLogger(__name__).warning(
                "%d of %d rejected images are known with red and blue exchanged: the model takes RGB. If these arrays "
                'come from OpenCV, whose order is BGR, pass color="bgr"; if they are RGB, color="rgb" says so.',
                self._accepted,
                self._rejected,
            )
