"""Loading the double of TensorRT in one version, into this process or for another one."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent / "tensorrt_double"
VERSIONS = ("10.3", "10.13", "11.4", "rtx")
_loaded: dict[str, TensorRTDouble] = {}

_SHIM = '''"""The double of {module} {version}, as a package that is imported by its name."""

import importlib.util
import sys

sys.path.append({tests!r})  # behind everything else: of it, doubles alone is used
from doubles.loading import load_tensorrt

globals().update(load_tensorrt({name!r}).exports())
'''


def load_tensorrt(version: str) -> TensorRTDouble:
    """The double of "10.3", "10.13", "11.4" or "rtx" in this process; the same one at each call."""
    if version not in _loaded:
        _loaded[version] = TensorRTDouble(version)
    return _loaded[version]


class TensorRTDouble:
    """One version of the double.

    Attributes:
        name: "10.3", "10.13", "11.4" or "rtx".
        kind: "tensorrt" or "tensorrt_rtx": the name under which it is imported.
        version: such as "10.3.0".
        module: what `import tensorrt` would give.
        state: what tests may set (see `tensorrt_double/state.py`).
    """

    def __init__(self, name: str) -> None:
        self.name = name
        package = f"_tensorrt_double_{name.replace('.', '_')}"
        self._package = package
        spec = importlib.util.spec_from_file_location(
            package, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
        )
        assert spec is not None and spec.loader is not None
        loaded: Any = importlib.util.module_from_spec(spec)
        loaded.PERSONALITY = name
        sys.modules[package] = loaded
        spec.loader.exec_module(loaded)
        self.kind, self.version = loaded.HERE.module, loaded.HERE.version
        self.state = loaded.STATE
        self.module = types.ModuleType(self.kind, f"The double of {self.kind} {self.version}.")
        vars(self.module).update(self.exports())

    def exports(self) -> dict[str, Any]:
        """The names that the module offers."""
        return dict(sys.modules[self._package].EXPORTS)

    def part(self, name: str) -> Any:
        """A module of the package, such as "building"."""
        return importlib.import_module(f"{self._package}.{name}")

    def make_engine(self, model: bytes, **options: Any) -> bytes:
        """An engine for a serialized ONNX file (see `tensorrt_double/building.py`)."""
        return bytes(self.part("building").make_engine(model, **options))

    def plant(self, engine: bytes, kind: str) -> bytes:
        """The engine with something wrong on purpose (see `tensorrt_double/building.py`)."""
        return bytes(self.part("building").plant(engine, kind))

    def faults(self) -> list[str]:
        """What was done wrong, as sentences."""
        return list(self.state.faults)

    def fail(self, method: str, nth: int = 1) -> None:
        """The n-th call of a method from now on (0: every call) fails in its own way: False, None, or RuntimeError.

        Methods: deserialize_cuda_engine, create_execution_context, set_input_shape, set_tensor_address, infer_shapes,
        set_optimization_profile_async, execute_async_v3, set_runtime_cache, runtime_cache_deserialize,
        build_serialized_network.
        """
        self.state.failures.setdefault(method, []).append(nth)

    def reset(self) -> None:
        """Forget faults, failures and counts, and take back what tests set."""
        library = self.state.cuda_library
        self.state.__init__()
        self.state.cuda_library = library

    @contextmanager
    def installed(self, cuda_library: Path) -> Iterator[Any]:
        """`import tensorrt` (or tensorrt_rtx) gives the double, over the driver's double at this path.

        Other names under which TensorRT is imported are not there meanwhile.
        """
        names = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")
        before = {name: sys.modules[name] for name in names if name in sys.modules}
        self.reset()
        self.state.cuda_library = str(cuda_library)
        sys.modules.update(dict.fromkeys(names))  # None: Python refuses to import it
        origin = str(cuda_library.parent / "site-packages" / self.kind / "__init__.py")  # as of an installed package
        spec = importlib.util.spec_from_loader(self.kind, loader=None, origin=origin)
        self.module.__spec__ = spec
        sys.modules[self.kind] = self.module
        try:
            yield self.module
        finally:
            for name in names:
                del sys.modules[name]
            sys.modules.update(before)


def write_package(folder: Path, version: str) -> Path:
    """A package folder named tensorrt or tensorrt_rtx, for PYTHONPATH of other processes; gives its parent."""
    double = load_tensorrt(version)
    package = folder / double.kind
    if package.exists():
        shutil.rmtree(package)
    package.mkdir(parents=True)
    text = _SHIM.format(module=double.kind, version=double.version, tests=str(PACKAGE.parents[1]), name=version)
    (package / "__init__.py").write_text(text)
    return folder


def process_environment(packages: Path, cuda_folder: Path, **settings: object) -> dict[str, str]:
    """The environment of a process that finds the doubles of TensorRT and of the driver."""
    environment = {**os.environ, **{name: str(value) for name, value in settings.items()}}
    for name, folder in (("PYTHONPATH", packages), ("LD_LIBRARY_PATH", cuda_folder)):
        environment[name] = os.pathsep.join(filter(None, [str(folder), os.environ.get(name, "")]))
    return environment
