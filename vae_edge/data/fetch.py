"""Download public data sets: resumed where they broke off, verified, in bounded time, memory and disk space.

A file is kept only if its content has the published SHA-256. urllib opens connections, with the environment's proxies.
What urllib leaves unbounded is bounded here, whatever a server does: the total time of headers and body, the bytes
received, redirects, and how often a broken connection is resumed. Only the resolution of names is left to the system,
whose resolver has limits of its own.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.client
import io
import os
import re
import socket
import ssl
import stat
import string
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.errors import MessageError
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from vae_edge import __version__
from vae_edge.data.arrays import CLASSES_FILE, KNOWN_CLASSES
from vae_edge.errors import ConfigError, DataError
from vae_edge.files import open_regular, write_text
from vae_edge.text import terminal

Progress = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes that are there, and its total bytes (None: unknown)."""
Report = Callable[[int, int | None], None]
"""Called with the bytes of a file that are there, and its total bytes (None: unknown)."""

_FILES = (
    ("train-images-idx3-ubyte.gz", 47_040_016),
    ("train-labels-idx1-ubyte.gz", 60_008),
    ("t10k-images-idx3-ubyte.gz", 7_840_016),
    ("t10k-labels-idx1-ubyte.gz", 10_008),
)
_CHUNK_BYTES = 1 << 16
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_RETRYABLE = (408, 425, 429)
"""Statuses below 500 after which the same request may succeed."""
_MAX_HEADER_BYTES = 8 << 20
"""More than the 100 headers of 64 KiB that http.client accepts."""


@dataclass(frozen=True)
class Limits:
    """Limits on one file from one address.

    An address gets `grace_s`, and a second for each `bytes_per_s` of the file's maximum size: by default one minute
    and 16 KiB/s. A connection is given up if no byte comes for `silence_s`, if its headers take longer than that, or if
    fewer than `min_bytes_per_s` came on average in `slow_s`.
    """

    grace_s: float = 60.0
    bytes_per_s: float = 16384.0
    silence_s: float = 30.0
    slow_s: float = 30.0
    min_bytes_per_s: float = 1024.0
    tries: int = 5
    """Maximum consecutive failures without progress."""
    requests: int = 100
    """Maximum requests in total."""
    redirects: int = 5
    wait_s: float = 1.0
    """First pause after a failure. Each further pause in a row is twice as long, up to `max_wait_s`."""
    max_wait_s: float = 30.0

    def total_s(self, max_bytes: int) -> float:
        """Time limit of one address for a file of at most `max_bytes`."""
        return self.grace_s + max_bytes / self.bytes_per_s


@dataclass(frozen=True)
class PublicFile:
    """A published file: its name, and size in bytes and SHA-256 of the uncompressed content."""

    name: str
    size: int
    sha256: str

    @property
    def max_bytes(self) -> int:
        """Maximum size of the download: gzip adds 5 bytes to each block that it cannot compress."""
        return self.size + self.size // 1000 + 4096


@dataclass(frozen=True)
class PublicSet:
    """The files of a data set, and the mirrors that serve them."""

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


