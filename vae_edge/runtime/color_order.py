"""Notices arrays whose channels are in OpenCV's order, BGR, where the model takes RGB."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

_CALLS, _CHECKS, _IMAGES = 100, 3, 16


class ColorOrderCheck:
    """Looks at the rejected images of the first calls and warns once; after that a call costs nothing.

    Looked at are the first hundred calls; of those, three that rejected images; of each, sixteen images. It is no proof
    of the right order: images that are accepted in the wrong one are not looked at.

    Attributes: `watching`, whether it still looks.
    """

    def __init__(self, channels: int) -> None:
        """`channels`: of the model's images; grey ones have no order."""
        self._calls, self._checks = _CALLS, _CHECKS
        self.watching = channels == 3

    def look(
        self, batch: np.ndarray, scores: np.ndarray, threshold: float, score: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Where most of the rejected images of uint8 [N, S, S, 3] are known with their channels swapped, say so."""
        self._calls -= 1
        rejected = np.flatnonzero(~(scores <= threshold))[:_IMAGES]
        self._checks -= bool(len(rejected))
        self.watching = self._calls > 0 and self._checks > 0
        if not len(rejected):
            return
        known = int((score(np.ascontiguousarray(batch[rejected][..., ::-1])) <= threshold).sum())
        if 2 * known > len(rejected):
            self.watching = False
            logging.getLogger(__name__).warning(
                "%d of %d rejected images are known with red and blue exchanged: the model takes RGB; if these arrays "
                'come from OpenCV, whose order is BGR, pass color="bgr".',
                known,
                len(rejected),
            )
