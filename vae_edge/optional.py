"""Packages that may be missing: whether the real one is there, and what stands in its way.

Python takes a folder named like a package for that package: one with an `__init__.py`, or a file, wherever it comes
first in the path, and a bare folder where the package is not installed. Beside a script or in the working directory
that is a user's own folder more often than not.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

# What a package has and a folder of the same name lacks.
_MARKS = {
    "accelerate": "Accelerator",
    "jinja2": "Environment",
    "matplotlib": "get_backend",
    "mlxtend": "__version__",
    "numpy": "ndarray",
    "onnx": "ModelProto",
    "onnxruntime": "InferenceSession",
    "onnxscript": "script",
    "openvino": "Core",
    "PIL": "Image",
    "safetensors": "safe_open",
    "skl2onnx": "convert_sklearn",
    "sklearn": "show_versions",
    "tensorrt": "__version__",
    "tensorrt_bindings": "__version__",
    "tensorrt_rtx": "__version__",
    "tensorrt_rtx_bindings": "__version__",
    "torch": "Tensor",
    "triton": "jit",
}


class ShadowedError(ImportError):
    """What Python finds under a package's name is not that package."""


def is_installed(name: str) -> bool:
    """Whether a package is there and nothing is in its way."""
    return _spec(name) is not None and not shadow(name)


def shadow(name: str) -> str:
    """A sentence (without a full stop) on the folder or file that is in a package's way; empty where there is none.

    A package that lies where packages are installed is trusted and not imported; another one is imported and looked at.
    """
    spec = _spec(name)
    if spec is None or _is_installed_place(spec):
        return ""
    bare = spec.origin is None
    wrong = "" if bare or _is_main(spec) else _wrong(name)
    if wrong is None:
        return ""
    place = _place(spec)
    what = "folder" if place.is_dir() else "file"
    package = f"the package {name}, which is not installed" if bare else f"the package {name}{wrong}"
    return f"the {what} {place} is taken for {package}: rename the {what}, or start Python elsewhere"


def _wrong(name: str) -> str | None:
    """What importing a module shows not to be the package, in brackets; None where it is, or is one that is broken."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return f" ({error})"
    except (ImportError, OSError):  # a library that is missing: whoever imports the package tells so
        return None
    except Exception as error:  # whatever a user's own module raises
        return f" ({type(error).__name__}: {error})"
    mark = _MARKS.get(name, "__name__")
    return None if hasattr(module, mark) else f" (it has no {mark})"


def import_package(name: str) -> ModuleType:
    """Import a package, or say what is in its way.

    Raises:
        ShadowedError: if a user's own folder or file has its name.
        ImportError: as the package raises it.
    """
    sentence = shadow(name)
    if sentence:
        raise ShadowedError(f"{sentence[0].upper()}{sentence[1:]}.", name=name)
    return importlib.import_module(name)


def shadows(names: Iterable[str] = tuple(_MARKS)) -> dict[str, str]:
    """The sentences of `shadow`, of those packages that have something in their way."""
    found = {name: shadow(name) for name in names}
    return {name: sentence for name, sentence in found.items() if sentence}


def _spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ValueError:  # a module without a spec was put into sys.modules
        return None


def _place(spec: ModuleSpec) -> Path:
    """The folder or file that a module is read from."""
    locations = list(spec.submodule_search_locations or ())
    return Path(locations[0] if locations else spec.origin or spec.name).absolute()


def _is_installed_place(spec: ModuleSpec) -> bool:
    """Whether it is a package in a folder of installed packages."""
    return spec.origin is not None and _place(spec).parent.name in ("site-packages", "dist-packages")


def _is_main(spec: ModuleSpec) -> bool:
    """Whether it is the script that runs: importing it would run it a second time."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return bool(main and spec.origin) and Path(str(main)).absolute() == Path(str(spec.origin)).absolute()
