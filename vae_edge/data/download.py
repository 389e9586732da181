"""One file over HTTP, in bounded time, memory and disk space, whatever the server does.

urllib opens the connection (with the environment's proxies); what it leaves without bound is done here: the time that
headers and body may take as a whole, the bytes that may come, redirects, and how often a broken connection is resumed.
A name's resolution alone is left to the system, whose resolver has limits of its own.
"""

from __future__ import annotations

import functools
import http.client
import io
import os
import re
import socket
import ssl
import stat
import string
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.errors import MessageError
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from vae_edge import __version__
from vae_edge.errors import DataError

Report = Callable[[int, int | None], None]
"""Told how many bytes of a file are there, and how many it has (None: unknown)."""

_CHUNK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_AGAIN = (408, 425, 429)
"""Statuses below 500 after which the same request may succeed."""
_HEADER_BYTES = 8 << 20
"""More than 100 headers of 64 KiB, which is as much as http.client takes."""


@dataclass(frozen=True)
class Limits:
    """How long one address is tried for one file.

    An address gets `grace_s` and a second for each `bytes_per_s` of the largest size that the file may have: with the
    defaults, a minute and 16 KiB a second. A connection is given up when no byte comes for `silence_s`, when its
    headers take longer than that, or when fewer than `slowest_bytes_per_s` came on average in `slow_s`.
    """

    grace_s: float = 60.0
    bytes_per_s: float = 16384.0
    silence_s: float = 30.0
    slow_s: float = 30.0
    slowest_bytes_per_s: float = 1024.0
    tries: int = 5
    """So many failures in a row, without progress between them, end an address."""
    requests: int = 100
    """So many requests end it in any case."""
    redirects: int = 5
    wait_s: float = 1.0
    """The first pause after a failure; each further one in a row is twice as long, up to `longest_wait_s`."""
    longest_wait_s: float = 30.0

    def total_s(self, most_bytes: int) -> float:
        """How long one address may take for a file of at most so many bytes."""
        return self.grace_s + most_bytes / self.bytes_per_s


class UnusableError(Exception):
    """An address does not give the file. The text says why; what the server said is printable ASCII in it."""


class _BrokenError(Exception):
    """A connection broke, or the server asks to come again: the next request may succeed."""


def download(
    url: str,
    part: Path,
    most_bytes: int,
    is_whole: Callable[[Path], bool],
    report: Report,
    limits: Limits,
) -> None:
    """Download into `part`, on from its end, until it is whole.

    When this raises, `part` holds what can be resumed, or is not there.

    Args:
        url: http or https.
        part: the file to write.
        most_bytes: a body that is larger is not of this file.
        is_whole: whether the file at a path has the right content.
        report: told of the progress.
        limits: how long to try.

    Raises:
        UnusableError: if the address does not give the file.
        DataError: if `part` cannot be written.
    """
    end = time.monotonic() + limits.total_s(most_bytes)
    failures, reason, began_again = 0, "no request was allowed", False
    for _ in range(limits.requests):
        before = size_of(part)
        problem = _attempt(url, part, most_bytes, report, limits, end)
        if size_of(part) and is_whole(part):
            return
        reason = str(problem or "what it sends is not the published content")
        if not isinstance(problem, _BrokenError):  # what lies there is of another file: once more, from the start
            part.unlink(missing_ok=True)
            if before == 0 or began_again:
                raise UnusableError(reason)
            began_again = True
            continue
        failures = 1 if size_of(part) - before >= _CHUNK else failures + 1
        if failures >= limits.tries:
            raise UnusableError(f"the connection failed {failures} times in a row ({reason})")
        pause = min(limits.wait_s * 2 ** min(failures - 1, 20), limits.longest_wait_s)
        if time.monotonic() + pause >= end:
            raise UnusableError(f"it did not give the file in {limits.total_s(most_bytes):.0f} s ({reason})")
        time.sleep(pause)
    raise UnusableError(f"it did not give the file in {limits.requests} requests ({reason})")


