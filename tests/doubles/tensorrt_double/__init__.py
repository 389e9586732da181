"""A TensorRT that runs on the CPU, for tests: loaded once for each version, by `doubles.loading.load_tensorrt`.

A machine without the package onnx has no builder and no parser: it runs engines alone, as a lean TensorRT does.
"""

import importlib.util

from . import context, runtime  # noqa: F401  (they register what the module offers)
from .personality import EXPORTS, HERE, PERSONALITIES
from .state import DRIVER, STATE

if importlib.util.find_spec("onnx") is not None:
    from . import builder  # noqa: F401

__all__ = ["DRIVER", "EXPORTS", "HERE", "PERSONALITIES", "STATE"]
