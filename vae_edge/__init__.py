"""VAE Edge: labelled images to a classifier that says which way up a thing is, and when it does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["VaeEdgeError", "__version__", "load", "verify"]

if TYPE_CHECKING:
    from vae_edge.errors import VaeEdgeError
    from vae_edge.runtime import load, verify

_HOME = {"load": "vae_edge.runtime", "verify": "vae_edge.runtime", "VaeEdgeError": "vae_edge.errors"}


def __getattr__(name: str) -> Any:
    """Import a public name from its room when it is first asked for, so that `import vae_edge` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'vae_edge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
