"""Notices arrays whose channels are in OpenCV's order, BGR, where the model takes RGB.

The classifier that `vae_edge.load` returns: images in, predictions out, on one backend in one precision.

From a bundle's path to a classifier: checks what was asked for, and asks `auto` where it was left open.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from types import TracebackType
from typing import Any

import numpy as np

from vae_edge.bundle import Bundle, ModelEntry, with_bundle
from vae_edge.bundle_schema import PRECISIONS
from vae_edge.environment import int8_saturates
from vae_edge.errors import BackendError, BundleError, ConfigError, DataError
from vae_edge.preprocess import ERRORS, FIT, InputSpec, PreprocessInfo, check_batch, to_batch, to_rows
from vae_edge.runtime import probing
from vae_edge.runtime.backends import (
    Backend,
    Interface,
    TensorInfo,
    check_installed,
    check_interface,
    installed_backends,
    open_backend,
)
from vae_edge.runtime.predictions import Predictions

_CALLS, _CHECKS, _IMAGES = 100, 8, 16
_LEAST = 4


class ColorOrderCheck:
    """Looks at the rejected images of the first calls and warns once; after that a call costs nothing.

    Looked at are the first hundred calls; of those, eight that rejected images; of these, sixteen images in all. Four
    are the least that a warning is based on. It is no proof of the right order: images that are accepted in the wrong
    one are not looked at.

    Attributes: `watching`, whether it still looks.
    """

    def __init__(self, channels: int) -> None:
        """`channels`: of the model's images; grey ones have no order."""
        self._calls, self._checks, self._images = _CALLS, _CHECKS, _IMAGES
        self._rejected = self._known = 0
        self.watching = channels == 3

    def look(
        self, batch: np.ndarray, scores: np.ndarray, threshold: float, score: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Where most of the rejected images of uint8 [N, S, S, 3] are known with their channels swapped, say so."""
        rejected = np.flatnonzero(~(scores <= threshold))[: self._images]
        self._calls -= 1
        if len(rejected):
            self._checks -= 1
            self._images -= len(rejected)
            self._rejected += len(rejected)
            swapped = np.ascontiguousarray(batch[rejected][..., ::-1])
            self._known += int((score(swapped) <= threshold).sum())
        self.watching = self._calls > 0 and self._checks > 0 and self._images > 0
        if self._rejected >= _LEAST and 2 * self._known > self._rejected:
            self.watching = False
            logging.getLogger(__name__).warning(
                "%d of %d rejected images are known with red and blue exchanged: the model takes RGB. If these arrays "
                'come from OpenCV, whose order is BGR, pass color="bgr"; if they are RGB, color="rgb" says so.',
                self._known,
                self._rejected,
            )


OUTPUTS = ("probabilities", "angle", "score")
DOUBTS = ("concentration", "second_angle", "second_share")  # of models that were trained turned
LARGEST_BATCH = 256  # larger ones are run in pieces of this size: bound buffers stay small


class Classifier:
    """Call it with images. Safe to call from several threads; a context manager; `close()` lets the engine go.

    Attributes: `bundle`, `backend` and `precision` (names), `threads`, `input` (InputSpec), `classes`, `entry` (of the
    model file), `threshold` (of that file).
    """

    def __init__(
        self, bundle: Bundle, backend: str, precision: str, threads: int, engine: Backend, verify: str = "error"
    ) -> None:
        """Made by `vae_edge.load`; `engine` is what `open_classifier` gave for this backend and precision."""
        self.bundle = bundle
        self.backend = backend
        self.precision = precision
        self.threads = threads
        self.input: InputSpec = bundle.input
        self.classes = bundle.classes
        self.entry = find_entry(bundle, precision)
        self.threshold = bundle.threshold_of(self.entry)
        self._verify = verify
        self._engine: Backend | None = engine
        self._reconstructor: Backend | None = None
        self._lock = threading.Lock()
        names = [info.name for info in engine.outputs]
        self._order = [names.index(name) for name in (*OUTPUTS, *DOUBTS) if name in names]
        self._color_order = ColorOrderCheck(bundle.input.channels)

    def __call__(
        self,
        images: Any,
        invert: str = "never",
        fit: str = "auto",
        color: str | None = None,
        errors: str = "raise",
    ) -> Predictions:
        """Classify images.

        Args:
            images: an array uint8 [N, S, S, C] (the fast way; colours in the order RGB), or a path, a Pillow image, or
                a list of these or of arrays, which are prepared as `vae_edge.preprocess.to_batch` says.
            invert: `never`, `always` or `auto`.
            fit: `auto` (as training did), `pad` or `foreground`; arrays are never cropped.
            color: the order of the channels of arrays, `rgb` or `bgr` (OpenCV's); no effect on files, Pillow images
                and grey models. None is `rgb`, but the first calls look whether it might be `bgr`, and log a warning.
            errors: `raise`, or `coerce`: an item of a list that cannot be read has NaN for an answer, and its error
                stands in `Predictions.errors`.

        Raises:
            DataError: an image cannot be read or an array has the wrong form.
            BackendError: the classifier was closed, the engine failed, or an answer is NaN or infinite.
        """
        plain = invert == "never" and (color is None or color == "rgb") and fit in FIT and errors in ERRORS
        failed: dict[int, DataError] = {}
        if plain and type(images) is np.ndarray and images.ndim == 4:
            batch = check_batch(images, self.input)
            interpret: Callable[[int], list[PreprocessInfo]] = self._interpret_array
        else:
            batch, found, failed = to_rows(images, self.input, invert, fit, color or "rgb", errors)
            interpret = lambda count: found  # noqa: E731
        outputs = self._run(self._engine, batch)
        if not _are_finite(outputs):
            self._check_finite(outputs)
        if failed:
            _blank(outputs, failed)
        if self._color_order.watching and color is None and type(images) is np.ndarray:
            place = self._order[OUTPUTS.index("score")]
            self._color_order.look(
                batch, outputs[place], self.threshold, lambda swapped: self._run(self._engine, swapped)[place]
            )
        return Predictions(
            *[outputs[k] for k in self._order],
            classes=self.classes,
            threshold=self.threshold,
            interpret=interpret,
            errors=failed,
        )

    def reconstruct(self, images: Any, invert: str = "never", fit: str = "auto", color: str = "rgb") -> np.ndarray:
        """What the model makes of the images when it draws them again: uint8 [N, S, S, C], RGB; arguments as in a call.

        Raises:
            BundleError: the bundle has no reconstruction model.
            VerificationError: its answers to the bundle's probe images are wrong here.
        """
        batch, _ = to_batch(images, self.input, invert, fit, color)
        with self._lock:
            if self._engine is not None and self._reconstructor is None:
                self._reconstructor = self._open_reconstructor()
        return self._run(self._reconstructor, batch)[0]

    @property
    def engine(self) -> Backend:
        """The opened model itself, without checks of what it is given."""
        return self._open(self._engine)

    @property
    def inputs(self) -> list[TensorInfo]:
        """The model's inputs, each with `name`, `shape` and `type`."""
        return list(self._open(self._engine).inputs)

    @property
    def outputs(self) -> list[TensorInfo]:
        """The model's outputs, each with `name`, `shape` and `type`."""
        return list(self._open(self._engine).outputs)

    def warmup(self, batch: int = 1) -> None:
        """Make ready for batches of this size, so that the first call is as fast as the later ones.

        OpenVINO compiles the model for this very size, which costs some tens of milliseconds and makes it faster.
        """
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ConfigError(f"warmup takes a batch size of at least 1, but {batch!r} came.")
        engine, size = self._open(self._engine), min(batch, LARGEST_BATCH)
        engine.prepare(size)
        image = np.random.default_rng(0).integers(
            0, 256, (size, self.input.size, self.input.size, self.input.channels), dtype=np.uint8
        )
        for _ in range(3):
            engine.infer(image)

    def close(self) -> None:
        """Let the engine go; calls after this raise BackendError. May be called again."""
        with self._lock:
            engines = (self._engine, self._reconstructor)
            self._engine = self._reconstructor = None
        for engine in engines:
            if engine is not None:
                engine.close()

    def __enter__(self) -> Classifier:
        """The classifier itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Name, backend, precision, threads, input and number of classes."""
        state = "" if self._engine is not None else ", closed"
        s = self.input
        return (
            f"<Classifier {self.bundle.name!r}: {self.backend}, {self.precision}, threads={self.threads}, "
            f"image uint8 [N, {s.size}, {s.size}, {s.channels}], {len(self.classes)} classes{state}>"
        )

    def _run(self, engine: Backend | None, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs in arrays of their own, whatever the size of the batch."""
        if engine is None:
            engine = self._open(engine)
        try:
            if len(batch) <= LARGEST_BATCH:
                return tuple([output.copy() for output in engine.infer(batch)])
            pieces = [
                [output.copy() for output in engine.infer(batch[start : start + LARGEST_BATCH])]
                for start in range(0, len(batch), LARGEST_BATCH)
            ]
        except Exception as error:  # the engines' own exceptions share no base class
            if self._engine is None:
                raise BackendError(f"The classifier of {self.bundle.path} was closed during a call.") from error
            raise BackendError(
                f"{self.backend} failed on a batch of {len(batch)} images ({error}): try another backend."
            ) from error
        return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))

    def _check_finite(self, outputs: tuple[np.ndarray, ...]) -> None:
        """Refuse answers that are no numbers: no class is the most probable one of NaN."""
        for k in self._order:
            finite = np.isfinite(outputs[k].reshape(len(outputs[k]), -1)).all(1)
            if not finite.all():
                wrong = np.flatnonzero(~finite)
                name = self._open(self._engine).outputs[k].name
                raise BackendError(
                    f"{self.backend} {self.precision} with {self.bundle.file(self.entry)} gives {name} that are NaN "
                    f"or infinite for {len(wrong)} of {len(finite)} images (the first: number {wrong[0]}, "
                    "counted from 0): the model is damaged, or fails on such images; try another precision or "
                    "backend, or export it again."
                )

    def _open_reconstructor(self) -> Backend:
        """The bundle's reconstruction model in this precision or another, having proved itself."""
        there = self.bundle.select("reconstruction", "onnx", target="any")
        if not there:
            raise BundleError(
                f"The bundle {self.bundle.path} has no reconstruction model: export it again, with `vae-edge export`."
            )
        entry = next((m for m in there if m.precision == self.precision), there[0])
        engine = open_reconstructor(self.bundle, self.backend, entry, self.threads)
        try:
            probing.check_or_raise(self.bundle, self.backend, entry, engine, self.threads, self._verify)
        except BaseException:
            engine.close()
            raise
        return engine

    def _open(self, engine: Backend | None) -> Backend:
        if engine is None:
            raise BackendError(f"The classifier of {self.bundle.path} was closed: load the bundle again.")
        return engine

    def _interpret_array(self, count: int) -> list[PreprocessInfo]:
        size = self.input.size
        one = np.zeros((1, size, size, self.input.channels), np.uint8)  # an array's interpretation is its form alone
        return to_batch(one, self.input)[1] * count


def open_verified(bundle: Bundle, backend: str, precision: str, threads: int, verify: str) -> Classifier:
    """Load the bundle's classifier of a precision in a backend, and have it prove itself as `verify` says.

    Raises:
        BundleError, BackendError: as `open_classifier`.
        VerificationError: as `vae_edge.runtime.probing.check_or_raise`.
    """
    engine = open_classifier(bundle, backend, precision, threads)
    try:
        probing.check_or_raise(bundle, backend, find_entry(bundle, precision), engine, threads, verify)
    except BaseException:
        engine.close()
        raise
    return Classifier(bundle, backend, precision, threads, engine, verify)


def open_classifier(bundle: Bundle, backend: str, precision: str, threads: int) -> Backend:
    """Load the bundle's classifier of a precision in a backend, and check that it is ours.

    Raises:
        BundleError: if there is none, or its inputs and outputs are not what the manifest says.
        BackendError: if the backend is not installed.
    """
    entry = find_entry(bundle, precision)
    outputs: Interface = {
        "probabilities": ("tensor(float)", (len(bundle.classes),)),
        "angle": ("tensor(float)", ()),
        "score": ("tensor(float)", ()),
    }
    doubts: Interface = dict.fromkeys(DOUBTS, ("tensor(float)", ()))
    return _open_checked(bundle, entry, backend, threads, outputs, doubts)


def open_reconstructor(bundle: Bundle, backend: str, entry: ModelEntry, threads: int) -> Backend:
    """Load a reconstruction model of the bundle in a backend, and check that it is ours.

    Raises:
        BundleError: if its inputs and outputs are not what the manifest says.
        BackendError: if the backend is not installed.
    """
    spec = bundle.input
    outputs: Interface = {"reconstruction": ("tensor(uint8)", (spec.size, spec.size, spec.channels))}
    return _open_checked(bundle, entry, backend, threads, outputs)


def _open_checked(
    bundle: Bundle,
    entry: ModelEntry,
    backend: str,
    threads: int,
    outputs: Interface,
    further: Interface | None = None,
) -> Backend:
    file = bundle.file(entry)
    engine = open_backend(backend, file, entry, threads)
    try:
        check_interface(engine, file, bundle.input, outputs, further)
    except BundleError:
        engine.close()
        raise
    return engine


def cpu_entry(bundle: Bundle, precision: str) -> ModelEntry | None:
    """The classifier of a precision that CPU backends run here, if there is one: of int8 the file made for this kind of
    processor, or TensorRT's, which bundles of earlier versions have alone."""
    models = {m.target: m for m in bundle.select("classifier", "onnx", precision)}
    targets = ("cpu_reduced_range" if int8_saturates() else "cpu", "any") if precision == "int8" else ("any",)
    return next((models[target] for target in targets if target in models), None)


def cpu_entries(bundle: Bundle) -> dict[str, ModelEntry]:
    """The classifiers that CPU backends run here, by precision."""
    found = {m.precision: cpu_entry(bundle, m.precision) for m in bundle.select("classifier", "onnx")}
    return {precision: entry for precision, entry in found.items() if entry is not None}


def find_entry(bundle: Bundle, precision: str) -> ModelEntry:
    """As `cpu_entry`.

    Raises:
        BundleError: if there is none.
    """
    entry = cpu_entry(bundle, precision)
    if entry is None:
        raise BundleError(_missing(bundle, precision))
    return entry


def _missing(bundle: Bundle, precision: str) -> str:
    there = ", ".join(m.precision for m in bundle.select("classifier", "onnx", target="any")) or "none"
    add = (
        f"vae-edge export RUN --out {bundle.path}"
        if precision == "fp32"
        else f"vae-edge quantize {bundle.path} --precision {precision} --data PATH"
    )
    return f"The bundle {bundle.path} has no {precision} classifier (it has: {there}): add it with `{add}`."


def _are_finite(outputs: Sequence[np.ndarray]) -> bool:
    """Whether no number is NaN or infinite; of several, the first NaN counts as the largest, and as the smallest.

    For one image, where each microsecond counts, its first probability stands for all: softmax makes all of them NaN.
    `Predictions.labels` looks at the others.
    """
    total = 0.0  # of 64 bits, in which no sum of a few float32 becomes infinite
    for output in outputs:
        if len(output) == 1:
            total += output.item(0)
        else:
            total += output.item(output.argmax()) - output.item(output.argmin())
    return isfinite(total)


def _blank(outputs: Sequence[np.ndarray], rows: Iterable[int]) -> None:
    """Take away the answers to images that could not be read."""
    for output in outputs:
        output[list(rows)] = np.nan


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
            from vae_edge.runtime import autoselect  # it opens classifiers

            return autoselect.choose(bundle, backend, precision, threads, verify)
        return open_verified(bundle, backend, precision, threads, verify)

    return with_bundle(path, opened)
