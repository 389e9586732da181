"""Kernels as `IPluginV3` of TensorRT-RTX, which takes no kernels compiled ahead of time from Python.

The engine carries the machine code for each of its architectures, and the plugin launches it by the driver on
TensorRT's stream. So this package, though neither Triton nor PyTorch, is needed where the engine runs: `register`
before it is deserialized. Building is tested with TensorRT-RTX 1.7; launches, with the doubles of the driver and the
emulator. Not verified on hardware.
"""

from __future__ import annotations

import ctypes
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.engine import cuda
from vae_edge.engine.plugins.kernel_file import Buffer, Code, Expression, Kernel, evaluate, read_kernel
from vae_edge.engine.plugins.quick import NAMESPACE, TRT_DTYPES
from vae_edge.errors import EngineError

VERSION = "1"
FIELD = "code"  # of a serialized plugin: its kernel file without PTX
LIBRARY = "libtensorrt_rtx.so"
FORWARD_FROM = 90  # code of an architecture from here on is for that one alone

_creators: dict[tuple[str, str], Any] = {}
_kernels: dict[str, Kernel] = {}
_registering = threading.Lock()


def register(module: Any, names: Iterable[str], kernels: Mapping[str, Kernel] | None = None) -> None:
    """Register plugins, once a process.

    Args:
        module: TensorRT-RTX.
        names: of the plugins.
        kernels: by the plugin's name, for whoever builds.

    Raises:
        EngineError: TensorRT-RTX does not take one.
    """
    with _registering:
        _kernels.update(kernels or {})
        for name in names:
            if (module.__name__, name) in _creators:
                continue
            creator = _creator(module, name)
            if not module.get_plugin_registry().register_creator(creator, NAMESPACE):
                raise EngineError(f"TensorRT-RTX does not register the plugin {name}: another one has its name.")
            _creators[module.__name__, name] = creator  # it must live as long as the registry


@contextmanager
def linked_library() -> Iterator[str | None]:
    """A folder in which the library is called as TensorRT-RTX's parser asks for it, for a process's LD_LIBRARY_PATH.

    The parser opens `libtensorrt_rtx.so` for a node that is a plugin, and where it does not find it, it ends the
    process. The wheel (1.7) has `libtensorrt_rtx.so.1` alone. None where nothing needs to be mended.
    """
    spec = find_spec("tensorrt_rtx_libs")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    found = next((path for folder in folders for path in sorted(folder.glob("libtensorrt_rtx.so.*"))), None)
    if found is None or (found.parent / LIBRARY).exists():
        yield None if found is None else str(found.parent)
        return
    with tempfile.TemporaryDirectory(prefix="vae-edge-rtx-") as folder:
        (Path(folder) / LIBRARY).symlink_to(found)
        yield folder


def _creator(module: Any, name: str) -> Any:
    base = module.IPluginCreatorV3One

    class Creator(base):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 wants this very call
            self.name, self.plugin_namespace, self.plugin_version = name, NAMESPACE, VERSION
            self.field_names = module.PluginFieldCollection([])

        def create_plugin(self, node: str, fields: Any, phase: Any) -> Any:
            if phase != module.TensorRTPhase.RUNTIME:
                return make_plugin(module, name, find_kernel(name))
            content = next((field.data.tobytes() for field in fields if field.name == FIELD), b"")
            return make_plugin(module, name, read_kernel(content, f"The plugin {name} of the engine"))

    return Creator()


def find_kernel(name: str) -> Kernel:
    """The kernel of a plugin that is built with.

    Raises:
        EngineError: it was not registered.
    """
    if name not in _kernels:
        raise EngineError(
            f"The plugin {name} was registered to run, and not to build with: build the engine with "
            "`vae-edge build --kernels network`."
        )
    return _kernels[name]


class _Launcher:
    """A kernel's code, loaded for one GPU, and its launches."""

    def __init__(self, kernel: Kernel, code: Code) -> None:
        self._kernel, self._description = cuda.KernelCode(code.cubin, code.entry), kernel
        self._code = code

    def launch(self, shapes: Sequence[Sequence[int]], addresses: Sequence[int], workspace: int, stream: int) -> None:
        """Put a launch on a stream.

        Args:
            shapes: of the inputs.
            addresses: of inputs and outputs.
            workspace: address of the memory to work in.
            stream: its handle.
        """

        def dimension(number: int, axis: int) -> int:
            return int(shapes[number][axis])

        kernel, inputs = self._description, len(self._description.inputs)
        grid = [evaluate(side, dimension) for side in self._code.grid]
        if 0 in grid:  # an empty batch
            return
        offsets, _ = kernel.scratch_offsets(dimension)
        arguments = [ctypes.c_uint64(address) for address in addresses[:inputs]]
        numbers = [ctypes.c_int(evaluate(scalar, dimension)) for scalar in kernel.scalars]
        made = [ctypes.c_uint64(address) for address in addresses[inputs:]]
        scratch = [ctypes.c_uint64(workspace + offset) for offset in offsets]
        self._kernel.launch(
            (grid[0], grid[1], grid[2]),
            32 * self._code.warps,
            self._code.shared_bytes,
            stream,
            [*arguments, *numbers, *made, *scratch],
        )


