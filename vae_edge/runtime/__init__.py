"""Loading a bundle and predicting with it: NumPy and one backend, neither torch nor triton; one file a backend."""

from __future__ import annotations

from vae_edge.environment import available_cpus, cpu_model
from vae_edge.runtime.backends import TensorInfo, backend_version, installed_backends
from vae_edge.runtime.classifier import Classifier, cpu_entries, load
from vae_edge.runtime.predictions import Predictions
from vae_edge.runtime.verification import verify

__all__ = [
    "Classifier",
    "Predictions",
    "TensorInfo",
    "available_cpus",
    "backend_version",
    "cpu_entries",
    "cpu_model",
    "installed_backends",
    "load",
    "verify",
]
