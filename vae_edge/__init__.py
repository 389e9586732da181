"""VAE Edge: from labelled images to a classifier that tells the orientation, and says when it does not know.

The public names are imported when they are first used, so that `import vae_edge` costs nothing and a device needs
neither torch nor onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
if TYPE_CHECKING:
    from vae_edge.api import benchmark, export, generate, quantize, train
    from vae_edge.deployment import add_result, build_engine, write_kit
    from vae_edge.engine.tensorrt import BuildConfig
    from vae_edge.errors import VaeEdgeError
    from vae_edge.listing import find_images
    from vae_edge.pipeline import quickstart
    from vae_edge.reporting import write_report
    from vae_edge.runtime import load, verify, write_csv
    from vae_edge.thresholds import set_threshold
    from vae_edge.trained import evaluate
    from vae_edge.training.config import TrainConfig
    from vae_edge.training.run_file import run_arguments

_HOME = {
    **dict.fromkeys(("train", "generate", "export", "quantize", "benchmark"), "vae_edge.api"),
    "evaluate": "vae_edge.trained",
    "set_threshold": "vae_edge.thresholds",
    "write_report": "vae_edge.reporting",
    **dict.fromkeys(("build_engine", "write_kit", "add_result"), "vae_edge.deployment"),
    **dict.fromkeys(("load", "verify", "write_csv"), "vae_edge.runtime"),
    "find_images": "vae_edge.listing",
    "quickstart": "vae_edge.pipeline",
    "BuildConfig": "vae_edge.engine.tensorrt",
    "TrainConfig": "vae_edge.training.config",
    "run_arguments": "vae_edge.training.run_file",
    "VaeEdgeError": "vae_edge.errors",
}
__all__ = [
    "BuildConfig",
    "TrainConfig",
    "VaeEdgeError",
    "__version__",
    "add_result",
    "benchmark",
    "build_engine",
    "evaluate",
    "export",
    "find_images",
    "generate",
    "load",
    "quantize",
    "quickstart",
    "run_arguments",
    "set_threshold",
    "train",
    "verify",
    "write_csv",
    "write_kit",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import vae_edge` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'vae_edge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
