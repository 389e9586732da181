"""The real Python bindings of a TensorRT version over a stub library, for processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
WHEELS = os.environ.get("VAE_EDGE_TENSORRT_WHEELS", "")
VERSIONS = {"10.3.0": 10, "10.13.3.9": 10, "11.4.0.106": 11}

needs_wheels = pytest.mark.skipif(
    not WHEELS or shutil.which("cc") is None,
    reason="set VAE_EDGE_TENSORRT_WHEELS to a folder filled by tests/engine/fetch_bindings.sh (and have a C compiler)",
)


def bindings_environment(version: str, folder: Path) -> dict[str, str]:
    """Unpack a version's bindings into the folder, beside stub libraries: the environment in which they are imported.

    Skips the test where there is no wheel.
    """
    wheels = sorted(Path(WHEELS).glob(f"tensorrt_cu*_bindings-{version}-*.whl"))
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    fitting = [wheel for wheel in wheels if f"-{tag}-" in wheel.name]
    if not fitting:
        pytest.skip(f"{WHEELS} has no bindings of TensorRT {version} for {tag}")
    with zipfile.ZipFile(fitting[0]) as wheel:
        wheel.extractall(folder)
    major = VERSIONS[version]
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = f"lib{name}.so.{major}"
        command = ["cc", "-shared", "-fPIC", "-Wall", "-Werror", f"-Wl,-soname,{library}", "-o", str(folder / library)]
        subprocess.run([*command, str(HERE / "stubs" / "tensorrt_stub.c")], check=True)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        "PYTHONPATH": os.pathsep.join(map(str, (folder, REPOSITORY, REPOSITORY / "kernels"))),
    }
