"""Notices arrays whose channels are in OpenCV's order, BGR, where the model takes RGB."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

_CALLS, _CHECKS, _IMAGES = 100, 8, 16
_LEAST = 4


class ColorOrderCheck:
    """Looks at the rejected images of the first calls and warns once; after that a call costs nothing.

    Looked at are the first hundred calls; of those, eight that rejected images; of these, sixteen images in all. Four
    are the least that a warning is based on. It is no proof of the right order: images that are accepted in the wrong
    one are not looked at.

    Attributes: `watching`, whether it still looks.
    """

    def __init__(self, channels: int) -> None:
        """`channels`: of the model's images; grey ones have no order."""
        self._calls, self._checks, self._images = _CALLS, _CHECKS, _IMAGES
        self._rejected = self._known = 0
        self.watching = channels == 3

    def look(
        self, batch: np.ndarray, scores: np.ndarray, threshold: float, score: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Where most of the rejected images of uint8 [N, S, S, 3] are known with their channels swapped, say so."""
        rejected = np.flatnonzero(~(scores <= threshold))[: self._images]
        self._calls -= 1
        if len(rejected):
            self._checks -= 1
            self._images -= len(rejected)
            self._rejected += len(rejected)
            swapped = np.ascontiguousarray(batch[rejected][..., ::-1])
            self._known += int((score(swapped) <= threshold).sum())
        self.watching = self._calls > 0 and self._checks > 0 and self._images > 0
        if self._rejected >= _LEAST and 2 * self._known > self._rejected:
            self.watching = False
            logging.getLogger(__name__).warning(
                "%d of %d rejected images are known with red and blue exchanged: the model takes RGB. If these arrays "
                'come from OpenCV, whose order is BGR, pass color="bgr"; if they are RGB, color="rgb" says so.',
                self._known,
                self._rejected,
            )
