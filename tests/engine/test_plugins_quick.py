"""Kernels as quick deployable plugins, by the real Python code of TensorRT 10.13 and 11.4.

An API-surface test, not "TensorRT tested": what the bindings' own classes make of the plugins is taken from them, and
the PTX, the grid and the scalars that they would give TensorRT are executed by the emulator. The libraries below are
stubs; see `plugin_probe.py`. The wheels come by `tests/engine/fetch_bindings.sh FOLDER`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bindings import HERE, bindings_environment, needs_wheels

from vae_edge.engine.plugins import quick
from vae_edge.engine.plugins.kernel_file import SUFFIX, Kernel
from vae_edge.errors import EngineError

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, whose PTX the emulator executes")
versions = pytest.mark.parametrize("version", ["10.13.3.9", "11.4.0.106"])
BATCHES = (1, 3, 300)
Answer = tuple[dict[str, Any], dict[str, Kernel]]


def rotation() -> tuple[bytes, list[list[int | None]]]:
    """The kernel file of a rotation, and the shapes of its inputs."""
    from vae_edge_kernels.aot.plugin_operators import TensorType
    from vae_edge_kernels.aot.plugins import compile_plugin

    shapes: list[list[int | None]] = [[None, 20, 28, 3], [None], [None]]
    types = [TensorType(dtype, tuple(shape)) for dtype, shape in zip(("fp16", "fp32", "fp32"), shapes, strict=True)]
    attributes = {"scale": 1 / 255, "fill": 0.25, "masked": True, "dtype": "fp16"}
    attributes |= {"inv_output_scale": 1.0, "input_scale": 0.0}
    return compile_plugin("VaeEdgeRotate", types, attributes, [87], cubins=False), shapes


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Answer]:
    """Give what a version's Python code makes of two networks and a rotation, and their kernels."""
    from plugin_cases import network_file, network_types

    from vae_edge.engine.plugins.kernel_file import read_kernel

    files = {f"VaeEdgeNetwork_{int8}": network_file(int8, 87, quick=True) for int8 in (False, True)}
    shapes = {f"VaeEdgeNetwork_{int8}": [list(each.shape) for each in network_types(int8)] for int8 in (False, True)}
    files["VaeEdgeRotate_x"], shapes["VaeEdgeRotate_x"] = rotation()
    kernels = {name: read_kernel(content, name) for name, content in files.items()}
    answers: dict[str, dict[str, Any]] = {}

    def answer(version: str) -> Answer:
        if version not in answers:
            environment = bindings_environment(version, tmp_path_factory.mktemp(f"trt{version}"))
            folder = tmp_path_factory.mktemp(f"kernels{version}")
            for name, content in files.items():
                (folder / f"{name}{SUFFIX}").write_bytes(content)
            (folder / "shapes.json").write_text(json.dumps(shapes))
            command = [sys.executable, str(HERE / "plugin_probe.py"), str(folder)]
            run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert run.returncode == 0, run.stderr
            answers[version] = json.loads(run.stdout.splitlines()[-1])  # before it, TensorRT says: experimental
        return answers[version], kernels

    return answer


@needs_wheels
@needs_triton
@versions
def test_each_kernel_becomes_an_ahead_of_time_plugin_of_its_types_and_shapes(
    ask: Callable[[str], Answer], version: str
) -> None:
    answer, kernels = ask(version)
    assert answer["version"] == version
    assert answer["creators"] == sorted(kernels)
    names = {"float16": "HALF", "float32": "FLOAT", "int8": "INT8"}
    for name, kernel in kernels.items():
        made = answer["plugins"][name]
        buffers = (*kernel.outputs, *kernel.scratch)
        assert made["class"] == "_TemplateAOTPlugin"
        assert made["dtypes"] == [names[each.dtype] for each in buffers]
        types = [names[dtype] for dtype in kernel.inputs] + made["dtypes"]
        assert made["combination"] == [[dtype, "LINEAR"] for dtype in types]
    shapes = answer["plugins"]["VaeEdgeNetwork_True"]["shapes"]
    activations, workspace = (each.shape[1] for each in kernels["VaeEdgeNetwork_True"].scratch)
    for batch, found in zip(BATCHES, shapes, strict=True):
        slots = min(batch, 256)
        assert found == [[batch, 10], [batch], [batch], [batch, 3], [slots, activations], [slots, workspace]]


