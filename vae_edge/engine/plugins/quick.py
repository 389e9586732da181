"""Kernels as quick deployable plugins of TensorRT 10.13 and later, and 11, compiled ahead of time.

The PTX that a plugin gives TensorRT goes into the engine with its launch parameters, and TensorRT launches it: where
the engine runs, nothing of this package is needed. Such a plugin has no workspace, so the memory that a kernel works in
is an output that nobody reads. TensorRT measures the variants of a kernel as tactics.

Each kernel is a plugin of its own, without attributes: with NumPy 2, TensorRT 10.13's Python code reads an attribute
wrongly (of a text, the first letter for all) or not at all (a number, from NumPy 2.4 on).

What TensorRT's own Python code does with this is tested against the bindings of 10.13 and 11.4, and the PTX is executed
by the emulator (`tests/engine/test_plugins_quick.py`). Not verified on hardware.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from vae_edge.engine.plugins.kernel_file import Code, Kernel, evaluate
from vae_edge.errors import EngineError

NAMESPACE = "vae_edge"
TRT_DTYPES = {"uint8": "UINT8", "int8": "INT8", "float16": "HALF", "float32": "FLOAT", "int64": "INT64"}
_TYPE_NAMES = {**TRT_DTYPES, "float16": "FP16", "float32": "FP32"}  # as AutoTuneCombination spells them

_registered: set[tuple[str, str]] = set()


def check_quick_plugins(module: Any, version: str) -> None:
    """Refuse a TensorRT that takes no plugins whose kernels are compiled ahead of time.

    Raises:
        EngineError: with what does.
    """
    if not hasattr(module, "QuickPluginCreationRequest"):
        raise EngineError(
            f"TensorRT {version} takes no kernels compiled ahead of time into an engine; 10.13 (JetPack 7) or later "
            "does: build with `--kernels tensorrt`, or a network file, with `--kind native`."
        )


def register(module: Any, kernels: Mapping[str, Kernel], version: str) -> None:
    """Register kernels as plugins, each once a process.

    Args:
        module: TensorRT.
        kernels: by the plugin's name; each compiled for one architecture.
        version: of TensorRT, for messages.

    Raises:
        EngineError: this TensorRT has no such plugins.
    """
    check_quick_plugins(module, version)
    plugin = _plugin_module(module)
    for name, kernel in kernels.items():
        if (module.__name__, name) not in _registered:
            _register(module, plugin, name, kernel)
            _registered.add((module.__name__, name))


def _plugin_module(module: Any) -> Any:
    """TensorRT's module `plugin`, which the wheels have under the longer name."""
    names = dict.fromkeys((f"{module.__name__}.plugin", "tensorrt.plugin", "tensorrt_bindings.plugin"))
    found = next((name for name in names if _is_there(name)), None)
    if found is None:
        raise EngineError(
            f"TensorRT's Python package has none of {', '.join(names)}: reinstall TensorRT, or build with "
            "`--kernels tensorrt`."
        )
    return importlib.import_module(found)


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it would be in
        return False


def _register(module: Any, plugin: Any, name: str, kernel: Kernel) -> None:
    """Register one kernel. TensorRT reads the signatures of the functions, so they are made for its inputs."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    tensors = [
        inspect.Parameter(f"input_{number}", positional, annotation=plugin.TensorDesc)
        for number in range(len(kernel.inputs))
    ]
    made = inspect.Parameter("outputs", positional)
    tactic = inspect.Parameter("tactic", positional, annotation=int)
    identity = f"{NAMESPACE}::{name}"

    def describe(*inputs: Any) -> Any:
        return _describe(module, plugin, kernel, inputs)

    def tune(*arguments: Any) -> Any:
        return _tune(plugin, kernel)

    def implement(*arguments: Any) -> Any:
        return _implement(plugin, kernel, arguments[: len(kernel.inputs)], arguments[-1])

    def sign(function: Any, parameters: list[inspect.Parameter], returns: Any) -> Any:
        function.__signature__ = inspect.Signature(parameters, return_annotation=returns)
        return function

    outputs = len(kernel.outputs) + len(kernel.scratch)
    plugin.register(identity)(sign(describe, tensors, tuple.__class_getitem__((plugin.TensorDesc,) * outputs)))
    plugin.autotune(identity)(sign(tune, [*tensors, made], list[plugin.AutoTuneCombination]))
    code = tuple[str | bytes, str | bytes, plugin.KernelLaunchParams, plugin.SymExprs]
    plugin.aot_impl(identity)(sign(implement, [*tensors, made, tactic], code))


def _describe(module: Any, plugin: Any, kernel: Kernel, descriptions: tuple[Any, ...]) -> tuple[Any, ...]:
    """Types and shapes of outputs and scratch. Where TensorRT asks for types alone, its shapes are not real."""
    buffers = (*kernel.outputs, *kernel.scratch)
    dtypes = [getattr(module.DataType, TRT_DTYPES[buffer.dtype]) for buffer in buffers]
    if descriptions[0].shape_expr[0].is_fake:
        shapes = [plugin.ShapeExprs(len(buffer.shape)) for buffer in buffers]
    else:
        shapes = [tuple(_value(plugin, side, descriptions) for side in buffer.shape) for buffer in buffers]
    return tuple(plugin.from_shape_expr(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True))


def _value(plugin: Any, expression: Any, descriptions: tuple[Any, ...]) -> Any:
    return evaluate(expression, lambda number, axis: descriptions[number].shape_expr[axis], int, plugin.min)


def _tune(plugin: Any, kernel: Kernel) -> list[Any]:
    """The one combination of types, in plain layout; a tactic, from 1 on, is a variant of the kernel."""
    dtypes = (*kernel.inputs, *(buffer.dtype for buffer in (*kernel.outputs, *kernel.scratch)))
    types = ", ".join(_TYPE_NAMES[dtype] for dtype in dtypes)
    tactics = [code.variant + 1 for code in _codes(kernel)]
    return [plugin.AutoTuneCombination(types, "LINEAR", tactics)]


def _codes(kernel: Kernel) -> tuple[Code, ...]:
    """The variants; a kernel that is registered here was compiled for the one GPU that TensorRT builds on."""
    return kernel.for_architecture(kernel.codes[0].architecture)


def _implement(plugin: Any, kernel: Kernel, descriptions: tuple[Any, ...], tactic: int) -> tuple[Any, ...]:
    """Name, PTX, launch parameters and scalars of a variant."""
    code = next(code for code in _codes(kernel) if code.variant == max(tactic - 1, 0))

    def value(expression: Any) -> Any:
        return plugin.SymInt32(_value(plugin, expression, descriptions))

    launch = plugin.KernelLaunchParams()
    launch.grid_x, launch.grid_y, launch.grid_z = map(value, code.grid)
    launch.block_x = 32 * code.warps
    launch.shared_mem = code.shared_bytes
    scalars = plugin.SymIntExprs(len(kernel.scalars))
    for number, expression in enumerate(kernel.scalars):
        scalars[number] = value(expression)
    return code.entry, code.ptx.decode(), launch, scalars
