from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vae_edge.data.transforms import LETTERS, OOD_KINDS, make_ood_images
from vae_edge.errors import ConfigError

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


def test_letters_are_upright_where_they_are_not_to_be_turned() -> None:
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
