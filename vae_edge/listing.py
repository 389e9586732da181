"""Find the image files in folders, and say of everything else why it is left out.

A file is an image if its first bytes are those of a format that Pillow decodes and we read, whatever its name. Links
are followed, but never to a folder that the link lies in or that was read already. Data sets and prediction find the
same files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.errors import DataError
from vae_edge.files import open_regular

BROKEN = "broken images"
EMPTY = "empty files"
UNREAD = "images of formats that are not read"
NOT_IMAGES = "files that are not images"
FRAMES = "animations, of which only the first frame is used"
OUTSIDE = "images outside the class folders"
NO_IMAGES = "folders without images"
HIDDEN = "hidden files and folders"
FOREIGN = "folders of other programs"
NO_TARGET = "links that lead nowhere"
SEEN = "links to folders that are read already"
SPECIAL = "pipes, sockets and devices"
DENIED = "files and folders that cannot be opened"
REASONS = (
    *(BROKEN, EMPTY, UNREAD, OUTSIDE, FRAMES, NO_IMAGES, DENIED),
    *(NO_TARGET, SEEN, SPECIAL, NOT_IMAGES, FOREIGN, HIDDEN),
)
"""Why something is left out, in the order of reports."""

SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif"}
)
"""Usual suffixes of the formats that are read. A file with such a name that is no image is broken."""
_UNREAD_SUFFIXES = frozenset(
    {".heic", ".heif", ".tga", ".ico", ".psd", ".svg", ".jxl", ".pcx", ".exr", ".hdr", ".qoi", ".dds", ".sgi"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".pef", ".srw", ".raf"}
)
"""Images of other formats. Camera raw files look like TIFF, and only their preview would be read."""
_FOREIGN_FOLDERS = frozenset({"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information"})

MAX_FILES_LISTED = 1000
"""Files of each reason in `left_out_json`."""

_HEAD_BYTES = 32
_SIGNATURES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"GIF87a",
    b"GIF89a",
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF and BigTIFF
    *(b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),  # JPEG 2000
)
_OTHER_SIGNATURES = (b"8BPS", b"\0\0\x01\0", b"\xff\x0a", b"\0\0\0\x0cJXL ", b"DDS ", b"qoif", b"v/1\x01")
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not used, or not completely."""

    path: str
    """Relative to the folder that was looked through."""
    reason: str
    """One of `REASONS`."""
    error: str = ""
    """Of a broken image: a sentence that says what is wrong with it."""


@dataclass(frozen=True)
class FoundImages:
    """The images in a folder and in its sub-folders."""

    files: list[Path]
    """Sorted by path."""
    left_out: tuple[LeftOut, ...]
    """What else is there, by reason."""

    @property
    def lost(self) -> list[LeftOut]:
        """What of that was meant to be an image, or may hold some, and cannot be read."""
        return [entry for entry in self.left_out if is_lost_image(entry) or entry.reason == DENIED]


def find_images(folder: str | os.PathLike[str]) -> FoundImages:
    """Find every image in a folder, at any depth, as data sets do.

    Raises:
        DataError: it is no folder, it cannot be read, or it holds no images.
    """
    root = Path(folder)
    listing = Listing(root)
    try:
        files = listing.images(root)
    except OSError as error:
        raise DataError(f"{root} cannot be read as a folder: {error}") from error
    if not files:
        raise DataError(f"{root} holds no images{why_none(listing, root)}.")
    return FoundImages(files, listing.left_out)


def is_lost_image(entry: LeftOut) -> bool:
    """Whether what is left out was meant to be an image, and cannot be read."""
    if entry.reason in (BROKEN, UNREAD):
        return True
    return entry.reason in (EMPTY, DENIED, NO_TARGET) and Path(entry.path).suffix.lower() in SUFFIXES


def is_image(head: bytes) -> bool:
    """Whether a file with these first bytes (32 are enough) is an image of a format that is read."""
    if head.startswith(_SIGNATURES):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[:2] == b"BM":
        return int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    if head[:1] == b"P" and head[1:2] in b"123456":
        return head[2:3] in (b" ", b"\t", b"\n", b"\r", b"#")
    return head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS


def _is_other_image(head: bytes) -> bool:
    return head.startswith(_OTHER_SIGNATURES) or (head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS)


