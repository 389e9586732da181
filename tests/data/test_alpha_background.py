"""One colour under the transparency of a whole data set: chosen on training images, said, stored, overridden."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_edge.cli import main
from vae_edge.data import load_dataset
from vae_edge.errors import ConfigError

WHITE, BLACK, YELLOW, BLUE = (255, 255, 255), (0, 0, 0), (255, 204, 50), (40, 60, 200)


def icon(path: Path, colour: tuple[int, int, int], side: int = 48, mode: str = "RGBA") -> None:
    """A square in the middle of a transparent page."""
    image = Image.new("RGBA", (side, side), (*colour, 0))
    image.paste((*colour, 255), (12, 12, 36, 36))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path)


def corners(images: np.ndarray) -> set[int]:
    """The values of the upper left pixels."""
    return set(np.unique(images[:, 0, 0]).tolist())


def test_light_and_dark_icons_of_one_data_set_have_one_background(tmp_path: Path) -> None:
    for index in range(6):
        icon(tmp_path / "a" / f"{index}.png", (YELLOW, BLUE)[index % 2])
        icon(tmp_path / "b" / f"{index}.png", (BLUE, YELLOW, YELLOW)[index % 3])
    dataset = load_dataset(tmp_path)
    assert dataset.train is not None and dataset.input is not None
    assert dataset.input.alpha_background == "white" and corners(dataset.train.images) == {255}
    assert any("12 images have transparency: it is laid on white" in note for note in dataset.notes)

    earlier = load_dataset(tmp_path, prepared_as=replace(dataset.input, alpha_background=None))
    assert earlier.train is not None and corners(earlier.train.images) == {0, 255}  # each image by itself
    black = load_dataset(tmp_path, alpha_background="black")
    assert black.train is not None and corners(black.train.images) == {0}
    assert any("laid on black, as asked" in note for note in black.notes)


def test_white_icons_are_laid_on_black_whatever_the_test_images_and_broken_files_are(tmp_path: Path) -> None:
    for index in range(4):
        for name in "ab":
            icon(tmp_path / "train" / name / f"{index}.png", WHITE, mode="LA")
    for index in range(20):
        icon(tmp_path / "test" / "a" / f"{index}.png", BLACK)
    icon(tmp_path / "whole.png", BLACK, side=200)
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "whole.png").unlink()
    for index in range(2):
        (tmp_path / "train" / "a" / f"cut{index}.png").write_bytes(content[: len(content) - 60])
    dataset = load_dataset(tmp_path)
    assert dataset.train is not None and dataset.test is not None and dataset.input is not None
    assert len(dataset.train) == 8 and len(dataset.left_out) == 2
    assert dataset.input.alpha_background == "black"
    assert corners(dataset.train.images) == corners(dataset.test.images) == {0}


def test_without_transparency_nothing_is_chosen_or_said(tmp_path: Path) -> None:
    for name in "ab":
        icon(tmp_path / name / "x.png", BLUE, mode="RGB")
        Image.new("RGBA", (48, 48), (250, 250, 250, 255)).save(tmp_path / name / "y.png")
    dataset = load_dataset(tmp_path)
    assert dataset.input is not None and dataset.input.alpha_background is None
    assert not any("transparency" in note for note in dataset.notes)


def test_unlabelled_files_beside_arrays_choose_it_too(tmp_path: Path) -> None:
    from data_makers import write_idx

    write_idx(tmp_path)
    for index in range(3):
        icon(tmp_path / "unlabelled" / f"{index}.png", WHITE)
    dataset = load_dataset(tmp_path)
    assert dataset.input is not None and dataset.unlabelled is not None
    assert dataset.input.alpha_background == "black" and corners(dataset.unlabelled) == {0}


def test_arrays_keep_what_is_asked_for_prediction(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((8, 28, 28), np.uint8), labels=np.arange(8) % 2)
    asked = load_dataset(tmp_path / "x.npz", alpha_background="black").input
    assert asked is not None and asked.alpha_background == "black" and asked.fit == "pad"
    assert load_dataset(tmp_path / "x.npz").input is None


def test_another_colour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="alpha_background is one of auto, white, black, but 'red' came"):
        load_dataset(tmp_path, alpha_background="red")


def test_data_show_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        icon(tmp_path / name / "x.png", YELLOW)
    assert main(["data", "show", str(tmp_path), "--json", "--alpha-background", "black"]) == 0
    assert json.loads(capsys.readouterr().out)["prepared"]["alpha_background"] == "black"
