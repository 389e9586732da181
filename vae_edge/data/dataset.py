"""What a data set is: labelled images in a train, a validation and a test split, checked when they are made.

Also how arrays of images get their form (`validate_and_resize`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vae_edge.data.images import chunks, concatenate, select
from vae_edge.errors import ConfigError, DataError
from vae_edge.listing import LeftOut
from vae_edge.preprocess import InputSpec, resize_square, uint8_hint
from vae_edge.spec import MAX_ARRAY_BYTES, MAX_NUMBERED_CLASSES, MAX_SIZE, MIN_SIZE

UNLABELLED = ("unlabelled", "unlabeled")
"""Names of the folder, or of the array of an .npz, with images without labels. No class of a folder has this name."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of one size with their labels.

    Raises:
        DataError: the arrays do not fit each other, or a label is outside the classes.
    """

    images: np.ndarray
    """uint8 [N, H, W, C], C 1 or 3: an array, or a view of a file (`vae_edge.data.images.ImageView`)."""
    labels: np.ndarray
    """int64 [N], each an index into `classes`."""
    classes: tuple[str, ...]
    angles_deg: np.ndarray | None = None
    """float32 [N]: rotation of each image in degrees, counter-clockwise as displayed, upright is 0. None: unknown."""
    groups: np.ndarray | None = None
    """object [N], texts: what each image belongs to, such as its maker, font, camera or day (`vae_edge.data.groups`).
    `holdout` keeps a group on one side. None: each image is on its own."""
    files: np.ndarray | None = None
    """object [N], texts: the file of each image, relative to the data set's folder. None: they came as arrays."""

    def __post_init__(self) -> None:
        """Check the arrays."""
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise DataError(
                f"Images are uint8 [N, H, W, C] with 1 or 3 channels, but {images.dtype} {list(images.shape)} came."
            )
        if labels.dtype != np.int64 or labels.shape != (len(images),):
            raise DataError(
                f"Labels are int64, one for each of the {len(images)} images, "
                f"but {labels.dtype} {list(labels.shape)} came."
            )
        if len(labels) and (labels.min() < 0 or labels.max() >= len(self.classes)):
            wrong = int(labels.min()) if labels.min() < 0 else int(labels.max())
            raise DataError(
                f"Label {wrong} is outside the {len(self.classes)} classes (0 to {len(self.classes) - 1}); "
                "correct the labels or give the missing class names."
            )
        angles = self.angles_deg
        if angles is not None and (
            angles.dtype != np.float32 or angles.shape != labels.shape or not np.isfinite(angles).all()
        ):
            raise DataError(
                f"Angles are finite float32 degrees, one for each of the {len(images)} images, "
                f"but {angles.dtype} {list(angles.shape)} came, or some are NaN."
            )
        for what, texts in (("Groups", self.groups), ("Files", self.files)):
            if texts is not None and (
                texts.dtype != object or texts.shape != labels.shape or not all(isinstance(text, str) for text in texts)
            ):
                raise DataError(
                    f"{what} are an array of dtype object with one text for each of the {len(images)} images, "
                    f"but {texts.dtype} {list(texts.shape)} came."
                )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def take(self, indices: np.ndarray) -> LabelledImages:
        """The images at these indices (integers [M] or a mask [N]), in that order."""
        rest = (None if each is None else each[indices] for each in (self.angles_deg, self.groups, self.files))
        return LabelledImages(select(self.images, indices), self.labels[indices], self.classes, *rest)

    def in_memory(self) -> LabelledImages:
        """The same with an array of images, which is read if they are in a file."""
        return replace(self, images=np.asarray(self.images))


