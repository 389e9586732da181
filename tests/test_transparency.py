"""Transparency: one colour for a data set, and compositing before resizing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vae_edge.decoding import read_header, read_transparency
from vae_edge.preprocess import InputSpec, open_image, prepare_image
from vae_edge.transparency import choose_alpha_background, measure_transparency

HIDDEN = (0, 255, 0)  # the colour of fully transparent pixels, which must never be seen


def disc(colour: tuple[int, int, int], side: int = 400, reach: int = 150) -> Image.Image:
    """A disc with a smooth edge, RGBA, not multiplied by alpha: every pixel outside it is `HIDDEN`, with alpha 0."""
    alpha = Image.new("L", (4 * side, 4 * side))
    middle = 2 * side
    ImageDraw.Draw(alpha).ellipse([middle - 4 * reach] * 2 + [middle + 4 * reach] * 2, fill=255)
    alpha = alpha.resize((side, side), Image.Resampling.BOX)
    image = Image.new("RGBA", (side, side), (*colour, 255))
    image.putalpha(alpha)
    pixels = np.array(image)
    pixels[pixels[..., 3] == 0] = (*HIDDEN, 0)
    return Image.fromarray(pixels)


def as_palette(image: Image.Image) -> Image.Image:
    """A palette with one transparent entry, as a GIF has it."""
    pixels = np.asarray(image)
    index = Image.fromarray((pixels[..., 3] < 128).astype(np.uint8))
    index = index.convert("P")
    index.putpalette([*pixels[200, 200, :3].tolist(), *HIDDEN])
    index.info["transparency"] = 1
    return index


def hidden_colour(pixels: np.ndarray) -> int:
    """How much of `HIDDEN` the pixels of a red disc show: 0 to 255."""
    values = pixels.astype(int)
    return int((values[..., 1] - np.maximum(values[..., 0], values[..., 2])).max())


@pytest.mark.parametrize("background", ["white", "black"])
@pytest.mark.parametrize("size", [28, 64])
def test_a_resized_edge_has_no_colour_but_the_contents_and_the_backgrounds(background: str, size: int) -> None:
    image, page = disc((200, 40, 40)), 255 if background == "white" else 0
    pixels, _ = prepare_image(image, InputSpec(size, 3, alpha_background=background))
    layers = np.asarray(image).astype(np.float64)
    alpha = layers[..., 3:] / 255
    exact = layers[..., :3] * alpha + page * (1 - alpha)  # compositing by its definition
    assert np.abs(pixels.mean((0, 1)) - exact.mean((0, 1))).max() < 1
    assert hidden_colour(pixels) <= 3

    channels = Image.merge("RGBA", [band.resize((size, size), Image.Resampling.LANCZOS) for band in image.split()])
    wrong = Image.alpha_composite(Image.new("RGBA", channels.size, background), channels)
    assert hidden_colour(np.asarray(wrong)[..., :3]) > 20, "resizing first would show it: the disc is no test"


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "P", "PA"])
def test_every_mode_is_laid_on_the_colour_of_the_data_set(mode: str) -> None:
    image = disc((40, 40, 40))
    if mode == "P":
        image = as_palette(image)
    elif mode == "PA":
        image = as_palette(image).convert("PA")
    elif mode == "La":
        image = image.convert("LA").convert("La")
    else:
        image = image.convert(mode)
    assert image.mode == mode and image.has_transparency_data
    for background, page in (("white", 255), ("black", 0)):
        for channels in (1, 3):
            pixels, found = prepare_image(image, InputSpec(64, channels, alpha_background=background))
            assert (pixels[0, 0] == page).all() and np.abs(pixels[32, 32].astype(int) - 40).max() <= 1
            assert f"composited its transparency on {background}." in found.sentence().replace(";", ".")


def test_a_transparent_colour_of_an_rgb_file_counts_as_well(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), (255, 0, 255))
    image.paste((10, 20, 30), (16, 16, 48, 48))
    image.save(tmp_path / "x.png", transparency=(255, 0, 255))
    assert read_header(tmp_path / "x.png").has_alpha
    pixels, _ = prepare_image(tmp_path / "x.png", InputSpec(64, 3, alpha_background="black"))
    assert pixels[0, 0].tolist() == [0, 0, 0] and pixels[32, 32].tolist() == [10, 20, 30]


def test_without_a_colour_of_the_data_set_each_image_has_its_own_as_in_earlier_versions() -> None:
    for colour, page in (((20, 20, 20), 255), ((240, 240, 240), 0)):
        assert prepare_image(disc(colour), InputSpec(64, 3))[0][0, 0].tolist() == [page] * 3
        assert open_image(disc(colour)).getpixel((0, 0)) == page


def test_the_chosen_colour_is_that_on_which_the_content_of_all_images_is_seen_best(tmp_path: Path) -> None:
    def measured(*colours: tuple[int, int, int]) -> str | None:
        return choose_alpha_background([measure_transparency([disc(colour)]) for colour in colours])

    assert measured((255, 255, 255), (250, 250, 250)) == "black"
    assert measured((0, 0, 0), (10, 10, 10)) == "white"
    assert measured((255, 204, 50), (220, 60, 60), (100, 180, 90)) == "white"  # both show them: white
    assert measured((255, 255, 255), (0, 0, 0)) == "white"  # either loses one
    assert measured((255, 255, 255), (250, 250, 250), (0, 0, 0)) == "black"  # white loses more
    opaque = measure_transparency([Image.new("RGBA", (8, 8), (255, 255, 255, 255))])
    empty = measure_transparency([Image.new("RGBA", (8, 8), (255, 255, 255, 0))])
    assert choose_alpha_background([opaque, empty]) is None
    disc((255, 255, 255)).save(tmp_path / "x.png")
    assert choose_alpha_background([opaque, empty, read_transparency(tmp_path / "x.png")]) == "black"