def fetch_dataset(
    name: str,
    folder: str | os.PathLike[str],
    base_url: str | None = None,
    progress: Progress | None = None,
    limits: Limits | None = None,
) -> Path:
    """Download a public data set into `folder/name`, where `load_dataset` reads it.

    Verified files are not downloaded again. An incomplete download in a `.part` file is resumed. A file gets its final
    name only after its content was verified. Whatever a server does, an address is given up after the time that
    `Limits` allows: a minute, and a second for each 16 KiB of the file.

    Args:
        name: `mnist` or `fashion-mnist`.
        folder: the data root.
        base_url: an http(s) address of a folder with the files. None: the public mirrors in turn.
        progress: called with each file's progress. None: a progress bar if standard error is a terminal.
        limits: limits on each address. None: `Limits()`.

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
    mirrors = public.mirrors if base_url is None else (_checked_base_url(base_url),)
    target = Path(folder) / name
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _progress_or_bar(progress) as report:
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


def _checked_base_url(base_url: str) -> str:
    try:
        return checked_url(base_url)
    except ValueError as error:
        raise ConfigError(
            f"The address to fetch from starts with http:// or https:// and names a host, but {base_url!a} came: "
            f"{error}."
        ) from error


def _fetch_file(file: PublicFile, folder: Path, mirrors: tuple[str, ...], report: Progress, limits: Limits) -> None:
    final = folder / file.name
    for existing in (final, folder / file.name.removesuffix(".gz")):
        if existing.is_file() and _verify_checksum(existing, file):
            size = existing.stat().st_size
            report(file.name, size, size)
            return
    part = final.with_name(f"{final.name}.part")
    is_complete = functools.partial(_verify_checksum, file=file)
    failures = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{file.name}"
        try:
            download(url, part, file.max_bytes, is_complete, functools.partial(report, file.name), limits)
        except MirrorError as error:
            failures.append(f"{url}: {error}")
        else:
            part.replace(final)
            return
    kept = f" What came is in {part}; the next try goes on from there." if size_of(part) else ""
    raise DataError(f"{file.name} could not be fetched. {'; '.join(failures)}.{kept}")


def _verify_checksum(path: Path, file: PublicFile) -> bool:
    """Whether the uncompressed content is the published one. Reads no further than its size."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as raw:
        if os.fstat(raw.fileno()).st_size > file.max_bytes:
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
def _progress_or_bar(progress: Progress | None) -> Iterator[Progress]:
    """The caller's progress, else a progress bar for each file, else nothing if there is no terminal."""
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


class MirrorError(Exception):
    """An address does not give the file. The message says why; a server's words in it are printable ASCII."""


class _BrokenError(Exception):
    """A connection broke, or the server asks for a later retry: the next request may succeed."""


def download(
    url: str,
    part: Path,
    max_bytes: int,
    is_complete: Callable[[Path], bool],
    report: Report,
    limits: Limits,
) -> None:
    """Download into `part`, resuming at its end, until it is complete.

    When this raises, `part` holds what can be resumed, or does not exist.

    Args:
        url: http or https.
        part: the file to write.
        max_bytes: a larger body is not of this file.
        is_complete: whether the file at a path has the right content.
        report: called with the progress.
        limits: when to give up.

    Raises:
        MirrorError: the address does not give the file.
        DataError: `part` cannot be written.
    """
    end = time.monotonic() + limits.total_s(max_bytes)
    failures, reason, restarted = 0, "no request was allowed", False
    for _ in range(limits.requests):
        before = size_of(part)
        problem = _attempt(url, part, max_bytes, report, limits, end)
        if size_of(part) and is_complete(part):
            return
        reason = str(problem or "what it sends is not the published content")
        if not isinstance(problem, _BrokenError):  # `part` is of another file: start again, once
            part.unlink(missing_ok=True)
            if before == 0 or restarted:
                raise MirrorError(reason)
            restarted = True
            continue
        failures = 1 if size_of(part) - before >= _CHUNK_BYTES else failures + 1
        if failures >= limits.tries:
            raise MirrorError(f"the connection failed {failures} times in a row ({reason})")
        pause = min(limits.wait_s * 2 ** min(failures - 1, 20), limits.max_wait_s)
        if time.monotonic() + pause >= end:
            raise MirrorError(f"it did not give the file in {limits.total_s(max_bytes):.0f} s ({reason})")
        time.sleep(pause)
    raise MirrorError(f"it did not give the file in {limits.requests} requests ({reason})")


def checked_url(url: str) -> str:
    """An http(s) address in the form that requests need: characters beyond ASCII are encoded.

    Raises:
        ValueError: it is not such an address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("it does not start with http:// or https://")
    if not parts.hostname or parts.port == 0:
        raise ValueError("it names no host, or port 0")
    if "@" in parts.netloc:
        raise ValueError("it has a user's name or password, which are not sent")
    if any(character <= " " or character == "\x7f" for character in url):
        raise ValueError("it has a blank or a control character")
    host = parts.hostname.encode("idna").decode()
    netloc = (f"[{host}]" if ":" in host else host) + ("" if parts.port is None else f":{parts.port}")
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, netloc, path, query, ""))


def size_of(path: Path) -> int:
    """Bytes of a regular file; 0 if nothing is there.

    Raises:
        DataError: something else is there.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is not a regular file, and cannot be written; remove it, and fetch again.")
    return found.st_size


class _WrongError(Exception):
    """The `.part` file, or what the server sends, is not of this file."""


