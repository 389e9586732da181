"""Checkpoint to ONNX, other precisions, probe images, and the rules of TensorRT that a graph must keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Description", "export_bundle", "quantize_bundle", "quantize_with"]

if TYPE_CHECKING:
    from vae_edge.export.bundle import BundleMetadata, export_bundle, quantize_bundle, quantize_bundle_from_dataset

_HOME = {
    "quantize_with": "vae_edge.export.bundle",
    "Description": "vae_edge.export.bundle",
    "export_bundle": "vae_edge.export.bundle",
    "quantize_bundle": "vae_edge.export.bundle",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: some modules of this package need ONNX and no PyTorch."""
    if name not in _HOME:
        raise AttributeError(f"module 'vae_edge.export' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
