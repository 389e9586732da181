"""Triton's launches on the emulated device: a pytest plugin for the cases of `tests/kernels`.

EMULATED_ARCHITECTURE=87 python -m pytest -p emulator.launches tests/kernels/cases/conv_cases.py
"""

from __future__ import annotations

import os
from contextlib import ExitStack

from vae_edge.emulation.triton_launches import Emulation, emulated

_launches = ExitStack()


def pytest_configure(config: object) -> None:
    """Called by pytest: from now on launches are emulated."""
    del config
    _launches.enter_context(emulated(Emulation(int(os.environ.get("EMULATED_ARCHITECTURE", "87")))))