class Listing:
    """Looks through the folders of a data set, each once, and records what is left out."""

    def __init__(self, root: Path) -> None:
        """`root`: the folder to which paths of what is left out are relative."""
        self.root = root
        self._left: dict[Path, LeftOut] = {}
        self._scanned: dict[Path, tuple[list[Path], list[Path]]] = {}
        self._walked: dict[Path, list[Path]] = {}

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What is left out, sorted by reason and path."""
        return tuple(sorted(self._left.values(), key=lambda each: (REASONS.index(each.reason), each.path)))

    def leave_out(self, path: Path, reason: str, error: str = "") -> None:
        """Record that a file or folder is not used. The first reason is kept."""
        relative = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        self._left.setdefault(path, LeftOut(relative, reason, error))

    def below(self, folder: Path) -> list[LeftOut]:
        """What is left out of a folder."""
        return [entry for path, entry in self._left.items() if path.is_relative_to(folder)]

    def scan(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The sub-folders and the images directly in a folder, each sorted by name. The rest is left out.

        Raises:
            OSError: the folder cannot be read.
        """
        if folder not in self._scanned:
            folders: list[Path] = []
            images: list[Path] = []
            for path in sorted(folder.iterdir()):
                self._sort(path, folders, images)
            self._scanned[folder] = folders, images
        return self._scanned[folder]

    def images(self, folder: Path) -> list[Path]:
        """Every image in a folder and, at any depth, in its sub-folders, sorted by path.

        Raises:
            OSError: the folder itself cannot be read.
        """
        if folder not in self._walked:
            self.scan(folder)
            self._walked[folder] = self._walk(folder)
        return self._walked[folder]

    def _walk(self, start: Path) -> list[Path]:
        """Breadth first. Real folders come before links, so that of a folder and a link to it the link is left out."""
        seen: set[tuple[int, int]] = set()
        found: list[Path] = []
        real, linked = deque([start]), deque[Path]()
        while real or linked:
            folder = real.popleft() if real else linked.popleft()
            try:
                status = folder.stat()
                identity = (status.st_dev, status.st_ino)
                if identity in seen:
                    self.leave_out(folder, SEEN)
                    continue
                folders, images = self.scan(folder)
            except OSError as error:
                self.leave_out(folder, DENIED, str(error))
                continue
            seen.add(identity)
            found += images
            for child in folders:
                (linked if child.is_symlink() else real).append(child)
        return sorted(found, key=lambda path: path.parts)

    def _sort(self, path: Path, folders: list[Path], images: list[Path]) -> None:
        """Add one entry to the folders or the images, or leave it out."""
        if path.name.startswith("."):
            self.leave_out(path, HIDDEN)
            return
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                self._sort_folder(path, status, folders)
            elif not stat.S_ISREG(status.st_mode):
                self.leave_out(path, SPECIAL)
            elif not status.st_size:
                self.leave_out(path, EMPTY)
            else:
                self._sort_file(path, images)
        except OSError as error:
            leads_nowhere = error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
            self.leave_out(path, NO_TARGET if leads_nowhere else DENIED, str(error))

    def _sort_folder(self, path: Path, status: os.stat_result, folders: list[Path]) -> None:
        if path.name.lower() in _FOREIGN_FOLDERS:
            self.leave_out(path, FOREIGN)
        elif path.is_symlink() and (status.st_dev, status.st_ino) in _above(path.parent):
            self.leave_out(path, SEEN)
        else:
            folders.append(path)

    def _sort_file(self, path: Path, images: list[Path]) -> None:
        try:
            with open_regular(path) as file:
                head = file.read(_HEAD_BYTES)
        except ValueError:  # it became another kind of file in the meantime
            self.leave_out(path, SPECIAL)
            return
        suffix = path.suffix.lower()
        if is_image(head) and suffix not in _UNREAD_SUFFIXES:
            images.append(path)
        elif is_image(head) or _is_other_image(head) or suffix in _UNREAD_SUFFIXES:
            self.leave_out(path, UNREAD)
        elif suffix in SUFFIXES:
            self.leave_out(path, BROKEN, f"{path} holds no image that is read here, although its name says so.")
        else:
            self.leave_out(path, NOT_IMAGES)


def _above(folder: Path) -> set[tuple[int, int]]:
    """The identities (device, inode) of a folder and of its parents."""
    real = Path(os.path.realpath(folder))
    return {(status.st_dev, status.st_ino) for status in (folder.stat() for folder in (real, *real.parents))}


def why_none(listing: Listing, folder: Path) -> str:
    """A clause about what lies in a folder instead of images; empty for an empty folder."""
    found = summarize(listing.below(folder))
    return f", but {'; '.join(found)}" if found else ""


def summarize(left_out: Sequence[LeftOut], names: int = 3) -> list[str]:
    """A phrase for each reason: the number of files, and the first few of them."""
    phrases = []
    for reason in REASONS:
        paths = [each.path for each in left_out if each.reason == reason]
        if paths:
            more = ", …" if len(paths) > names else ""
            phrases.append(f"{reason}: {len(paths)} ({', '.join(paths[:names])}{more})")
    return phrases


def left_out_json(left_out: Sequence[LeftOut]) -> list[dict[str, Any]]:
    """What is left out, for JSON: a list of reasons, each with its count and files; broken ones with what is wrong."""
    by_reason: dict[str, list[LeftOut]] = {}
    for entry in left_out:
        by_reason.setdefault(entry.reason, []).append(entry)
    return [
        {
            "reason": reason,
            "count": len(entries),
            "files": [
                {"file": entry.path, **({"error": entry.error} if entry.error else {})}
                for entry in entries[:MAX_FILES_LISTED]
            ],
        }
        for reason, entries in by_reason.items()
    ]
