from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from small_models import make_bundle

from vae_edge.bundle import Bundle


@pytest.fixture(scope="session")
def session_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One grey bundle that no test changes: fp32, fp16, int8 and a reconstruction."""
    folder = tmp_path_factory.mktemp("runtime")
    return make_bundle(folder / "bundle", folder / "work", proving=find_spec("torch") is not None)


@pytest.fixture
def own_bundle(tmp_path: Path) -> Bundle:
    """A bundle of the test's own."""
    return make_bundle(tmp_path / "bundle", tmp_path / "work", widths=(16, 32))
