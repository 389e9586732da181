"""Checkpoint to ONNX, other precisions, probe images, and TensorRT's rules for quantized graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["BundleMetadata", "Quantization", "export_bundle", "quantize_bundle", "quantize_bundle_from_dataset"]

if TYPE_CHECKING:
    from vae_edge.exporting.bundle import (
        BundleMetadata,
        Quantization,
        export_bundle,
        quantize_bundle,
        quantize_bundle_from_dataset,
    )


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: some modules of this package need ONNX and no PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module 'vae_edge.exporting' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("vae_edge.exporting.bundle"), name)
