"""From a bundle's path to a classifier: checks what was asked for, and asks `auto` where it was left open."""

from __future__ import annotations

import os

from vae_edge.bundle import Bundle, with_bundle
from vae_edge.bundle_schema import PRECISIONS
from vae_edge.errors import BackendError, ConfigError
from vae_edge.runtime import auto, probing
from vae_edge.runtime.backends import check_installed, installed_backends
from vae_edge.runtime.classifier import Classifier, open_verified


def load(
    path: str | os.PathLike[str],
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    verify: str = "error",
) -> Classifier:
    """Load and verify a bundle and make it ready to predict.

    Args:
        path: the bundle's folder.
        backend: `onnxruntime`, `openvino`, or `auto`: the fastest here, timed once and remembered in the bundle.
        precision: `fp32`, `fp16`, `int8`, `fp8`, or `auto`: the fastest whose recorded accuracy is within half a point
            of fp32's.
        threads: how many threads one call may use. None is 1, which is the fastest for single images with models of
            this size; several Python threads may call one classifier at a time.
        verify: what happens where a backend's answers to the bundle's probe images are wrong on this machine: `error`
            refuses it, `warn` logs a sentence, `off` does not ask. It is found out at the first load and remembered.
            With `auto` such a backend is left out unless it is `off`.

    Raises:
        BundleError: the bundle is damaged, lacks the precision, or its model is not ours.
        BackendError: the backend is unknown or not installed.
        VerificationError: what was asked for gives wrong answers here, or everything does.
        ConfigError: `precision`, `threads` or `verify` is not one of the above.
    """
    if threads is None:
        threads = 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"threads is a whole number of at least 1, or None, but {threads!r} came.")
    if precision not in ("auto", *PRECISIONS):
        raise ConfigError(f"precision is auto, {', '.join(PRECISIONS)}, but {precision!r} came.")
    probing.check_mode(verify)
    if backend != "auto":
        check_installed(backend)
    elif not installed_backends():
        raise BackendError('No backend is installed: run `pip install "vae-edge[onnxruntime]"`.')

    def opened(bundle: Bundle) -> Classifier:
        if backend == "auto" or precision == "auto":
            return auto.choose(bundle, backend, precision, threads, verify)
        return open_verified(bundle, backend, precision, threads, verify)

    return with_bundle(path, opened)
