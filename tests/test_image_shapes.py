"""Images that are not square: how files and arrays become them, and how a model's input says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_edge.bundle_schema import check_input
from vae_edge.data import load_dataset
from vae_edge.data.dataset import validate_and_resize
from vae_edge.errors import BundleError, DataError
from vae_edge.preprocess import InputSpec, check_batch, measure_input, prepare_image, to_batch

TALL = InputSpec((96, 64), 3, "none")


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards; the border is a dull blue."""
    pixels = np.full((height, width, 3), (40, 40, 120), np.uint8)
    pixels[4:-4, 4:-4, 0] = np.linspace(0, 255, width)[None, 4:-4]
    pixels[4:-4, 4:-4, 1] = np.linspace(0, 255, height)[4:-4, None]
    return Image.fromarray(pixels)


def test_an_input_says_height_and_width_and_a_square_one_says_what_it_always_said() -> None:
    assert (TALL.height, TALL.width, TALL.shape) == (96, 64, (96, 64, 3))
    stored = json.loads(json.dumps(TALL.to_json()))
    assert stored["size"] == [96, 64] and InputSpec.from_json(stored) == TALL
    assert InputSpec((64, 64), 1) == InputSpec(64, 1) and InputSpec((64, 64), 1).to_json()["size"] == 64
    check_input(stored, "here")
    check_input(InputSpec(224, 3).to_json(), "here")


@pytest.mark.parametrize("size", [[96], [96, 64, 3], [0, 64], [96, 513], [96.0, 64], [True, 64], [], "96x64", None])
def test_a_size_of_a_manifest_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(BundleError, match="'size'"):
        check_input({**TALL.to_json(), "size": size}, "here")


@pytest.mark.parametrize("stored", [(640, 960), (64, 96), (320, 480), (5000, 7500)])
def test_a_file_of_the_models_shape_is_resized_and_not_padded(stored: tuple[int, int]) -> None:
    pixels, found = prepare_image(gradient(*stored), TALL)
    expected = np.asarray(gradient(*stored).resize((64, 96), Image.Resampling.BOX), dtype=int)
    assert pixels.shape == (96, 64, 3) and "padded" not in found.sentence()
    assert np.abs(pixels[4:-4, 4:-4].astype(int) - expected[4:-4, 4:-4]).max() < 12


@pytest.mark.parametrize(
    ("stored", "rows", "columns"), [((640, 640), 64, 64), ((320, 960), 96, 32), ((960, 320), 21, 64)]
)
def test_a_file_of_another_shape_is_padded_around_its_middle(stored: tuple[int, int], rows: int, columns: int) -> None:
    white = Image.new("RGB", stored, (255, 255, 255))
    white.paste((40, 40, 120), (0, 0, stored[0], 2))  # a border that is mostly white all the same
    pixels, found = prepare_image(white, TALL)
    assert pixels.shape == (96, 64, 3) and "(height × width) with its border's colour" in found.sentence()
    drawn, _ = prepare_image(gradient(*stored), TALL)
    inside = np.abs(drawn.astype(int) - (40, 40, 120)).max(-1) > 24
    tall, wide = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert abs(len(tall) - rows) <= 3 and abs(len(wide) - columns) <= 3
    assert abs(tall[0] + tall[-1] - 95) <= 2 and abs(wide[0] + wide[-1] - 63) <= 3


def test_a_drawing_is_cropped_to_a_frame_of_the_models_shape() -> None:
    page = np.zeros((200, 300), np.uint8)
    page[30:90, 200:240] = 255  # 60 high, 40 wide: of the shape of the frame
    pixels, _ = prepare_image(Image.fromarray(page), InputSpec((96, 64), 1, "dark", 0.75, "foreground"))
    rows, columns = np.flatnonzero(pixels.any((1, 2))), np.flatnonzero(pixels.any((0, 2)))
    assert abs(len(rows) - 72) <= 2 and abs(len(columns) - 48) <= 2
    measured = measure_input(np.repeat(pixels[None], 10, 0))
    assert (measured.size, measured.background) == ((96, 64), "dark")
    assert measured.foreground_ratio == pytest.approx(0.75, abs=0.03)


def test_arrays_are_of_the_models_shape_and_an_exchange_of_sides_is_named() -> None:
    batch = np.zeros((2, 96, 64, 3), np.uint8)
    assert check_batch(batch, TALL) is batch
    assert to_batch(batch[0], TALL)[0].shape == (1, 96, 64, 3)
    with pytest.raises(DataError, match=r"height and width are exchanged: the model takes 96×64 \(height × width\)"):
        check_batch(batch.transpose(0, 2, 1, 3), TALL)
    with pytest.raises(DataError, match="channels stand first"):
        check_batch(batch.transpose(0, 3, 1, 2), TALL)
    grey = InputSpec((40, 30), 1)
    assert to_batch(np.zeros((40, 30), np.uint8), grey)[0].shape == (1, 40, 30, 1)


def test_arrays_keep_their_shape_or_are_brought_to_one() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 60, 40), dtype=np.uint8)
    assert validate_and_resize(images, None, None, "x").shape == (3, 60, 40, 1)
    assert validate_and_resize(images, (90, 60), 3, "x").shape == (3, 90, 60, 3)
    padded = validate_and_resize(np.full((1, 60, 40), 7, np.uint8), 48, None, "x")
    assert padded.shape == (1, 48, 48, 1) and set(padded.ravel()) == {7}
    with pytest.raises(DataError, match=r"20×60 \(height × width\).*--size"):
        validate_and_resize(images[:, :20].repeat(2, 2)[:, :, :60], None, None, "x")


def test_a_folder_of_one_shape_becomes_squares_unless_another_size_is_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(3):
            gradient(120, 180).save(tmp_path / name / f"{index}.png")
    assert load_dataset(tmp_path).train.images.shape[1:] == (96, 96, 3)
    tall = load_dataset(tmp_path, size=(96, 64))
    assert tall.train.images.shape[1:] == (96, 64, 3)
    assert tall.input is not None and tall.input.size == (96, 64)
    assert any("96×64 (height × width): drawings, cropped to their foreground" in note for note in tall.notes)
    padded = load_dataset(tmp_path, size=(96, 64), fit="pad")
    assert any("96×64 (height × width): full pictures, padded to this shape" in note for note in padded.notes)