@dataclass(frozen=True)
class Dataset:
    """A train, a validation and a test split, or some of them; and images without labels, if there are any.

    Raises:
        DataError: there is no split, or an empty one; the splits differ in classes or image shape; the images without
            labels are none, or of another shape.
    """

    name: str
    source: str
    train: LabelledImages | None
    test: LabelledImages | None
    unlabelled: np.ndarray | None = None
    """uint8 [M, H, W, C], M at least 1, of the same shape as the others. None: there are none."""
    input: InputSpec | None = None
    """How files became these images, or are to become such images. None: they are arrays, and nothing was chosen."""
    notes: tuple[str, ...] = ()
    """Sentences about what was chosen while the files were read."""
    left_out: tuple[LeftOut, ...] = ()
    """What the folder holds that is not used, sorted by reason."""
    validation: LabelledImages | None = None
    """Images that training holds out in place of some of the train split. None: it holds out some of that."""

    def __post_init__(self) -> None:
        """Check that there are images, and that the splits belong together."""
        splits = list(self.splits.values())
        if not splits or not all(len(split) for split in splits):
            what = "there are no images" if self.unlabelled is None else "there are images without labels alone"
            raise DataError(f"{self.source}: {what}.")
        if len({split.classes for split in splits}) > 1:
            some = {name for split in splits for name in split.classes}
            difference = sorted(name for name in some if not all(name in split.classes for split in splits))
            difference = difference or ["their order"]
            raise DataError(
                f"{self.source}: the {' and the '.join(self.splits)} split differ in their classes "
                f"({', '.join(difference)}); give all the same."
            )
        if len({split.images.shape[1:] for split in splits}) > 1:
            shapes = " and ".join(str(list(split.images.shape[1:])) for split in splits)
            raise DataError(
                f"{self.source}: the {' and the '.join(self.splits)} split differ in the images' shape: {shapes}."
            )
        if self.unlabelled is not None:
            self._check_unlabelled(self.unlabelled, splits[0].images.shape[1:])

    def _check_unlabelled(self, images: np.ndarray, shape: tuple[int, ...]) -> None:
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise DataError(
                f"{self.source}: images without labels are uint8 of the shape of the others, {list(shape)}, "
                f"but {images.dtype} {list(images.shape[1:])} came. A size (--size) brings them to one."
            )
        if not len(images):
            raise DataError(f"{self.source}: the images without labels are none; leave them out.")

    def in_memory(self) -> Dataset:
        """The same with arrays of images, which are read if they are in a file."""
        train, test, validation = (
            None if split is None else split.in_memory() for split in (self.train, self.test, self.validation)
        )
        unlabelled = None if self.unlabelled is None else np.asarray(self.unlabelled)
        return replace(self, train=train, test=test, validation=validation, unlabelled=unlabelled)

    @property
    def splits(self) -> dict[str, LabelledImages]:
        """The splits that there are, by name: `train`, `test`, `validation`."""
        named = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return next(iter(self.splits.values())).classes

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of all images, labels, class names, and known angles. Groups and files do not count."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for role, split in self.splits.items():
            digest.update(f"{role} {split.images.shape}".encode())
            for _, chunk in chunks(split.images):
                digest.update(chunk.data)
            digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
            if split.angles_deg is not None:
                digest.update(np.ascontiguousarray(split.angles_deg, dtype="<f4").data)
        if self.unlabelled is not None:
            digest.update(f"unlabelled {self.unlabelled.shape}".encode())
            for _, chunk in chunks(self.unlabelled):
                digest.update(chunk.data)
        return digest.hexdigest()


