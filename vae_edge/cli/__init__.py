"""The command line: parses, calls, prints. Each package is imported inside the command that needs it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from vae_edge.cli.console import complain, logging_to_stderr, safe_streams
from vae_edge.cli.parser import build_parser
from vae_edge.environment import limit_libraries
from vae_edge.errors import VaeEdgeError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code.

    0 when it did its work; 1 when some of it could not be done, which its output says; 2 for a user's mistake; 130
    after Ctrl-C; 141 where nobody reads on.
    """
    with safe_streams(), logging_to_stderr():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    limit_libraries()
    try:
        code = arguments.run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return int(code or 0)
    except KeyboardInterrupt:
        complain("stopped; whatever was there before is still there")
        return 130
    except BrokenPipeError:
        _drop_output()
        return 141
    except (VaeEdgeError, OSError) as error:
        complain(_sentence(error))
        _drop_output()
        return 130 if type(error).__name__ == "Interrupted" else 2
    except (ImportError, AttributeError) as error:
        complain(_missing(error))
        return 2


def _drop_output() -> None:
    """Give up what standard output does not take, of which Python would complain once more at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        import tempfile

        return f"standard output or a file in {tempfile.gettempdir()} could not be written: {error.strerror}"
    return str(error)


_EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "accelerate": "train",
    "triton": "train",
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "mlxtend": "digits",
    "matplotlib": "report",
    "jinja2": "report",
    "sklearn": "compare",
    "skl2onnx": "compare",
}


def _missing(error: ImportError | AttributeError) -> str:
    """The sentence for a package that is missing, or that something of the same name is in the way of."""
    from vae_edge.environment import shadows

    package = (error.name or "").split(".")[0]
    for name, sentence in shadows(_EXTRAS).items():
        if name == package or f"module '{name}" in str(error) or f"from '{name}" in str(error):
            return f"{sentence} ({error})"
    if not isinstance(error, ModuleNotFoundError) or package not in _EXTRAS:
        raise error
    return (
        f'this command needs the package {package}, which is not installed: pip install "vae-edge[{_EXTRAS[package]}]"'
    )
