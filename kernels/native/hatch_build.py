"""Hatch build hook: a wheel with the native library where `make_wheels.sh` asks for it, else a pure one."""

from __future__ import annotations

import os
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "VAE_EDGE_WHEEL_LIBRARY"  # the library's path
PLATFORM = "VAE_EDGE_WHEEL_PLATFORM"  # such as manylinux_2_17_aarch64


class LibraryHook(BuildHookInterface):
    """Puts the library where `vae_edge.runtime.native_library` looks for it."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is built."""
        library = os.environ.get(LIBRARY)
        if library and version == "standard":
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{os.environ[PLATFORM]}"
            build_data["force_include"][library] = "vae_edge/_native/libvae_edge_kernels.so"
