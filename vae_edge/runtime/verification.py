"""Verifying all of a bundle on this machine, on demand: every model that runs here, in every backend."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vae_edge import __version__
from vae_edge.bundle import Bundle, ModelEntry, load_bundle
from vae_edge.environment import cpu_model, instruction_set
from vae_edge.errors import BackendError, BundleError, VaeEdgeError
from vae_edge.limits import MAX_VERIFY_BYTES, MAX_VERIFY_SECONDS
from vae_edge.runtime import probing
from vae_edge.runtime.backends import Backend, backend_version, check_installed, installed_backends
from vae_edge.runtime.classifier import cpu_entries, open_classifier, open_reconstructor
from vae_edge.text import printable

SCHEMA = 1


def verify(path: str | os.PathLike[str], backends: Sequence[str] | None = None, threads: int = 1) -> dict[str, Any]:
    """Run the bundle's probe images on every model that CPU backends run here, in every backend.

    They are run one at a time and all at once. What is found replaces what loading remembered.

    Args:
        path: the bundle.
        backends: names; None is all that are installed.
        threads: how many threads one call may use.

    Returns:
        Plain values for JSON: `schema`, `bundle`, `date`, `machine`, `right` (whether all answers are right; null where
        some could not be told and none is wrong), `models` (see `vae_edge.runtime.probing.report`), and `not_run`, the
        files that nothing here runs.

    Raises:
        BundleError: if the bundle is damaged.
        BackendError: if a backend is unknown or not installed, or there is none.
    """
    names = tuple(backends) if backends is not None else installed_backends()
    for name in names:
        check_installed(name)
    if not names:
        raise BackendError('No backend is installed: run `pip install "vae-edge[onnxruntime]"`.')
    bundle = load_bundle(path)
    entries = list(_entries(bundle))
    models = [_report(bundle, name, entry, threads) for entry in entries for name in names]
    told = [model["right"] for model in models]
    run_here = {entry.file for entry in entries}
    return {
        "schema": SCHEMA,
        "bundle": bundle.name,
        "path": str(bundle.path),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_model(),
            "instruction_set": instruction_set(),
            "threads": threads,
            "python": platform.python_version(),
            "versions": {
                "vae_edge": __version__,
                "numpy": np.__version__,
                **{name: backend_version(name) for name in names},
            },
        },
        "right": False if False in told else True if told and None not in told else None,
        "models": models,
        "not_run": [_not_run(entry) for entry in bundle.models if entry.file not in run_here],
    }


def verify_apart(
    path: str | os.PathLike[str],
    backends: Sequence[str] | None = None,
    threads: int = 1,
    seconds: float = MAX_VERIFY_SECONDS,
    max_bytes: int = MAX_VERIFY_BYTES,
) -> dict[str, Any]:
    """As `verify`, in a process of its own that may take so long and so much address space.

    Engines read a model in native code, which nothing can stop from inside the process.

    Raises:
        BundleError, BackendError: as `verify`; or it took longer or more, or an engine ended the process.
    """
    request = {
        "path": os.fsdecode(path),
        "backends": backends and list(backends),
        "threads": threads,
        "bytes": max_bytes,
    }
    child = subprocess.Popen(
        [sys.executable, "-c", "from vae_edge.runtime.verification import _serve; _serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"},
    )
    try:
        answer, _ = child.communicate(json.dumps(request).encode(), seconds)
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"Verifying {path} was ended after {seconds:g} s: a model in it takes too long. Do not use this bundle "
            "unless you know where it comes from."
        ) from None
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    try:
        kind, result = json.loads(answer)
    except ValueError:
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"exit code {child.returncode}"
        raise BackendError(
            f"Verifying {path} came to no end ({how}): an engine failed on a model in it, or took more than "
            f"{max_bytes >> 20} MiB. Do not use this bundle unless you know where it comes from."
        ) from None
    if kind == "error":
        raise (BundleError if result[0] == "BundleError" else BackendError)(result[1])
    return result


def _serve() -> None:
    """The process of `verify_apart`: one request on standard input, one answer on standard output."""
    request = json.load(sys.stdin)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = request["bytes"] if hard == resource.RLIM_INFINITY else min(request["bytes"], hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what engines print is no part of the answer
    try:
        answer: list[Any] = ["result", verify(request["path"], request["backends"], request["threads"])]
    except VaeEdgeError as error:
        answer = ["error", [type(error).__name__, str(error)]]
    except MemoryError:
        answer = ["error", ["BackendError", f"Verifying {request['path']} took more than {most >> 20} MiB of memory."]]
    with answer_to:
        json.dump(answer, answer_to)


def to_markdown(result: dict[str, Any]) -> str:
    """What `verify` returned, as a page in Markdown."""
    machine = result["machine"]
    state = {True: "All answers are right.", False: "Some answers are wrong.", None: "Not everything was verified."}
    lines = [
        f"# {result['bundle']}: verified on this machine",
        "",
        f"{state[result['right']]} {result['date']}; {machine['cpu']} ({machine['instruction_set']}); "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + ".",
        "",
        "How far answers to the probe images lie from the exact ones: in the mean, at most; and what is allowed.",
        "",
        "| model | backend | | output | images | one at a time | all at once | allowed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in result["models"]:
        first = f"| {model['file']} | {model['backend']} | {_WORDS[model['right']]} "
        for name, rows in model.get("outputs", {}).items():
            allowed = rows[0]["allowed"]
            cells = [
                name,
                str(rows[0]["compared"]),
                *map(_cell, rows),
                f"{allowed['mean']:.2g}, {allowed['largest']:.2g}",
            ]
            lines.append(first + "| " + " | ".join(cells) + " |")
            first = "| | | "
        if "outputs" not in model:
            lines.append(first + "| | | | | |")
    lines += ["", *(f"- {model['sentence']}" for model in result["models"] if not model["right"])]
    lines += [f"- {sentence}" for sentence in result["not_run"]]
    return "\n".join(map(printable, lines)) + "\n"


_WORDS = {True: "right", False: "**wrong**", None: "not told"}


def _cell(row: dict[str, Any]) -> str:
    return "not finite" if row["mean"] is None else f"{row['mean']:.2g}, {row['largest']:.2g}"


def _entries(bundle: Bundle) -> Iterator[ModelEntry]:
    """The files that CPU backends run here."""
    yield from cpu_entries(bundle).values()
    yield from bundle.select("reconstruction", "onnx", target="any")


def _report(bundle: Bundle, backend: str, entry: ModelEntry, threads: int) -> dict[str, Any]:
    engine: Backend | None = None
    try:
        if entry.role == "classifier":
            engine = open_classifier(bundle, backend, entry.precision, threads)
        else:
            engine = open_reconstructor(bundle, backend, entry, threads)
        return probing.report(bundle, backend, entry, engine, threads)
    except (BackendError, BundleError) as error:
        about = {"backend": backend, "file": entry.file, "precision": entry.precision, "target": entry.target}
        return {**about, "right": False, "sentence": f"{backend} with {entry.file}: {error}"}
    finally:
        if engine is not None:
            engine.close()


def _not_run(entry: ModelEntry) -> str:
    if entry.format != "onnx":
        return f"{entry.file}: this version builds engines and does not run them"
    if entry.target == "any":
        return f"{entry.file}: for TensorRT; CPU backends run another file here, or none"
    return f"{entry.file}: for other processors"