def choose_code(kernel: Kernel, architecture: int) -> Code:
    """The code that runs on an architecture: its own, or that of an earlier one of the same generation.

    Raises:
        EngineError: there is none.
    """
    fitting = [
        code
        for code in kernel.codes
        if code.architecture == architecture
        or (
            (architecture < FORWARD_FROM and code.architecture // 10 == architecture // 10)
            and code.architecture < architecture
        )
    ]
    if not fitting:
        return kernel.for_architecture(architecture)[0]  # which says what there is
    return max(fitting, key=lambda code: code.architecture)


def make_plugin(module: Any, name: str, kernel: Kernel) -> Any:
    """An `IPluginV3` of this TensorRT-RTX module that computes a kernel's node.

    Raises:
        EngineError: the kernel has no machine code.
    """
    if not kernel.without_ptx().codes:
        raise EngineError(f"The kernel of the plugin {name} was compiled without machine code: build the engine again.")
    bases = (module.IPluginV3, module.IPluginV3OneCore, module.IPluginV3OneBuild, module.IPluginV3OneRuntime)
    dtypes = [
        getattr(module.DataType, TRT_DTYPES[dtype])
        for dtype in (*kernel.inputs, *(buffer.dtype for buffer in kernel.outputs))
    ]
    inputs = len(kernel.inputs)

    class Plugin(*bases):  # type: ignore[misc]
        def __init__(self, launcher: _Launcher | None = None) -> None:
            for base in bases:
                base.__init__(self)  # pybind11 wants these very calls
            self.plugin_name, self.plugin_namespace, self.plugin_version = name, NAMESPACE, VERSION
            self.num_outputs = len(kernel.outputs)
            self.launcher = launcher
            self.serialized: tuple[Any, ...] = ()

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin(self.launcher)

        # When the engine is built

        def get_output_data_types(self, types: Any) -> list[Any]:
            return dtypes[inputs:]

        def get_output_shapes(self, shapes: Any, shape_inputs: Any, builder: Any) -> list[Any]:
            def dimension(number: int, axis: int) -> _Side:
                return _Side(module, builder, shapes[number][axis])

            return [module.DimsExprs(_sides(module, builder, buffer, dimension)) for buffer in kernel.outputs]

        def supports_format_combination(self, position: int, tensors: Any, count: int) -> bool:
            desc = tensors[position].desc
            return bool(desc.format == module.TensorFormat.LINEAR and desc.type == dtypes[position])

        def configure_plugin(self, given: Any, made: Any) -> None:
            return None  # everything was known when the kernel was compiled

        def get_workspace_size(self, given: Any, made: Any) -> int:
            return kernel.scratch_offsets(lambda number, axis: int(given[number].max[axis]))[1]

        def get_valid_tactics(self) -> list[int]:
            return []

        # When it runs

        def get_fields_to_serialize(self) -> Any:
            content = np.frombuffer(kernel.without_ptx().to_bytes(), np.int8)
            field = module.PluginField(FIELD, content, module.PluginFieldType.INT8)
            fields = module.PluginFieldCollection([field])
            self.serialized = content, field, fields  # TensorRT reads them after this call, and holds none of them
            return fields

        def attach_to_context(self, context: Any) -> Any:
            return Plugin(self.launcher or _Launcher(kernel, choose_code(kernel, cuda.current_architecture())))

        def on_shape_change(self, given: Any, made: Any) -> int:
            return 0

        def set_tactic(self, tactic: int) -> int:
            return 0

        def enqueue(self, given: Any, made: Any, addresses: Any, results: Any, workspace: int, stream: int) -> int:
            if self.launcher is None:
                raise EngineError(f"The plugin {self.plugin_name} runs without an execution context.")
            self.launcher.launch([tuple(desc.dims) for desc in given], [*addresses, *results], workspace, stream)
            return 0

    return Plugin()


class _Side:
    """A dimension that TensorRT knows when the engine runs, with the operators of `kernel_file.evaluate`."""

    def __init__(self, module: Any, builder: Any, expression: Any) -> None:
        self.module, self.builder, self.expression = module, builder, expression

    def apply(self, name: str, other: _Side | int) -> _Side:
        """The dimension `self name other`; the name is one of TensorRT's DimensionOperation."""
        right = self.builder.constant(other) if isinstance(other, int) else other.expression
        operation = getattr(self.module.DimensionOperation, name)
        return _Side(self.module, self.builder, self.builder.operation(operation, self.expression, right))

    def __add__(self, other: _Side | int) -> _Side:
        return self.apply("SUM", other)

    def __sub__(self, other: _Side | int) -> _Side:
        return self.apply("SUB", other)

    def __mul__(self, other: _Side | int) -> _Side:
        return self.apply("PROD", other)

    def __floordiv__(self, other: _Side | int) -> _Side:
        return self.apply("FLOOR_DIV", other)


def _sides(module: Any, builder: Any, buffer: Buffer, dimension: Callable[[int, int], _Side]) -> list[Any]:
    def side(expression: Expression) -> Any:
        value = evaluate(expression, dimension, int, lambda left, right: left.apply("MIN", right))
        return builder.constant(value) if isinstance(value, int) else value.expression

    return [side(expression) for expression in buffer.shape]
