"""The script that makes a data set of photographs: its two halves share no pixel."""

from __future__ import annotations

import importlib.util
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vae_edge.data import load_dataset
from vae_edge.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "bench" / "photographs.py"
    spec = importlib.util.spec_from_file_location("bench_photographs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_photographs"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("test", ["left", "right", "top", "bottom"])
def test_no_pixel_is_in_both_halves(script: ModuleType, test: str) -> None:
    """Each crop of the training half sees red alone, which is its part of the picture; those of the test half green."""
    train_box, test_box = script.split_boxes((451, 300), test)
    noise = np.random.default_rng(0).choice(np.array([90, 200], np.uint8), (300, 451))
    pixels = np.zeros((300, 451, 3), np.uint8)
    for channel, (left, top, right, bottom) in enumerate((train_box, test_box)):
        pixels[top:bottom, left:right, channel] = noise[top:bottom, left:right]
    assert ((pixels > 0).sum(2) == 1).all()
    picture = Image.fromarray(pixels)
    for channel, box in enumerate((train_box, test_box)):
        images = np.stack(script.crops(picture, box, 60, seed=1, stream=channel))
        assert images.shape == (60, 64, 64, 3) and images[..., channel].min() > 0
        assert not images[..., 1 - channel].any()
        assert len({image.tobytes() for image in images}) == 60


def test_crops_repeat_for_a_seed_and_plain_ones_are_passed_over(script: ModuleType) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8))
    first, again, other = (script.crops(picture, (0, 0, 300, 200), 5, seed, 0) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    with pytest.raises(DataError, match="0 of 250 crops show anything"):
        script.crops(Image.new("RGB", (300, 200)), (0, 0, 300, 200), 5, 0, 0)
    with pytest.raises(ConfigError, match="'middle'"):
        script.split_boxes((300, 200), "middle")


@pytest.mark.skipif(not (find_spec("skimage") and find_spec("sklearn")), reason="the extra `photographs` is not here")
def test_the_folder_is_a_data_set_of_two_halves(script: ModuleType, tmp_path: Path) -> None:
    script.write(tmp_path / "photos", 6, 3, 0)
    dataset = load_dataset(tmp_path / "photos")
    assert dataset.train.images.shape == (54, 64, 64, 3) and dataset.test.images.shape == (27, 64, 64, 3)
    assert dataset.classes == tuple(sorted(script.PHOTOGRAPHS)) and [path.name for path in tmp_path.iterdir()] == [
        "photos"
    ]
    with pytest.raises(DataError, match="exists already"):
        script.write(tmp_path / "photos", 6, 3, 0)


def test_a_package_that_is_not_there_or_has_another_file_is_named(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = script.Photograph("no_such_package", "data/cat.png", "0" * 64, "left")
    with pytest.raises(DataError, match=r"no_such_package .* pip install"):
        script.find(wanted)
    (tmp_path / "no_such_package" / "data").mkdir(parents=True)
    (tmp_path / "no_such_package" / "__init__.py").touch()
    (tmp_path / "no_such_package" / "data" / "cat.png").write_bytes(b"another")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="SHA-256 is another"):
        script.find(wanted)
