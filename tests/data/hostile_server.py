"""A server on the loopback that does what no server should: cases by name, each a function of a connection.

A case is called once for each connection, with the connection, the request's bytes and the request's number from 1.
What it leaves open is closed behind it.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

CONTENT = np.random.default_rng(0).integers(0, 256, 60_000, dtype=np.uint8).tobytes()
BODY = gzip.compress(CONTENT, mtime=0)
SIZE = len(BODY)
ENDLESS = 1 << 28  # bytes of an endless answer; nobody may take as many

Case = Callable[["Visit"], None]


@dataclass
class Visit:
    """One connection to the server."""

    connection: socket.socket
    request: bytes
    number: int
    port: int
    sent: int = 0

    @property
    def start(self) -> int:
        """Where the range begins that is asked for; 0 without one."""
        found = re.search(rb"\r\nRange: bytes=(\d+)-\r\n", self.request)
        return int(found[1]) if found else 0

    @property
    def asks_for_a_range(self) -> bool:
        """Whether the request has a Range."""
        return b"\r\nRange: " in self.request

    def send(self, data: bytes) -> None:
        """Send bytes, and count them."""
        for at in range(0, len(data), 1 << 16):
            self.connection.sendall(data[at : at + (1 << 16)])
            self.sent += len(data[at : at + (1 << 16)])

    def answer(self, body: bytes = b"", *headers: str, status: str = "200 OK", length: str | None = "") -> None:
        """A response; `length` "" is the body's, None none."""
        lines = [f"HTTP/1.1 {status}", *headers]
        if length is not None:
            lines.append(f"Content-Length: {length or len(body)}")
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)

    def forever(self, data: bytes) -> None:
        """Send again and again, as fast as it goes."""
        data *= max(1, (1 << 16) // len(data))
        while self.sent < ENDLESS:
            self.send(data)

    def drip(self, data: bytes, pause_s: float = 0.02) -> None:
        """Send a byte at a time."""
        for byte in data:
            self.send(bytes([byte]))
            time.sleep(pause_s)

    def reset(self) -> None:
        """Break the connection, so that the other side sees a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def honest(self) -> None:
        """The file, from where it was asked for."""
        if self.start >= SIZE:
            self.answer(status="416 Range Not Satisfiable")
        elif self.asks_for_a_range:
            self.answer(
                BODY[self.start :],
                f"Content-Range: bytes {self.start}-{SIZE - 1}/{SIZE}",
                status="206 Partial Content",
            )
        else:
            self.answer(BODY)


@dataclass
class HostileServer:
    """The server: `case` may be changed between requests."""

    port: int
    case: Case
    visits: list[Visit] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/"


def _serve(server: HostileServer, connection: socket.socket, number: int) -> None:
    visit = Visit(connection, b"", number, server.port)
    with contextlib.suppress(OSError, ssl.SSLError), connection:
        connection.settimeout(10)
        while b"\r\n\r\n" not in visit.request and (more := connection.recv(1 << 16)):
            visit.request += more
            if not more.startswith(b"GET") and b"GET" not in visit.request:
                break  # TLS
        server.visits.append(visit)
        server.case(visit)


@contextlib.contextmanager
def serving(case: Case) -> Iterator[HostileServer]:
    """A server until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    server = HostileServer(listener.getsockname()[1], case)

    def accept() -> None:
        number = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            number += 1
            threading.Thread(target=_serve, args=(server, connection, number), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def fixed(raw: bytes) -> Case:
    """Always the same bytes."""
    return lambda visit: visit.send(raw)


def answering(body: bytes = b"", *headers: str, status: str = "200 OK", length: str | None = "") -> Case:
    """Always the same response."""
    return lambda visit: visit.answer(body, *headers, status=status, length=length)


def leading(location: str) -> Case:
    """Always a redirect to there; PORT is the server's own."""
    return lambda visit: visit.answer(
        b"elsewhere", f"Location: {location.replace('PORT', str(visit.port))}", status="302 Found"
    )


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> Case:
    """A response in chunks as given, raw."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return lambda visit: visit.send(head + b"".join(chunks) + end)


def as_chunk(data: bytes) -> bytes:
    """Data as one chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def then(first: Case, times: int = 1) -> Case:
    """The first requests are answered by the case, the others as they should be."""
    return lambda visit: first(visit) if visit.number <= times else visit.honest()


def for_ranges(case: Case) -> Case:
    """Requests of a range are answered by the case, the others as they should be."""
    return lambda visit: case(visit) if visit.asks_for_a_range else visit.honest()


def endless(head: bytes, piece: bytes) -> Case:
    """Something, and then the same again and again."""

    def act(visit: Visit) -> None:
        visit.send(head)
        visit.forever(piece)

    return act


def dripping(head: bytes, slow: bytes) -> Case:
    """Something at once, the rest a byte at a time."""

    def act(visit: Visit) -> None:
        visit.send(head)
        visit.drip(slow)

    return act


def silent(head: bytes = b"") -> Case:
    """Something, and then nothing."""

    def act(visit: Visit) -> None:
        visit.send(head)
        time.sleep(3)

    return act


def cutting(step: int, ranges: bool = True, reset: bool = False) -> Case:
    """Each connection ends after so many bytes of the body, though more were promised."""

    def act(visit: Visit) -> None:
        start = visit.start if ranges else 0
        status = f"HTTP/1.1 206 P\r\nContent-Range: bytes {start}-{SIZE - 1}/{SIZE}" if start else "HTTP/1.1 200 OK"
        visit.send(f"{status}\r\nContent-Length: {SIZE - start}\r\n\r\n".encode() + BODY[start : start + step])
        if reset:
            time.sleep(0.02)
            visit.reset()

    return act
