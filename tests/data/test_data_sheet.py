from __future__ import annotations

import numpy as np
import pytest

from vae_edge.data import LabelledImages
from vae_edge.data.transforms import contact_sheet


def plain(labels: list[int], values: list[int], angles: list[float] | None = None, channels: int = 1) -> LabelledImages:
    """Images of one value each."""
    images = np.zeros((len(labels), 28, 28, channels), np.uint8) + np.array(values, np.uint8)[:, None, None, None]
    names = ("a", "empty", "long name " * 20, "犬\n")
    return LabelledImages(
        images, np.array(labels), names, None if angles is None else np.array(angles, dtype=np.float32)
    )


def cells(page: np.ndarray, count: int, rows: int, top: int) -> list[list[int]]:
    """The values in the middle of the cells, read from the right."""
    left = page.shape[1] - count * 57
    return [[int(page[top + y * 57 + 28, left + x * 57 + 28]) for x in range(count)] for y in range(rows)]


def test_each_class_with_images_is_a_row_of_its_first_ones() -> None:
    page = np.asarray(contact_sheet(plain([3, 0, 2, 0, 0], [10, 20, 30, 40, 50]), columns=2))
    assert cells(page, 2, 3, 1) == [[20, 40], [30, 64], [10, 64]]  # 64 is the page
    assert (page[:, : page.shape[1] - 2 * 57] > 200).any()  # the names


@pytest.mark.parametrize("channels", [1, 3])
def test_columns_go_by_angle_with_the_angle_above(channels: int) -> None:
    data = plain([0, 0, 0, 2, 2, 2], [10, 20, 30, 40, 50, 60], [90, -30, 90, -30, -30, 90], channels)
    page = np.asarray(contact_sheet(data, columns=4))
    assert cells(page[..., 0] if channels == 3 else page, 4, 2, 23) == [[10, 30, 20, 64], [60, 64, 40, 50]]
    assert (page[:20] > 200).any()


def test_images_at_any_angle_are_shown_as_they_come() -> None:
    data = plain([0] * 40, list(range(40)), [float(angle) for angle in range(40)])
    assert cells(np.asarray(contact_sheet(data)), 12, 1, 1) == [list(range(12))]
