"""Builds with TensorRT-RTX and plugins that compute nothing (`plugin_stubs.py`), in a process of their own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx

from vae_edge.exporting.kernel_file import write_kernel_graph


def build(model: onnx.ModelProto, folder: Path) -> dict[str, Any]:
    """What `plugin_stubs.py` says of a file. The parser gets the library under the name that it looks for."""
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    assert found is not None and found.submodule_search_locations
    link = folder / "libtensorrt_rtx.so"
    if not link.exists():
        link.symlink_to(next(Path(found.submodule_search_locations[0]).rglob("libtensorrt_rtx.so.*")))
    write_kernel_graph(model, folder / "own.onnx")
    command = [sys.executable, str(Path(__file__).with_name("plugin_stubs.py")), str(folder / "own.onnx")]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
