from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from data_makers import idx_bytes, some_images, some_labels, write_idx

from vae_edge.data import load_dataset
from vae_edge.data.arrays import read_idx
from vae_edge.errors import ConfigError, DataError


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_the_usual_names_are_one_data_set_with_two_splits(tmp_path: Path, zipped: bool, dotted: bool) -> None:
    write_idx(tmp_path / "set", "train", 20, zipped, dotted)
    write_idx(tmp_path / "set", "t10k", 12, zipped, dotted)
    dataset = load_dataset(tmp_path / "set")
    assert dataset.name == "set" and dataset.classes == ("0", "1", "2", "3")
    assert (dataset.train.images[..., 0] == some_images(20)).all() and (dataset.test.labels == some_labels(12)).all()
    assert dataset.train.images.dtype == np.uint8 and dataset.train.labels.dtype == np.int64


@pytest.mark.parametrize("half", ["train", "t10k"])
def test_either_split_may_be_missing(tmp_path: Path, half: str) -> None:
    write_idx(tmp_path, half)
    dataset = load_dataset(tmp_path)
    assert (dataset.train is None) == (half == "t10k") and (dataset.test is None) == (half == "train")


def test_one_images_file_finds_its_labels_and_its_split(tmp_path: Path) -> None:
    write_idx(tmp_path, "t10k", zipped=True)
    write_idx(tmp_path, "emnist-train")
    assert load_dataset(tmp_path / "t10k-images-idx3-ubyte.gz").test is not None
    assert load_dataset(tmp_path / "emnist-train-images-idx3-ubyte").train is not None
    with pytest.raises(DataError, match="name the images file"):
        load_dataset(tmp_path / "t10k-labels-idx1-ubyte.gz")


def test_four_dimensions_are_colour(tmp_path: Path) -> None:
    images = some_images(5, 32, 3)
    (tmp_path / "train-images-idx4-ubyte").write_bytes(idx_bytes(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(some_labels(5)))
    assert (load_dataset(tmp_path).train.images == images).all()


def test_class_names_come_from_classes_txt_or_the_folder(tmp_path: Path) -> None:
    write_idx(tmp_path / "fashion-mnist")
    assert load_dataset(tmp_path / "fashion-mnist").classes[9] == "Ankle boot"
    names = tmp_path / "fashion-mnist" / "classes.txt"
    names.write_text("α\nbeta\ngamma\ndelta\n")
    assert load_dataset(tmp_path / "fashion-mnist").classes == ("α", "beta", "gamma", "delta")
    names.write_text("a\nb\n")
    with pytest.raises(DataError, match="Label 3 is outside the 2 classes"):
        load_dataset(tmp_path / "fashion-mnist")
    names.write_text("a\na\n")
    with pytest.raises(DataError, match="names a class twice"):
        load_dataset(tmp_path / "fashion-mnist")


WHOLE = idx_bytes(some_images())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\0\0", "expected it to start with"),
        (b"<html>404</html>", "expected it to start with"),
        (WHOLE[:3], "expected it to start with"),
        (WHOLE[:10], "truncated in its header"),
        (WHOLE[:-1], "truncated"),
        (WHOLE + b"\0", "goes on after"),
        (idx_bytes(some_images().astype(">f4"), kind=0x0D), "type 0x0d"),
        (idx_bytes(some_labels()), "expected it to start with"),
        (idx_bytes(some_images(), dims=(0xFFFFFFFF, 0xFFFFFFFF, 4)), "promises"),
        (idx_bytes(some_images(), dims=(2_000_000, 28, 28)), "truncated"),
        (idx_bytes(some_images()[:0]), "holds 0 images"),
        (idx_bytes(some_images()[:, :, :20]), r"28×20 \(height × width\)"),
        (idx_bytes(some_images(19)), "19 images"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_images_files_get_a_sentence_that_names_them(
    tmp_path: Path, content: bytes, says: str, zipped: bool
) -> None:
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.unlink()
    if zipped:
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content) if content else content
        says = "expected it to start with" if says == "is empty" and content else says
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        load_dataset(tmp_path)
    assert str(path) in str(caught.value)


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(WHOLE)
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "sum": whole[:-8] + b"\1\2\3\4" + whole[-4:],
        "bits": whole[:200] + bytes(100) + whole[300:],
        "tail": whole + b"garbage",
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_idx(path, (3,))


def test_a_header_that_promises_terabytes_allocates_nothing(tmp_path: Path) -> None:
    for name, content in {
        "plain": idx_bytes(np.zeros(0, np.uint8), dims=(7_000_000, 1000, 1000)),
        "bomb": gzip.compress(idx_bytes(np.zeros(100_000_000, np.uint8), dims=(4, 28, 28)), 1),
        "within the limit": gzip.compress(idx_bytes(np.zeros(0, np.uint8), dims=(8, 1000, 1000_000))),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match="promises"):
                read_idx(path, (3,))
            assert tracemalloc.get_traced_memory()[1] < 2_000_000, name
        finally:
            tracemalloc.stop()


def test_missing_or_uneven_labels_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(some_labels(21)))
    with pytest.raises(DataError, match=r"21 labels.*20 images"):
        load_dataset(tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match=r"no labels beside it: expected train-labels-idx1-ubyte or"):
        load_dataset(tmp_path)
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="labels but no images"):
        load_dataset(tmp_path)


def test_images_outside_28_to_224_pixels_need_a_size(tmp_path: Path) -> None:
    for side in (8, 225):
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(some_images(20, side)))
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(some_labels(20)))
        with pytest.raises(DataError, match=f"have {side}.*--size"):
            load_dataset(tmp_path)
        assert load_dataset(tmp_path, size=28).train.images.shape == (20, 28, 28, 1)
    with pytest.raises(ConfigError, match="size 225×225"):
        load_dataset(tmp_path, size=225)
    with pytest.raises(ConfigError, match=r"size 27×96 \(height × width\)"):
        load_dataset(tmp_path, size=(27, 96))
    with pytest.raises(ConfigError, match="2 came"):
        load_dataset(tmp_path, channels=2)


def test_headers_of_random_bytes_raise_nothing_but_data_errors(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "train-images-idx3-ubyte"
    for _ in range(200):
        content = bytearray(idx_bytes(some_images(2)))
        for place in generator.integers(0, 16, 3):
            content[place] = int(generator.integers(256))
        path.write_bytes(content)
        try:
            values = read_idx(path, (3, 4))
        except DataError:
            continue
        assert values.size == len(content) - 4 - 4 * content[3]
        assert struct.unpack(">I", content[4:8])[0] == len(values)
