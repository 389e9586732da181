"""Downloads public data sets: resumed where it broke off, and kept only if the content is what was published."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vae_edge.data.download import Limits, UnusableError, checked_url, download, size_of
from vae_edge.data.idx import CLASSES_FILE, KNOWN_CLASSES
from vae_edge.errors import ConfigError, DataError
from vae_edge.files import open_regular, write_text
from vae_edge.text import terminal

Progress = Callable[[str, int, int | None], None]
"""Told the file's name, how many of its bytes are there, and how many it has (None: unknown)."""

_FILES = (
    ("train-images-idx3-ubyte.gz", 47_040_016),
    ("train-labels-idx1-ubyte.gz", 60_008),
    ("t10k-images-idx3-ubyte.gz", 7_840_016),
    ("t10k-labels-idx1-ubyte.gz", 10_008),
)


@dataclass(frozen=True)
class PublicFile:
    """A file as published: its name, and the uncompressed content's size in bytes and SHA-256."""

    name: str
    size: int
    sha256: str

    @property
    def most_bytes(self) -> int:
        """The largest download that can hold it: where gzip finds nothing to shorten, it adds 5 bytes to each block."""
        return self.size + self.size // 1000 + 4096


@dataclass(frozen=True)
class PublicSet:
    """The files of a data set and the servers that have them."""

    files: tuple[PublicFile, ...]
    mirrors: tuple[str, ...]


def _like_mnist(mirrors: tuple[str, ...], *sums: str) -> PublicSet:
    return PublicSet(tuple(PublicFile(*file, sha) for file, sha in zip(_FILES, sums, strict=True)), mirrors)


DATA_SETS = {
    "mnist": _like_mnist(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion-mnist": _like_mnist(
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


def fetch(
    name: str,
    folder: str | os.PathLike[str],
    base_url: str | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Path:
    """Download a public data set into `folder/name`, where `load_dataset` reads it.

    Files that are there and right are not downloaded again. What a broken download left in a `.part` file is resumed.
    A file gets its final name only after its content was found to be the published one. Whatever a server does, an
    address is given up after the time that `Limits` allows: a minute, and a second for each 16 KiB of the file.

    Args:
        name: `mnist` or `fashion-mnist`.
        folder: the folder of data sets.
        base_url: an http(s) address that has the files; None takes the public mirrors in turn.
        progress: told of each file's progress; None shows a bar where standard error is a terminal.
        limits: how long an address is tried; None is `Limits()`.

    Returns:
        the folder of the data set.

    Raises:
        ConfigError: an unknown name; an address that is not http(s).
        DataError: no mirror has a file, the connection keeps failing or is too slow, the content is wrong, or the disk
            is full.
    """
    public = DATA_SETS.get(name)
    if public is None:
        raise ConfigError(f"There is no public data set {name!r} to fetch; known are {', '.join(DATA_SETS)}.")
    mirrors = public.mirrors if base_url is None else (_address(base_url),)
    target = Path(folder) / name
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _shown(progress) as report:
            for file in public.files:
                _fetch_file(file, target, mirrors, report, limits or Limits())
        if name in KNOWN_CLASSES and not (target / CLASSES_FILE).exists():
            write_text(target / CLASSES_FILE, "\n".join(KNOWN_CLASSES[name]) + "\n")
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error}. What was downloaded is kept; make room or choose another folder, "
            "and fetch again."
        ) from error
    return target


def _address(base_url: str) -> str:
    try:
        return checked_url(base_url)
    except ValueError as error:
        raise ConfigError(
            f"The address to fetch from starts with http:// or https:// and names a host, but {base_url!a} came: "
            f"{error}."
        ) from error


def _fetch_file(file: PublicFile, folder: Path, mirrors: tuple[str, ...], report: Progress, limits: Limits) -> None:
    final = folder / file.name
    for there in (final, folder / file.name.removesuffix(".gz")):
        if there.is_file() and _is_right(there, file):
            size = there.stat().st_size
            report(file.name, size, size)
            return
    part = final.with_name(f"{final.name}.part")
    failures = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{file.name}"
        failure = _fetch_from(url, file, part, report, limits)
        if failure is None:
            part.replace(final)
            return
        failures.append(f"{url}: {failure}")
    kept = f" What came is in {part}; the next try goes on from there." if size_of(part) else ""
    raise DataError(f"{file.name} could not be fetched. {'; '.join(failures)}.{kept}")


def _fetch_from(url: str, file: PublicFile, part: Path, report: Progress, limits: Limits) -> str | None:
    """Fetch from one address; None, or why it is of no use."""
    told = functools.partial(report, file.name)
    try:
        download(url, part, file.most_bytes, lambda path: _is_right(path, file), told, limits)
    except UnusableError as error:
        return str(error)
    return None


def _is_right(path: Path, file: PublicFile) -> bool:
    """Whether the content, uncompressed, is the published one; reads no further than its size."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as raw:
        if os.fstat(raw.fileno()).st_size > file.most_bytes:
            return False
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if compressed else raw
        try:
            while chunk := stream.read(1 << 20):
                size += len(chunk)
                if size > file.size:
                    return False
                digest.update(chunk)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return False
    return digest.hexdigest() == file.sha256


@contextlib.contextmanager
def _shown(progress: Progress | None) -> Iterator[Progress]:
    """The caller's progress, else a bar for each file, else silence where nobody looks."""
    if progress is not None or not sys.stderr.isatty():
        yield progress or (lambda _name, _done, _total: None)
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.DownloadColumn())
    with bars.Progress(
        *columns, bars.TransferSpeedColumn(), bars.TimeRemainingColumn(), console=Console(file=terminal())
    ) as shown:
        tasks: dict[str, bars.TaskID] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=total)
            shown.update(tasks[name], completed=done, total=total)

        yield report
