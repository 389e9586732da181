from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from small_models import make_bundle

from vae_edge.bundle import Bundle


@pytest.fixture(scope="session")
def bench_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("benchmark")
    return make_bundle(folder / "bundle", folder / "work", widths=(16, 32))
