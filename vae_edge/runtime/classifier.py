"""From a bundle's path to predictions: `load`, the `Classifier` that it returns, and the `Predictions` of a call.

What is not asked for of the predictions is not computed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from math import isfinite
from types import TracebackType
from typing import Any

import numpy as np

from vae_edge.bundle import Bundle, with_bundle
from vae_edge.errors import BackendError, BundleError, ConfigError, DataError
from vae_edge.metrics import wrap_degrees
from vae_edge.preprocess import ERRORS, FIT, InputSpec, PreprocessInfo, check_batch, to_batch, to_rows
from vae_edge.runtime import autoselect, probing
from vae_edge.runtime.backends import (
    Backend,
    OpenedModel,
    TensorInfo,
    check_installed,
    installed_backends,
    open_model,
)
from vae_edge.spec import CLASSIFIER_OUTPUTS, PRECISIONS, UNCERTAINTY_OUTPUTS


class Predictions:
    """The outputs of one call. They belong to this object and do not change when the classifier is called again.

    Attributes:
        probabilities: float32 [N, K], of each class.
        scores: float32 [N], the anomaly score; higher is more anomalous.
        angle_confidences: float32 [N], the mean resultant length of the angle's distribution: 0 is any angle, 1 is
            certain. None if the model was not trained on rotated images.
        second_angle_probabilities: float32 [N], of the second most probable angle; or None.
        classes: the class names, K of them.
        threshold: the largest score that is accepted.
        errors: by row, the error of each image that could not be read (`errors="coerce"`). Its numbers are NaN, its
            label is -1, its name is empty, and it is not accepted.
    """

    def __init__(
        self,
        probabilities: np.ndarray,
        angles_rad: np.ndarray,
        scores: np.ndarray,
        angle_confidences: np.ndarray | None = None,
        second_angles_rad: np.ndarray | None = None,
        second_angle_probabilities: np.ndarray | None = None,
        *,
        classes: tuple[str, ...],
        threshold: float,
        preprocess_info: Callable[[int], list[PreprocessInfo]],
        errors: Mapping[int, DataError] | None = None,
    ) -> None:
        """Keep the arrays; `preprocess_info(N)` is called when somebody asks what was done to the N inputs."""
        self.probabilities = probabilities
        self.scores = scores
        self.angle_confidences = angle_confidences
        self.second_angle_probabilities = second_angle_probabilities
        self.classes = classes
        self.threshold = threshold
        self.errors: Mapping[int, DataError] = errors or {}
        self._angles_rad = angles_rad
        self._second_angles_rad = second_angles_rad
        self._preprocess_info = preprocess_info

    def __len__(self) -> int:
        """The number of images."""
        return len(self.scores)

    def __repr__(self) -> str:
        """The first names, and how many images were rejected."""
        shown = ", ".join(name or "unreadable" for name in self.names[:5]) + (", …" if len(self) > 5 else "")
        unreadable = f", {len(self.errors)} unreadable" if self.errors else ""
        rejected = int((~self.accepted).sum()) - len(self.errors)
        return f"<{len(self)} predictions: {shown}; {rejected} rejected{unreadable}>"

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [N]: the index of the most probable class.

        Raises:
            BackendError: a probability is NaN or infinite.
        """
        finite = np.isfinite(self.probabilities).all(1)
        finite[list(self.errors)] = True
        if not finite.all():
            raise BackendError(
                f"A probability is NaN or infinite for image {int(finite.argmin())} of {len(self)}, counted from 0: "
                "the model is damaged, or fails on such images; export it again."
            )
        labels = self.probabilities.argmax(1).astype(np.int64, copy=False)
        labels[list(self.errors)] = -1
        return labels

    @cached_property
    def names(self) -> list[str]:
        """The name of the most probable class of each image."""
        return ["" if label < 0 else self.classes[label] for label in self.labels]

    @cached_property
    def angles_deg(self) -> np.ndarray:
        """float32 [N]: degrees counter-clockwise as displayed, upright is 0, in (-180, 180]."""
        return _to_degrees(self._angles_rad)

    @cached_property
    def second_angles_deg(self) -> np.ndarray | None:
        """float32 [N]: the second most probable angle, in degrees as `angles_deg`; None if the model has none.

        It is well apart from the first one. Where its probability is small, it means nothing.
        """
        return None if self._second_angles_rad is None else _to_degrees(self._second_angles_rad)

    @cached_property
    def accepted(self) -> np.ndarray:
        """bool [N]: whether the score is at most the bundle's threshold."""
        return self.scores <= np.float32(self.threshold)

    @cached_property
    def preprocess_info(self) -> list[PreprocessInfo]:
        """How each input was decoded, cropped, resized and inverted."""
        return self._preprocess_info(len(self))

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary per image, for JSON. What the model does not have is None.

        An image that could not be read has `error` alone.
        """
        uncertainty = {
            "angle_confidence": self.angle_confidences,
            "second_angle_deg": self.second_angles_deg,
            "second_angle_probability": self.second_angle_probabilities,
        }
        return [
            {"error": str(self.errors[i])}
            if i in self.errors
            else {
                "label": int(self.labels[i]),
                "name": self.names[i],
                "probability": float(self.probabilities[i, self.labels[i]]),
                "probabilities": [float(p) for p in self.probabilities[i]],
                "angle_deg": float(self.angles_deg[i]),
                **{name: None if values is None else float(values[i]) for name, values in uncertainty.items()},
                "score": float(self.scores[i]),
                "accepted": bool(self.accepted[i]),
                "preprocess_info": self.preprocess_info[i].sentence(),
            }
            for i in range(len(self))
        ]


def _to_degrees(angles_rad: np.ndarray) -> np.ndarray:
    degrees = np.rad2deg(angles_rad.astype(np.float64))
    wrapped = wrap_degrees(degrees).astype(np.float32)
    wrapped[wrapped <= -180.0] = 180.0  # rounding to float32 may have reached the open end
    return wrapped


MAX_BATCH = 256
"""Larger batches run in pieces of this size, so that bound buffers stay small."""


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
        verify: what happens if a backend's answers to the bundle's probe images are wrong on this machine: `error`
            refuses the backend, `warn` logs a sentence, `off` does not check. It is checked at the first load and
            remembered. With `auto` such a backend is left out, unless this is `off`.

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
    if verify not in probing.VERIFY_MODES:
        raise ConfigError(f"verify is one of {', '.join(probing.VERIFY_MODES)}, but {verify!r} came.")
    if backend != "auto":
        check_installed(backend)
    elif not installed_backends():
        raise BackendError('No backend is installed: run `pip install "vae-edge[onnxruntime]"`.')

    def opened(bundle: Bundle) -> Classifier:
        if backend == "auto" or precision == "auto":
            model = autoselect.select_backend(bundle, backend, precision, threads, verify)
        else:
            model = probing.open_verified(bundle, backend, precision, threads, verify)
        return Classifier(bundle, model, verify)

    return with_bundle(path, opened)


class Classifier:
    """A model on one backend in one precision: call it with images.

    Several threads may call it. It is a context manager; `close()` releases the model.

    Attributes:
        bundle: the bundle it was loaded from.
        backend, precision: names.
        threads: how many threads one call may use.
        input: what the model's images are.
        classes: the class names.
        entry: the model file's entry in the bundle.
        threshold: the largest score that is accepted with this model file.
    """

    def __init__(self, bundle: Bundle, model: OpenedModel, verify: str = "error") -> None:
        """Made by `vae_edge.load`; `model` is one of the bundle's classifiers."""
        self.bundle = bundle
        self.backend = model.backend
        self.precision = model.entry.precision
        self.threads = model.threads
        self.input: InputSpec = bundle.input
        self.classes = bundle.classes
        self.entry = model.entry
        self.threshold = model.threshold
        self._verify = verify
        self._session: Backend | None = model.session
        self._reconstructor: Backend | None = None
        self._lock = threading.Lock()

        names = [info.name for info in model.session.outputs]
        self._order = [names.index(name) for name in (*CLASSIFIER_OUTPUTS, *UNCERTAINTY_OUTPUTS) if name in names]
        self._score_index = names.index("score")
        self._color_order = ColorOrderCheck(self.input.channels)

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
                and grey models. None is `rgb`, but the first calls check whether it might be `bgr`, and log a warning.
            errors: `raise`, or `coerce`: an item of a list that cannot be read has NaN in every output, and its error
                is in `Predictions.errors`.

        Raises:
            DataError: an image cannot be read or an array has the wrong form.
            BackendError: the classifier was closed, the backend failed, or an answer is NaN or infinite.
        """
        plain = invert == "never" and (color is None or color == "rgb") and fit in FIT and errors in ERRORS
        failed: dict[int, DataError] = {}
        if plain and type(images) is np.ndarray and images.ndim == 4:
            batch = check_batch(images, self.input)
            preprocess_info: Callable[[int], list[PreprocessInfo]] = self._info_of_arrays
        else:
            batch, found, failed = to_rows(images, self.input, invert, fit, color or "rgb", errors)
            preprocess_info = lambda count: found  # noqa: E731

        outputs = self._run(self._session, batch)
        if not _are_finite(outputs):
            self._check_finite(outputs)
        if failed:
            _set_nan(outputs, failed)

        if self._color_order.active and color is None and type(images) is np.ndarray:
            score = self._score_index
            self._color_order.check(
                batch, outputs[score], self.threshold, lambda swapped: self._run(self._session, swapped)[score]
            )

        return Predictions(
            *[outputs[k] for k in self._order],
            classes=self.classes,
            threshold=self.threshold,
            preprocess_info=preprocess_info,
            errors=failed,
        )

    def reconstruct(self, images: Any, invert: str = "never", fit: str = "auto", color: str = "rgb") -> np.ndarray:
        """The images as the model's decoder draws them: uint8 [N, S, S, C], RGB. Arguments are those of a call.

        Raises:
            BundleError: the bundle has no reconstruction model.
            VerificationError: its answers to the bundle's probe images are wrong here.
        """
        batch, _ = to_batch(images, self.input, invert, fit, color)
        with self._lock:
            if self._session is not None and self._reconstructor is None:
                self._reconstructor = self._open_reconstructor()
        return self._run(self._reconstructor, batch)[0]

    @property
    def session(self) -> Backend:
        """The opened model itself, which does not check what it is given."""
        return self._require_open(self._session)

    @property
    def inputs(self) -> list[TensorInfo]:
        """The model's inputs, each with `name`, `shape` and `type`."""
        return list(self._require_open(self._session).inputs)

    @property
    def outputs(self) -> list[TensorInfo]:
        """The model's outputs, each with `name`, `shape` and `type`."""
        return list(self._require_open(self._session).outputs)

    def warmup(self, batch: int = 1) -> None:
        """Prepare batches of this size, so that the first call is as fast as later ones.

        OpenVINO compiles the model for exactly this size: that takes some tens of milliseconds and makes it faster.
        """
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise ConfigError(f"warmup takes a batch size of at least 1, but {batch!r} came.")
        session, size = self._require_open(self._session), min(batch, MAX_BATCH)
        session.warm_up(size)
        image = np.random.default_rng(0).integers(
            0, 256, (size, self.input.size, self.input.size, self.input.channels), dtype=np.uint8
        )
        for _ in range(3):
            session.infer(image)

    def close(self) -> None:
        """Release the model; calls after this raise BackendError. May be called again."""
        with self._lock:
            sessions = (self._session, self._reconstructor)
            self._session = self._reconstructor = None
        for session in sessions:
            if session is not None:
                session.close()

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
        state = "" if self._session is not None else ", closed"
        s = self.input
        return (
            f"<Classifier {self.bundle.name!r}: {self.backend}, {self.precision}, threads={self.threads}, "
            f"image uint8 [N, {s.size}, {s.size}, {s.channels}], {len(self.classes)} classes{state}>"
        )

    def _run(self, session: Backend | None, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """The outputs, copied out of the bound buffers; large batches run in pieces."""
        if session is None:
            session = self._require_open(session)
        try:
            if len(batch) <= MAX_BATCH:
                return tuple([output.copy() for output in session.infer(batch)])
            pieces = [
                [output.copy() for output in session.infer(batch[start : start + MAX_BATCH])]
                for start in range(0, len(batch), MAX_BATCH)
            ]
        except Exception as error:  # the backends' own exceptions share no base class
            if self._session is None:
                raise BackendError(f"The classifier of {self.bundle.path} was closed during a call.") from error
            raise BackendError(
                f"{self.backend} failed on a batch of {len(batch)} images ({error}): try another backend."
            ) from error
        return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))

    def _check_finite(self, outputs: tuple[np.ndarray, ...]) -> None:
        """Refuse outputs that are NaN or infinite: among NaN no class is the most probable."""
        for k in self._order:
            finite = np.isfinite(outputs[k].reshape(len(outputs[k]), -1)).all(1)
            if not finite.all():
                wrong = np.flatnonzero(~finite)
                name = self._require_open(self._session).outputs[k].name
                raise BackendError(
                    f"{self.backend} {self.precision} with {self.bundle.file(self.entry)} gives {name} that are NaN "
                    f"or infinite for {len(wrong)} of {len(finite)} images (the first: number {wrong[0]}, "
                    "counted from 0): the model is damaged, or fails on such images; try another precision or "
                    "backend, or export it again."
                )

    def _open_reconstructor(self) -> Backend:
        """The bundle's reconstruction model in this precision or another, checked with the probe images."""
        there = self.bundle.select("reconstruction", "onnx", target="any")
        if not there:
            raise BundleError(
                f"The bundle {self.bundle.path} has no reconstruction model: export it again, with `vae-edge export`."
            )
        entry = next((m for m in there if m.precision == self.precision), there[0])
        model = open_model(self.bundle, self.backend, entry, self.threads)
        probing.check_or_close(self.bundle, model, self._verify)
        return model.session

    def _require_open(self, session: Backend | None) -> Backend:
        if session is None:
            raise BackendError(f"The classifier of {self.bundle.path} was closed: load the bundle again.")
        return session

    def _info_of_arrays(self, count: int) -> list[PreprocessInfo]:
        size = self.input.size
        one = np.zeros((1, size, size, self.input.channels), np.uint8)  # all images of an array have the same
        return to_batch(one, self.input)[1] * count


