"""Data sets, nearly right 2,100 times each: a right result or an error of our family, and nothing else."""

from __future__ import annotations

import gzip
import hashlib
import random
import struct
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from mutations import EACH, archive_changed, bytes_changed, outcome, seeds

from vae_edge.data.arrays import load_idx_file, load_npz
from vae_edge.data.cache import _read_images
from vae_edge.data.dataset import Dataset
from vae_edge.data.groups import read_table


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small archives, of each form that is read."""
    folder = tmp_path_factory.mktemp("archives")
    images, labels = np.zeros((6, 28, 28), np.uint8), np.arange(6) % 3
    names, angles = np.array(["a", "bé", "c"]), np.zeros(6, np.float32)
    np.savez_compressed(folder / "0.npz", images=images, labels=labels, classes=names, angles_deg=angles)
    np.savez(folder / "1.npz", images=images, labels=names[labels], unlabelled=images[:2])
    turned, big_endian = np.asfortranarray(images), labels[:, None].astype(">i2")
    np.savez(folder / "2.npz", x_train=turned, y_train=big_endian, x_test=images, y_test=labels)
    return folder


def check(dataset: Dataset | None) -> None:
    for split in dataset.splits.values() if dataset is not None else ():
        assert split.images.dtype == np.uint8 and split.images.ndim == 4 and len(split.images) == len(split.labels)
        assert split.labels.min() >= 0 and split.labels.max() < len(split.classes)
        "".join(split.classes).encode("utf-8")


@seeds
def test_archives(archives: Path, tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "set.npz"
    for _ in range(EACH):
        path.write_bytes(archive_changed(rng.choice(sorted(archives.iterdir())).read_bytes(), rng))
        check(outcome(lambda: load_npz(path)))


@seeds
def test_archives_with_other_headers(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "set.npz"
    for _ in range(EACH):
        words = [
            rng.choice(("|u1", "<u8", ">f4", "|O", "<U3", "<U0", "|V8", "[('a', '<f4')]", "S5", "<m8[s]", "x", "(")),
            rng.choice(("False", "True", "None", "__import__('os')")),
            rng.choice(("(6, 28, 28)", "(6, 28, 28, 1)", "()", "(6L,)", "(-1, 28)", "(2**99,)", f"({2**62}, {2**62})",
                        "(0, 28, 28)", "(" * 3000, "(4704,)", "(1e9,)")),
        ]  # fmt: skip
        header = f"{{'descr': '{words[0]}', 'fortran_order': {words[1]}, 'shape': {words[2]}, }}\n".encode()
        version = rng.choice((1, 1, 1, 2, 3, 4))
        length = len(header) if rng.random() < 0.8 else rng.choice((0, 1, 65535))
        packed = struct.pack("<H" if version == 1 else "<I", length)
        array = b"\x93NUMPY" + bytes([version, 0]) + packed + header + bytes(6 * 28 * 28)
        buffer = BytesIO()
        np.savez(buffer, labels=np.arange(6))
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("images.npy", array)
        path.write_bytes(buffer.getvalue())
        check(outcome(lambda: load_npz(path)))


@seeds
def test_idx_files(tmp_path: Path, rng: random.Random) -> None:
    images = b"\0\0\x08\x03" + struct.pack(">III", 6, 28, 28) + bytes(6 * 784)
    labels = b"\0\0\x08\x01" + struct.pack(">I", 6) + bytes([0, 1, 2, 0, 1, 2])
    for _ in range(EACH):
        for old in tmp_path.iterdir():
            old.unlink()
        packed = rng.random() < 0.5
        suffix = ".gz" if packed else ""
        parts = {"images-idx3": images, "labels-idx1": labels}
        changed = rng.choice(sorted(parts))
        for name, content in parts.items():
            late = packed and rng.random() < 0.5
            if name == changed and not late:
                content = bytes_changed(content[:20], rng) + content[20:]  # noqa: PLW2901
            content = gzip.compress(content, 1) if packed else content  # noqa: PLW2901
            if name == changed and late:
                content = bytes_changed(content, rng)  # noqa: PLW2901
            (tmp_path / f"train-{name}-ubyte{suffix}").write_bytes(content)
        if rng.random() < 0.3:
            (tmp_path / "classes.txt").write_bytes(bytes_changed(b"a\nb\nc\n", rng))
        check(outcome(partial(load_idx_file, tmp_path / f"train-images-idx3-ubyte{suffix}")))


@seeds
def test_tables_of_groups(tmp_path: Path, rng: random.Random) -> None:
    path = tmp_path / "groups.csv"
    whole = 'file,group\na/1.png,apple\n"a/odd, ""name"".png","two\nlines"\nb/é.png,google\n'.encode()
    for _ in range(EACH):
        path.write_bytes(bytes_changed(whole, rng))
        found = outcome(lambda: read_table(path))
        assert found is None or all(name and group for name, group in found.items())


@seeds
def test_files_of_the_cache(tmp_path: Path, rng: random.Random) -> None:
    images = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)
    digests = b"".join(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images)
    about = b'{"shape": [4, 5, 6, 3], "broken": [2], "animated": []}'
    whole = images.tobytes() + digests + about + struct.pack("<Q", len(about)) + b"VAEIMGS1"
    path = tmp_path / "images.bin"
    path.write_bytes(whole)
    assert (_read_images(path).images == images).all()
    for _ in range(EACH):
        path.write_bytes(bytes_changed(whole, rng))
        try:
            found = _read_images(path)
        except (OSError, ValueError, KeyError, TypeError):  # as its caller catches
            continue
        assert (found.images == images).all(), "damaged images were taken"
