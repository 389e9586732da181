"""Which files of a folder are images, by what they hold and not by their names; and what is left out, and why.

A file is an image if it begins as one of a format that Pillow decodes and we read. Folders are looked through to any
depth. A link to a folder that it lies in, or that was read already, is not followed again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from vae_edge.errors import DataError
from vae_edge.files import open_regular
from vae_edge.text import printable, system_name

CONTACT_SHEET = "contact_sheet.png"
"""What `generate` calls the sheet in the folder that it writes, where it is no image without a class."""
UNLABELLED = ("unlabelled", "unlabeled")
"""The folder, or the array of an .npz, of images without labels. No class can be called so in a folder."""

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
"""Why something is left out, in the order in which it is said."""

SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif"}
)
"""What images that are read are usually called: a file of such a name that holds none is broken."""
_UNREAD_SUFFIXES = frozenset(
    {".heic", ".heif", ".tga", ".ico", ".psd", ".svg", ".jxl", ".pcx", ".exr", ".hdr", ".qoi", ".dds", ".sgi"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".pef", ".srw", ".raf"}
)
"""Images of other formats; camera raw files are TIFF to look at, and only their preview would be read."""
_FOREIGN_FOLDERS = frozenset({"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information"})

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
    """A file or folder that a data set does not use, or not all of."""

    path: str
    """Below the data set's folder."""
    reason: str
    """One of `REASONS`."""
    error: str = ""
    """Of a broken image: a sentence that says what is wrong with it."""

    def is_lost_image(self) -> bool:
        """Whether it was to be an image, and cannot be read."""
        named = Path(self.path).suffix.lower() in SUFFIXES
        return self.reason in (BROKEN, UNREAD) or (self.reason in (EMPTY, DENIED, NO_TARGET) and named)


def is_image(head: bytes) -> bool:
    """Whether a file that begins with these bytes (32 are enough) is an image of a format that is read."""
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
    """Looks through a data set's folder once, and keeps what is left out of it."""

    def __init__(self, root: Path) -> None:
        """`root` is the folder that the names of what is left out are below."""
        self.root = root
        self._left: dict[Path, LeftOut] = {}
        self._scanned: dict[Path, tuple[list[Path], list[Path]]] = {}
        self._walked: dict[Path, list[Path]] = {}

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What is left out, by reason and then by path."""
        return tuple(sorted(self._left.values(), key=lambda each: (REASONS.index(each.reason), each.path)))

    def leave_out(self, path: Path, reason: str, error: str = "") -> None:
        """Say that a file or folder is not used; the first reason stays."""
        below = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        self._left.setdefault(path, LeftOut(below, reason, error))

    def below(self, place: Path) -> list[LeftOut]:
        """What is left out of a folder."""
        return [entry for path, entry in self._left.items() if path.is_relative_to(place)]

    def scan(self, place: Path) -> tuple[list[Path], list[Path]]:
        """The sub-folders and the images directly in a folder, each sorted by name; the rest of it is left out.

        Raises:
            OSError: the folder cannot be read.
        """
        if place not in self._scanned:
            folders: list[Path] = []
            images: list[Path] = []
            for path in sorted(place.iterdir()):
                self._sort(path, folders, images)
            self._scanned[place] = folders, images
        return self._scanned[place]

    def images(self, place: Path) -> list[Path]:
        """Every image in a folder and in its sub-folders, however deep, in the order of their paths.

        Raises:
            OSError: the folder itself cannot be read.
        """
        if place not in self._walked:
            self.scan(place)
            self._walked[place] = self._walk(place)
        return self._walked[place]

    def _walk(self, start: Path) -> list[Path]:
        """Real folders come first, so that a link to one of them is the one left out."""
        seen: set[tuple[int, int]] = set()
        found: list[Path] = []
        real, linked = deque([start]), deque[Path]()
        while real or linked:
            place = real.popleft() if real else linked.popleft()
            try:
                status = place.stat()
                identity = (status.st_dev, status.st_ino)
                if identity in seen:
                    self.leave_out(place, SEEN)
                    continue
                folders, images = self.scan(place)
            except OSError as error:
                self.leave_out(place, DENIED, str(error))
                continue
            seen.add(identity)
            found += images
            for folder in folders:
                (linked if folder.is_symlink() else real).append(folder)
        return sorted(found, key=lambda path: path.parts)

    def _sort(self, path: Path, folders: list[Path], images: list[Path]) -> None:
        """Put one entry of a folder where it belongs."""
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
        except ValueError:  # it became another kind of file since it was looked at
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


def _above(place: Path) -> set[tuple[int, int]]:
    """The identities of a folder and of those that it lies in."""
    real = Path(os.path.realpath(place))
    return {(status.st_dev, status.st_ino) for status in (folder.stat() for folder in (real, *real.parents))}


def class_folders(listing: Listing, place: Path) -> list[Path]:
    """The sub-folders that can be classes: all but the one of images without labels."""
    return [child for child in listing.scan(place)[0] if child.name.lower() not in UNLABELLED]


def unlabelled_folder(listing: Listing, place: Path) -> Path | None:
    """The sub-folder of images without labels, if there is one.

    Raises:
        DataError: there are two, of either spelling.
    """
    found = [child for child in listing.scan(place)[0] if child.name.lower() in UNLABELLED]
    if len(found) > 1:
        raise DataError(f"{place} has both {found[0].name} and {found[1].name}, which mean the same; keep one.")
    return found[0] if found else None


def unlabelled_files(listing: Listing, place: Path) -> list[Path]:
    """Every image in a folder of images without labels.

    Raises:
        DataError: there are none.
    """
    files = listing.images(place)
    if not files:
        raise DataError(
            f"{place} holds no images{why_none(listing, place)}; expected image files in it or in folders inside it. "
            "Remove the folder if there are no images without labels."
        )
    return files


def why_none(listing: Listing, place: Path) -> str:
    """What lies in a folder instead of images; nothing if it is empty."""
    found = summarize(listing.below(place))
    return f", but {'; '.join(found)}" if found else ""


def class_name(folder: Path) -> str:
    """The name of the class whose images lie in a folder: UTF-8 whatever the locale, in Unicode's normal form C.

    Raises:
        DataError: the name is not UTF-8, or holds control characters.
    """
    name = system_name(folder.name)
    if not name.isprintable() or "\ufffd" in name:
        raise DataError(
            f"{folder.parent}: the folder name {printable(name)!r} is not readable as UTF-8 text; rename that class."
        )
    return name


def summarize(left_out: list[LeftOut] | tuple[LeftOut, ...], names: int = 3) -> list[str]:
    """A phrase for each reason: how many files, and the first few of them."""
    phrases = []
    for reason in REASONS:
        paths = [each.path for each in left_out if each.reason == reason]
        if paths:
            more = ", …" if len(paths) > names else ""
            phrases.append(f"{reason}: {len(paths)} ({', '.join(paths[:names])}{more})")
    return phrases
