"""The images of a run, in memory on the training device, and which of them each step takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.data import LabelledImages

LABELLED, UNLABELLED, GENERATED = 0, 1, 2  # streams of random orders, one for each pool


class Rows:
    """An endless row of random orders of `size` things, one after the other; any stretch of it can be asked for.

    The order of each pass comes from the seed, the stream and the number of the pass alone.
    """

    def __init__(self, size: int, seed: int, stream: int) -> None:
        self.size, self.seed, self.stream = size, seed, stream
        self._passes: dict[int, NDArray[np.int64]] = {}

    def take(self, first: int, count: int) -> Tensor:
        """int64 [count]: the places `first` to `first + count` of the row."""
        passes = range(first // self.size, (first + count - 1) // self.size + 1)
        self._passes = {number: self._passes.get(number, self._order(number)) for number in passes}
        joined = np.concatenate([self._passes[number] for number in passes])
        start = first - passes.start * self.size
        return torch.from_numpy(joined[start : start + count])

    def _order(self, number: int) -> NDArray[np.int64]:
        if number in self._passes:
            return self._passes[number]
        return np.random.default_rng([self.seed, self.stream, number]).permutation(self.size)


@dataclass
class Pool:
    """Images uint8 [N, S, S, C], labels int64 [N] (all 0 where there are none), known angles float32 [N] in radians."""

    images: Tensor
    labels: Tensor
    angles_rad: Tensor
    rows: Rows

    @classmethod
    def of(
        cls,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64] | None,
        angles_deg: NDArray[np.float32] | None,
        seed: int,
        stream: int,
        device: torch.device,
    ) -> Pool:
        """Arrays put on the device. Without angles the images are upright."""
        count = len(images)
        there = np.zeros(count, np.int64) if labels is None else labels
        angles = np.zeros(count, np.float32) if angles_deg is None else np.deg2rad(angles_deg)
        return cls(
            torch.from_numpy(np.ascontiguousarray(images)).to(device),
            torch.from_numpy(there).to(device),
            torch.from_numpy(angles.astype(np.float32)).to(device),
            Rows(count, seed, stream),
        )

    @classmethod
    def labelled(cls, data: LabelledImages, seed: int, stream: int, device: torch.device) -> Pool:
        """Labelled images put on the device."""
        return cls.of(data.images, data.labels, data.angles_deg, seed, stream, device)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def take(self, step: int, count: int, mine: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and angles of one process's share of the `count` images of a step."""
        chosen = self.rows.take(step * count, count)[mine].to(self.images.device)
        return self.images[chosen], self.labels[chosen], self.angles_rad[chosen]
