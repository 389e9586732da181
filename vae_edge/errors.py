"""The exceptions of vae_edge. A message is a sentence: the thing, what was expected, what came, and what to do."""

from __future__ import annotations

from vae_edge_kernels import KernelError, VaeEdgeError

__all__ = [
    "BackendError",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EngineError",
    "ExportError",
    "KernelError",
    "VaeEdgeError",
    "VerificationError",
]


class DataError(VaeEdgeError):
    """A data set, an image or an array is malformed."""


class ConfigError(VaeEdgeError):
    """An option or a preset is unknown, out of range, or incompatible with another one."""


class CheckpointError(VaeEdgeError):
    """A training run's folder is missing, damaged, unfinished, or belongs to other settings."""


class BundleError(VaeEdgeError):
    """A bundle is missing, damaged, of an unknown schema, or lacks what was requested."""


class ExportError(VaeEdgeError):
    """An exported or quantized graph differs from the model, or breaks a rule of its target."""


class EngineError(VaeEdgeError):
    """An engine cannot be built, or the installed TensorRT cannot do what was requested."""


class BackendError(VaeEdgeError):
    """A runtime backend is not installed, not available on this machine, or failed."""


class VerificationError(BackendError):
    """A backend's answers to the bundle's probe images are wrong on this machine."""
