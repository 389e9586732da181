"""How files become images is chosen once over the whole data set, said, kept, and followed by every later step."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_makers import write_idx
from PIL import Image, ImageDraw

from vae_edge.cli import main
from vae_edge.data import Dataset, load_dataset
from vae_edge.data.prepare import GREY_TOLERANCE
from vae_edge.errors import ConfigError
from vae_edge.framing import MNIST_FOREGROUND_RATIO
from vae_edge.preprocess import InputSpec, prepare_image


def ring(page: int, reach: float, x: float, y: float, width: int = 6) -> Image.Image:
    image = Image.new("L", (page, page), 255)
    ImageDraw.Draw(image).ellipse([x - reach, y - reach, x + reach, y + reach], outline=0, width=width)
    return image


def write(folder: Path, images: list[Image.Image], suffix: str = "png", **options: object) -> Path:
    for index, image in enumerate(images):
        place = folder / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{index:03}.{suffix}", **options)
    return folder


def centred(count: int = 20) -> list[Image.Image]:
    return [ring(140, 50 * (1 + 0.01 * (k % 3)), 70, 70, 4 + k) for k in range(count)]


def cornered(count: int = 20) -> list[Image.Image]:
    return [ring(224, 20 + k % 4, 40 + k % 7, 45, 3 + k % 5) for k in range(count)]


def photographs(count: int = 6, channels: int = 1) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (9, 9, channels), dtype=np.uint8).squeeze() for _ in range(count)]
    return [Image.fromarray(pixels).resize((90, 90), Image.Resampling.BICUBIC) for pixels in coarse]


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("[ab]/*"))


def assert_prepared(dataset: Dataset, folder: Path) -> None:
    """The images are those of `prepare_image` with the settings that the data set carries."""
    assert dataset.input is not None and dataset.train is not None
    for image, file in zip(dataset.train.images, files_of(folder), strict=True):
        np.testing.assert_array_equal(image, prepare_image(file, dataset.input)[0])


# Fit


def test_drawings_framed_as_cropping_would_frame_them_are_cropped(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, centred()))
    assert dataset.input.fit == "foreground" and dataset.input.foreground_ratio == pytest.approx(
        MNIST_FOREGROUND_RATIO, abs=0.05
    )
    assert_prepared(dataset, tmp_path)
    assert any("cropped to their foreground (fit foreground)" in note for note in dataset.notes)


def test_one_image_without_uniform_background_or_foreground_keeps_all_images_padded(tmp_path: Path) -> None:
    for name, odd in (("noise", photographs(1)[0]), ("empty", Image.new("L", (140, 140), 255))):
        dataset = load_dataset(write(tmp_path / name, [*centred(), odd]))
        assert dataset.input.fit == "pad", name
        assert_prepared(dataset, tmp_path / name)


@pytest.mark.parametrize("images", [cornered, photographs], ids=["drawings in a corner", "photographs"])
def test_other_pictures_are_taken_whole(tmp_path: Path, images: object) -> None:
    dataset = load_dataset(write(tmp_path, images()))
    assert dataset.input.fit == "pad" and dataset.input.foreground_ratio is None
    assert_prepared(dataset, tmp_path)
    assert any("padded to a square (fit pad)" in note for note in dataset.notes)


@pytest.mark.parametrize(("images", "fit"), [(centred, "pad"), (cornered, "foreground"), (photographs, "foreground")])
def test_fit_overrules_the_choice(tmp_path: Path, images: object, fit: str) -> None:
    dataset = load_dataset(write(tmp_path, images()), fit=fit)
    assert dataset.input.fit == fit and "as asked" in dataset.notes[0]
    assert_prepared(dataset, tmp_path)
    with pytest.raises(ConfigError, match="'stretch'"):
        load_dataset(tmp_path, fit="stretch")


def test_the_test_half_has_no_say_in_the_fit(tmp_path: Path) -> None:
    write(tmp_path / "test", cornered())
    write(tmp_path / "train", centred())
    dataset = load_dataset(tmp_path)
    assert dataset.input.fit == "foreground"
    first = prepare_image(sorted((tmp_path / "test").glob("*/*"))[0], dataset.input)[0]
    np.testing.assert_array_equal(dataset.test.images[0], first)


def test_files_are_prepared_as_a_model_says_whatever_they_look_like(tmp_path: Path) -> None:
    write(tmp_path, cornered())
    for spec in (InputSpec(32, 3, "light", 0.6, "foreground"), InputSpec(28, 1, "dark", 0.6, "pad")):
        dataset = load_dataset(tmp_path, prepared_as=spec)
        assert dataset.input == spec and not dataset.notes
        assert_prepared(dataset, tmp_path)


def test_arrays_are_taken_as_they_are_and_say_the_fit_of_files(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "set.npz",
        images=np.stack([np.asarray(page.resize((28, 28))) for page in centred()]),
        labels=[0, 1] * 10,
    )
    plain = load_dataset(tmp_path / "set.npz")
    assert plain.input is None
    for fit in ("pad", "foreground"):
        dataset = load_dataset(tmp_path / "set.npz", fit=fit)
        assert dataset.input.fit == fit and (dataset.train.images == plain.train.images).all()


def test_images_without_labels_beside_arrays_are_prepared_as_files_to_predict(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "unlabelled").mkdir()
    cornered(1)[0].save(tmp_path / "unlabelled" / "0.png")
    deep(12, 1)[0].save(tmp_path / "unlabelled" / "1.png")
    for fit in ("auto", "foreground"):
        dataset = load_dataset(tmp_path, fit=fit)
        assert dataset.input.depth == 12 and dataset.unlabelled[1].max() > 200 and "12 bits" in dataset.notes[0]
        expected = prepare_image(tmp_path / "unlabelled" / "0.png", dataset.input)[0]
        np.testing.assert_array_equal(dataset.unlabelled[0], expected)


# Channels


def lossy(image: Image.Image, *steps: tuple[str, int]) -> Image.Image:
    for kind, quality in steps:
        buffer = io.BytesIO()
        image.save(buffer, kind, quality=quality)
        image = Image.open(buffer).convert("RGB")
    return image


def test_the_tolerance_holds_what_lossy_formats_make_of_grey() -> None:
    pictures = [page.convert("RGB") for page in [*photographs(2), cornered(1)[0]]]
    once = [[(kind, quality)] for kind in ("JPEG", "WEBP") for quality in (10, 50, 75, 90, 100)]
    twice = [[("WEBP", first), ("JPEG", then)] for first in (30, 75) for then in (75, 95, 100)]
    spreads = []
    for steps in once + twice:
        pixels = [np.asarray(lossy(page, *steps)).astype(int) for page in pictures]
        spreads.append(max(int((page.max(-1) - page.min(-1)).max()) for page in pixels))
    assert 1 <= max(spreads) < GREY_TOLERANCE


@pytest.mark.parametrize("suffix", ["webp", "jpg"])
def test_grey_stored_lossy_in_colour_is_grey_and_said_to_be(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, [lossy(page.convert("RGB"), ("WEBP", 70)) for page in photographs()], suffix, quality=75)
    dataset = load_dataset(tmp_path)
    assert dataset.train.images.shape[-1] == 1
    assert_prepared(dataset, tmp_path)
    assert load_dataset(tmp_path, channels=3).train.images.shape[-1] == 3
    if suffix == "webp":
        assert any("6 files are not quite grey" in note and "--channels 3" in note for note in dataset.notes)


def test_a_single_pale_colour_keeps_three_channels(tmp_path: Path) -> None:
    pages = [page.convert("RGB") for page in photographs()]
    pixels = np.asarray(pages[3]).astype(int)
    pages[3] = Image.fromarray((pixels + np.array([0, 0, 3 * GREY_TOLERANCE])).clip(0, 255).astype(np.uint8))
    assert load_dataset(write(tmp_path, pages)).train.images.shape[-1] == 3
    dataset = load_dataset(tmp_path, channels=1)
    assert dataset.train.images.shape[-1] == 1 and "grey" in dataset.notes[0]
    assert_prepared(dataset, tmp_path)


# Depth


def deep(bits: int, count: int = 8) -> list[Image.Image]:
    """16-bit files whose values go up to the largest of so many bits."""
    most = 2**bits - 1
    return [Image.fromarray((page.astype(np.int64) * most // 255).astype(np.uint16)) for page in stretched(count)]


def stretched(count: int) -> list[np.ndarray]:
    """Photographs from black to white."""
    pages = [np.asarray(page).astype(int) for page in photographs(count)]
    return [((page - page.min()) * 255 // (page.max() - page.min())).astype(np.uint8) for page in pages]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_depth_of_16_bit_files_is_found_over_all_of_them(tmp_path: Path, bits: int) -> None:
    dataset = load_dataset(write(tmp_path, deep(bits)))
    assert dataset.input.depth == bits and dataset.train.images.max() > 200
    assert_prepared(dataset, tmp_path)
    assert any(f"8 files have 16-bit values up to {2**bits - 1}" in note for note in dataset.notes)
    plain = load_dataset(write(tmp_path / "plain", [Image.fromarray(page) for page in stretched(8)]))
    apart = dataset.train.images.astype(int) - plain.train.images
    assert np.abs(apart).max() <= 2  # the files' own rounding


def test_a_file_deeper_than_training_is_cut_off_and_said_so(tmp_path: Path) -> None:
    spec = load_dataset(write(tmp_path / "data", deep(12))).input
    values = np.tile(np.array([0, 2048, 4095, 4096, 65535], np.uint16), (5, 1))
    Image.fromarray(values).save(tmp_path / "deep.png")
    pixels, found = prepare_image(tmp_path / "deep.png", replace(spec, size=5))
    assert pixels[0, :, 0].tolist() == [0, 128, 255, 255, 255]
    assert (
        "clipped above 4095" in found.sentence() and "up to 65535, but training's files had 12 bits" in found.sentence()
    )
    pixels, found = prepare_image(files_of(tmp_path / "data")[0], InputSpec(64, 1, "none"))
    assert pixels.max() <= 16 and "too dark" in found.sentence()  # a model that saw no 16-bit files


def test_16_bit_colours_that_come_out_black_are_said_to(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + np.full((30, 3), 4095, ">u2").tobytes()
    header = struct.pack(">IIBBBBB", 30, 30, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 30)) + chunk(b"IEND", b"")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(png)
    assert any("2 files have 16-bit colours" in note for note in load_dataset(tmp_path).notes)
    assert "nearly black" in prepare_image(tmp_path / "a" / "0.png", InputSpec(30, 3))[1].sentence()


# Said


def test_data_show_says_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, deep(12))
    assert main(["data", "show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "fit pad" in out and "12 bits" in out and "grey" in out
    assert (
        main(["data", "show", str(tmp_path), "--channels", "3", "--fit", "foreground", "--size", "30", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["train"]["shape"] == [30, 30, 3]
    assert told["prepared"]["fit"] == "foreground" and told["prepared"]["depth"] == 12


def test_training_says_and_stores_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from vae_edge.training.checkpoint import read_config

    write(tmp_path / "data", deep(12, 24))
    options = ("--preset", "tiny", "--epochs", "1", "--rotation", "none", "--channels", "3", "--size", "32")
    assert main(["train", "--data", str(tmp_path / "data"), *options, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "they are taken for values of 12 bits" in said and "32×32" in said and "fit pad" in said
    spec = read_config(tmp_path / "run").input
    assert (spec.size, spec.channels, spec.fit, spec.depth) == (32, 3, "pad", 12)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["input"]["color_order"] == "rgb"