def labelled_images(
    source: str,
    images: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    angles_deg: np.ndarray | None = None,
    files: np.ndarray | None = None,
) -> LabelledImages:
    """`LabelledImages` whose errors name where the data came from."""
    try:
        return LabelledImages(images, labels, classes, angles_deg, files=files)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def join(parts: list[LabelledImages]) -> LabelledImages:
    """Concatenate data of equal classes and image shape. Angles, groups and files are kept if all parts have them."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> np.ndarray | None:
        found = [values for part in parts if (values := getattr(part, name)) is not None]
        return np.concatenate(found) if len(found) == len(parts) else None

    return LabelledImages(
        concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        parts[0].classes,
        *(joined(name) for name in ("angles_deg", "groups", "files")),
    )


def numbered_classes(source: str, highest: int) -> tuple[str, ...]:
    """Class names for labels without names: `0`, `1` and so on, up to the highest label.

    Raises:
        DataError: the highest label is absurd.
    """
    if highest >= MAX_NUMBERED_CLASSES:
        raise DataError(f"{source}: label {highest} is too high to be a class's number; labels count from 0.")
    return tuple(str(number) for number in range(highest + 1))


def max_read_bytes() -> int:
    """Limit on the bytes of arrays that are read at once: `MAX_ARRAY_BYTES`, or the free memory if that is less."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return min(MAX_ARRAY_BYTES, int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        return MAX_ARRAY_BYTES  # not Linux, or hidden
    return MAX_ARRAY_BYTES


def check_options(size: int | None, channels: int | None) -> None:
    """Refuse a size or a number of channels that no model takes (ConfigError)."""
    if size is not None and not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigError(f"Images are {MIN_SIZE} to {MAX_SIZE} pixels a side, but size {size} came.")
    if channels not in (None, 1, 3):
        raise ConfigError(f"Images have 1 channel (grey) or 3 (colour), but {channels} came.")


def validate_and_resize(images: np.ndarray, size: int | None, channels: int | None, source: str) -> np.ndarray:
    """Check an array of images, and convert it to a size and a number of channels.

    Args:
        images: uint8 [N, S, S] or [N, S, S, C].
        size: the side of the result in pixels; None keeps theirs, which must be from 28 to 64.
        channels: 1, 3, or None to keep theirs.
        source: the array's name in messages.

    Returns:
        uint8 [N, S, S, C].

    Raises:
        DataError: another dtype or shape, or a side that needs a `size`.
    """
    if images.dtype != np.uint8:
        raise DataError(f"{source}: images are uint8, but their dtype is {images.dtype}. {uint8_hint(images)}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        channels_first = images.ndim == 4 and images.shape[1] in (1, 3)
        hint = " Its channels stand first: use x.transpose(0, 2, 3, 1)." if channels_first else ""
        raise DataError(
            f"{source}: images are [N, H, W] or [N, H, W, C] with 1 or 3 channels, "
            f"but their shape is {list(images.shape)}.{hint}"
        )
    count, height, width, _ = images.shape
    if not count:
        raise DataError(f"{source}: there are no images.")
    if height != width:
        raise DataError(f"{source}: images are square, but these are {width}×{height}; pad or crop them first.")
    if size is None and not MIN_SIZE <= height <= MAX_SIZE:
        raise DataError(
            f"{source}: images are {MIN_SIZE} to {MAX_SIZE} pixels a side, but these have {height}; "
            "give the size to resize them to (--size, or size= in Python)."
        )
    if not height:
        raise DataError(f"{source}: the images have no pixels.")
    return with_channels(_resize_all(images, size or height), channels)


def with_channels(images: np.ndarray, channels: int | None) -> np.ndarray:
    """Grey to three equal channels, or colour to grey by ITU-R 601, rounded as Pillow does; uint8 [N, H, W, C]."""
    if channels is None or channels == images.shape[-1]:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)
    return (((images.astype(np.uint32) @ weights + 0x8000) >> 16).astype(np.uint8))[..., None]


def _resize_all(images: np.ndarray, size: int) -> np.ndarray:
    if images.shape[1] == size:
        return images
    grey = images.shape[-1] == 1
    result = np.empty((len(images), size, size, images.shape[-1]), dtype=np.uint8)
    for index, image in enumerate(images):
        pixels = np.asarray(resize_square(Image.fromarray(image[..., 0] if grey else image), size))
        result[index] = pixels[..., None] if grey else pixels
    return result
