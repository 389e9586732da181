"""Downloads public data sets: resumed where it broke off, and kept only if the content is what was published."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vae_edge import __version__
from vae_edge.data.idx import CLASSES_FILE, KNOWN_CLASSES
from vae_edge.errors import ConfigError, DataError
from vae_edge.files import write_text

Progress = Callable[[str, int, int | None], None]
"""Told the file's name, how many of its bytes are there, and how many it has (None: unknown)."""

TRIES = 5
"""An address is given up after so many failures in a row."""
TIMEOUT_S = 30.0
MOST_BYTES = 128 << 20
"""No file here is as large; a server that sends more is not the one we want."""
_CHUNK = 1 << 16
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


class _UnusableError(Exception):
    """An address does not give the file."""


def fetch(
    name: str,
    folder: str | os.PathLike[str],
    base_url: str | None = None,
    progress: Progress | None = None,
    retry_wait_s: float = 1.0,
) -> Path:
    """Download a public data set into `folder/name`, where `load_dataset` reads it.

    Files that are there and right are not downloaded again. What a broken download left in a `.part` file is resumed.
    A file gets its final name only after its content was found to be the published one.

    Args:
        name: `mnist` or `fashion-mnist`.
        folder: the folder of data sets.
        base_url: an http(s) address that has the files; None takes the public mirrors in turn.
        progress: told of each file's progress; None shows a bar where standard error is a terminal.
        retry_wait_s: the first pause after a failure; each further one is twice as long.

    Returns:
        the folder of the data set.

    Raises:
        ConfigError: an unknown name; an address that is not http(s).
        DataError: no mirror has a file, the connection keeps failing, the content is wrong, or the disk is full.
    """
    public = DATA_SETS.get(name)
    if public is None:
        raise ConfigError(f"There is no public data set {name!r} to fetch; known are {', '.join(DATA_SETS)}.")
    if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
        raise ConfigError(f"The address to fetch from starts with http:// or https://, but {base_url!r} came.")
    mirrors = (base_url,) if base_url else public.mirrors
    target = Path(folder) / name
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _shown(progress) as report:
            for file in public.files:
                _fetch_file(file, target, mirrors, report, retry_wait_s)
        if name in KNOWN_CLASSES and not (target / CLASSES_FILE).exists():
            write_text(target / CLASSES_FILE, "\n".join(KNOWN_CLASSES[name]) + "\n")
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error}. What was downloaded is kept; make room or choose another folder, "
            "and fetch again."
        ) from error
    return target


def _fetch_file(file: PublicFile, folder: Path, mirrors: tuple[str, ...], report: Progress, wait_s: float) -> None:
    final = folder / file.name
    for there in (final, folder / file.name.removesuffix(".gz")):
        if there.is_file() and _is_right(there, file):
            size = there.stat().st_size
            report(file.name, size, size)
            return
    failures = []
    for mirror in mirrors:
        failure = _fetch_from(f"{mirror.rstrip('/')}/{file.name}", file, final, report, wait_s)
        if failure is None:
            return
        failures.append(failure)
    raise DataError(f"{file.name} could not be fetched: {'; '.join(failures)}.")


def _fetch_from(url: str, file: PublicFile, final: Path, report: Progress, wait_s: float) -> str | None:
    """Fetch from one address; None, or why it is of no use."""
    part = final.with_name(f"{final.name}.part")
    resumed = _size(part) > 0
    try:
        _download(url, part, lambda done, total: report(file.name, done, total), wait_s)
    except _UnusableError as error:
        return str(error)
    if _is_right(part, file):
        part.replace(final)
        return None
    part.unlink()
    if resumed:  # what lay there was of another file: once more, from the start
        return _fetch_from(url, file, final, report, wait_s)
    return f"what {url} sends has not the published SHA-256 {file.sha256}, and was deleted"


def _download(url: str, part: Path, report: Callable[[int, int | None], None], wait_s: float) -> None:
    """Download into `part`, on from its end, until the server has no more to give."""
    failures = 0
    while True:
        before = _size(part)
        try:
            if _receive(url, part, report):
                return
            reason = "it ended early"
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise _UnusableError(f"{url} answers {reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if _size(part) - before >= _CHUNK else failures + 1
        if failures >= TRIES:
            raise _UnusableError(f"the connection to {url} failed {failures} times in a row ({reason})")
        time.sleep(wait_s * 2 ** (failures - 1))


def _receive(url: str, part: Path, report: Callable[[int, int | None], None]) -> bool:
    """One request: append what comes. Whether the file is complete, as far as the server says."""
    offset = _size(part)
    headers = {"User-Agent": f"vae-edge/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return True  # nothing lies beyond what is here; its sum tells whether it is whole
        raise
    with response:
        resumes = response.status == http.HTTPStatus.PARTIAL_CONTENT and str(
            response.headers.get("Content-Range", "")
        ).startswith(f"bytes {offset}-")
        done = offset if resumes else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        with part.open("ab" if resumes else "wb") as out:
            while chunk := _read(response):
                out.write(chunk)
                done += len(chunk)
                if done > MOST_BYTES:
                    raise _UnusableError(f"{url} sends more than {MOST_BYTES >> 20} MiB")
                report(done, total)
            out.flush()
            os.fsync(out.fileno())
    return total is None or done >= total


def _read(response: http.client.HTTPResponse) -> bytes:
    """Some bytes. What breaks here is the connection, while an OSError elsewhere is the disk's."""
    try:
        return response.read(_CHUNK)
    except OSError as error:
        raise ConnectionError(str(error)) from error


def _is_right(path: Path, file: PublicFile) -> bool:
    """Whether the content, uncompressed, is the published one; reads no further than its size."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as raw:
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


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


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
        *columns, bars.TransferSpeedColumn(), bars.TimeRemainingColumn(), console=Console(stderr=True)
    ) as shown:
        tasks: dict[str, bars.TaskID] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = shown.add_task(name, total=total)
            shown.update(tasks[name], completed=done, total=total)

        yield report
