"""Collect images one by one: few in memory, many in a file that is mapped to be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from vae_edge import files
from vae_edge.data.images import DIGEST_BYTES, ImageStore, ImageView, as_images, digest

MAX_IN_MEMORY_BYTES = 64 << 20
"""Images that take more are in a file, where a folder for it is given."""


class ImageWriter:
    """Images [N, H, W, C] in the making. In a file they are gone when the writer is closed, unless they were kept.

    Where the file cannot be written, or the disk is full, all images are in memory from then on.
    """

    def __init__(
        self,
        count: int,
        shape: tuple[int, int, int],
        folder: Path | None,
        on_error: Callable[[OSError], None] = lambda _error: None,
    ) -> None:
        """Begin.

        Args:
            count: at most so many images will come.
            shape: of an image, (H, W, C).
            folder: for the file; None: all are in memory.
            on_error: called with what keeps the file from being written.
        """
        self._count, self._shape, self._on_error = count, shape, on_error
        self._written, self._failed = 0, False
        self._digests = bytearray()
        self._memory: np.ndarray | None = None
        self._path: Path | None = None
        self._file: Any = None
        self._exit = ExitStack()
        if folder is not None and count * int(np.prod(shape)) > MAX_IN_MEMORY_BYTES:
            try:
                self._open(folder)
            except OSError as error:
                on_error(error)
        if self._file is None:
            self._memory = np.empty((count, *shape), np.uint8)

    def _open(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / "images.bin"
        files.remove_left_over(target)
        self._path, lock = files.locked_temporary(target)
        self._exit.callback(os.close, lock)
        self._exit.callback(self._path.unlink, missing_ok=True)
        self._file = self._exit.enter_context(self._path.open("wb", buffering=0))

    def __enter__(self) -> ImageWriter:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file, unless it was kept. Images that were taken can still be read."""
        self._exit.close()

    def append(self, image: np.ndarray) -> None:
        """Add an image, uint8 [H, W, C], or [H, W, 1] for C equal channels."""
        if self._memory is None:
            whole = np.ascontiguousarray(np.broadcast_to(image, self._shape))
            try:
                self._write(whole.data)
                self._digests += digest(whole)
            except OSError as error:
                self._on_error(error)
                self._go_on_in_memory()
        if self._memory is not None:
            self._memory[self._written] = image
        self._written += 1

    def _write(self, content: memoryview) -> None:
        content = content.cast("B")
        while content:
            content = content[self._file.write(content) :]

    def _go_on_in_memory(self) -> None:
        """Take the images that are in the file whole, and remove it."""
        assert self._path is not None
        self._memory = np.empty((self._count, *self._shape), np.uint8)
        size = self._written * int(np.prod(self._shape))
        self._memory[: self._written] = np.fromfile(self._path, np.uint8, size).reshape(-1, *self._shape)
        self._exit.close()
        self._path = self._file = None
        self._failed = True

    def images(self) -> np.ndarray:
        """The images so far, uint8 [M, H, W, C]: an array, or a view of the file, to which none can be added then."""
        if self._memory is not None or not self._written:
            return np.empty((0, *self._shape), np.uint8) if self._memory is None else self._memory[: self._written]
        assert self._path is not None
        digests = np.frombuffer(bytes(self._digests), np.uint8).reshape(-1, DIGEST_BYTES)
        store = ImageStore(self._path, (self._written, *self._shape), digests)
        return as_images(ImageView(store, np.arange(self._written)))

    def keep(self, path: Path, end: Callable[[np.ndarray], bytes]) -> None:
        """Keep the images as a file, which has what `end` gives for their digests [M, 16] behind them.

        Nothing is kept of a file that could not be written to its end.

        Raises:
            OSError: it cannot be written.
        """
        if self._failed:
            return
        if self._memory is not None or self._path is None:
            images = self.images()
            found = np.frombuffer(b"".join(map(digest, images)), np.uint8).reshape(-1, DIGEST_BYTES)
            files.write_bytes(path, images.tobytes() + end(found))
            return
        digests = np.frombuffer(bytes(self._digests), np.uint8).reshape(-1, DIGEST_BYTES)
        self._write(memoryview(end(digests)))
        self._path.replace(path)
