"""Verifying a whole bundle on this machine, on demand: every model file in every backend that runs it here."""

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vae_edge import __version__
from vae_edge.bundle import Bundle, ModelEntry, load_bundle
from vae_edge.engine import gpus
from vae_edge.environment import cpu_model, instruction_set
from vae_edge.errors import BackendError, BundleError, VaeEdgeError
from vae_edge.runtime import probing
from vae_edge.runtime.backends import (
    SPECS,
    LoadOptions,
    OpenedModel,
    backend_version,
    check_installed,
    installed_backends,
    open_model,
)
from vae_edge.runtime.entries import cpu_entries, find_entries, runs_on
from vae_edge.runtime.probing import ModelReport, OutputDifference
from vae_edge.spec import MAX_VERIFY_BYTES, MAX_VERIFY_SECONDS, ROLES
from vae_edge.text import printable

SCHEMA = 1
_RIGHT = {True: "right", False: "**wrong**", None: "not verified"}
_ALL_RIGHT = {
    True: "All answers are right.",
    False: "Some answers are wrong.",
    None: "Not everything was verified.",
}


@dataclass(frozen=True)
class VerificationResult:
    """What `verify` found.

    Attributes:
        bundle: the bundle's name.
        path: its folder.
        date: ISO date (UTC).
        machine: processor, threads, Python and versions, as a JSON record.
        models: one report for each model file and backend.
        not_run: a sentence for each file that nothing here runs.
    """

    bundle: str
    path: str
    date: str
    machine: Mapping[str, Any]
    models: tuple[ModelReport, ...]
    not_run: tuple[str, ...]

    @property
    def right(self) -> bool | None:
        """Whether all answers are right; None if some could not be verified and none is wrong."""
        found = [model.right for model in self.models]
        if False in found:
            return False
        return True if found and None not in found else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `verification.json` holds them."""
        return {
            "schema": SCHEMA,
            "bundle": self.bundle,
            "path": self.path,
            "date": self.date,
            "machine": dict(self.machine),
            "right": self.right,
            "models": [model.to_json() for model in self.models],
            "not_run": list(self.not_run),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> VerificationResult:
        """The inverse of `to_json`."""
        models = tuple(ModelReport.from_json(model) for model in values["models"])
        return cls(
            values["bundle"], values["path"], values["date"], values["machine"], models, tuple(values["not_run"])
        )


def verify(
    path: str | os.PathLike[str],
    backends: Sequence[str] | None = None,
    threads: int = 1,
    device: int = 0,
    trusted: bool = False,
) -> VerificationResult:
    """Run the bundle's probe images on every model file, in every backend that runs it here.

    They run one at a time and all at once. What is found replaces the verdicts that loading cached.

    Args:
        path: the bundle.
        backends: names; None is all that are installed.
        threads: how many threads one call may use.
        device, trusted: as `vae_edge.load`.

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
    options = LoadOptions(threads, device=device, trusted=trusted)
    driver = gpus.probe()
    runs = [(name, entry) for name in names for entry in _entries(bundle, name, driver, device)]
    models = [_report(bundle, name, entry, options) for name, entry in sorted(runs, key=_file_order(bundle))]
    run_here = {entry.file for _, entry in runs}
    return VerificationResult(
        bundle=bundle.name,
        path=str(bundle.path),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        machine={
            "cpu": cpu_model(),
            "gpu": driver.sentence(),
            "instruction_set": instruction_set(),
            "threads": threads,
            "python": platform.python_version(),
            "versions": {
                "vae_edge": __version__,
                "numpy": np.__version__,
                **{name: backend_version(name) for name in names},
            },
        },
        models=tuple(models),
        not_run=tuple(_not_run(bundle, entry, driver, device) for entry in bundle.models if entry.file not in run_here),
    )


def _entries(bundle: Bundle, backend: str, driver: gpus.Driver, device: int) -> Iterator[ModelEntry]:
    """The model files that a backend runs here."""
    for role in ROLES:
        yield from find_entries(bundle, backend, role, driver, device).values()


def _file_order(bundle: Bundle) -> Callable[[tuple[str, ModelEntry]], int]:
    order = {entry.file: number for number, entry in enumerate(bundle.models)}
    return lambda run: order[run[1].file]


def _report(bundle: Bundle, backend: str, entry: ModelEntry, options: LoadOptions) -> ModelReport:
    model: OpenedModel | None = None
    try:
        model = open_model(bundle, backend, entry, options)
        return probing.report(bundle, model)
    except (BackendError, BundleError) as error:
        sentence = f"{backend} with {entry.file}: {error}"
        return ModelReport(backend, entry.file, entry.precision, entry.target, False, sentence)
    finally:
        if model is not None:
            model.session.close()


