"""Loading a bundle and predicting with it, by NumPy and one backend: neither torch nor triton is imported."""

from __future__ import annotations

from vae_edge.environment import available_cpus, cpu_model
from vae_edge.runtime.backends import TensorInfo, backend_version, installed_backends
from vae_edge.runtime.classifier import Classifier, load
from vae_edge.runtime.entries import cpu_entries, find_entries
from vae_edge.runtime.predictions import Predictions
from vae_edge.runtime.table import write_csv
from vae_edge.runtime.verification import VerificationResult, verify

__all__ = [
    "Classifier",
    "Predictions",
    "TensorInfo",
    "VerificationResult",
    "available_cpus",
    "backend_version",
    "cpu_entries",
    "cpu_model",
    "find_entries",
    "installed_backends",
    "load",
    "verify",
    "write_csv",
]
