"""`fetch` against servers, files and disks that do what they should not: it ends soon, with the file or a sentence."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import random
import resource
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_server import (
    BODY,
    CONTENT,
    ENDLESS,
    SIZE,
    Case,
    Visit,
    answering,
    as_chunk,
    chunked,
    cutting,
    dripping,
    endless,
    fixed,
    for_ranges,
    leading,
    serving,
    silent,
    then,
)

from vae_edge.data import fetch as fetching
from vae_edge.data.fetch import Limits, PublicFile, PublicSet, checked_url, fetch_dataset
from vae_edge.errors import ConfigError, DataError, VaeEdgeError

NAME = "data.gz"
FILE = PublicFile(NAME, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
LIMITS = Limits(
    grace_s=1.5, bytes_per_s=1e9, silence_s=0.3, slow_s=0.3, min_bytes_per_s=2000, tries=3, requests=8, redirects=3,
    wait_s=0.01, max_wait_s=0.05,
)  # fmt: skip
PATIENT = Limits(
    grace_s=10, bytes_per_s=1e9, silence_s=1.0, slow_s=1.0, min_bytes_per_s=2000, tries=3, requests=8, redirects=3,
    wait_s=0.01, max_wait_s=0.05,
)  # fmt: skip
BESIDE_S = 8.0  # what a busy machine may take beside
MOST_SENT = 24 << 20  # bytes that one answer may be taken of, with what lies in the sockets' buffers

OK = b"HTTP/1.1 200 OK\r\n"
LONG = OK + b"Content-Length: %d\r\n\r\n" % SIZE
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WRONG = gzip.compress(CONTENT[:-1] + b"\0", mtime=0)

# The file comes in the end.
RIGHT: dict[str, Case] = {
    "as it should be": lambda visit: visit.honest(),
    "in chunks": chunked(as_chunk(BODY[:100]), as_chunk(BODY[100:])),
    "without a length": answering(BODY, length=None),
    "not packed": answering(CONTENT),
    "packed, and said to be packed": answering(BODY, "Content-Encoding: gzip"),
    "a length that is too large": answering(BODY, length=str(SIZE + 10)),
    "a length that is not ASCII": answering(BODY, "Content-Length: \xb2", length=None),
    "a length that is no number": answering(BODY, "Content-Length: many", length=None),
    "a length below 0": answering(BODY, "Content-Length: -1", length=None),
    "a length of ten exabytes": answering(BODY, length="1" + "0" * 19),
    "a length of 5,000 digits": answering(BODY, "Content-Length: " + "1" * 5000, length=None),
    "a web page's type": answering(BODY, "Content-Type: text/html; charset=\xff"),
    "cut, and resumed": cutting(25_000),
    "cut by a reset, and resumed": cutting(25_000, reset=True),
    "cut once, without ranges": then(cutting(25_000, ranges=False)),
    "busy twice": then(answering(status="503 Busy"), 2),
    "reset once": then(lambda visit: visit.reset()),
    "garbage once": then(fixed(b"\x15\x03\x01\x00\x02\x02\x46")),
    "slow once": then(dripping(LONG, BODY)),
    "silent once": then(silent()),
    "trailers without end": endless(CHUNKED + as_chunk(BODY) + b"0\r\n", b"X: y\r\n"),
    "a redirect": then(leading("/elsewhere")),
    "a redirect to a whole address": then(leading("http://localhost:PORT/else%20where?a=b#c")),
    "a redirect that is not ASCII": then(leading("/caf\xe9 \xff")),
    "another range": for_ranges(answering(BODY[5:], f"Content-Range: bytes 5-{SIZE - 1}/{SIZE}", status="206 P")),
    "a range without a place": for_ranges(answering(BODY, status="206 P")),
    "a range of large numbers": for_ranges(answering(BODY, f"Content-Range: bytes {'9' * 5000}-1/*", status="206 P")),
    "a range below 0": for_ranges(answering(BODY, "Content-Range: bytes -5--1/-9", status="206 P")),
    "a range that is not ASCII": for_ranges(answering(BODY, "Content-Range: bytes \xb2-\xb3/\xb9", status="206 P")),
    "the right range, wrong bytes": for_ranges(
        answering(b"x" * 50, f"Content-Range: bytes 1000-1049/{SIZE}", status="206 P")
    ),
    "the right range, without end": for_ranges(
        endless(b"HTTP/1.1 206 P\r\nContent-Range: bytes 1000-9/9\r\n\r\n", b"x")
    ),
    "no such range": for_ranges(answering(status="416 Range Not Satisfiable")),
}  # fmt: skip

# No file comes.
BROKEN: dict[str, Case] = {
    "silence": silent(),
    "silence in the headers": silent(OK + b"Content-Length"),
    "silence before the body": silent(LONG),
    "silence in the body": silent(LONG + BODY[:1000]),
    "a slow status": dripping(b"", b"HTTP/1.1 200 OK" + b" " * 1000),
    "slow headers": dripping(OK, b"X: y\r\n" * 1000),
    "a slow body": dripping(LONG, BODY),
    "a slow body in chunks": dripping(CHUNKED, b"1\r\nx\r\n" * 1000),
    "slow trailers": dripping(CHUNKED + b"0\r\n", b"X: y\r\n" * 1000),
    "a slow body of a redirect": dripping(b"HTTP/1.1 302 F\r\nLocation: /x\r\n\r\n", BODY),
    "nothing": lambda visit: None,
    "a reset": lambda visit: visit.reset(),
    "a reset before the body": cutting(0, reset=True),
    "cuts without progress": cutting(0),
    "cuts of a byte": cutting(1),
    "cuts without ranges": cutting(30_000, ranges=False),
    "garbage": fixed(bytes(range(256)) * 10),
    "garbage without end": endless(b"", b"\xfe"),
    "another protocol": fixed(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "zeros without end": endless(b"", b"\0" * 100),
    "a status without a number": fixed(b"HTTP/1.1 OK\r\n\r\n"),
    "a status of 999": answering(BODY, status="999 \x1b[31m"),
    "a status of 7 digits": answering(BODY, status="2000000 OK"),
    "a status below 0": answering(BODY, status="-20 OK"),
    "another version": fixed(b"HTTP/9.9 200 OK\r\n\r\n"),
    "a status with escapes": answering(status="404 \x1b]0;x\x07\x9b31m"),
    "continue without end": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "early hints without end": endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "another protocol offered": answering(BODY, "Upgrade: h2c", status="101 Switching Protocols"),
    "headers without end": endless(OK, b"X-Header: something\r\n"),
    "a header without end": endless(OK + b"X-Header: ", b"y"),
    "a header of a mebibyte": fixed(OK + b"X-Header: " + b"y" * (1 << 20) + b"\r\n\r\n"),
    "two hundred headers": fixed(OK + b"X: y\r\n" * 200 + b"\r\n" + BODY),
    "headers that are none": fixed(OK + b"\x00\xff: \x1b\r\n\xe2\x80\xae\r\n : \r\n\r\n"),
    "headers that go on": fixed(OK + b"Content-Length: 5\r\n\t\x0b\x1c 5\r\n\r\nabcde"),
    "a body without end": endless(OK + b"\r\n", b"\x1f\x8b"),
    "a body without end, with a length": endless(OK + b"Content-Length: 1\r\n\r\n", b"x"),
    "a body larger than the file": answering(BODY + bytes(SIZE)),
    "a body larger than the file, without a length": answering(BODY + bytes(SIZE), length=None),
    "a length of almost an exabyte": answering(BODY, length="9" * 18),
    "a length of 0": answering(b"", length="0"),
    "a length that is too small": answering(BODY, length="1000"),
    "two lengths": answering(BODY, "Content-Length: 7"),
    "chunks without end": endless(CHUNKED, as_chunk(b"x" * 1000)),
    "chunks of nothing": endless(CHUNKED, b"00\r\n\r\nHTTP"),
    "a chunk without end": endless(CHUNKED + b"ffffffffffffffffffff\r\n", b"x"),
    "a chunk of -1": endless(CHUNKED + b"-1\r\n", b"x"),
    "a chunk of -5": endless(CHUNKED + b"-5\r\n", b"x"),
    "a chunk of no number": chunked(b"zz\r\n"),
    "a chunk's size without end": endless(CHUNKED, b"0"),
    "a chunk's extension without end": endless(CHUNKED + b"5;x=", b"y"),
    "chunks that are cut": chunked(as_chunk(BODY[:1000]), end=b""),
    "an unknown encoding": answering(b"zz" + BODY, "Transfer-Encoding: gzip, chunked", length=None),
    "packed twice": answering(gzip.compress(BODY), "Content-Encoding: gzip"),
    "a web page": answering(b"<html>please log in</html>", "Content-Type: text/html"),
    "other bytes": answering(WRONG),
    "a bomb": answering(gzip.compress(bytes(30_000_000))),
    "half the file": answering(BODY[: SIZE // 2]),
    "empty members without end": answering(gzip.compress(b"") * 3000),
    "an address that asks for a password": answering(status="401 Unauthorized"),
    "too many requests": answering(b"", "Retry-After: 99999999", status="429 Too Many Requests"),
    "a busy server": answering(b"", "Retry-After: 99999999", status="503 Busy"),
    "nothing new": answering(status="304 Not Modified"),
    "no content": answering(status="204 No Content"),
    "a range that was not asked for": answering(BODY, "Content-Range: bytes 9-99/100", status="206 P"),
    "no range where none was asked for": answering(status="416 Range Not Satisfiable"),
    "a redirect to a file": leading("file:///etc/passwd"),
    "a redirect to ftp": leading("ftp://127.0.0.1:PORT/x"),
    "a redirect to data": leading("data:,x"),
    "a redirect to a script": leading("javascript:alert(1)"),
    "a redirect to no host": leading("http:///x"),
    "a redirect to a broken host": leading("http://[::1/x"),
    "a redirect to a port of words": leading("http://127.0.0.1:http/x"),
    "a redirect to port 99999": leading("http://127.0.0.1:99999/x"),
    "a redirect to a host of a thousand letters": leading("http://" + "a" * 1000 + "/x"),
    "a redirect to a host that is not ASCII": leading("http://\xff\xad\x80/x"),
    "a redirect with escapes": leading("ftp://\x1b[31m\x9b/x"),
    "a redirect of 60,000 bytes": leading("/" + "x" * 60_000),
    "an empty redirect": leading(""),
    "a redirect without a place": answering(status="302 Found"),
    "a redirect to itself": leading("http://127.0.0.1:PORT/data.gz"),
    "a redirect to a closed port": leading("http://127.0.0.1:9/x"),
    "a redirect to a name that is not there": leading("http://nowhere.invalid/x"),
    "a redirect to TLS that is none": leading("https://127.0.0.1:PORT/x"),
    "redirects to new places": lambda visit: leading(f"/{visit.number}")(visit),
    "a redirect with a body without end": endless(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", b"x"),
    "several places": fixed(b"HTTP/1.1 302 Found\r\nLocation: /a\r\nLocation: file:///x\r\n\r\n"),
}


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def get(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str, limits: Limits = PATIENT) -> None:
    """Fetch, which may take no longer than its limits say."""
    monkeypatch.setitem(fetching.DATA_SETS, "tiny", PublicSet((FILE,), (url,)))
    start = time.monotonic()
    try:
        fetch_dataset("tiny", folder, limits=limits)
    finally:
        assert time.monotonic() - start < limits.total_s(FILE.max_bytes) + BESIDE_S


def refused(monkeypatch: pytest.MonkeyPatch, folder: Path, url: str) -> str:
    """Fetch, which fails; the sentence."""
    with pytest.raises(DataError) as caught:
        get(monkeypatch, folder, url, LIMITS)
    assert str(caught.value).isascii() and str(caught.value).isprintable()
    return str(caught.value)


def left(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (folder / "tiny").iterdir()}


def is_right(folder: Path) -> bool:
    content = (folder / "tiny" / NAME).read_bytes()
    plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return plain == CONTENT and list(left(folder)) == [NAME]


def start_of_a_part(folder: Path, content: bytes = BODY[:1000]) -> Path:
    (folder / "tiny").mkdir()
    (folder / "tiny" / f"{NAME}.part").write_bytes(content)
    return folder / "tiny" / f"{NAME}.part"


@pytest.mark.parametrize("name", RIGHT)
def test_the_file_comes_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if "range" in name and "without ranges" not in name:
        start_of_a_part(tmp_path)
    with serving(RIGHT[name]) as server:
        get(monkeypatch, tmp_path, server.url)
    assert is_right(tmp_path) and all(visit.sent < MOST_SENT for visit in server.visits)


@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_server_that_gives_no_file_is_given_up_soon_and_what_it_left_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, resumed: bool
) -> None:
    if resumed:
        start_of_a_part(tmp_path)
    with serving(BROKEN[name]) as server:
        told = refused(monkeypatch, tmp_path, server.url)
        assert f"{NAME} could not be fetched. {server.url}{NAME}: " in told
        assert 1 <= len(server.visits) <= LIMITS.requests * (LIMITS.redirects + 1)
        assert all(visit.sent < MOST_SENT for visit in server.visits)
        assert all(name == f"{NAME}.part" and size <= FILE.max_bytes for name, size in left(tmp_path).items())
        server.case = Visit.honest
        get(monkeypatch, tmp_path, server.url)
    assert is_right(tmp_path)


def test_endless_cuts_with_progress_end_with_the_time_and_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = Limits(**{**vars(LIMITS), "requests": 10_000, "tries": 10_000, "wait_s": 0.0, "grace_s": 0.5})
    with serving(cutting(10)) as server:
        with pytest.raises(DataError, match=r"did not give the file in 1 s .*What came is in .*data.gz.part"):
            get(monkeypatch, tmp_path, server.url, patient)
        came = left(tmp_path)[f"{NAME}.part"]
        server.case = Visit.honest
        get(monkeypatch, tmp_path, server.url)
        assert server.visits[-1].start == came > 0
    assert is_right(tmp_path)


def test_a_file_that_comes_in_wrong_halves_is_begun_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = SIZE // 2

    def act(visit: Visit) -> None:
        if visit.asks_for_a_range:
            visit.answer(WRONG[half:], f"Content-Range: bytes {half}-{SIZE - 1}/{SIZE}", status="206 P")
        else:
            visit.answer(BODY[:half], length=str(SIZE))

    patient = Limits(**{**vars(LIMITS), "requests": 1000})
    with serving(act) as server, pytest.raises(DataError, match="is not the published content"):
        get(monkeypatch, tmp_path, server.url, patient)
    assert len(server.visits) == 4 and left(tmp_path) == {}


def test_the_next_mirror_is_asked_whatever_the_first_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(BROKEN["a body without end"]) as bad, serving(Visit.honest) as good:
        monkeypatch.setitem(fetching.DATA_SETS, "tiny", PublicSet((FILE,), (bad.url, good.url)))
        fetch_dataset("tiny", tmp_path, limits=LIMITS)
    assert is_right(tmp_path)


@pytest.mark.parametrize("content", [b"x" * 1000, b"x" * 70_000, BODY + b"\0", BODY, b""])
def test_whatever_lies_in_the_part_the_file_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    start_of_a_part(tmp_path, content)
    with serving(Visit.honest) as server:
        get(monkeypatch, tmp_path, server.url)
    assert is_right(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a device", "link to nowhere"])
def test_a_part_that_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "tiny").mkdir()
    part = tmp_path / "tiny" / f"{NAME}.part"
    if kind == "pipe":
        os.mkfifo(part)
    elif kind == "folder":
        part.mkdir()
    else:
        part.symlink_to("/dev/zero" if kind == "link to a device" else tmp_path / "elsewhere")
    with serving(Visit.honest) as server:
        assert "is not a regular file, and cannot be written; remove it" in refused(monkeypatch, tmp_path, server.url)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", [NAME, "data"])
def test_a_pipe_under_the_file_s_name_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "tiny").mkdir()
    os.mkfifo(tmp_path / "tiny" / name)
    with serving(Visit.honest) as server:
        get(monkeypatch, tmp_path, server.url)
    assert (tmp_path / "tiny" / NAME).read_bytes() == BODY


def test_a_folder_under_the_file_s_name_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny" / NAME).mkdir(parents=True)
    with serving(Visit.honest) as server:
        assert "Is a directory" in refused(monkeypatch, tmp_path, server.url)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 20,000 bytes, as where a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_is_a_sentence_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: None
) -> None:
    with serving(Visit.honest) as server:
        told = refused(monkeypatch, tmp_path, server.url)
    assert f"{NAME}.part cannot be written: File too large." in told and "make room" in told
    assert len(server.visits) == 1 and left(tmp_path) == {f"{NAME}.part": 20_000}


def test_after_a_disk_without_room_the_download_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_of_a_part(tmp_path, BODY[:20_000])
    with serving(Visit.honest) as server:
        get(monkeypatch, tmp_path, server.url)
        assert server.visits[0].start == 20_000
    assert is_right(tmp_path)


def test_a_name_that_is_not_there_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = Limits(**{**vars(LIMITS), "wait_s": 100.0})
    with pytest.raises(DataError, match="could not be fetched"):
        get(monkeypatch, tmp_path, "http://nowhere.invalid/", patient)


def test_tls_of_a_server_that_nobody_vouches_for_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    pem = tmp_path / "own.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-keyout", pem, "-out", tmp_path / "own.crt", "-subj", "/CN=localhost"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "own.crt", pem)

    def secure(visit: Visit) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(visit.request)
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        visit.send(outgoing.read())
        visit.connection.recv(1 << 16)

    with serving(secure) as server:
        told = refused(monkeypatch, tmp_path, server.url.replace("http", "https"))
        assert "SSLCertVerificationError" in told and len(server.visits) == 1


@pytest.mark.parametrize("case", [silent(), lambda visit: visit.reset(), dripping(b"", b"\x16\x03\x03\x40\x00" * 99)])
def test_tls_that_does_not_come_about_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    with serving(case) as server:
        assert "failed 3 times" in refused(monkeypatch, tmp_path, server.url.replace("http", "https"))


@pytest.mark.parametrize(
    "url",
    ["file:///etc", "ftp://localhost/", "http://", "http:///x", "http://[::1", "http://h:port/", "http://h:99999/",
     "http://h/a b", "http://h/\x1b[31m", "http://\udcff/", "http://" + "a" * 1000, "", "localhost:8000", "http://me:secret@h/"],
)  # fmt: skip
def test_an_address_that_is_none_is_a_configuration_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="The address to fetch from starts with http") as caught:
        fetch_dataset("mnist", tmp_path, base_url=url)
    assert str(caught.value).isprintable() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url, expected",
    [
        ("http://h:8/caf\u00e9/%20?\u00e9#part", "http://h:8/caf%C3%A9/%20?%C3%A9"),
        ("https://b\u00fccher.example/", "https://xn--bcher-kva.example/"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
    ],
)
def test_an_address_that_is_not_ascii_is_encoded(url: str, expected: str) -> None:
    assert checked_url(url) == expected


def test_two_thousand_mutated_answers_give_the_file_or_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: a/b\r\n\r\n%s" % (SIZE, BODY),
        b"HTTP/1.1 206 P\r\nContent-Range: bytes 1000-%d/%d\r\nContent-Length: %d\r\n\r\n%s"
        % (SIZE - 1, SIZE, SIZE - 1000, BODY[1000:]),
        CHUNKED + as_chunk(BODY[:500]) + as_chunk(BODY[500:]) + b"0\r\nX: y\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
    )
    pieces = [b"\r\n", b"\n", b":", b" ", b"\0", b"\xff", b"-1", b"99999999999999999999", b"0", b"\x1b", b",", b"416"]
    pieces += [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Connection: keep-alive\r\n", b"HTTP/1.0 "]
    answers: list[bytes] = []
    quick = Limits(**{**vars(LIMITS), "tries": 1, "requests": 1, "silence_s": 1.0})
    monkeypatch.setitem(fetching.DATA_SETS, "tiny", PublicSet((FILE,), ()))
    (tmp_path / "tiny").mkdir()
    part = tmp_path / "tiny" / f"{NAME}.part"
    given = 0
    with serving(lambda visit: visit.send(answers[-1])) as server:
        for seed in range(2000):
            draw = random.Random(seed)
            answer = bytearray(whole[seed % 4])
            head = answer.index(b"\r\n\r\n") + 4
            for _ in range(draw.randint(1, 3)):
                at = draw.randrange(min(head + 20, len(answer)))
                answer[at : at + draw.choice((0, 0, 1, 5))] = draw.choice(pieces)
            answers.append(bytes(answer))
            part.write_bytes(BODY[:1000] if seed % 4 == 1 else b"")
            try:
                fetch_dataset("tiny", tmp_path, base_url=server.url, limits=quick)
            except VaeEdgeError as error:
                assert str(error).isascii() and str(error).isprintable()
            else:
                assert is_right(tmp_path)
                (tmp_path / "tiny" / NAME).unlink()
                given += 1
    assert 100 < given < 1900


def test_the_cases_that_may_not_end_do_not_end_by_themselves() -> None:
    assert ENDLESS > 4 * MOST_SENT