def _not_run(bundle: Bundle, entry: ModelEntry, driver: gpus.Driver, device: int) -> str:
    if entry.format != "onnx":
        gpu = driver.device(device)
        if gpu is None:
            return f"{entry.file}: for {entry.target}, and there is no GPU here ({driver.problem or driver.sentence()})"
        backend = next(name for name, spec in SPECS.items() if spec.format == entry.format)
        if runs_on(entry, gpu):
            return f"{entry.file}: the backend {backend} was not asked, or is not installed"
        return f"{entry.file}: for {entry.target}; this GPU is {gpu.name} ({gpu.target})"
    if entry in cpu_entries(bundle, entry.role).values():
        return f"{entry.file}: CPU backends run it, and none was asked"
    if entry.target == "any":
        return f"{entry.file}: for TensorRT; CPU backends run another file here, or none"
    return f"{entry.file}: for other processors"


def verify_in_subprocess(
    path: str | os.PathLike[str],
    backends: Sequence[str] | None = None,
    threads: int = 1,
    seconds: float = MAX_VERIFY_SECONDS,
    max_bytes: int = MAX_VERIFY_BYTES,
    device: int = 0,
    trusted: bool = False,
) -> VerificationResult:
    """As `verify`, in a process of its own with a limit on time and, without a GPU, on address space.

    Backends read a model in native code, which nothing can stop from inside the process.

    Raises:
        BundleError, BackendError: as `verify`; or a limit was reached, or a backend ended the process.
    """
    request = {
        "path": os.fsdecode(path),
        "backends": backends and list(backends),
        "threads": threads,
        "device": device,
        "trusted": trusted,
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
            f"Verifying {path} came to no end ({how}): a backend failed on a model in it, or took more than "
            f"{max_bytes >> 20} MiB. Do not use this bundle unless you know where it comes from."
        ) from None
    if kind == "error":
        raise (BundleError if result[0] == "BundleError" else BackendError)(result[1])
    return VerificationResult.from_json(result)


def _serve() -> None:
    """The process of `verify_in_subprocess`: one request on standard input, one answer on standard output."""
    request = json.load(sys.stdin)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = request["bytes"] if hard == resource.RLIM_INFINITY else min(request["bytes"], hard)
    if not _uses_gpu(request["backends"]):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what backends print is no part of the answer
    try:
        found = verify(request["path"], request["backends"], request["threads"], request["device"], request["trusted"])
        answer: list[Any] = ["result", found.to_json()]
    except VaeEdgeError as error:
        answer = ["error", [type(error).__name__, str(error)]]
    except MemoryError:
        answer = ["error", ["BackendError", f"Verifying {request['path']} took more than {limit >> 20} MiB of memory."]]
    with answer_to:
        json.dump(answer, answer_to)


def _uses_gpu(backends: Sequence[str] | None) -> bool:
    """Whether one of these backends (None: of all) runs on a GPU here. CUDA reserves far more addresses than memory."""
    names = installed_backends() if backends is None else backends
    return any(name in SPECS and SPECS[name].gpu for name in names) and bool(gpus.probe().devices)


def to_markdown(result: VerificationResult) -> str:
    """The result as a page in Markdown."""
    machine = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"# {result.bundle}: verified on this machine",
        "",
        f"{_ALL_RIGHT[result.right]} {result.date}; {machine['cpu']} ({machine['instruction_set']}); {versions}.",
        "",
        "How far answers to the probe images lie from the exact ones: in the mean, at most; and what is allowed.",
        "",
        "| model | backend | | output | images | one at a time | all at once | allowed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model in result.models:
        first = f"| {model.file} | {model.backend} | {_RIGHT[model.right]} "
        for name, rows in model.outputs.items():
            allowed = f"{rows[0].allowed.mean:.2g}, {rows[0].allowed.largest:.2g}"
            cells = [name, str(rows[0].compared), *map(_cell, rows), allowed]
            lines.append(first + "| " + " | ".join(cells) + " |")
            first = "| | | "
        if not model.outputs:
            lines.append(first + "| | | | | |")
    lines += ["", *(f"- {model.sentence}" for model in result.models if not model.right)]
    lines += [f"- {sentence}" for sentence in result.not_run]
    return "\n".join(map(printable, lines)) + "\n"


def _cell(row: OutputDifference) -> str:
    return "not finite" if row.mean is None else f"{row.mean:.2g}, {row.largest:.2g}"
