"""A TensorRT that runs on the CPU, for tests: loaded once for each version, by `doubles.load_tensorrt`."""

from . import context, runtime  # noqa: F401  (they register what the module offers)
from .personality import EXPORTS, HERE, PERSONALITIES
from .state import DRIVER, STATE

__all__ = ["DRIVER", "EXPORTS", "HERE", "PERSONALITIES", "STATE"]
