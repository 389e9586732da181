"""Any batch size: the same answers for each image, and the same memory however many sizes come."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from small_models import noise

from vae_edge.bundle import Bundle
from vae_edge.runtime.backends import LoadOptions
from vae_edge.runtime.entries import open_classifier
from vae_edge.runtime.openvino_backend import BUCKETS, MAX_WARM_SIZES, OpenVinoBackend, split_into_buckets

MEMORY_MIB = 130  # measured: 69 with OpenVINO (946 before batches had buckets), 35 with ONNX Runtime

GROWTH = """
import sys
import numpy as np
from vae_edge.bundle import load_bundle
from vae_edge.runtime.backends import LoadOptions
from vae_edge.runtime.entries import open_classifier

def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024

session = open_classifier(load_bundle(sys.argv[1]), sys.argv[2], "fp32", LoadOptions()).session
images = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 1), dtype=np.uint8)
session.infer(images[:1])
before = resident()
for size in np.random.default_rng(1).permutation(300) + 1:
    session.infer(images[:size])
print(resident() - before)
"""


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_memory_does_not_grow_with_the_batch_sizes_seen(session_bundle: Bundle, backend: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", GROWTH, str(session_bundle.path), backend]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < MEMORY_MIB


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_an_image_has_the_same_answers_in_every_batch(session_bundle: Bundle, precision: str) -> None:
    images = noise(140)
    session = open_classifier(session_bundle, "openvino", precision, LoadOptions()).session
    alone = [[output[0].copy() for output in session.infer(images[k : k + 1])] for k in range(len(images))]
    for size in (2, 3, 7, 8, 33, 60, 64, 65, 140):
        for index, output in enumerate(session.infer(images[:size])):
            assert len(output) == size
            np.testing.assert_allclose(output, [row[index] for row in alone[:size]], rtol=1e-5, atol=1e-6)
    session.close()


def test_what_an_earlier_call_left_in_a_bucket_does_not_matter(session_bundle: Bundle) -> None:
    images = noise(15)
    session = open_classifier(session_bundle, "openvino", "fp32", LoadOptions()).session
    before = [output.copy() for output in session.infer(images[:7])]
    session.infer(images[7:])
    for first, second in zip(before, session.infer(images[:7]), strict=True):
        np.testing.assert_array_equal(first, second)
    session.close()


def test_pieces_hold_all_images_with_little_room_to_spare() -> None:
    for count in range(1, 600):
        pieces = split_into_buckets(count)
        assert set(pieces) <= set(BUCKETS)
        assert count <= sum(pieces) <= 1.25 * count
        assert sum(pieces[:-1]) < count
    assert (
        split_into_buckets(1) == [1] and split_into_buckets(64) == [64] and split_into_buckets(200) == [64, 64, 64, 8]
    )


def test_one_image_stays_hot_and_only_some_prepared_sizes_are_kept(session_bundle: Bundle) -> None:
    session = open_classifier(session_bundle, "openvino", "fp32", LoadOptions()).session
    assert isinstance(session, OpenVinoBackend)
    one = session.compiled(1)
    sizes = [3, 5, 6, 7, 9, 10, 11, 12, 13, 14]
    for size in sizes:
        session.warm_up(size)
        assert len(session.infer(noise(size))[0]) == size
    assert session.compiled(1) is one
    assert list(session._warm) == sizes[-MAX_WARM_SIZES:]
    assert set(session._buckets) <= set(BUCKETS)
    assert len(session._buffers.batch_sizes()) <= MAX_WARM_SIZES + len(BUCKETS)
    session.close()