class _Allowance:
    """What remains of one request's time and bytes. Checked before each read from the socket, updated after it."""

    def __init__(self, max_bytes: int, limits: Limits, end: float) -> None:
        now = time.monotonic()
        self._limits, self._end = limits, end
        self._phase_end: float | None = now + limits.silence_s  # until the body begins: of the headers
        self._window, self._window_bytes = now, 0
        self._bytes_left = max_bytes + _MAX_HEADER_BYTES

    def body_begins(self) -> None:
        """The time limit of the headers ends, and the minimum rate begins."""
        self._phase_end = None
        self._window, self._window_bytes = time.monotonic(), 0

    def timeout_s(self) -> float:
        """Timeout of the next operation."""
        now = time.monotonic()
        left = min(self._end, self._phase_end or self._end) - now
        if left <= 0:
            what = "the time for this address is over" if now >= self._end else "its headers take too long"
            raise TimeoutError(what)
        return min(left, self._limits.silence_s)

    def took(self, count: int) -> None:
        """Count received bytes."""
        now = time.monotonic()
        self._bytes_left -= count
        self._window_bytes += count
        if self._bytes_left < 0:
            raise _WrongError("it sends more than the file has")
        if self._phase_end is None and now - self._window >= self._limits.slow_s:
            if self._window_bytes < self._limits.min_bytes_per_s * (now - self._window):
                raise TimeoutError(f"only {self._window_bytes} bytes came in {now - self._window:.0f} s")
            self._window, self._window_bytes = now, 0


class _WatchedFile(io.RawIOBase):
    """The reading side of a socket, with the allowance applied to each read."""

    def __init__(self, sock: socket.socket, allowance: _Allowance) -> None:
        self._socket, self._allowance = sock, allowance
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what has arrived, as soon as there is something."""
        self._socket.settimeout(self._allowance.timeout_s())
        count = self._raw.readinto(buffer)
        self._allowance.took(count or 0)
        return count

    def close(self) -> None:
        """Close the socket's file as well."""
        if not self.closed:
            self._raw.close()
        super().close()


class _WatchedSocket:
    """The part of a socket that http.client uses to read a response."""

    def __init__(self, sock: socket.socket, allowance: _Allowance) -> None:
        self._socket, self._allowance = sock, allowance

    def makefile(self, _mode: str) -> BinaryIO:
        """The socket as a file."""
        return io.BufferedReader(_WatchedFile(self._socket, self._allowance))


class _Response(http.client.HTTPResponse):
    def __init__(self, allowance: _Allowance, sock: socket.socket, *rest: Any, **options: Any) -> None:
        super().__init__(_WatchedSocket(sock, allowance), *rest, **options)  # type: ignore[arg-type]


class _Connection(http.client.HTTPConnection):
    """A connection with the allowance applied to each step."""

    def __init__(self, allowance: _Allowance, *rest: Any, **options: Any) -> None:
        super().__init__(*rest, **options)
        self._allowance = allowance
        self.response_class = functools.partial(_Response, allowance)  # type: ignore[assignment]

    def connect(self) -> None:
        """Connect, with TLS where it is https."""
        self.timeout = self._allowance.timeout_s()
        super().connect()


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    """The same over TLS."""


class _Handler(urllib.request.HTTPHandler):
    def __init__(self, allowance: _Allowance) -> None:
        super().__init__()
        self._allowance = allowance

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open http://."""
        return self.do_open(functools.partial(_Connection, self._allowance), req)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Trust in the system's certificates. Cached, since reading them takes time."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class _TlsHandler(urllib.request.HTTPSHandler):
    def __init__(self, allowance: _Allowance) -> None:
        super().__init__(context=_tls_context())
        self._allowance = allowance

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open https://, and verify the server's certificate."""
        connection = functools.partial(_TlsConnection, self._allowance)
        return self.do_open(connection, req, context=_tls_context())


def _attempt(url: str, part: Path, max_bytes: int, report: Report, limits: Limits, end: float) -> Exception | None:
    """One request: why it failed, or None if all came that the server announced."""
    try:
        if size_of(part) > max_bytes:
            return _WrongError("what lay there is larger than the file")
        _receive(url, part, max_bytes, report, limits, end)
    except (_WrongError, _BrokenError) as error:
        return error
    return None


