"""Engines without weights: putting the weights of the bundle's ONNX file back into a deserialized engine.

An engine that was built with `strip_weights` holds kernels alone. Its manifest entry says so, and names the ONNX file
that it was built from; `source_of` reads that file, verified by its SHA-256, and `refit` puts its weights in. Not
verified on hardware.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vae_edge.bundle import ModelEntry
from vae_edge.engine.tensorrt import Log, describe_errors, parser_errors
from vae_edge.errors import BundleError
from vae_edge.files import read_bytes
from vae_edge.spec import MAX_MODEL_BYTES

MAX_NAMED = 5


def is_stripped(entry: ModelEntry) -> bool:
    """Whether an engine's entry says that its weights were left out."""
    settings = entry.provenance.get("settings")
    return isinstance(settings, dict) and settings.get("strip_weights") is True


def source_of(file: Path, entry: ModelEntry) -> bytes:
    """The ONNX file that an engine of a bundle was built from, which lies beside it.

    Args:
        file: the engine's path.
        entry: its entry.

    Raises:
        BundleError: the entry names none, or the file is missing or another.
    """
    source = entry.provenance.get("onnx")
    name = source.get("file") if isinstance(source, dict) else None
    digest = source.get("sha256") if isinstance(source, dict) else None
    again = "build the engine again, or build it without strip_weights"
    if not isinstance(name, str) or not isinstance(digest, str) or Path(name).name != name:
        raise BundleError(f"{file} has no weights, and its entry does not name the ONNX file that has them: {again}.")
    try:
        content = read_bytes(file.parent / name, MAX_MODEL_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{file} has no weights, and {name}, which has them, cannot be read ({error}): {again}."
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise BundleError(f"{file} has no weights, and {name} is not the file that it was built from: {again}.")
    return content


def refit(module: Any, engine: Any, onnx: bytes, logger: Any, log: Log, name: str) -> None:
    """Put the weights of an ONNX model into a deserialized engine.

    Args:
        module: the TensorRT module.
        engine: its `ICudaEngine`.
        onnx: the serialized model that the engine was built from.
        logger: the `ILogger` that writes into `log`.
        name: of the engine, for messages.

    Raises:
        BundleError: this TensorRT cannot, the model has other weights, or some are missing.
    """
    if not hasattr(module, "Refitter") or not hasattr(module, "OnnxParserRefitter"):
        raise BundleError(f"{name} has no weights, and this TensorRT cannot put them in: build without strip_weights.")
    refitter = module.Refitter(engine, logger)
    parser = module.OnnxParserRefitter(refitter, logger)  # keeps the weights until the refitter has taken them
    if not parser.refit_from_bytes(onnx):
        reason = describe_errors([*parser_errors(parser), *log.errors()])
        raise BundleError(f"{name} does not take the weights of its ONNX file: {reason}. Build it again.")
    if not refitter.refit_cuda_engine():
        missing = list(refitter.get_missing_weights())
        named = ", ".join(missing[:MAX_NAMED]) + (", ..." if len(missing) > MAX_NAMED else "")
        reason = f"{len(missing)} are missing ({named})" if missing else describe_errors(log.errors())
        raise BundleError(f"{name} cannot be given its weights: {reason}. Build it again.")
