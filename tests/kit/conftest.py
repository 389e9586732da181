"""A small bundle with probes, images that its own model was asked about, and a kit made of them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from small_models import make_bundle, noise

from vae_edge.bundle import Bundle
from vae_edge.engine.tensorrt import BuildConfig
from vae_edge.kit.description import HeldOut
from vae_edge.kit.write import Kit, kit_device, write
from vae_edge.runtime import load


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle at home: fp32 and int8, with probes. Tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("home")
    return make_bundle(
        folder / "bundle",
        folder / "work",
        widths=(16, 32),
        precisions=("fp32", "int8"),
        proving=find_spec("torch") is not None,
    )


@pytest.fixture(scope="session")
def held_out(home: Bundle) -> HeldOut:
    """Images with labels of which the model gets about four in five right: its own answers, some of them changed."""
    images = noise(100, home.input.size, home.input.channels, seed=3)
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
