"""A trained bundle with probes, images that its own model was asked about, and a kit made of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from vae_edge.bundle import Bundle, load_bundle
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.kit.description import HeldOut
from vae_edge.kit.write import Kit, kit_device, write
from vae_edge.runtime import load


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle at home: a small trained network, fp32, fp16 and int8, with probes. Tests that change it copy it."""
    folder = tmp_path_factory.mktemp("home") / "bundle"
    return load_bundle(shutil.copytree(Path(__file__).parents[1] / "fixtures/schema1/bundle", folder))


@pytest.fixture(scope="session")
def held_out(home: Bundle) -> HeldOut:
    """Images with labels of which the model gets about four in five right: its own answers, some of them changed."""
    size, channels = home.input.size, home.input.channels
    images = np.random.default_rng(3).integers(0, 256, (100, size, size, channels), dtype=np.uint8)
    with load(home.path, "onnxruntime", "fp32", verify="off") as classifier:
        found = classifier(images, color="rgb")
    labels = found.labels.copy()
    labels[::5] = (labels[::5] + 1) % len(home.classes)
    return HeldOut(images, labels, found.angles_deg.astype(np.float32), "noise", "test")


@pytest.fixture(scope="session")
def kit(home: Bundle, held_out: HeldOut, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """A kit for an Orin in a folder with blanks in its name. Tests that change it copy it first."""
    place = tmp_path_factory.mktemp("a kit") / "for orin nano"
    return write(home, kit_device("orin-nano"), [BuildConfig("int8"), BuildConfig("fp32")], place, held_out)
