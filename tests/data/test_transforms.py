from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from data_makers import angle_of_mark, marked
from PIL import Image, ImageDraw, ImageFont

from vae_edge.data import LabelledImages, rotate_dataset
from vae_edge.data.transforms import LETTERS, OOD_KINDS, contact_sheet, make_ood_images, spread
from vae_edge.errors import ConfigError
from vae_edge.metrics import wrap_degrees


@pytest.mark.parametrize("channels", [1, 3])
def test_the_angle_said_is_the_angle_seen(channels: int) -> None:
    data = rotate_dataset(marked(channels=channels))
    seen = np.array([angle_of_mark(image) for image in data.images])
    assert np.abs(wrap_degrees(seen - data.angles_deg)).max() < 1.5
    assert data.angles_deg.dtype == np.float32 and data.images.dtype == np.uint8


def test_angles_are_uniform_within_the_range_and_repeat_for_a_seed() -> None:
    data = marked(4000)
    for range_deg in (30.0, 180.0):
        angles = rotate_dataset(data, range_deg).angles_deg
        assert np.abs(angles).max() <= range_deg
        counts = np.histogram(angles, 10, (-range_deg, range_deg))[0]
        assert counts.sum() == 4000 and np.abs(counts / 400 - 1).max() < 0.2
    first, again, other = (rotate_dataset(marked(), seed=seed) for seed in (1, 1, 2))
    assert (first.images == again.images).all() and (first.angles_deg == again.angles_deg).all()
    assert (first.angles_deg != other.angles_deg).any()


def test_rotating_again_adds_up_and_no_range_rotates_nothing() -> None:
    once = rotate_dataset(marked())
    twice = rotate_dataset(once, seed=9)
    assert twice.angles_deg.max() <= 180 and twice.angles_deg.min() > -180
    seen = np.array([angle_of_mark(image) for image in twice.images])
    assert np.abs(wrap_degrees(seen - twice.angles_deg)).max() < 3
    assert (rotate_dataset(marked(), 0).images == marked().images).all()
    for wrong in (-1, 181, float("nan")):
        with pytest.raises(ConfigError, match="0 to 180"):
            rotate_dataset(marked(), wrong)


def test_angles_wrap_into_the_half_open_circle() -> None:
    assert wrap_degrees(np.array([0.0, 180, -180, 190, -190, 540])).tolist() == [0, 180, 180, -170, 170, 180]


@pytest.mark.alone
def test_sixty_thousand_images_are_rotated_in_seconds() -> None:
    started = time.perf_counter()
    rotate_dataset(marked(6000))
    assert time.perf_counter() - started < 2  # a tenth of 20 s; about 0.2 s on a quiet machine


KNOWN = np.random.default_rng(0).integers(0, 256, (60, 28, 28, 1), dtype=np.uint8)


@pytest.mark.parametrize("kind", OOD_KINDS)
def test_there_are_as_many_as_known_images_none_of_them_known_and_the_same_for_a_seed(kind: str) -> None:
    unknown = make_ood_images(KNOWN, kind, seed=3)
    assert unknown.shape == KNOWN.shape and unknown.dtype == np.uint8
    assert not {image.tobytes() for image in unknown} & {image.tobytes() for image in KNOWN}
    assert np.array_equal(unknown, make_ood_images(KNOWN, kind, seed=3))


def upright_letters() -> set[bytes]:
    font = ImageFont.load_default(size=28 * 0.75)
    drawn = set()
    for letter in LETTERS:
        page = Image.new("L", (28, 28))
        ImageDraw.Draw(page).text((14, 14), letter, fill=255, font=font, anchor="mm")
        drawn.add(page.tobytes())
    return drawn


def test_letters_are_upright_where_they_are_not_to_be_rotated() -> None:
    upright = upright_letters()
    straight = make_ood_images(KNOWN, "drawn letters", 1, letters_rotation_deg=0.0)
    assert {image.tobytes() for image in straight} <= upright
    turned = make_ood_images(KNOWN, "drawn letters", 1)
    assert len({image.tobytes() for image in turned} & upright) < 3
    assert np.array_equal(turned, make_ood_images(KNOWN, "drawn letters", 1, 180.0))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="'spots'"):
        make_ood_images(KNOWN, "spots")
    for degrees in (-1.0, 181.0, float("nan")):
        with pytest.raises(ConfigError, match="0 to 180 degrees"):
            make_ood_images(KNOWN, "drawn letters", 0, degrees)


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


def test_a_row_shows_images_from_all_over_its_class_one_of_each_stretch() -> None:
    data = plain([0] * 48, list(range(48)), [float(angle) for angle in range(48)])
    for seed in range(3):
        (row,) = cells(np.asarray(contact_sheet(data, seed=seed)), 12, 1, 1)
        assert [value // 4 for value in row] == list(range(12))
    assert len({contact_sheet(data, seed=seed).tobytes() for seed in (0, 0, 1)}) == 2


@pytest.mark.parametrize("how", ["groups", "folders"])
def test_each_group_or_folder_has_its_part_of_a_row_however_few_images_it_has(how: str) -> None:
    kinds = ["apple"] * 60 + ["google"] * 30 + ["twitter"] * 2 + ["zed"]
    texts = np.empty(len(kinds), dtype=object)
    texts[:] = kinds if how == "groups" else [f"lamp/{kind}/{index}.png" for index, kind in enumerate(kinds)]
    data = plain([0] * len(kinds), list(range(len(kinds))))
    data = replace(data, groups=texts) if how == "groups" else replace(data, files=texts)
    chosen = spread(data, np.arange(len(kinds)), 12, seed=0)
    found = Counter(kinds[index] for index in chosen)
    assert len(set(chosen.tolist())) == 12 and chosen.tolist() == sorted(chosen)
    assert found["twitter"] == 2 and found["zed"] == 1 and {found["apple"], found["google"]} == {4, 5}
    few = spread(data, np.arange(len(kinds)), 2, seed=0)
    assert len({kinds[index] for index in few}) == 2
    assert spread(data, np.arange(90, 93), 12, seed=0).tolist() == [90, 91, 92]