def _receive(url: str, part: Path, max_bytes: int, report: Report, limits: Limits, end: float) -> None:
    """One request: append the body to `part`. Returns when all came that the server announced."""
    offset = size_of(part)
    allowance = _Allowance(max_bytes, limits, end)
    response = _request(url, offset, allowance, limits)
    with response:
        if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return  # nothing lies beyond `part`; its checksum decides
        _check_status(response, offset)
        done = offset if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = _parse_bytes(response.headers.get("Content-Length"))
        total = None if length is None else done + length
        if total is not None and total > max_bytes:
            raise MirrorError(f"it has {total} bytes, where the file has {max_bytes} at most")
        allowance.body_begins()
        with _open_part(part, done) as out:
            while chunk := _run_on_network(lambda: response.read1(_CHUNK_BYTES)):
                done += len(chunk)
                if done > max_bytes:
                    raise _WrongError(f"it sends more than the {max_bytes} bytes that the file has at most")
                _write(out, chunk, part)
                report(done, total)
            _write(out, b"", part)
    if total is not None and done < total:
        raise _BrokenError(f"it ended after {done} of {total} bytes")


def _request(url: str, offset: int, allowance: _Allowance, limits: Limits) -> http.client.HTTPResponse:
    """The response to a request, of any status, after redirects."""
    headers = {"User-Agent": f"vae-edge/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    current = url
    for _ in range(limits.redirects + 1):
        opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.ProxyHandler(), _Handler(allowance), _TlsHandler(allowance)):
            opener.add_handler(handler)
        response = _run_on_network(lambda: opener.open(urllib.request.Request(current, headers=headers)))  # noqa: B023
        location = response.headers.get("Location")
        if response.status not in _REDIRECT_STATUSES or location is None:
            return response
        response.close()  # its body is of no interest
        try:
            current = checked_url(quote(urljoin(current, location), encoding="latin-1", safe=string.punctuation))
        except ValueError as error:
            raise MirrorError(f"it leads to {location[:200]!a}: {ascii(str(error))[1:-1]}") from error
    raise MirrorError(f"it leads from one address to the next, more than {limits.redirects} times")


def _run_on_network(step: Callable[[], Any]) -> Any:
    """Run a step on the network. Its errors are the connection's; an OSError elsewhere is the disk's."""
    try:
        return step()
    except (OSError, http.client.HTTPException, MessageError, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        reason = f"{type(cause).__name__}: {ascii(str(cause))[1:-1][:200]}" if str(cause) else type(cause).__name__
        unknown_host = isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN
        if unknown_host or isinstance(cause, ssl.SSLCertVerificationError):
            raise MirrorError(f"the connection failed ({reason})") from error
        raise _BrokenError(reason) from error


def _check_status(response: http.client.HTTPResponse, offset: int) -> None:
    status = response.status
    known = status in set(http.HTTPStatus)
    answer = f"it answers HTTP {status}{f' {http.HTTPStatus(status).phrase}' if known else ''}"
    if status in _RETRYABLE or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _BrokenError(answer)
    if status == http.HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(
            r"bytes +(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""), re.A
        )
        if found is None or int(found[1]) != offset:
            raise _WrongError("it sends another range than was asked for")
    elif status != http.HTTPStatus.OK:
        raise MirrorError(answer)


def _parse_bytes(text: str | None) -> int | None:
    """The number of bytes that a header states; None if it states none."""
    return int(text) if text and re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _open_part(part: Path, offset: int) -> BinaryIO:
    """Open the file for writing at `offset`. Links are not followed, pipes not waited for."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        out = os.fdopen(os.open(part, flags, 0o666), "wb", buffering=0)
        out.truncate(offset)
        out.seek(offset)
    except OSError as error:
        raise _disk_error(part, error) from error
    return out


def _write(out: BinaryIO, chunk: bytes, part: Path) -> None:
    """Write the chunk; an empty one syncs the file."""
    try:
        rest = memoryview(chunk)
        while rest:
            rest = rest[out.write(rest) :]
        if not chunk:
            os.fsync(out.fileno())
    except OSError as error:
        raise _disk_error(part, error) from error


def _disk_error(part: Path, error: OSError) -> DataError:
    return DataError(
        f"{part} cannot be written: {error.strerror or error}. What was downloaded is kept; make room or choose "
        "another folder, and fetch again."
    )
