"""A model file's bytes for a backend: those whose sum the manifest has, checked before an engine sees them.

Engines are given these bytes and not the path: what was verified is what is run, whatever happens to the file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from vae_edge import files
from vae_edge.bundle import ModelEntry
from vae_edge.errors import BundleError
from vae_edge.limits import MAX_MODEL_BYTES
from vae_edge.onnx_shapes import check_model


def read_model(file: Path, entry: ModelEntry) -> bytes:
    """The bytes of an ONNX file that can be run in bounded memory and time.

    Args:
        file: where it lies.
        entry: what the manifest says of it. One without a SHA-256 is of no manifest: the caller made the file itself,
            and nothing of it is checked.

    Raises:
        BundleError: the file cannot be read, has another sum, or is refused by `vae_edge.onnx_shapes`.
    """
    try:
        content = files.read_bytes(file, MAX_MODEL_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({error}): export the bundle again, or copy it again.") from error
    if entry.sha256:
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(f"{file} was changed while it was loaded: load the bundle again.")
        check_model(content, str(file))
    return content