def _are_finite(outputs: Sequence[np.ndarray]) -> bool:
    """Whether no output is NaN or infinite. NumPy's argmax and argmin both find a NaN first.

    For one image, where each microsecond counts, the first probability stands for all: softmax makes all of them NaN.
    `Predictions.labels` checks the others.
    """
    total = 0.0  # a 64-bit float: the sum of a few float32 values cannot overflow it
    for output in outputs:
        if len(output) == 1:
            total += output.item(0)
        else:
            total += output.item(output.argmax()) - output.item(output.argmin())
    return isfinite(total)


def _set_nan(outputs: Sequence[np.ndarray], rows: Iterable[int]) -> None:
    """Remove the outputs of images that could not be read."""
    for output in outputs:
        output[list(rows)] = np.nan


_MAX_CALLS, _MAX_CHECKS, _MAX_IMAGES = 100, 8, 16
_MIN_REJECTED = 4


class ColorOrderCheck:
    """Warns once if arrays seem to be in OpenCV's channel order, BGR, where the model takes RGB.

    It runs rejected images of the first calls again with red and blue exchanged: at most 100 calls, 8 of them with
    rejected images, and 16 images in all. It warns if at least four were rejected and most of them are accepted when
    exchanged. Images that are accepted in the wrong order are not noticed.

    Attributes:
        active: whether it still checks; after that a call costs nothing.
    """

    def __init__(self, channels: int) -> None:
        """`channels`: of the model's images; grey images have no order."""
        self._calls, self._checks, self._images = _MAX_CALLS, _MAX_CHECKS, _MAX_IMAGES
        self._rejected = self._accepted = 0
        self.active = channels == 3

    def check(
        self, batch: np.ndarray, scores: np.ndarray, threshold: float, score: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Check uint8 [N, S, S, 3] and its scores [N]; `score` gives the scores of other images."""
        rejected = np.flatnonzero(~(scores <= threshold))[: self._images]
        self._calls -= 1
        if len(rejected):
            self._checks -= 1
            self._images -= len(rejected)
            self._rejected += len(rejected)
            swapped = np.ascontiguousarray(batch[rejected][..., ::-1])
            self._accepted += int((score(swapped) <= threshold).sum())
        self.active = self._calls > 0 and self._checks > 0 and self._images > 0
        if self._rejected >= _MIN_REJECTED and 2 * self._accepted > self._rejected:
            self.active = False
            logging.getLogger(__name__).warning(
                "%d of %d rejected images are known with red and blue exchanged: the model takes RGB. If these arrays "
                'come from OpenCV, whose order is BGR, pass color="bgr"; if they are RGB, color="rgb" says so.',
                self._accepted,
                self._rejected,
            )
