"""The one family of exceptions: sentences that name the thing, what was expected, what came, and what to do."""

from __future__ import annotations

from vae_edge_kernels.errors import KernelError, VaeEdgeError

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
    """A data set, an image or an array is not what it should be."""


class ConfigError(VaeEdgeError):
    """An option or a preset is unknown, out of range, or does not fit another one."""


class CheckpointError(VaeEdgeError):
    """A training run's folder is missing, damaged, unfinished, or belongs to other settings."""


class BundleError(VaeEdgeError):
    """A bundle is missing, damaged, of an unknown schema, or lacks what was asked of it."""


class ExportError(VaeEdgeError):
    """An exported or quantized graph does not compute what the model computes, or breaks a rule of its target."""


class EngineError(VaeEdgeError):
    """An engine cannot be built, or the TensorRT that is there cannot do what was asked."""


class BackendError(VaeEdgeError):
    """A runtime backend is not installed, not available on this machine, or failed."""


class VerificationError(BackendError):
    """A backend's answers to the bundle's probe images are wrong on this machine."""