@needs_wheels
@needs_triton
@versions
def test_tactics_are_the_variants_and_launches_follow_the_batch(ask: Callable[[str], Answer], version: str) -> None:
    answer, kernels = ask(version)
    first, second = answer["plugins"]["VaeEdgeNetwork_False"]["kernels"]
    assert (first["tactic"], second["tactic"]) == (1, 2)
    assert (first["block"], second["block"]) == ([128, 1, 1], [256, 1, 1])
    assert first["ptx"] != second["ptx"]
    assert first["grid"] == [[1, 1, 1], [3, 1, 1], [256, 1, 1]] and first["scalars"] == [[1], [3], [300]]
    assert first["shared"] == kernels["VaeEdgeNetwork_False"].codes[0].shared_bytes
    (turn,) = answer["plugins"]["VaeEdgeRotate_x"]["kernels"]
    size = kernels["VaeEdgeRotate_x"].codes[0].grid[1]
    assert turn["grid"] == [[batch, size, 1] for batch in BATCHES] and turn["scalars"] == [[]] * 3


@needs_wheels
@needs_triton
@versions
@pytest.mark.parametrize("int8", [False, True])
def test_what_tensorrt_would_launch_gives_what_the_operators_give(
    ask: Callable[[str], Answer], version: str, int8: bool
) -> None:
    """Its PTX, grid, threads, shared memory and scalars; batch 3, of which each image has scratch of its own."""
    from plugin_cases import check_network, network_inputs

    from vae_edge.emulation.plugins import run_plugin

    answer, kernels = ask(version)
    name = f"VaeEdgeNetwork_{int8}"
    made = answer["plugins"][name]["kernels"][0]
    x, y, z = made["grid"][BATCHES.index(3)]
    assert made["block"][0] % 32 == 0
    code = replace(
        kernels[name].codes[0],
        ptx=made["ptx"].encode(),
        entry=made["entry"],
        warps=made["block"][0] // 32,
        shared_bytes=made["shared"],
    )
    inputs, expected = network_inputs(int8, 3)
    scalars = made["scalars"][BATCHES.index(3)]
    check_network(run_plugin(kernels[name], code, inputs, grid=(x, y, z), scalars=scalars), expected)


# ---- Without the bindings -------------------------------------------------------------------------------------------


def test_a_tensorrt_without_such_plugins_is_refused_with_what_to_do() -> None:
    words = r"TensorRT 10\.3\.0 takes no kernels compiled ahead of time .* `--kind native`"
    with pytest.raises(EngineError, match=words):
        quick.register(ModuleType("tensorrt"), {}, "10.3.0")


def test_a_package_without_its_plugins_is_refused() -> None:
    module = ModuleType("tensorrt_of_nowhere")
    module.QuickPluginCreationRequest = object()  # type: ignore[attr-defined]
    if find_spec("tensorrt") is not None or find_spec("tensorrt_bindings") is not None:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(EngineError, match=r"has none of tensorrt_of_nowhere\.plugin, tensorrt\.plugin"):
        quick.register(module, {}, "10.13")


def test_the_emulator_refuses_a_launch_with_the_wrong_scalars() -> None:
    """The case that the execution above must refuse."""
    pytest.importorskip("triton")
    from plugin_cases import network_inputs, network_kernel
    from vae_edge_kernels.emulator.errors import EmulatorError

    from vae_edge.emulation.plugins import run_plugin

    kernel = network_kernel(False, 87, quick=True)
    inputs, _ = network_inputs(False, 1)
    with pytest.raises(EmulatorError):
        run_plugin(kernel, kernel.codes[0], inputs, scalars=[2])
    assert np.asarray(inputs[0]).shape[0] == 1