def checked_url(url: str) -> str:
    """An http(s) address as it can be asked for: what is not ASCII in it is encoded.

    Raises:
        ValueError: if it is none.
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
    """Bytes of a regular file; 0 if there is nothing.

    Raises:
        DataError: if something else is there.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is not a regular file, and cannot be written; remove it, and fetch again.")
    return found.st_size


class _WrongError(Exception):
    """What is in the file is not its beginning."""


class _Allowance:
    """What one request may still take of time and bytes. Asked before and told after each read from the socket."""

    def __init__(self, most_bytes: int, limits: Limits, end: float) -> None:
        now = time.monotonic()
        self._limits, self._end = limits, end
        self._phase_end: float | None = now + limits.silence_s  # of the headers, until the body begins
        self._window, self._window_bytes = now, 0
        self._bytes_left = most_bytes + _HEADER_BYTES

    def body_begins(self) -> None:
        """From now on there is no end of the headers, but a rate."""
        self._phase_end = None
        self._window, self._window_bytes = time.monotonic(), 0

    def timeout_s(self) -> float:
        """How long the next operation may wait."""
        now = time.monotonic()
        left = min(self._end, self._phase_end or self._end) - now
        if left <= 0:
            what = "the time for this address is over" if now >= self._end else "its headers take too long"
            raise TimeoutError(what)
        return min(left, self._limits.silence_s)

    def took(self, count: int) -> None:
        """So many bytes came."""
        now = time.monotonic()
        self._bytes_left -= count
        self._window_bytes += count
        if self._bytes_left < 0:
            raise _WrongError("it sends more than the file has")
        if self._phase_end is None and now - self._window >= self._limits.slow_s:
            if self._window_bytes < self._limits.slowest_bytes_per_s * (now - self._window):
                raise TimeoutError(f"only {self._window_bytes} bytes came in {now - self._window:.0f} s")
            self._window, self._window_bytes = now, 0


class _WatchedFile(io.RawIOBase):
    """The reading side of a socket, each read within the allowance."""

    def __init__(self, sock: socket.socket, allowance: _Allowance) -> None:
        self._socket, self._allowance = sock, allowance
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """It is there for reading."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """What has come, as soon as there is something."""
        self._socket.settimeout(self._allowance.timeout_s())
        count = self._raw.readinto(buffer)
        self._allowance.took(count or 0)
        return count

    def close(self) -> None:
        """Close the socket's file too."""
        if not self.closed:
            self._raw.close()
        super().close()


class _WatchedSocket:
    """What http.client asks of a socket to read a response."""

    def __init__(self, sock: socket.socket, allowance: _Allowance) -> None:
        self._socket, self._allowance = sock, allowance

    def makefile(self, _mode: str) -> BinaryIO:
        """The socket as a file."""
        return io.BufferedReader(_WatchedFile(self._socket, self._allowance))


class _Response(http.client.HTTPResponse):
    def __init__(self, allowance: _Allowance, sock: socket.socket, *rest: Any, **options: Any) -> None:
        super().__init__(_WatchedSocket(sock, allowance), *rest, **options)  # type: ignore[arg-type]


class _Connection(http.client.HTTPConnection):
    """A connection each of whose steps is within the allowance."""

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
    """What TLS trusts: the system's certificates. Reading them takes time, so once."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class _TlsHandler(urllib.request.HTTPSHandler):
    def __init__(self, allowance: _Allowance) -> None:
        super().__init__(context=_tls_context())
        self._allowance = allowance

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open https://, the server's certificate verified."""
        connection = functools.partial(_TlsConnection, self._allowance)
        return self.do_open(connection, req, context=_tls_context())


def _attempt(url: str, part: Path, most_bytes: int, report: Report, limits: Limits, end: float) -> Exception | None:
    """One request; why it failed, or None where all came that the server said."""
    try:
        if size_of(part) > most_bytes:
            return _WrongError("what lay there is larger than the file")
        _receive(url, part, most_bytes, report, limits, end)
    except (_WrongError, _BrokenError) as error:
        return error
    return None


