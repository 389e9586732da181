"""Checkpoint to ONNX, other precisions, and the rules of TensorRT that a graph must keep."""

from vae_edge.export.data import quantize_with
from vae_edge.export.write import Description, export_bundle, quantize_bundle

__all__ = ["Description", "export_bundle", "quantize_bundle", "quantize_with"]
