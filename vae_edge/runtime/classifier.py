"""From a bundle's path to predictions: `load`, and the `Classifier` that it returns."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from math import isfinite
from types import TracebackType
from typing import Any

import numpy as np

from vae_edge.bundle import Bundle, with_bundle
from vae_edge.errors import BackendError, BundleError, ConfigError, DataError
from vae_edge.listing import find_images, summarize
from vae_edge.preprocess import ERRORS, FIT, InputSpec, PreprocessInfo, check_batch, check_options, to_batch, to_rows
from vae_edge.runtime import autoselect, probing
from vae_edge.runtime.backends import (
    SPECS,
    VERIFY_MODES,
    Backend,
    LoadOptions,
    OpenedModel,
    TensorInfo,
    check_installed,
    installed_backends,
    open_model,
)
from vae_edge.runtime.color_order import ColorOrderCheck
from vae_edge.runtime.device_arrays import hand_over, is_on_device, length
from vae_edge.runtime.entries import find_entries
from vae_edge.runtime.pending import PendingCalls
from vae_edge.runtime.predictions import Predictions
from vae_edge.spec import CLASSIFIER_OUTPUTS, PRECISIONS, UNCERTAINTY_OUTPUTS

log = logging.getLogger(__name__)

MAX_BATCH = 256
"""Larger batches run in pieces of this size, so that bound buffers stay small."""
STREAM_BATCH = 64
"""Images of a batch of `Classifier.stream`, if nothing else is said."""


def load(
    path: str | os.PathLike[str],
    backend: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    verify: str = "error",
    device: int = 0,
    trusted: bool = False,
) -> Classifier:
    """Load and verify a bundle and make it ready to predict.

    Args:
        path: the bundle's folder.
        backend: a name of `vae_edge.runtime.backends.BACKENDS`, or `auto`: the fastest here, for small and for large
            batches, timed once and remembered in the bundle.
        precision: `fp32`, `fp16`, `int8`, `fp8`, or `auto`: the fastest whose recorded accuracy is within half a point
            of fp32's.
        threads: how many threads one call may use. None is 1, which is the fastest for single images with models of
            this size; several Python threads may call one classifier at a time.
        verify: what happens if a backend's answers to the bundle's probe images are wrong on this machine: `error`
            refuses the backend, `warn` logs a sentence, `off` does not check. It is checked at the first load and
            remembered. With `auto` such a backend is left out, unless this is `off`.
        device: number of the GPU, for backends that run on one.
        trusted: whether the bundle comes from a place that you trust. An engine that later versions of TensorRT can
            run too carries code for the processor, and is loaded only then.

    Raises:
        BundleError: the bundle is damaged, lacks the precision, or its model is not ours.
        BackendError: the backend is unknown or not installed, or needs a GPU that is not there.
        VerificationError: what was asked for gives wrong answers here, or everything does.
        ConfigError: `precision`, `threads`, `verify` or `device` is not one of the above.
    """
    options = LoadOptions(1 if threads is None else threads, verify, device, bool(trusted))
    if not _is_whole(options.threads) or options.threads < 1:
        raise ConfigError(f"threads is a whole number of at least 1, or None, but {threads!r} came.")
    if precision not in ("auto", *PRECISIONS):
        raise ConfigError(f"precision is auto, {', '.join(PRECISIONS)}, but {precision!r} came.")
    if verify not in VERIFY_MODES:
        raise ConfigError(f"verify is one of {', '.join(VERIFY_MODES)}, but {verify!r} came.")
    if not _is_whole(device) or device < 0:
        raise ConfigError(f"device is the number of a GPU, 0 or more, but {device!r} came.")
    if backend != "auto":
        check_installed(backend)
    elif not installed_backends():
        raise BackendError('No backend is installed: run `pip install "vae-edge[onnxruntime]"`.')

    def opened(bundle: Bundle) -> Classifier:
        if backend == "auto" or precision == "auto":
            return Classifier(bundle, autoselect.select_models(bundle, backend, precision, options))
        return Classifier(bundle, {1: probing.open_verified(bundle, backend, precision, options)})

    return with_bundle(path, opened)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Classifier:
    """A model, or one for small and one for large batches, each on one backend in one precision: call it with images.

    Several threads may call it. It is a context manager; `close()` releases the model.

    Attributes:
        bundle: the bundle it was loaded from.
        backend, precision: names, of the model for single images; `choices` has those for larger batches.
        threads: how many threads one call may use.
        input: what the model's images are.
        classes: the class names.
        entry: the model file's entry in the bundle.
        choices: backend and precision by the batch size that they were chosen for; for 1 alone if nothing was left to
            choose.
    """

    def __init__(self, bundle: Bundle, models: autoselect.Models) -> None:
        """Made by `vae_edge.load`; `models` are classifiers of the bundle by batch size."""
        model = models[1]
        self.bundle = bundle
        self.backend = model.backend
        self.precision = model.entry.precision
        self.threads = model.options.threads
        self.input: InputSpec = bundle.input
        self.classes = bundle.classes
        self.entry = model.entry
        self.choices = {batch: (m.backend, m.entry.precision) for batch, m in models.items()}
        self._options = model.options
        self._models: dict[int, _Model] = {}
        known: dict[int, _Model] = {}
        for batch, opened in models.items():
            self._models[batch] = known.setdefault(id(opened), _Model(opened))
        self._only: _Model | None = self._models[1] if len(known) == 1 else None
        self._closed = False
        self._reconstructor: _Model | None = None
        self._pending: PendingCalls | None = None
        self._lock = threading.RLock()  # a signal's handler may close the classifier anywhere
        self._has_angle = bundle.rotation != "none"
        self._color_order = ColorOrderCheck(self.input.channels)

    def __call__(
        self,
        images: Any,
        invert: str = "never",
        fit: str = "auto",
        color: str | None = None,
        errors: str = "raise",
        copy: bool = True,
    ) -> Predictions:
        """Classify images.

        Args:
            images: an array uint8 [N, S, S, C] (the fast way; colours in the order RGB), or a path, a Pillow image, or
                a list of these or of arrays, which are prepared as `vae_edge.preprocess.to_batch` says. An array of
                this shape may also be on the GPU (DLPack or `__cuda_array_interface__`: PyTorch, CuPy, Numba), for
                backends that run there.
            invert: `never`, `always` or `auto`.
            fit: `auto` (as training did), `pad` or `foreground`; arrays are never cropped.
            color: the order of the channels of arrays, `rgb` or `bgr` (OpenCV's); no effect on files, Pillow images
                and grey models. None is `rgb`, but the first calls check whether it might be `bgr`, and log a warning.
            errors: `raise`, or `coerce`: an item of a list that cannot be read has NaN in every output, and its error
                is in `Predictions.errors`.
            copy: False leaves the outputs in the backend's own memory: they are valid until this thread's next call.

        Raises:
            DataError: an image cannot be read or an array has the wrong form.
            BackendError: the classifier was closed, the backend failed, or an answer is NaN or infinite.
        """
        plain = invert == "never" and (color is None or color == "rgb") and fit in FIT and errors in ERRORS
        failed: dict[int, DataError] = {}
        if plain and type(images) is np.ndarray and images.ndim == 4:
            batch: Any = check_batch(images, self.input)
            preprocess_info: Callable[[int], list[PreprocessInfo]] = self._info_of_arrays
        elif is_on_device(images):
            if not plain:
                raise ConfigError("images on a GPU are taken as they are: leave out invert, color and errors.")
            batch, preprocess_info = images, self._info_of_arrays
        else:
            batch, found, failed = to_rows(images, self.input, invert, fit, color or "rgb", errors)
            preprocess_info = lambda count: found  # noqa: E731

        model = self._only or self._model_for(batch)
        checks_color = self._color_order.active and color is None and type(images) is np.ndarray
        outputs = self._outputs(model, batch, copy or checks_color, failed)  # the check runs again in the same buffers
        if checks_color:
            score = model.score_index
            self._color_order.check(
                batch, outputs[score], model.threshold, lambda swapped: self._run(model, swapped, True)[score]
            )
        return self._predictions(model, outputs, preprocess_info, failed)

    def stream(
        self,
        images: str | os.PathLike[str] | Iterable[Any],
        invert: str = "never",
        fit: str = "auto",
        color: str = "rgb",
        batch: int = STREAM_BATCH,
    ) -> Iterator[tuple[list[Any], Predictions]]:
        """Classify any number of images, batch by batch: memory does not grow with their number.

            for files, predictions in classifier.stream("photographs"):
                for file, name in zip(files, predictions.names):
                    print(file, name)

        Args:
            images: a folder, whose images at any depth are found as data sets find theirs (`vae_edge.find_images`); or
                an iterable, such as a generator, of paths, Pillow images or arrays, which is read as it is needed.
            invert, fit, color: as of a call.
            batch: images at a time. All are run by the model that was chosen for this size.

        Yields:
            (items, predictions): up to `batch` of the items, and their predictions. One that cannot be read is in
            `Predictions.errors`. Images are read by as many threads as one call may use (`threads`).

        Raises:
            DataError: the folder cannot be read, or holds no images.
            ConfigError: an option is out of range.
            BackendError: as of a call.
        """
        if not _is_whole(batch) or batch < 1:
            raise ConfigError(f"stream takes batches of at least 1 image, but {batch!r} came.")
        check_options(invert, fit, color)
        self._require_open()
        if isinstance(images, (str, os.PathLike)):
            found = find_images(images)
            if found.left_out:
                log.info("left out of %s: %s", os.fspath(images), "; ".join(summarize(found.left_out)))
            images = found.files
        return self._stream(iter(images), invert, fit, color, batch)

    def _stream(
        self, items: Iterator[Any], invert: str, fit: str, color: str, size: int
    ) -> Iterator[tuple[list[Any], Predictions]]:
        model: _Model | None = None
        while chunk := list(islice(items, size)):
            rows, found, failed = to_rows(chunk, self.input, invert, fit, color, "coerce", self.threads)
            if len(rows) != len(chunk):
                raise DataError(
                    "Each item of a stream is one image, but an array of several came: call the classifier."
                )
            model = model or self._only or self._model_for(rows)
            outputs = self._outputs(model, rows, True, failed)
            yield chunk, self._predictions(model, outputs, partial(_same, found), failed)

    def predict_async(self, images: Any, **options: Any) -> Future[Predictions]:
        """Classify images while the caller goes on; arguments as a call's, but for `copy`.

        At most 8 calls wait; one more blocks until there is room. On a GPU two calls run at a time, so that the copies
        of one overlap with the computation of the other. An array must not change until its result is there. One on
        the GPU is read once the work that its library has put on the caller's current stream is done.

        Raises:
            BackendError: the classifier was closed.
            DataError: an array on the GPU of another type.
        """
        if "copy" in options:
            raise ConfigError("predict_async always copies its outputs: leave out copy.")
        if is_on_device(images):
            images = hand_over(images)
        with self._lock:
            self._require_open()
            if self._pending is None:
                self._pending = PendingCalls(workers=2 if SPECS[self.backend].gpu else 1)
            pending = self._pending
        return pending.submit(lambda: self(images, **options))

    def reconstruct(self, images: Any, invert: str = "never", fit: str = "auto", color: str = "rgb") -> np.ndarray:
        """The images as the model's decoder draws them: uint8 [N, S, S, C], RGB. Arguments are those of a call.

        Raises:
            BundleError: the bundle has no reconstruction model.
            VerificationError: its answers to the bundle's probe images are wrong here.
        """
        batch, _ = to_batch(images, self.input, invert, fit, color)
        with self._lock:
            self._require_open()
            if self._reconstructor is None:
                self._reconstructor = _Model(self._open_reconstructor())
        return self._run(self._reconstructor, batch, True)[0]

    def chosen_for(self, batch: int) -> tuple[str, str]:
        """Backend and precision of the model that batches of this size run on."""
        return self.choices[autoselect.bucket_of(max(1, batch), self.choices)]

    @property
    def threshold(self) -> float:
        """The largest score that is accepted, of the model for single images; what is set holds for all models."""
        return self._models[1].threshold

    @threshold.setter
    def threshold(self, score: float) -> None:
        for model in self._models.values():
            model.threshold = score

    @property
    def session(self) -> Backend:
        """The opened model for single images itself, which does not check what it is given."""
        self._require_open()
        return self._models[1].session

    @property
    def inputs(self) -> list[TensorInfo]:
        """The model's inputs, each with `name`, `shape` and `type`."""
        return list(self.session.inputs)

    @property
    def outputs(self) -> list[TensorInfo]:
        """The model's outputs, each with `name`, `shape` and `type`."""
        return list(self.session.outputs)

    def warmup(self, batch: int = 1) -> None:
        """Prepare batches of this size, so that the first call is as fast as later ones.

        OpenVINO compiles the model for exactly this size, which takes some tens of milliseconds and makes it faster.
        TensorRT captures a CUDA graph for it.
        """
        if not _is_whole(batch) or batch < 1:
            raise ConfigError(f"warmup takes a batch size of at least 1, but {batch!r} came.")
        self._require_open()
        size = min(batch, MAX_BATCH)
        session = self._models[autoselect.bucket_of(batch, self._models)].session
        session.warm_up(size)
        image = np.random.default_rng(0).integers(0, 256, (size, *self.input.shape), dtype=np.uint8)
        for _ in range(3):
            session.infer(image)

    def close(self) -> None:
        """Release the model, once the calls of `predict_async` that run are through; those that wait are cancelled.

        Calls after this raise BackendError. May be called again.
        """
        with self._lock:
            self._closed = True
            pending, self._pending = self._pending, None
            models = {
                id(m): m
                for m in (*self._models.values(), self._reconstructor)
                if m is not None and hasattr(m, "session")
            }
            self._reconstructor = None
        if pending is not None:
            pending.close()
        for model in models.values():
            if hasattr(model, "session"):
                session = model.session
                del model.session  # nobody can call it any more, and its memory goes
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
        several = "" if self._only is not None else f" (large batches: {' '.join(self.choices[64])})"
        return (
            f"<Classifier {self.bundle.name!r}: {self.backend}, {self.precision}{several}, threads={self.threads}, "
            f"image uint8 [N, {', '.join(map(str, self.input.shape))}], {len(self.classes)} classes"
            f"{', closed' if self._closed else ''}>"
        )

    def _model_for(self, batch: Any) -> _Model:
        """The model that was chosen for a batch of this size; for images on a GPU, of those that run there if any."""
        if type(batch) is np.ndarray:
            return self._models[autoselect.bucket_of(max(1, len(batch)), self._models)]
        there = {size: m for size, m in self._models.items() if m.takes_device_arrays}
        models = there or self._models
        return models[autoselect.bucket_of(max(1, length(batch)), models)]

    def _run(self, model: _Model, batch: Any, copy: bool) -> tuple[np.ndarray, ...]:
        """The outputs, copied out of the bound buffers if asked for; large batches run in pieces."""
        if self._closed:
            self._require_open()
        try:
            session = model.session
            if type(batch) is not np.ndarray:
                outputs = _infer_on_device(session, batch)
            elif len(batch) <= MAX_BATCH:
                outputs = session.infer(batch)
            else:
                pieces = [
                    [output.copy() for output in session.infer(batch[start : start + MAX_BATCH])]
                    for start in range(0, len(batch), MAX_BATCH)
                ]
                return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
            return tuple([output.copy() for output in outputs]) if copy else outputs
        except DataError:
            raise
        except Exception as error:  # the backends' own exceptions share no base class
            if self._closed:
                raise BackendError(f"The classifier of {self.bundle.path} was closed during a call.") from error
            count = len(batch) if type(batch) is np.ndarray else length(batch)
            raise BackendError(
                f"{model.backend} failed on a batch of {count} images ({error}): try another backend."
            ) from error

    def _outputs(
        self, model: _Model, batch: Any, copy: bool, failed: Mapping[int, DataError]
    ) -> tuple[np.ndarray, ...]:
        """The outputs, checked to be finite; NaN for images that could not be read."""
        outputs = self._run(model, batch, copy)
        if not _are_finite(outputs):
            self._check_finite(model, outputs)
        if failed:
            _set_nan(outputs, failed)
        return outputs

    def _predictions(
        self,
        model: _Model,
        outputs: tuple[np.ndarray, ...],
        preprocess_info: Callable[[int], list[PreprocessInfo]],
        failed: Mapping[int, DataError],
    ) -> Predictions:
        return Predictions(
            *[outputs[k] for k in model.order],
            classes=self.classes,
            threshold=model.threshold,
            preprocess_info=preprocess_info,
            errors=failed,
            has_angle=self._has_angle,
        )

    def _check_finite(self, model: _Model, outputs: tuple[np.ndarray, ...]) -> None:
        """Refuse outputs that are NaN or infinite: among NaN no class is the most probable."""
        for k in model.order:
            finite = np.isfinite(outputs[k].reshape(len(outputs[k]), -1)).all(1)
            if not finite.all():
                wrong = np.flatnonzero(~finite)
                raise BackendError(
                    f"{model.backend} {model.entry.precision} with {self.bundle.file(model.entry)} gives "
                    f"{model.session.outputs[k].name} that are NaN or infinite for {len(wrong)} of {len(finite)} "
                    f"images (the first: number {wrong[0]}, counted from 0): the model is damaged, or fails on such "
                    "images; try another precision or backend, or export it again."
                )

    def _open_reconstructor(self) -> OpenedModel:
        """The bundle's reconstruction model in this precision or another, checked with the probe images.

        Where this backend has none, as where no engine was built of it, a CPU backend opens the ONNX file.
        """
        others = [name for name in installed_backends(gpu=False) if name != self.backend]
        for backend in (self.backend, *others):
            there = find_entries(self.bundle, backend, "reconstruction", device=self._options.device)
            if there:
                entry = there.get(self.precision) or next(iter(there.values()))
                model = open_model(self.bundle, backend, entry, self._options)
                probing.check_or_close(self.bundle, model, self._options.verify)
                return model
        raise BundleError(
            f"The bundle {self.bundle.path} has no reconstruction model: export it again, with `vae-edge export`."
        )

    def _require_open(self) -> None:
        if self._closed:
            raise BackendError(f"The classifier of {self.bundle.path} was closed: load the bundle again.")

    def _info_of_arrays(self, count: int) -> list[PreprocessInfo]:
        one = np.zeros((1, *self.input.shape), np.uint8)  # all images of an array have the same
        return to_batch(one, self.input)[1] * count


def _same(found: list[PreprocessInfo], _count: int) -> list[PreprocessInfo]:
    return found


class _Model:
    """An opened model as a call needs it."""

    __slots__ = ("backend", "entry", "order", "score_index", "session", "takes_device_arrays", "threshold")

    def __init__(self, model: OpenedModel) -> None:
        names = [info.name for info in model.session.outputs]
        self.backend = model.backend
        self.entry = model.entry
        self.session = model.session
        self.takes_device_arrays = hasattr(model.session, "infer_on_device")
        self.threshold = model.threshold
        self.order = [names.index(name) for name in (*CLASSIFIER_OUTPUTS, *UNCERTAINTY_OUTPUTS) if name in names]
        self.score_index = names.index("score") if "score" in names else -1


def _infer_on_device(session: Backend, images: Any) -> tuple[np.ndarray, ...]:
    infer = getattr(session, "infer_on_device", None)
    if infer is None:
        raise DataError(
            "The images are on a GPU, but this model runs on the processor: pass a NumPy array, such as "
            "`images.cpu().numpy()` of PyTorch's, or load the bundle with a backend that runs on the GPU."
        )
    outputs: tuple[np.ndarray, ...] = infer(images)
    return outputs


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