def _receive(url: str, part: Path, most_bytes: int, report: Report, limits: Limits, end: float) -> None:
    """One request: append what comes to `part`. Returns when all came, as far as the server says."""
    offset = size_of(part)
    allowance = _Allowance(most_bytes, limits, end)
    response = _asked(url, offset, allowance, limits)
    with response:
        if response.status == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            return  # nothing lies beyond what is here; its content tells whether it is whole
        _check_status(response, offset)
        done = offset if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
        length = _number(response.headers.get("Content-Length"))
        total = None if length is None else done + length
        if total is not None and total > most_bytes:
            raise UnusableError(f"it has {total} bytes, where the file has {most_bytes} at most")
        allowance.body_begins()
        with _opened(part, done) as out:
            while chunk := _read(response):
                done += len(chunk)
                if done > most_bytes:
                    raise _WrongError(f"it sends more than the {most_bytes} bytes that the file has at most")
                _write(out, chunk, part)
                report(done, total)
            _write(out, b"", part)
    if total is not None and done < total:
        raise _BrokenError(f"it ended after {done} of {total} bytes")


def _asked(url: str, offset: int, allowance: _Allowance, limits: Limits) -> http.client.HTTPResponse:
    """The response to a request, redirects followed, whatever its status."""
    headers = {"User-Agent": f"vae-edge/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    at = url
    for _ in range(limits.redirects + 1):
        opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.ProxyHandler(), _Handler(allowance), _TlsHandler(allowance)):
            opener.add_handler(handler)
        response = _connected(lambda: opener.open(urllib.request.Request(at, headers=headers)))  # noqa: B023
        location = response.headers.get("Location")
        if response.status not in _REDIRECTS or location is None:
            return response
        response.close()  # whatever its body is
        try:
            at = checked_url(quote(urljoin(at, location), encoding="latin-1", safe=string.punctuation))
        except ValueError as error:
            raise UnusableError(f"it leads to {location[:200]!a}: {ascii(str(error))[1:-1]}") from error
    raise UnusableError(f"it leads from one address to the next, more than {limits.redirects} times")


def _connected(act: Callable[[], Any]) -> Any:
    """What a step on the network gives. What breaks there is the connection; an OSError elsewhere is the disk's."""
    try:
        return act()
    except (OSError, http.client.HTTPException, MessageError, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        reason = f"{type(cause).__name__}: {ascii(str(cause))[1:-1][:200]}" if str(cause) else type(cause).__name__
        nowhere = isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN
        if nowhere or isinstance(cause, ssl.SSLCertVerificationError):
            raise UnusableError(f"the connection failed ({reason})") from error
        raise _BrokenError(reason) from error


def _read(response: http.client.HTTPResponse) -> bytes:
    """Some bytes of the body, as they come; none at its end."""
    chunk: bytes = _connected(lambda: response.read1(_CHUNK))
    return chunk


def _check_status(response: http.client.HTTPResponse, offset: int) -> None:
    status = response.status
    known = status in set(http.HTTPStatus)
    answer = f"it answers HTTP {status}{f' {http.HTTPStatus(status).phrase}' if known else ''}"
    if status in _AGAIN or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise _BrokenError(answer)
    if status == http.HTTPStatus.PARTIAL_CONTENT:
        found = re.fullmatch(
            r"bytes +(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", ""), re.A
        )
        if found is None or int(found[1]) != offset:
            raise _WrongError("it sends another range than was asked for")
    elif status != http.HTTPStatus.OK:
        raise UnusableError(answer)


def _number(text: str | None) -> int | None:
    """A header's number of bytes, if it is one."""
    return int(text) if text and re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _opened(part: Path, offset: int) -> BinaryIO:
    """The file, to go on at `offset`. Neither a link is followed nor a pipe waited for."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        out = os.fdopen(os.open(part, flags, 0o666), "wb", buffering=0)
        out.truncate(offset)
        out.seek(offset)
    except OSError as error:
        raise _disk_error(part, error) from error
    return out


def _write(out: BinaryIO, chunk: bytes, part: Path) -> None:
    """Write all of it; nothing is the sign to sync."""
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
