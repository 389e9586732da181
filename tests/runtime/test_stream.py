"""`Classifier.stream`: any number of images, a batch at a time, with the answers of a call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vae_edge.data import Dataset
from vae_edge.errors import BackendError, ConfigError, DataError
from vae_edge.runtime import load

pytest.importorskip("torch")


def test_a_generator_is_read_a_batch_at_a_time_and_answered_like_a_call(bundle: Path, digits: Dataset) -> None:
    images, taken = digits.test.images[:50], 0

    def items() -> Iterator[Any]:
        nonlocal taken
        for index, pixels in enumerate(images):
            taken += 1
            yield pixels if index % 2 else Image.fromarray(pixels[..., 0])

    with load(bundle, "onnxruntime", "fp32") as classifier:
        expected = classifier(images)
        stream = classifier.stream(items(), batch=16)
        assert taken == 0
        first, predictions = next(stream)
        assert taken == 16 and len(first) == len(predictions) == 16
        parts = [predictions, *(found for _, found in stream)]
        assert [len(part) for part in parts] == [16, 16, 16, 2]
    assert np.abs(np.concatenate([part.probabilities for part in parts]) - expected.probabilities).max() < 1e-5
    assert np.concatenate([part.labels for part in parts]).tolist() == expected.labels.tolist()


def test_several_threads_read_the_same_in_the_same_order(bundle: Path, digits: Dataset, tmp_path: Path) -> None:
    for index, pixels in enumerate(digits.test.images[:40, ..., 0]):
        Image.fromarray(pixels).save(tmp_path / f"{index:02}.png")
    whole = (tmp_path / "07.png").read_bytes()
    (tmp_path / "07.png").write_bytes(whole[: len(whole) // 2])
    found = []
    for threads in (1, 3):
        with load(bundle, "onnxruntime", "fp32", threads=threads) as classifier:
            found.append(list(classifier.stream(tmp_path, batch=30)))
    for (files, one), (same, other) in zip(*found, strict=True):
        assert files == same and one.names == other.names and list(one.errors) == list(other.errors)
    assert found[0][0][1].names[7] == "" and list(found[0][0][1].errors) == [7]


def test_all_batches_run_on_the_model_of_their_size(bundle: Path, digits: Dataset) -> None:
    from vae_edge.bundle import load_bundle
    from vae_edge.runtime import probing
    from vae_edge.runtime.backends import LoadOptions
    from vae_edge.runtime.classifier import Classifier

    opened, options = load_bundle(bundle), LoadOptions(1, "off", 0, False)
    models = {
        batch: probing.open_verified(opened, "onnxruntime", precision, options)
        for batch, precision in ((1, "fp32"), (8, "int8"), (64, "int8"))
    }
    with Classifier(opened, models) as classifier:
        assert classifier.chosen_for(3) == ("onnxruntime", "int8") and classifier.chosen_for(1)[1] == "fp32"
        last = list(classifier.stream(iter(digits.test.images[:9]), batch=8))[-1][1]
        alone = classifier(digits.test.images[8:9])
    with load(bundle, "onnxruntime", "int8", verify="off") as classifier:
        int8 = classifier(digits.test.images[8:9])
    assert (last.scores == int8.scores).all() and (last.scores != alone.scores).all()


def test_what_a_stream_does_not_take_is_refused_before_it_is_read(bundle: Path, tmp_path: Path) -> None:
    with load(bundle, "onnxruntime", "fp32") as classifier:
        for options, error in (({"batch": 0}, "at least 1"), ({"invert": "no"}, "invert is one of")):
            with pytest.raises(ConfigError, match=error):
                classifier.stream([], **options)
        with pytest.raises(DataError, match="holds no images"):
            classifier.stream(tmp_path)
        with pytest.raises(DataError, match="cannot be read as a folder"):
            classifier.stream(tmp_path / "gone")
        with pytest.raises(DataError, match="one image, but an array of several"):
            next(classifier.stream([np.zeros((2, 28, 28, 1), np.uint8)]))
        assert list(classifier.stream([])) == []
    with pytest.raises(BackendError, match="closed"):
        classifier.stream([])
